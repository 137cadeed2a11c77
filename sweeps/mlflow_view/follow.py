"""The process that keeps MLflow level with a sweep while it runs, so that a slow or absent server holds up neither
training nor scheduling; at the end it makes the sweep's table, since it alone has imported MLflow."""

import contextlib
import dataclasses
import importlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent import futures
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import tyro
from tyro.conf import Positional

from sgan.checks import ConfigError
from sgan.host import end
from sgan.store.files import StoreError
from sgan.store.local import Store
from sgan.store.s3 import open_store
from sweeps import tracking
from sweeps.mlflow_view import connection
from sweeps.planning.manifest import folder, read

PAUSE, LONGER_PAUSE, LONGEST_PAUSE = 3.0, 10.0, 60.0
"""Seconds between passes: usually; at most for what passes cost; and at most where MLflow cannot be reached, while
which the pause doubles."""
FIRST_STAGE, LOOK = 20.0, 0.5
"""Seconds that the first pass waits, at most, for a stage of the sweep to begin, and between two looks for one, or for
the sweep's end: while workers import torch, MLflow's import, three seconds of a core, would hold them up."""
SHARE = 0.02
"""Of a core: a pass that takes longer than this share of the shortest pause makes the pause longer."""
EVERY = 30.0
"""Seconds between two times that a trial in progress is sent. Each time costs what sending the ended trial costs."""
GROUP = Path("/proc/self/autogroup")
"""Linux's niceness of this process's session towards others (sched(7), autogroup), which any user may raise and lower
from 0 to 19."""
NICENESS = 5
"""Of the session while stages train: where all cores are in use it gets half of what it takes otherwise. With more
niceness runs come to MLflow late (docs/scale.md)."""
SENT, UNSENT, NO_TABLE = 0, 1, 2
"""How the process ends: all is sent, something is not, or all is sent and there is no table of it."""


@dataclass(frozen=True)
class Table:
    """A table that is asked for: the variants and seeds in it, and the folder of a search's plots, as seen from where
    it will stand."""

    variants: Sequence[str]
    seeds: Sequence[int]
    plots: str = ""


def start(store: Store, sweep_key: str, uri: str) -> "subprocess.Popen[bytes]":
    """Start the process that follows a sweep; `finish` lets it end, and takes the table from its standard output.

    It has a session of its own, so that Ctrl-C in the driver does not end it before its last pass; what it says goes
    to sweeps/<key>.log in the store.
    """
    command, pipe = [sys.executable, "-m", "sweeps.mlflow_view.follow", store.address, sweep_key, uri], subprocess.PIPE
    with open((folder(store, sweep_key) / "mlflow.log"), "a") as log:
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, start_new_session=True)


def finish(uploader: "subprocess.Popen[bytes]", table: Table | None = None) -> tuple[int, str]:
    """Let the uploader send what is left and then make a table; returns how it ended, and the table as Markdown. One
    that was killed has a successor, and so has one that failed with a database file: it opens everything anew."""
    root, sweep_key, uri = map(str, list(uploader.args)[-3:])  # pyright: ignore[reportArgumentType]
    killed = uploader.poll() is not None
    if not killed:
        ended, made = _through(uploader, table)
        if ended != UNSENT or not uri.startswith(connection.SQLITE):
            return ended, made
    with suppress(OSError, StoreError):  # a disk that is full, or read-only
        return _through(start(open_store(root), sweep_key, uri), table)
    return UNSENT, ""


def _through(uploader: "subprocess.Popen[bytes]", table: Table | None) -> tuple[int, str]:
    made, _ = uploader.communicate(json.dumps(dataclasses.asdict(table)).encode() if table else b"")
    return uploader.returncode, made.decode()


def unsent(store: Store, sweep_key: str, uri: str) -> str:
    """What to say where the uploader could not send all."""
    last = said(store, sweep_key) or f"the process that sends it was killed; {tracking.later(store, uri)}"
    return f"\nMLflow at {uri} did not get everything; nothing is lost: it is in the store. What went wrong:\n{last}"


def said(store: Store, sweep_key: str) -> str:
    """The last that an uploader of a sweep has said."""
    return ((folder(store, sweep_key) / "mlflow.log").read_text().strip().splitlines() or [""])[-1]


def main(root: Positional[str], sweep_key: Positional[str], uri: Positional[str]) -> int:
    """Keep MLflow level with one sweep until standard input ends; what came through it is the table to print.

    Args:
        root: Address of the output store.
        sweep_key: Key of the sweep.
        uri: Tracking URI.
    Returns:
        The exit status: SENT, UNSENT or NO_TABLE.
    """
    with contextlib.redirect_stdout(sys.stderr):  # there is nothing but the table to be read
        ended, table = _follow(open_store(root), sweep_key, uri)
    print(table, end="", flush=True)
    return ended


def _follow(store: Store, sweep_key: str, uri: str) -> tuple[int, str]:
    aside = futures.ThreadPoolExecutor(1, initializer=_give_way)
    _give_way_to_sessions(NICENESS)
    _await_first_stage(store, sweep_key)
    pause, trouble = 0.0, ""
    while not select.select([sys.stdin], [], [], pause)[0]:
        began = time.process_time()
        sending = aside.submit(tracking.attempt, store, [sweep_key], uri, live=True, every=EVERY)
        while not futures.wait([sending], LOOK).done:
            if select.select([sys.stdin], [], [], 0)[0]:  # the sweep has ended, and waits for this
                _give_way_to_sessions(0)
                break
        before, trouble = trouble, sending.result()
        if bool(before) != bool(trouble):
            tracking.say(f"trying again: {trouble}" if trouble else "MLflow takes what is sent again")
        if not pause:
            aside.submit(importlib.import_module, "sweeps.report")  # with pandas, which takes a second, for the table
        # The first pass imports MLflow and may make its database: the next one will not.
        least = min((time.process_time() - began) / SHARE, LONGER_PAUSE) if pause else 0.0
        pause = min(2 * pause, LONGEST_PAUSE) if before and trouble else max(PAUSE, least)
    asked = sys.stdin.read()
    _give_way_to_sessions(0)
    trouble = tracking.attempt(store, [sweep_key], uri, live=False)
    if trouble:
        time.sleep(PAUSE)  # it may have been a short one
        trouble = tracking.attempt(store, [sweep_key], uri, live=False)
    tracking.say(trouble and f"{trouble}; {tracking.later(store, uri)}")
    return (UNSENT, "") if trouble else _table(store, sweep_key, uri, asked)


def _await_first_stage(store: Store, sweep_key: str) -> None:
    """Wait until a stage of a sweep is in progress on this machine, standard input ends, or it takes long: on a cluster
    it is other machines that train."""
    try:
        trials = read(store, sweep_key)["trials"]
    except (OSError, StoreError):
        return  # the first pass says what is wrong
    folders = {store.work(stage["name"]) for trial in trials for stage in trial["stages"]}
    end = time.monotonic() + FIRST_STAGE
    while time.monotonic() < end and not any(map(os.path.exists, folders)):
        if select.select([sys.stdin], [], [], LOOK)[0]:
            return


def _give_way() -> None:
    """Let this thread run where nothing else of its session or cgroup wants to. A thread alone, since the class cannot
    be left again, and the last pass is waited for."""
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _give_way_to_sessions(niceness: int) -> None:
    """Have this session, where it is this process's own, take less of the processor than others: Linux shares it
    between sessions first, and evenly whatever the classes of their processes."""
    if os.getsid(0) != os.getpid():
        return
    for _ in range(5):
        try:
            GROUP.write_text(str(niceness))
            return
        except BlockingIOError:  # for who is not root, ten times a second on the whole machine
            time.sleep(0.1)
        except OSError:  # no such groups here
            return


def _table(store: Store, sweep_key: str, uri: str, asked: str) -> tuple[int, str]:
    if not asked:
        return SENT, ""
    from sweeps import report
    from sweeps.reporting import results

    table = Table(**json.loads(asked))
    try:
        found = results.read(uri, sweep_key, table.variants, table.seeds, store)
    except (ConfigError, LookupError) as error:
        tracking.say(str(error))
        return NO_TABLE, ""
    return SENT, report.markdown(found, table.plots)


if __name__ == "__main__":
    end(tyro.cli(main))  # the driver waits for it
