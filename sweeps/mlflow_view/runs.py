"""The MLflow runs of a sweep: one for the sweep, and below it one for each trial. They are found by tags."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from sgan.addresses import masked
from sweeps.mlflow_view.connection import EXPERIMENT

SWEEP, TRIAL, SENT = "sgan.sweep", "sgan.trial", "sgan.sent"
"""Tags by which a run is found, and the one that says how much of the store it has."""
PARENT, NAME, NOTE = "mlflow.parentRunId", "mlflow.runName", "mlflow.note.content"
STATUS = {"done": "FINISHED", "diverged": "FAILED", "failed": "FAILED", "running": "RUNNING", "interrupted": "KILLED"}
ENTITIES_A_CALL, LONGEST_PARAM, LONGEST_TAG, MOST_RUNS = 1000, 6000, 8000, 50_000  # MLflow's limits


@dataclass(frozen=True)
class View:
    """What a run shows, but for its files.

    Attributes:
        metrics, params, tags: as in MLflow.
        scores: the metrics of a finished trial, which are its model's too.
        times: of all points of a trial (unix seconds).
    """

    metrics: list[Metric]
    params: dict[str, str]
    tags: dict[str, str]
    scores: list[Metric] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


def runs_of(client: MlflowClient, sweep_key: str) -> list[Run]:
    """All runs of a sweep."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    query = f"tags.`{SWEEP}` = '{sweep_key}'"
    return client.search_runs([experiment.experiment_id], query, max_results=MOST_RUNS) if experiment else []


def find(client: MlflowClient, sweep_key: str) -> tuple[Run | None, dict[str, Run]]:
    """The run of a sweep (None before its first pass), and the runs of its trials by their names."""
    runs = runs_of(client, sweep_key)
    parents = [run for run in runs if TRIAL not in run.data.tags]
    return next(iter(parents), None), {run.data.tags[TRIAL]: run for run in runs if TRIAL in run.data.tags}


def as_params(params: Mapping[str, Any]) -> dict[str, str]:
    """Params as MLflow holds them: lists in words, without what is absent."""
    texts = {name: " ".join(map(str, value)) if isinstance(value, list) else value for name, value in params.items()}
    return {name: str(value)[:LONGEST_PARAM] for name, value in texts.items() if value not in (None, "")}


def origin(manifest: Mapping[str, Any], commit: str) -> dict[str, str]:
    """The tags of a run that MLflow's pages show as its source."""
    script = next((word for word in manifest["command"].split() if word.endswith(".py")), "")
    return {"mlflow.source.name": script, "mlflow.source.type": "LOCAL", "mlflow.source.git.commit": commit}


def log(client: MlflowClient, run: Run, metrics: list[Metric], view: View, more: Mapping[str, str]) -> None:
    """Log to a run: metrics, the params of its view that it lacks (they cannot be changed), and tags that differ, those
    of its view and more. The tags come last, since they say what the run has."""
    new = [Param(name, value) for name, value in view.params.items() if name not in run.data.params]
    tags = as_tags({**view.tags, **more})
    changed = [RunTag(name, value) for name, value in tags.items() if run.data.tags.get(name) != value]
    while len(metrics) + len(new) + len(changed) > ENTITIES_A_CALL:
        client.log_batch(run.info.run_id, metrics[:ENTITIES_A_CALL])
        metrics = metrics[ENTITIES_A_CALL:]
    if metrics or new or changed:
        client.log_batch(run.info.run_id, metrics, new, changed)


def as_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags as MLflow holds them, without passwords."""
    return {name: masked(value)[:LONGEST_TAG] for name, value in tags.items()}


def set_status(client: MlflowClient, run: Run, outcome: str, end: float) -> None:
    """Set the status that belongs to an outcome, and the end of the run (unix seconds)."""
    status = STATUS[outcome]
    if status == "RUNNING" != run.info.status:
        client.update_run(run.info.run_id, status=status)
    elif status != run.info.status:
        client.set_terminated(run.info.run_id, status, milliseconds(end))


def as_metrics(values: Mapping[str, float | None], seconds: float, step: int = 0) -> list[Metric]:
    """A metric for each value that is known, at a time in unix seconds."""
    return [Metric(name, value, milliseconds(seconds), step) for name, value in values.items() if value is not None]


def milliseconds(seconds: float) -> int:
    """A time in unix seconds as MLflow takes it."""
    return round(seconds * 1000)
