"""The MLflow runs of a sweep: one for the sweep, and below it one for each trial. They are found by tags."""

from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from sweeps.mlflow_view.connection import EXPERIMENT

SWEEP, TRIAL, PARENT = "sgan.sweep", "sgan.trial", "mlflow.parentRunId"
SENT = "sgan.sent"
"""Tag that says how much of the store a run has."""
STATUS = {"done": "FINISHED", "diverged": "FAILED", "failed": "FAILED", "running": "RUNNING", "interrupted": "KILLED"}
ENTITIES_A_CALL, LONGEST_PARAM, MOST_RUNS = 1000, 6000, 50_000  # MLflow's limits


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
    """Params as MLflow holds them."""
    return {name: str(value)[:LONGEST_PARAM] for name, value in params.items()}


def log(
    client: MlflowClient, run: Run, metrics: list[Metric], params: Mapping[str, Any], tags: Mapping[str, str]
) -> None:
    """Log to a run: metrics, the params that it lacks (they cannot be changed), and tags that differ. The tags come
    last, since they say what the run has."""
    new = [Param(name, value) for name, value in as_params(params).items() if name not in run.data.params]
    changed = [RunTag(name, value) for name, value in tags.items() if run.data.tags.get(name) != value]
    while len(metrics) + len(new) + len(changed) > ENTITIES_A_CALL:
        client.log_batch(run.info.run_id, metrics[:ENTITIES_A_CALL])
        metrics = metrics[ENTITIES_A_CALL:]
    if metrics or new or changed:
        client.log_batch(run.info.run_id, metrics, new, changed)


def set_status(client: MlflowClient, run: Run, outcome: str, end: float) -> None:
    """Set the status that belongs to an outcome, and the end of the run (unix seconds)."""
    status = STATUS[outcome]
    if status == "RUNNING" != run.info.status:
        client.update_run(run.info.run_id, status=status)
    elif status != run.info.status:
        client.set_terminated(run.info.run_id, status, milliseconds(end))


def milliseconds(seconds: float) -> int:
    """A time in unix seconds as MLflow takes it."""
    return round(seconds * 1000)
