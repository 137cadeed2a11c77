"""The ledger of a store: events as lines with a CRC, in one file for each process, which no other process writes.

It says when a process did something, for people. No result depends on it.
"""

import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sgan.store.files import StoreError, checked_line, read_lines

ADVICE = "delete it: it is an account of the past, and no result depends on it"


def append(path: Path, event: str, about: Mapping[str, Any]) -> None:
    """Add an event to this process's file; where the disk does not take it, it is left out."""
    origin = {"time": time.time(), "host": platform.node(), "process": os.getpid()}
    line = checked_line({**origin, "event": event, **about}).encode()
    with suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        with open(path, "ab", buffering=0) as file:
            before = file.tell()
            if file.write(line) < len(line):  # the disk is full: half a line would spoil the next
                file.truncate(before)


def read(folder: Path) -> list[dict[str, Any]]:
    """All events of a folder, the earliest first; StoreError where a file is damaged."""
    events = []
    for path in folder.glob("*.jsonl"):
        try:
            text = path.read_text()
        except (ValueError, OSError) as error:
            raise StoreError(f"{path} cannot be read ({error}); {ADVICE}") from error
        events += read_lines(text, path, ADVICE)
    return sorted(events, key=lambda event: event["time"])
