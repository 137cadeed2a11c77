"""Check the addresses of output stores, and hide passwords and keys in any text that is shown or recorded."""

import os
import re

from sgan.checks import require

MASK = "HIDDEN"
_SECRET = r"[\w.-]*(?:password|passwd|passphrase|secret|token|credential)[\w.-]*|pwd|pass|key|api_?key|sig|signature"
_RULES = (
    # scheme://user:password@host; the password may hold "/" or "@". A path that holds "@" does not match.
    (r"(//)(?=[^/\s]*(?::|@|%40))(?!/)\S*(?:@|%40)", rf"\1{MASK}@"),
    (r"([?&][\w.-]+=)[^&\s]*(?:@|%40)", rf"\1{MASK}@"),  # ?endpoint_override=KEY:SECRET@host
    (rf"((?:^|[?&;\s'\"])(?:{_SECRET})=)[^&\s'\"]+", rf"\1{MASK}"),  # ?password=, and "password=" of libpq
)


def masked(text: str) -> str:
    """Return a text, such as a command line or an error, with "HIDDEN" in place of each password and key.

    Where the end of a password is unclear, more than the password is hidden."""
    for pattern, replacement in _RULES:
        text = re.sub(pattern, replacement, text, flags=re.IGNORECASE)
    return text


def store_address(text: str) -> str:
    """Return a store's address with ~ expanded to the home folder; ConfigError where it names no folder or bucket."""
    told = f"the store's address is {text!r}"
    require(bool(text.strip()), f"{told}: name a folder, or s3://bucket/folder (is a variable of the script unset?)")
    require(text.isprintable() and text == text.strip(), f"{told}: remove unprintable characters and outer spaces")
    address = os.path.expanduser(text) if text.startswith("~") else text
    require(not address.startswith("~"), f"{told}: there is no such user; name a folder, or s3://bucket/folder")
    return address.rstrip("/") if is_bucket(address) else address.rstrip("/") or "/"


def is_bucket(address: str) -> bool:
    """Return whether an address names a bucket, and not a folder; ConfigError where it names neither."""
    scheme, separator, folder = address.partition("://")
    known = not separator or (scheme == "s3" and folder[:1] not in ("", "/", "?"))
    require(known, f"the store {address} cannot be opened; name a folder that all hosts share, or s3://bucket/folder")
    return bool(separator)
