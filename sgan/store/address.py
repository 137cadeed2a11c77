"""Addresses of stores: a folder's path, or s3://bucket/folder."""

import os

from sgan.checks import require


def store_address(text: str) -> str:
    """An address as it is used, with ~ as the home folder; ConfigError for one that names nothing."""
    told = f"the store's address is {text!r}"
    require(bool(text.strip()), f"{told}: name a folder, or s3://bucket/folder (is a variable of the script unset?)")
    require(text.isprintable() and text == text.strip(), f"{told}: take out what is no part of a name")
    address = os.path.expanduser(text) if text.startswith("~") else text
    require(not address.startswith("~"), f"{told}: there is no such user; name a folder, or s3://bucket/folder")
    return address.rstrip("/") if is_bucket(address) else address.rstrip("/") or "/"


def is_bucket(address: str) -> bool:
    """Whether an address names a bucket; ConfigError where it names neither that nor a folder."""
    scheme, separator, folder = address.partition("://")
    known = not separator or (scheme == "s3" and folder[:1] not in ("", "/", "?"))
    require(known, f"the store {address} cannot be opened; name a folder that all hosts share, or s3://bucket/folder")
    return bool(separator)
