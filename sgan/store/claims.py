"""Claims between hosts that share a bucket: at most one process holds a name, and a dead holder's claim expires.

A bucket has no locks, but S3 has conditional writes: only if the object is still the one that was read (If-Match with
its ETag), or only if there is none (If-None-Match). A claim is one object. Its holder writes it again every `BEAT`
seconds. A process that sees no change for `EXPIRY` seconds takes it over. Clocks of two hosts are never compared. A gap
of more than `APART` seconds between two looks restarts the wait, since nobody may have reached the bucket meanwhile.
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
AGAIN = 1.0  # Seconds until a beat that did not reach the bucket is tried again
APART = 30.0  # A longer gap between two looks restarts the wait for EXPIRY


def swap(fs: S3FileSystem, path: str, body: bytes, etag: str = "") -> bool:
    """Write an object if it still has this ETag, or, without an ETag, if it does not exist.

    Returns whether the object is now `body`, which no other writer writes. After an error it is read again: the
    response to a successful write may be lost, and s3fs reports a refusal by three kinds of exceptions."""
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

    Callers of `take` hold this host's lock on the name: a claim of `host` that they find has a dead holder.
    """

    def __init__(self, fs: S3FileSystem, folder: str, host: str):
        self.fs, self.folder, self.host = fs, folder, host
        self.watched: dict[str, tuple[str, float, float]] = {}  # name -> ETag, times of the first and last look at it
        self.lost = set[str]()  # names that another host has taken over from this process

    def take(self, name: str) -> str | None:
        """Try to become the holder; returns a token for `kept`, None where another process holds it. Never waits."""
        etag, claim = self._read(name)
        if not self._is_free(name, etag, claim):
            return None
        token = uuid.uuid4().hex
        return token if self._write(name, etag, token) else None

    def held(self, name: str) -> bool:
        """Whether a process of another host holds a name, as far as this process has seen. Never waits. A claim that
        has expired is marked as free, so that no other process has to wait for that again."""
        etag, claim = self._read(name)
        free = self._is_free(name, etag, claim)
        if free and claim and not claim.get("free") and claim.get("host") != self.host:
            self._write(name, etag, "", free=True)
        return not free

    @contextmanager
    def kept(self, name: str, token: str) -> Iterator[None]:
        """Renew the claim that `take` gave, and release it at the end."""
        self.lost.discard(name)
        released = threading.Event()
        beating = threading.Thread(target=self._beat, args=(name, token, released), daemon=True)
        beating.start()
        try:
            yield
        finally:
            released.set()
            beating.join(BEAT)  # a bucket may not answer

    def _beat(self, name: str, token: str, released: threading.Event) -> None:
        free, pause = False, BEAT
        while not free:
            free, pause = released.wait(pause), AGAIN
            with suppress(Exception):  # the bucket does not answer: a later beat may reach it, or the claim expires
                etag, claim = self._read(name)
                if claim.get("token") != token:
                    if not released.is_set():
                        self.lost.add(name)
                    return
                self._write(name, etag, token, free)
                pause = BEAT

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
        """Return the ETag and content of a claim, "" and {} where there is none.

        A newer content may come with an older ETag; then a write with that ETag is refused."""
        etag, claim = "", {}
        with suppress(FileNotFoundError, ValueError, TypeError):  # the last two: it is damaged, so it is free
            etag = self.fs.info(f"{self.folder}/{name}").get("ETag", "")
            claim = dict(json.loads(self.fs.cat_file(f"{self.folder}/{name}")))
        return etag, claim

    def _write(self, name: str, etag: str, token: str, free: bool = False) -> bool:
        claim = {"host": self.host, "token": token, "free": free, "beat": uuid.uuid4().hex}
        return swap(self.fs, f"{self.folder}/{name}", json.dumps(claim).encode(), etag)
