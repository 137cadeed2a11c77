"""Compares what MLflow shows of a sweep with the output store: every value, param, tag and file."""

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric

from sgan.store.files import sha256
from sgan.store.local import MODELS, Store
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
    manifest, client = manifests.read(store, sweep_key), MlflowClient(uri)
    runs = runs_of(client, sweep_key)
    parents = [run for run in runs if TRIAL not in run.data.tags]
    if len(parents) != 1:
        yield f"sweep {sweep_key} has {len(parents)} parent runs, not 1"
    for run in parents:
        if not as_params(manifest["settings"]).items() <= run.data.params.items():
            yield f"sweep: its params are {run.data.params}, and {manifest['settings']} in the store"
    for trial in manifest["trials"]:
        its_runs = [run for run in runs if run.data.tags.get(TRIAL) == trial["run"]]
        title, state = f"{trial['variant']} seed {trial['seed']}", state_of(store, trial)
        if len(its_runs) != 1 and (its_runs or begun(store, trial, state)):
            yield f"{title} has {len(its_runs)} runs, not 1"
        for run in its_runs:
            right, run_id, status = view(store, manifest, trial, state, {}), run.info.run_id, STATUS[state.outcome]
            names = {metric.key for metric in right.metrics} | set(run.data.metrics)
            history = [metric for name in names for metric in client.get_metric_history(run_id, name)]
            with tempfile.TemporaryDirectory() as ours, tempfile.TemporaryDirectory() as theirs:
                write_files(store, trial, state, right.grids, run.info.start_time, Path(ours))
                client.download_artifacts(run_id, "", theirs)
                tags = right.tags | {"outcome": state.outcome, "status": status}
                expected = _parts(as_params(right.params), tags, right.metrics, Path(ours))
                tags = run.data.tags | {"status": run.info.status}
                found = _parts(run.data.params, tags, history, Path(theirs))
            for name in sorted({*expected, *(each for each in found if each.startswith("metric"))}):
                here, there = found.get(name, "missing"), expected.get(name, "nothing")
                if here != there:
                    yield f"{title}: {name} is {here}, and {there} in the store"


def _parts(
    params: Mapping[str, Any], tags: Mapping[str, Any], metrics: Iterable[Metric], files: Path
) -> dict[str, str]:
    """The parts of a run by kind and name. Times of metrics are left out, since a resumed stage repeats points."""
    parts = {f"param {name}": value for name, value in params.items()}
    parts |= {f"tag {name}": value for name, value in tags.items()}
    points: dict[str, set[str]] = {}
    for metric in metrics:
        value = math.copysign(LARGEST, metric.value) if math.isinf(metric.value) else float(metric.value)
        points.setdefault(f"metric {metric.key} at {metric.step}", set()).add(str(value))
    parts |= {name: " and ".join(sorted(values)) for name, values in points.items()}
    for path in filter(Path.is_file, files.rglob("*")):
        inside = path.relative_to(files)
        if inside.parts[0] != MODELS or inside.parts[1] == "data":  # MLflow's files around a model differ each time
            parts[f"file {inside}"] = sha256(path)
    return parts
