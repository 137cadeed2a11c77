"""Claims between hosts that share a bucket: at most one process holds a name, and one whose holder died is taken over.

A bucket has no locks, but an object can be created on the condition that there is none of its name (S3:
If-None-Match). Each claim of a name is an object with the next number, `<folder>/<name>/<number>`; the highest one
rules. Its holder renews it every `BEAT` seconds; who has looked at it for `EXPIRY` seconds, and seen no change, creates
the next one, which only one process can. No two hosts' clocks are compared; and where nobody reached the bucket, nobody
is taken for dead, since looks that are far apart begin the wait anew.
"""

import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

BEAT, EXPIRY = 10.0, 60.0
APART = 30.0
"""Looks that are further apart begin the wait for EXPIRY anew."""


@dataclass
class _Seen:
    """A claim, its beat, and when this process saw it first and last without a change."""

    number: int
    beat: str
    first: float
    last: float


class Leases:
    """Claims in one folder of a bucket.

    Args:
        fs: fsspec's file system, which does not cache listings.
        folder: where claims lie.
        host: names this host: among the processes of one host, the caller lets only one at a time ask for a name, so
            that a claim which this host holds is that of a process that died.
    """

    def __init__(self, fs: Any, folder: str, host: str):
        self.fs, self.folder, self.host = fs, folder, host
        self.seen: dict[str, _Seen] = {}

    @contextmanager
    def held(self, name: str, number: int) -> Iterator[None]:
        """Renew a claim that `take` gave, and release it at the end."""
        released = threading.Event()
        beating = threading.Thread(target=self._beat, args=(name, number, released), daemon=True)
        beating.start()
        try:
            yield
        finally:
            released.set()
            beating.join()
            with suppress(Exception):  # the bucket does not answer: the claim expires
                self._write(name, number, free=True)
                # The one that says "free" stays: were the highest number deleted, two could hold different numbers.
                for older in self._numbers(name):
                    if older < number:
                        self._remove(name, older)

    def take(self, name: str) -> int | None:
        """Try to become the holder; returns the claim's number, None where another process holds it. Never waits."""
        top = max(self._numbers(name), default=0)
        if top and not self._dead(name, top):
            return None
        try:
            self._write(name, top + 1, mode="create")
        except FileExistsError:
            return None
        if max(self._numbers(name), default=0) > top + 1:  # our look at the numbers was an old one
            self._remove(name, top + 1)
            return None
        return top + 1

    def _dead(self, name: str, number: int) -> bool:
        """Whether a claim is released, or its holder has died."""
        try:
            claim = json.loads(self.fs.cat_file(self._path(name, number)))
        except FileNotFoundError:  # just followed by a higher one
            return False
        if claim["free"] or claim["host"] == self.host:
            return True
        now = time.monotonic()
        known = self.seen.get(name)
        same = known is not None and (known.number, known.beat) == (number, claim["beat"])
        if known is None or not same or now - known.last > APART:
            known = self.seen[name] = _Seen(number, claim["beat"], now, now)
        known.last = now
        return now - known.first > EXPIRY

    def _beat(self, name: str, number: int, released: threading.Event) -> None:
        while not released.wait(BEAT):
            with suppress(Exception):  # the bucket does not answer: the next beat may reach it
                if max(self._numbers(name), default=0) > number:
                    return  # taken over: this process was silent for too long
                self._write(name, number)

    def _write(self, name: str, number: int, free: bool = False, mode: str = "overwrite") -> None:
        claim = {"host": self.host, "beat": uuid.uuid4().hex, "free": free}
        self.fs.pipe_file(self._path(name, number), json.dumps(claim).encode(), mode=mode)

    def _numbers(self, name: str) -> list[int]:
        found = (path.rpartition("/")[2] for path in self.fs.find(f"{self.folder}/{name}"))
        # s3fs finds the folder itself where its first object appears between two of its requests.
        return [int(number) for number in found if number.isdigit()]

    def _remove(self, name: str, number: int) -> None:
        self.fs.rm_file(self._path(name, number))

    def _path(self, name: str, number: int) -> str:
        return f"{self.folder}/{name}/{number}"
