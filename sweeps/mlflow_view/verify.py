"""Compares what MLflow shows of a sweep with the output store: every value, param, tag and file."""

import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from mlflow.entities import Metric

from sgan.store.files import sha256
from sgan.store.local import MODELS, Store
from sweeps.mlflow_view.connection import connect
from sweeps.mlflow_view.runs import STATUS, TRIAL, as_params, runs_of
from sweeps.mlflow_view.trial import begun, view, write_files
from sweeps.planning import manifest as manifests
from sweeps.planning.state import state_of

LARGEST = 1.7976931348623157e308
"""MLflow holds infinity as this value."""


def differences(store: Store, sweep_key: str, uri: str) -> Iterator[str]:
    """The differences, a line each.

    Raises:
        StoreError: the store itself is damaged.
        OSError, MlflowException, SQLAlchemyError: MLflow cannot be reached.
    """
    manifest, client = manifests.read(store, sweep_key), connect(uri)
    runs = runs_of(client, sweep_key)
    parents = [run for run in runs if TRIAL not in run.data.tags]
    if len(parents) != 1:
        yield f"sweep {sweep_key} has {len(parents)} parent runs, not 1"
    for parent in parents:
        yield from _different("sweep", as_params(manifest["settings"]), parent.data.params)
    for trial in manifest["trials"]:
        its_runs = [run for run in runs if run.data.tags.get(TRIAL) == trial["run"]]
        title, state = f"{trial['variant']} seed {trial['seed']}", state_of(store, trial)
        if len(its_runs) != 1 and (its_runs or begun(store, trial, state)):
            yield f"{title} has {len(its_runs)} runs, not 1"
        for run in its_runs:
            right, run_id = view(store, manifest, trial, state, {}), run.info.run_id
            right.tags.update(outcome=state.outcome, status=STATUS[state.outcome])
            names = {metric.key for metric in right.metrics} | set(run.data.metrics)
            history = [metric for name in names for metric in client.get_metric_history(run_id, name)]
            yield from _different(f"{title}: param", as_params(right.params), run.data.params)
            yield from _different(f"{title}: tag", right.tags, {**run.data.tags, "status": run.info.status})
            yield from _different(f"{title}: metric", _points(right.metrics), _points(history), complete=True)
            with tempfile.TemporaryDirectory() as ours, tempfile.TemporaryDirectory() as theirs:
                write_files(store, trial, state, right.grids, run.info.start_time, Path(ours))
                client.download_artifacts(run_id, "", theirs)
                yield from _different(f"{title}: file", _digests(Path(ours)), _digests(Path(theirs)))


def _different(
    kind: str, expected: Mapping[str, str], found: Mapping[str, str], complete: bool = False
) -> Iterator[str]:
    """The differences between named values; with `complete`, MLflow may have no others."""
    for name in sorted(expected.keys() | (found.keys() if complete else ())):
        if found.get(name) != expected.get(name):
            yield f"{kind} {name} is {found.get(name, 'missing')}, and {expected.get(name, 'nothing')} in the store"


def _points(metrics: list[Metric]) -> dict[str, str]:
    """ "metric at step" -> its values there. Times are left out, since a resumed stage repeats points."""
    points: dict[str, set[str]] = {}
    for metric in metrics:
        value = math.copysign(LARGEST, metric.value) if math.isinf(metric.value) else float(metric.value)
        points.setdefault(f"{metric.key} at {metric.step}", set()).add(str(value))
    return {name: " and ".join(sorted(values)) for name, values in points.items()}


def _digests(root: Path) -> dict[str, str]:
    """File -> SHA-256, without what MLflow writes around a model, which differs each time."""
    files = {path.relative_to(root): sha256(path) for path in root.rglob("*") if path.is_file()}
    return {str(path): digest for path, digest in files.items() if path.parts[0] != MODELS or path.parts[1] == "data"}
