"""CPU seconds that MLflow takes, without the training beside it: the passes over a sweep, made again as it went.

    python benchmarks/tracking.py STORE [--every SECONDS]

STORE holds one sweep that has ended. Its stages are laid out anew, as far as they had come after every so many seconds,
and a pass sends what is new to an SQLite database of its own; the default is one pass, over all of it.
"""

import math
import shutil
import tempfile
import time
from pathlib import Path

import tyro
from mlflow import MlflowClient
from tyro.conf import Positional

from sgan.store.files import RECORD_FILE, read_json, read_record
from sgan.store.local import GRIDS, STAGE_FILE, Store, grid_file
from sweeps.mlflow_view import connection
from sweeps.mlflow_view.sync import sync
from sweeps.planning import manifest


def lay_out(stage: Path, facts: dict, store: Store, now: float) -> None:
    """A finished stage as it was at a time (unix seconds)."""
    work = store.work(stage.name)
    if store.has(stage.name) or facts["finished"] - facts["seconds"] > now:
        return
    if facts["finished"] <= now:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(stage, store.stage(stage.name))
        return
    (work / GRIDS).mkdir(parents=True, exist_ok=True)
    lines = (stage / RECORD_FILE).read_text().splitlines(True) if (stage / RECORD_FILE).exists() else []
    points = [point for point in read_record(stage) if point["time"] <= now]
    (work / RECORD_FILE).write_text("".join(lines[: len(points)]))
    for grid in [grid_file(stage, point["images"]) for point in points]:
        if grid.exists():
            shutil.copyfile(grid, work / GRIDS / grid.name)


def main(store: Positional[Path], every: float = math.inf) -> None:
    """Print the CPU seconds of MLflow's import, of making its database, and of the passes.

    Args:
        store: an output store with one sweep that has ended.
        every: seconds of the sweep between two passes.
    """
    stages = {path.parent: read_json(path) for path in (store / "stages").glob(f"*/{STAGE_FILE}")}
    now = min(facts["finished"] - facts["seconds"] for facts in stages.values())
    end = max(facts["finished"] for facts in stages.values())
    with tempfile.TemporaryDirectory() as folder:
        again = Store(folder)
        shutil.copytree(store / "sweeps", again.root / "sweeps", dirs_exist_ok=True)
        (key,) = manifest.keys(again)
        trials = len(manifest.read(again, key)["trials"])
        uri, took = connection.default_uri(again), [time.process_time()]
        connection.prepare(again, uri)
        MlflowClient("http://127.0.0.1:9")  # nothing is sent there
        took.append(time.process_time())
        MlflowClient(uri).search_experiments()
        took.append(time.process_time())
        passes, spent = 0, 0.0
        while now <= end:
            now += every
            for stage, facts in stages.items():
                lay_out(stage, facts, again, now)
            began = time.process_time()
            sync(again, key, uri, live=now <= end)
            spent, passes = spent + time.process_time() - began, passes + 1
    print(f"import {took[1] - took[0]:.2f} s, database {took[2] - took[1]:.2f} s")
    print(f"{passes} passes over {trials} trials: {spent:.2f} s, {1000 * spent / trials:.0f} ms a trial")


if __name__ == "__main__":
    tyro.cli(main)
