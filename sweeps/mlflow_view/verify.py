"""Compares the MLflow runs of a sweep with the output store: every value, param, tag, file and model."""

import dataclasses
import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Metric, Run

from sgan.store.files import sha256
from sgan.store.local import CHECKPOINTS, MODELS, STAGE_FILE, Store
from sweeps.mlflow_view import content, runs
from sweeps.mlflow_view.connection import limited
from sweeps.mlflow_view.content import Trials, begun, lay_out
from sweeps.planning import manifest as manifests
from sweeps.planning.trials import state_of

LARGEST = 1.7976931348623157e308  # MLflow holds infinity as this value


def differences(store: Store, sweep_key: str, uri: str) -> Iterator[str]:
    """A line for each difference, and for each file in a stage's folder that the stage's record does not list.

    Raises:
        StoreError: the store itself is damaged.
        Exception: MLflow cannot be reached, answers nonsense, or takes too long with one trial.
    """
    manifest, client = manifests.read(store, sweep_key), MlflowClient(uri)
    with limited():
        found = runs.runs_of(client, sweep_key)
    parents = [run for run in found if runs.TRIAL not in run.data.tags]
    if len(parents) != 1:
        yield f"sweep {sweep_key} has {len(parents)} parent runs, not 1"
    for run in parents:
        with limited(), tempfile.TemporaryDirectory() as ours:
            for name, path in content.sweep_files(store, manifest).items():
                shutil.copyfile(path, Path(ours, name))
            # MLflow has the means over fewer seeds, too, and shows the last ones.
            view, held = content.sweep_view(store, manifest, run), runs.as_metrics(run.data.metrics, 0)
            last = runs.as_metrics({metric.key: metric.value for metric in view.metrics}, 0)
            lines = _compare(client, run, dataclasses.replace(view, metrics=last), held, Path(ours))
        yield from (f"sweep: {line}" for line in lines)
    trials, parent = Trials(store, manifest), parents[0].info.run_id if len(parents) == 1 else ""
    for trial in manifest["trials"]:
        its_runs = [run for run in found if run.data.tags.get(runs.TRIAL) == trial["run"]]
        title, state = f"{trial['variant']} seed {trial['seed']}", state_of(store, trial)
        if len(its_runs) != 1 and (its_runs or begun(store, trial, state)):
            yield f"{title} has {len(its_runs)} runs, not 1"
        for run in its_runs:
            with limited(), tempfile.TemporaryDirectory() as ours:
                lay_out(store, trial, trials.files(trial), Path(ours))
                view = trials.view(trial, state)
                view.tags.update({runs.PARENT: parent, "status": runs.STATUS[state.outcome]})
                names = {metric.key for metric in (*view.metrics, *view.scores)} | set(run.data.metrics)
                held = [metric for name in names for metric in client.get_metric_history(run.info.run_id, name)]
                lines = _compare(client, run, view, held, Path(ours))
            yield from (f"{title}: {line}" for line in lines)
    yield from foreign(store, manifest)


def foreign(store: Store, manifest: Mapping[str, Any]) -> Iterator[str]:
    """A line for each file, or symbolic link, in the folder of a finished stage that its record does not list. Nothing
    of this project reads or sends them."""
    names = {stage["name"]: None for trial in manifest["trials"] for stage in trial["stages"]}
    for name in filter(store.has, names):
        folder, listed = store.stage(name), {*store.facts(name)["files"], STAGE_FILE}
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder).as_posix()
            left = inside.startswith(f"{CHECKPOINTS}/")  # by a process that was killed just after it published
            if path.is_symlink() or (path.is_file() and inside not in listed and not left):
                yield f"{path} is a {'symbolic link' if path.is_symlink() else 'file'} that its stage did not write"


def _compare(client: MlflowClient, run: Run, view: runs.View, held: Iterable[Metric], files: Path) -> list[str]:
    """A line for each difference of a run to its view and to the files in a folder; `held` are the run's metrics."""
    expected = _parts(view.params, runs.as_tags(view.tags), [*view.metrics, *view.scores], files)
    with tempfile.TemporaryDirectory() as theirs:
        client.download_artifacts(run.info.run_id, "", theirs)
        if logged := runs.logged_model(client, run):
            place, folder = logged.artifact_location, Path(theirs, logged.model_id)
            folder.mkdir()
            model = download_artifacts(place, dst_path=str(folder), tracking_uri=client.tracking_uri)
            stacks = Path(model, "data", MODELS)  # the other files of the model differ each time
            if stacks.exists():
                stacks.rename(Path(theirs, MODELS))
        found = _parts(run.data.params, run.data.tags | {"status": run.info.status}, held, Path(theirs))
    names = {*expected, *(each for each in found if each.startswith(("metric", "param")))}
    pairs = [(name, found.get(name, "missing"), expected.get(name, "nothing")) for name in sorted(names)]
    return [f"{name} is {here}, and {there or 'nothing'} in the store" for name, here, there in pairs if here != there]


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
        parts[f"file {path.relative_to(files).as_posix()}"] = sha256(path)
    return parts
