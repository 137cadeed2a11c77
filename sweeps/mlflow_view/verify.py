"""Compares what MLflow shows of a sweep with the output store: every point of every metric, every param, tag and
file."""

import math
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgan.store.files import StoreError, sha256
from sgan.store.local import MODELS, Store
from sweeps.mlflow_view import connection
from sweeps.mlflow_view import trial_view as shown
from sweeps.planning.manifest import read
from sweeps.planning.state import state_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LARGEST = 1.7976931348623157e308
"""What MLflow makes of infinity."""


def differences(store: Store, sweep_key: str, uri: str) -> Iterator[str]:
    """What differs, a line each.

    Raises StoreError where the store itself is damaged; OSError, MlflowException or SQLAlchemyError where MLflow cannot
    be reached.
    """
    manifest, client = read(store, sweep_key), connection.connect(uri)
    runs = connection.runs_of(client, sweep_key)
    parents = [run for run in runs if connection.TRIAL not in run.data.tags]
    if len(parents) != 1:
        yield f"sweep {sweep_key} has {len(parents)} parent runs, not 1"
    for parent in parents:
        yield from _manifest(client, parent, manifest)
        settings = {name: str(value)[: connection.LONGEST_PARAM] for name, value in manifest["settings"].items()}
        yield from _values("sweep", "param", settings, parent.data.params)
    for trial in manifest["trials"]:
        mine = [run for run in runs if run.data.tags.get(connection.TRIAL) == trial["run"]]
        state = state_of(store, trial, live=False)
        title = f"{trial['variant']} seed {trial['seed']}"
        if len(mine) != 1 and (mine or shown.begun(store, trial, state)):
            yield f"{title} has {len(mine)} runs, not 1"
        for run in mine:
            with tempfile.TemporaryDirectory() as folder:
                staging, there = Path(folder) / "store", Path(folder) / "mlflow"
                staging.mkdir()
                there.mkdir()
                what = shown.shown(store, manifest, trial, state, {}, staging)
                status = {"status": connection.STATUS[state.outcome], "outcome": state.outcome}
                seen = {"status": run.info.status, "outcome": run.data.tags.get("outcome")}
                yield from _values(title, "state", status, seen)
                params = {name: str(value)[: connection.LONGEST_PARAM] for name, value in what.params.items()}
                yield from _values(title, "param", params, run.data.params)
                yield from _values(title, "tag", what.tags, run.data.tags)
                yield from _points(client, run, title, what.points)
                client.download_artifacts(run.info.run_id, "", str(there))
                yield from _values(title, "file", _files(staging), _files(there))


def check_scores(store: Store, trial: Mapping[str, Any], run: "Run") -> None:
    """Raise StoreError where the run of a finished trial has other scores than the store.

    Args:
        trial: its row in the manifest.
    """
    state = state_of(store, trial, live=False)
    if state.outcome != "done":
        return
    for name, found, value in shown.wrong_scores(state, run.data.metrics):
        raise StoreError(
            f"{name} of {trial['variant']} seed {trial['seed']} is {found} in MLflow and {value} in the store "
            f"{store.address}; send it anew (where mlflow.db is damaged, delete that first): python "
            f"sweeps/tracking.py sync {shlex.quote(store.address)}"
        )


def _manifest(client: "MlflowClient", parent: "Run", manifest: Mapping[str, Any]) -> Iterator[str]:
    try:
        held = connection.manifest_of(client, parent)
    except StoreError:
        held = None
    if held != manifest:
        yield "sweep: manifest.json is not that of the store"


def _values(title: str, kind: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    for name, value in expected.items():
        if name not in found:
            yield f"{title}: {kind} {name} is missing"
        elif found[name] != value:
            yield f"{title}: {kind} {name} is {found[name]!r}, and {value!r} in the store"


def _points(client: "MlflowClient", run: "Run", title: str, expected: list[shown.Point]) -> Iterator[str]:
    """Compares every point of every metric; the time of one may differ, since a resumed stage repeats some."""
    metrics: dict[str, dict[int, float]] = {}
    for point in expected:
        metrics.setdefault(point.metric, {})[point.step] = _plain(point.value)
    for name, points in metrics.items():
        history: dict[int, list[float]] = {}
        for point in client.get_metric_history(run.info.run_id, name):
            history.setdefault(point.step, []).append(_plain(point.value))
        for step, value in points.items():
            seen = history.pop(step, [])
            if not seen:
                yield f"{title}: metric {name} has no point at {step}, and {value} in the store"
            elif len(seen) > 1 or repr(seen[0]) != repr(value):
                yield f"{title}: metric {name} at {step} is {' and '.join(map(str, seen))}, and {value} in the store"
        for step, seen in history.items():
            yield f"{title}: metric {name} at {step} is {' and '.join(map(str, seen))}, and nothing in the store"
    for name in sorted(set(run.data.metrics) - set(metrics)):
        yield f"{title}: metric {name} is not in the store"


def _plain(value: float) -> float:
    return math.copysign(LARGEST, value) if math.isinf(value) else float(value)


def _files(root: Path) -> dict[str, str]:
    """File -> SHA-256, without what MLflow writes around a model at the time of writing."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        inside = name.startswith(f"{MODELS}/data/")
        if path.is_file() and (inside or not name.startswith(f"{MODELS}/")):
            found[shown.WRITTEN_AT.sub("", name)] = sha256(path)
    return found
