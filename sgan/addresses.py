"""Addresses as they may be shown, logged and recorded: without passwords, tokens and keys."""

import re

MASK = "HIDDEN"
_SECRET = r"[\w.-]*(?:password|passwd|passphrase|secret|token|credential)[\w.-]*|pwd|pass|key|api_?key|sig|signature"
_RULES = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        # scheme://user:password@host, also where the password holds "/" or "@"; a path with "@" in it is none
        (r"(//)(?=[^/\s]*(?::|@|%40))(?!/)\S*(?:@|%40)", rf"\1{MASK}@"),
        (r"([?&][\w.-]+=)[^&\s]*(?:@|%40)", rf"\1{MASK}@"),  # ?endpoint_override=KEY:SECRET@host
        (rf"((?:^|[?&;\s'\"])(?:{_SECRET})=)[^&\s'\"]+", rf"\1{MASK}"),  # ?password=, and "password=" of libpq
    )
)


def masked(text: str) -> str:
    """A text with addresses in it, such as a command line or an error, with "HIDDEN" in place of what is secret.

    Where it is not clear what belongs to a password, more than that is hidden."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text
