"""Prints the ledger of an output store: which process did what when, and what was done in vain.

python sweeps/ledger.py STORE
"""

import collections
import datetime
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import tyro
from tyro.conf import Positional

from sgan.checks import require
from sgan.command_line import later, parse, status
from sgan.store.s3 import find_store


def line(event: Mapping[str, Any]) -> str:
    common = ("time", "host", "process", "event")
    when = datetime.datetime.fromtimestamp(event["time"]).isoformat(" ", "seconds")
    about = ", ".join(f"{name} {value}" for name, value in event.items() if name not in common and value != "")
    return f"{when}  {event['host']}:{event['process']}  {event['event']}: {about}"


def account(events: Sequence[Mapping[str, Any]]) -> str:
    """What was trained more than once: its folder was deleted, or two hosts raced."""
    published = collections.Counter(event["stage"] for event in events if event["event"] == "stage published")
    again = [f"{stage} {count} times" for stage, count in sorted(published.items()) if count > 1]
    return f"trained more than once: {', '.join(again) or 'nothing'}"


def main(store: Positional[str]) -> int:
    """Print every event of the ledger, and an account of them.

    Args:
        store: The output store.
    """
    opened = find_store(store)
    require(opened is not None, f"there is no output store {store}; name the folder that a sweep was given as --store")
    events = opened.events() if opened else []
    print(*map(line, events), account(events), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(status(lambda: parse(lambda: tyro.cli(later(main), prog="python sweeps/ledger.py"))()))
