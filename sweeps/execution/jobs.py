"""Where there is a cluster, a command outlives the terminal it was given in.

It starts a driver, which is the same command in a session of its own, and follows what that prints. Given again, from
any terminal of this machine, it follows the driver that runs. A driver has a folder: lock (held, by flock, while it
lives), log (what it prints), command, pid and, at its end, status. A copy of the log, at most KEEP seconds behind, lies
in the output store, since this machine may go for good: drivers/<time>-<key>.log.
"""

import dataclasses
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sgan.checks import ConfigError, content_key, require
from sgan.store.files import StoreError
from sgan.store.s3 import absolute, find_store
from sweeps.execution.cluster import on_cluster
from sweeps.planning.manifest import command
from sweeps.planning.options import INTERRUPTED, Options

DRIVER = "SGAN_DRIVER"
"""Set in the environment of a driver."""
KILLED = 137
"""Exit status of a command that was killed."""
LOOK = 0.2
"""Seconds between two looks at the log."""
KEEP = 10.0
"""Seconds between two copies of the log."""
PATIENCE = 30.0
"""Seconds that a driver's end waits for the last copy: a bucket may be away."""


def state() -> Path:
    """Folder of the drivers' folders, on this machine."""
    return Path(os.environ.get("SGAN_STATE") or Path.home() / ".local/state/sgan") / "drivers"


def run(main: Callable[[], int], options: Options, script: str) -> int:
    """Run a command here; on a cluster run its driver, or follow the one that runs, and return its exit status.

    Ctrl-C, or the end of the terminal, ends the following alone.

    Raises:
        ConfigError: there is nothing to follow or to stop.
    """
    drives = options.attach or options.stop
    require(
        on_cluster() or not drives,
        "--attach and --stop are for a cluster, and none runs here (`ray up`, then `ray attach`); without one the "
        "command runs in its own terminal, where Ctrl-C stops it",
    )
    if os.environ.get(DRIVER) or options.dry_run or not on_cluster():
        return main()
    if options.attach:
        return follow(_running(), options.stop)
    same = dataclasses.replace(options, stop=False, store=absolute(options.store))
    if same.data is not None:
        same = dataclasses.replace(same, data=same.data.absolute())
    folder = state() / content_key([script, repr(same)])
    if options.stop:
        require(
            folder.is_dir() and _runs(folder), "this command does not run here; --attach --stop stops the one that does"
        )
        return follow(folder, stop=True)
    if not start(folder, same.store, [sys.executable, *sys.orig_argv[1:]], command(script)):
        print("This command runs already; it is followed from its beginning.", flush=True)
    return follow(folder)


def start(folder: Path, store: str, words: list[str], said: str) -> bool:
    """Start a driver, unless the folder's driver runs; returns whether it was started.

    Args:
        store: address of its output store.
        words: its command line.
        said: what `_running` calls it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(folder / "lock", "w") as lock:
        if not _lock(lock.fileno(), fcntl.LOCK_EX):
            return False
        for name in ("status", "pid"):
            (folder / name).unlink(missing_ok=True)
        (folder / "command").write_text(said)
        with open(folder / "log", "w") as log:
            subprocess.Popen(
                [sys.executable, "-m", "sweeps.execution.jobs", str(folder), str(lock.fileno()), store, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[lock.fileno()],  # the lock is theirs from here on
                start_new_session=True,
            )
    return True


def follow(folder: Path, stop: bool = False) -> int:
    """Print what a driver prints until it ends; returns its exit status."""
    if stop:
        os.kill(int((folder / "pid").read_text()), signal.SIGINT)
    try:
        with open(folder / "log", errors="replace") as log:
            while True:
                lives = _runs(folder)
                shutil.copyfileobj(log, sys.stdout)
                sys.stdout.flush()
                if not lives:
                    break
                time.sleep(LOOK)
    except KeyboardInterrupt:
        print(
            "\nIt goes on without this terminal. The same command follows it again, with --stop it stops it.\n"
            f"Its output: {folder / 'log'}",
            flush=True,
        )
        return INTERRUPTED
    try:
        return int((folder / "status").read_text())
    except (OSError, ValueError):
        print("The command was killed, or its machine went down; give it again, and it goes on where it was.")
        return KILLED


def keep(folder: Path, lock: int, store: str, words: list[str]) -> None:
    """Run a driver, note its exit status and copy its log into the store."""
    process = subprocess.Popen(words, pass_fds=[lock], env=os.environ | {DRIVER: "1", "PYTHONUNBUFFERED": "1"})
    _write(folder / "pid", process.pid)
    ended = threading.Event()
    copies = threading.Thread(target=_copy_log, args=(folder, store, ended), daemon=True)
    copies.start()
    status = process.wait()
    _write(folder / "status", status if status >= 0 else 128 - status)
    ended.set()
    copies.join(PATIENCE)


def _copy_log(folder: Path, address: str, ended: threading.Event, pause: float = KEEP) -> None:
    """Copy a driver's log into its store whenever it has grown, until the driver has ended."""
    log, name, copied = folder / "log", f"{time.strftime('%Y%m%dT%H%M%S')}-{folder.name}.log", 0
    while True:
        last = ended.wait(pause)
        # Where the store cannot be reached or written, the driver says so; none is made for a log alone.
        with suppress(OSError, StoreError, ConfigError):
            store, size = find_store(address), log.stat().st_size
            if store and size > copied:
                copy = store.root / "drivers" / name
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(log, copy)
                store.save(copy)
                copied = size
        if last:
            return


def _write(path: Path, number: int) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(str(number))
    temporary.replace(path)


def _running() -> Path:
    """The folder of the one driver that runs."""
    found = [path for path in sorted(state().glob("*")) if _runs(path)]
    if len(found) == 1:
        return found[0]
    commands = "".join(f"\n  {(path / 'command').read_text()}" for path in found)
    raise ConfigError(
        f"several commands run here: give one of them again{commands}" if found else "no command runs here"
    )


def _runs(folder: Path) -> bool:
    with open(folder / "lock", "a") as lock:
        return not _lock(lock.fileno(), fcntl.LOCK_SH)


def _lock(file: int, kind: int) -> bool:
    """Try to lock; others hold the lock for a moment to see whether it is free."""
    for _ in range(5):
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.02)
    return False


if __name__ == "__main__":
    keep(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
