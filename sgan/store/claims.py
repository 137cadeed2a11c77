"""Claims between hosts that share a bucket: at most one process holds a name, and one whose holder died is taken over.

A bucket has no locks, but an object can be written on the condition that it is still the one that was read (S3:
If-Match with its ETag), or that there is none (If-None-Match). A claim is one object. Its holder writes it again every
`BEAT` seconds. A process that has watched it for `EXPIRY` seconds without a change takes it over. No two hosts' clocks
are compared. Where nobody reached the bucket, nobody is taken for dead: looks that are far apart begin the wait anew.
"""

import errno
import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from s3fs import S3FileSystem

BEAT, EXPIRY = 10.0, 60.0
APART = 30.0  # Looks that are further apart begin the wait for EXPIRY anew


def swap(fs: S3FileSystem, path: str, body: bytes, etag: str = "") -> bool:
    """Write an object if it is still the one with this ETag, or, without an ETag, if there is none.

    Returns whether the object is now `body`, which no other writer writes. After an error it is read again: the answer
    to a write that succeeded may be lost, and s3fs names a refusal by three exceptions."""
    try:
        fs.pipe_file(path, body, **({"IfMatch": etag} if etag else {"mode": "create"}))
        return True
    except Exception as error:
        if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.ENOSYS:
            raise
        try:
            return fs.cat_file(path) == body
        except FileNotFoundError:
            if etag:
                return False
            raise error from None


class Leases:
    """Claims in one folder of a bucket, on a file system that does not cache listings.

    Callers hold a lock of this host while they ask for a name: a claim of `host` that they find is of a dead process.
    """

    def __init__(self, fs: S3FileSystem, folder: str, host: str):
        self.fs, self.folder, self.host = fs, folder, host
        self.watched: dict[str, tuple[str, float, float]] = {}  # ETag, first and last look that found it

    def take(self, name: str) -> str | None:
        """Try to become the holder; returns a token for `kept`, None where another process holds it. Never waits."""
        etag, claim = self._read(name)
        if not self._is_free(name, etag, claim):
            return None
        token = uuid.uuid4().hex
        return token if self._write(name, etag, token) else None

    def held(self, name: str) -> bool:
        """Whether a process of another host holds a name, as far as this process has seen. Never waits."""
        return not self._is_free(name, *self._read(name))

    @contextmanager
    def kept(self, name: str, token: str) -> Iterator[None]:
        """Renew the claim that `take` gave, and release it at the end."""
        released = threading.Event()
        beating = threading.Thread(target=self._beat, args=(name, token, released), daemon=True)
        beating.start()
        try:
            yield
        finally:
            released.set()
            beating.join()

    def _beat(self, name: str, token: str, released: threading.Event) -> None:
        free = False
        while not free:
            free = released.wait(BEAT)
            with suppress(Exception):  # the bucket does not answer: the next beat may reach it, or the claim expires
                etag, claim = self._read(name)
                if claim.get("token") != token:
                    return  # taken over: this process was silent for too long
                self._write(name, etag, token, free)

    def _is_free(self, name: str, etag: str, claim: dict[str, Any]) -> bool:
        if not claim or claim.get("free") or claim.get("host") == self.host:
            return True
        now = time.monotonic()
        known, first, last = self.watched.get(name, ("", now, now))
        if known != etag or now - last > APART:
            first = now
        self.watched[name] = etag, first, now
        return now - first > EXPIRY

    def _read(self, name: str) -> tuple[str, dict[str, Any]]:
        """ETag and content of a claim, "" and {} where there is none.

        A newer content may come with an older ETag; then a write on the condition of that ETag is refused."""
        etag, claim = "", {}
        with suppress(FileNotFoundError, ValueError, TypeError):  # the last two: somebody damaged it, so it is free
            etag = self.fs.info(f"{self.folder}/{name}").get("ETag", "")
            claim = dict(json.loads(self.fs.cat_file(f"{self.folder}/{name}")))
        return etag, claim

    def _write(self, name: str, etag: str, token: str, free: bool = False) -> bool:
        claim = {"host": self.host, "token": token, "free": free, "beat": uuid.uuid4().hex}
        return swap(self.fs, f"{self.folder}/{name}", json.dumps(claim).encode(), etag)
