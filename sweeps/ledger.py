"""Prints the ledger of an output store: the events of every process, and the stages that were trained more than once.

python sweeps/ledger.py STORE
"""

import collections
import datetime
import sys

import tyro

from sgan.checks import ConfigError
from sgan.command_line import StoreAddress, later, parse, status
from sgan.store.s3 import find_store


def main(store: StoreAddress) -> None:
    """Print every event of the ledger, then the stages that were trained more than once.

    Args:
        store: The output store.
    """
    opened = find_store(store)
    if opened is None:
        raise ConfigError(f"there is no output store {store}; name the folder that a sweep was given as --store")
    published = collections.Counter[str]()
    for event in opened.events():
        when = datetime.datetime.fromtimestamp(event.pop("time")).isoformat(" ", "seconds")
        host, process, what = (event.pop(name) for name in ("host", "process", "event"))
        about = ", ".join(f"{name} {value}" for name, value in event.items() if value != "")
        print(f"{when}  {host}:{process}  {what}: {about}")
        published.update([event["stage"]] if what == "stage published" else [])
    # A stage is published again if its folder was deleted, or if two hosts raced.
    again = [f"{stage} {count} times" for stage, count in sorted(published.items()) if count > 1]
    print(f"trained more than once: {', '.join(again) or 'nothing'}")


if __name__ == "__main__":
    sys.exit(status(lambda: parse(lambda: tyro.cli(later(main), prog="python sweeps/ledger.py"))()))
