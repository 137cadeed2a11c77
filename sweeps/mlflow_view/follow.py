"""The process that sends a running sweep to MLflow, so that a slow or absent server delays no training."""

import os
import select
import subprocess
import sys
import time
from contextlib import suppress

from sgan.store.files import share
from sgan.store.local import Store
from sgan.store.s3 import open_store
from sweeps.mlflow_view.connection import PASS_SECONDS, VARIABLE
from sweeps.mlflow_view.sync import attempt, later, send_rest
from sweeps.planning.manifest import folder

PAUSE, LONGEST_PAUSE = 5.0, 60.0  # Seconds between passes. The pause doubles while MLflow does not answer.
TOLD_SECONDS = 5.0  # Seconds after which a command prints that it waits for MLflow
SHARE = 0.1  # The share of a core that passes may use: an expensive pass makes the next pause longer
LOG, STORE = "mlflow.log", "SGAN_STORE"


def start(store: Store, sweep_key: str, uri: str) -> "subprocess.Popen[bytes]":
    """Start the process that follows a sweep. It ends when its standard input closes, also if its parent dies.

    Ctrl-C in the parent's terminal does not reach its session. It writes to mlflow.log in the sweep's folder.
    """
    command, pipe = [sys.executable, "-P", "-m", "sweeps.mlflow_view.follow", sweep_key], subprocess.PIPE
    secrets = os.environ | {STORE: store.address, VARIABLE: uri}  # every local user can read a command line
    path = folder(store, sweep_key) / LOG
    with open(path, "a") as log:
        share(path)
        return subprocess.Popen(command, stdin=pipe, stdout=log, stderr=log, env=secrets, start_new_session=True)


def finish(
    process: "subprocess.Popen[bytes]", store: Store, sweep_key: str, uri: str, seconds: float | None = None
) -> str:
    """Wait until the process has sent the rest; if it was killed or failed, send the rest from here.

    With `seconds`, wait at most that long and send nothing from here: the process then ends by itself. Without it, the
    process is killed after PASS_SECONDS. Returns "", or one line: what went wrong and how to send the rest later.
    """
    try:
        if seconds is None:
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=TOLD_SECONDS)
            if process.poll() is None:
                print(f"waiting until MLflow has the rest, for {PASS_SECONDS / 60:g} minutes at most", flush=True)
        process.communicate(timeout=seconds or PASS_SECONDS)
    except subprocess.TimeoutExpired:
        if seconds is None:
            process.kill()
            return later(store, uri, f"it was not done within {PASS_SECONDS:g} s")
    return send_rest(store, sweep_key, uri) if process.returncode and seconds is None else ""


def main(sweep_key: str) -> int:
    """Send new content of a sweep to MLflow until standard input closes; returns 1 if something could not be sent. The
    addresses of the store and of MLflow are in the environment."""
    store, uri, pause, trouble = open_store(os.environ[STORE]), os.environ[VARIABLE], 0.0, ""
    while not select.select([sys.stdin], [], [], pause)[0]:
        began, before = time.process_time(), trouble
        trouble = attempt(store, [sweep_key], uri, live=True)
        if bool(before) != bool(trouble):
            print(f"trying again: {trouble}" if trouble else "MLflow accepts results again", flush=True)
        used = time.process_time() - began
        pause = min(max(PAUSE, 2 * pause if trouble else used / SHARE), LONGEST_PAUSE)
    trouble = send_rest(store, sweep_key, uri)
    print(trouble, end="\n" if trouble else "", flush=True)
    return 1 if trouble else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
