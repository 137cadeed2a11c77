"""The process that keeps MLflow level with a sweep while it runs, so that a slow or absent server holds up neither
training nor scheduling."""

import os
import select
import subprocess
import sys
import time
from contextlib import suppress

import tyro
from tyro.conf import Positional

from sgan.bucket import open_store
from sgan.files import StoreError
from sgan.store import Store
from sweeps import tracking

PAUSE, LONGEST_PAUSE = 3.0, 60.0
"""Seconds between passes; the pause doubles while MLflow cannot be reached."""


def start(store: Store, sweep_key: str, uri: str) -> "subprocess.Popen[bytes]":
    """Start the process that follows a sweep. Closing its standard input lets it finish: 0 when all is sent, else 1.

    It has a session of its own, so that Ctrl-C in the driver does not end it before its last pass; what it says goes
    to sweeps/<key>.log in the store.
    """
    command = [sys.executable, "-m", "sweeps.uploader", store.address, sweep_key, uri]
    with open(store.sweep(sweep_key).with_suffix(".log"), "a") as log:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)


def finish(uploader: "subprocess.Popen[bytes]") -> bool:
    """Let the uploader send what is left; returns whether all arrived. One that was killed has a successor, and so has
    one that failed with a database file: it opens everything anew."""
    root, sweep_key, uri = map(str, list(uploader.args)[-3:])  # pyright: ignore[reportArgumentType]
    killed = uploader.poll() is not None
    if not killed and _through(uploader):
        return True
    if killed or uri.startswith(tracking.SQLITE):
        with suppress(OSError, StoreError):  # a disk that is full, or read-only
            return _through(start(open_store(root), sweep_key, uri))
    return False


def _through(uploader: "subprocess.Popen[bytes]") -> bool:
    assert uploader.stdin is not None
    uploader.stdin.close()
    return uploader.wait() == 0


def unsent(store: Store, sweep_key: str, uri: str) -> str:
    """What to say where the uploader could not send all."""
    said = store.sweep(sweep_key).with_suffix(".log").read_text().strip().splitlines()
    last = said[-1] if said else f"the process that sends it was killed; {tracking.later(store, uri)}"
    return f"\nMLflow at {uri} did not get everything; nothing is lost: it is in the store. What went wrong:\n{last}"


def follow(root: Positional[str], sweep_key: Positional[str], uri: Positional[str]) -> int:
    """Keep MLflow level with one sweep until standard input ends. The exit code is 0 when all is sent, else 1.

    Args:
        root: Address of the output store.
        sweep_key: Key of the sweep.
        uri: Tracking URI.
    """
    os.nice(19)  # Ray gives its workers 15: training comes first
    store = open_store(root)
    pause, trouble = 0.0, ""
    while True:
        readable = select.select([sys.stdin], [], [], pause)[0]
        ended = bool(readable) and not os.read(sys.stdin.fileno(), 4096)
        before, trouble = trouble, tracking.attempt(store, [sweep_key], uri, live=not ended)
        if ended and trouble:
            time.sleep(PAUSE)  # the trouble may have been a short one
            trouble = tracking.attempt(store, [sweep_key], uri, live=False)
        if ended:
            tracking.say(trouble and f"{trouble}; {tracking.later(store, uri)}")
            return 1 if trouble else 0
        if bool(before) != bool(trouble):
            tracking.say(f"trying again: {trouble}" if trouble else "MLflow takes what is sent again")
        pause = min(2 * pause, LONGEST_PAUSE) if before and trouble else PAUSE


if __name__ == "__main__":
    sys.exit(tyro.cli(follow))
