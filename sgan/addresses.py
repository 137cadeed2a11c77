"""Addresses: those of stores, and all of them as they may be shown and recorded, without passwords and keys."""

import os
import re

from sgan.checks import require

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


def store_address(text: str) -> str:
    """An address as it is used, with ~ as the home folder; ConfigError for one that names nothing."""
    told = f"the store's address is {text!r}"
    require(bool(text.strip()), f"{told}: name a folder, or s3://bucket/folder (is a variable of the script unset?)")
    require(text.isprintable() and text == text.strip(), f"{told}: take out what is no part of a name")
    address = os.path.expanduser(text) if text.startswith("~") else text
    require(not address.startswith("~"), f"{told}: there is no such user; name a folder, or s3://bucket/folder")
    return address.rstrip("/") if is_bucket(address) else address.rstrip("/") or "/"


def is_bucket(address: str) -> bool:
    """Whether a store's address names a bucket; ConfigError where it names neither that nor a folder."""
    scheme, separator, folder = address.partition("://")
    known = not separator or (scheme == "s3" and folder[:1] not in ("", "/", "?"))
    require(known, f"the store {address} cannot be opened; name a folder that all hosts share, or s3://bucket/folder")
    return bool(separator)
