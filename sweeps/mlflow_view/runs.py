"""The MLflow runs of a sweep, one for the sweep and below it one for each trial, and their models. Tags identify them.
`mlflow.pyfunc.load_model("runs:/<run id>/model").predict(labels)` returns sampled images."""

import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric, Param, Run, RunTag
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

import sgan
from sgan.addresses import masked
from sgan.store.local import MODELS
from sweeps.mlflow_view.connection import EXPERIMENT

SWEEP, TRIAL, SENT = "sgan.sweep", "sgan.trial", "sgan.sent"
"""The tags that identify a run, and the tag that records how much of the store it has."""
PARENT, NAME, NOTE = "mlflow.parentRunId", "mlflow.runName", "mlflow.note.content"
STATUS = {"done": "FINISHED", "diverged": "FAILED", "failed": "FAILED", "running": "RUNNING", "interrupted": "KILLED"}
LONGEST_NAME, LONGEST_PARAM, LONGEST_TAG, MOST_RUNS = 250, 6000, 8000, 50_000  # MLflow's limits
BEST = "best"  # The alias of a registered model's chosen version
SAMPLER = Path(__file__).with_name("sgan_sampler.py")  # not imported: it imports torch
REQUIREMENTS = [f"mlflow=={mlflow.__version__}", "torch>=2.11", "torchvision", "safetensors", "numpy", "pandas"]
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.long, "label")]),
    outputs=Schema([TensorSpec(np.dtype("uint8"), (-1, -1, -1, -1))]),
    params=ParamSchema(
        [ParamSpec("seed", DataType.long, default=0), ParamSpec("which", DataType.string, default="last")]
    ),
)


@dataclass(frozen=True)
class View:
    """The content of a run except for its files: metrics, params and tags as in MLflow, and the `scores` of a finished
    trial, which its model has, too."""

    metrics: list[Metric]
    params: dict[str, str]
    tags: dict[str, str]
    scores: list[Metric] = field(default_factory=list)


def runs_of(client: MlflowClient, sweep_key: str) -> list[Run]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    query = f"tags.`{SWEEP}` = '{sweep_key}'"
    return client.search_runs([experiment.experiment_id], query, max_results=MOST_RUNS) if experiment else []


def find(client: MlflowClient, sweep_key: str) -> tuple[Run | None, dict[str, Run]]:
    """The run of a sweep (None before its first pass), and the runs of its trials by their names."""
    runs = runs_of(client, sweep_key)
    parents = [run for run in runs if TRIAL not in run.data.tags]
    return next(iter(parents), None), {run.data.tags[TRIAL]: run for run in runs if TRIAL in run.data.tags}


def as_params(params: Mapping[str, Any]) -> dict[str, str]:
    """Params as MLflow holds them: lists as words, and no params without a value."""
    texts = {name: " ".join(map(str, value)) if isinstance(value, list) else value for name, value in params.items()}
    return {name: str(value)[:LONGEST_PARAM] for name, value in texts.items() if value not in (None, "")}


def as_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags as MLflow holds them, without passwords."""
    return {name: masked(value)[:LONGEST_TAG] for name, value in tags.items()}


def as_metrics(values: Mapping[str, float | None], seconds: float, step: int = 0) -> list[Metric]:
    """A metric for each value that is not None, at a time in unix seconds."""
    return [Metric(name, value, milliseconds(seconds), step) for name, value in values.items() if value is not None]


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def log(client: MlflowClient, run: Run, metrics: list[Metric], view: View, more: Mapping[str, str]) -> None:
    """Log metrics to a run, the params of its view that it lacks (they cannot be changed), and the tags of its view and
    of `more` that differ. The tags come last, since they record what the run has."""
    new = [Param(name, value) for name, value in view.params.items() if name not in run.data.params]
    tags = as_tags({**view.tags, **more})
    changed = [RunTag(name, value) for name, value in tags.items() if run.data.tags.get(name) != value]
    if metrics or new:
        client.log_batch(run.info.run_id, metrics, new)
    if changed:
        client.log_batch(run.info.run_id, tags=changed)


def set_status(client: MlflowClient, run: Run, outcome: str, end: float) -> None:
    """Set the status that belongs to an outcome, and the end of the run (unix seconds)."""
    status = STATUS[outcome]
    if status == "RUNNING" != run.info.status:
        client.update_run(run.info.run_id, status=status)
    elif status != run.info.status:
        client.set_terminated(run.info.run_id, status, milliseconds(end))


def logged_model(client: MlflowClient, run: Run) -> LoggedModel | None:
    query = f"source_run_id = '{run.info.run_id}'"
    return next(iter(client.search_logged_models([run.info.experiment_id], query)), None)


def log_model(client: MlflowClient, run: Run, models: Path, params: Mapping[str, str]) -> str:
    """Log the models `last` and `best` in a folder as the model of a run, with the code that it needs; returns its
    id."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):  # no input example
        mlflow.pyfunc.save_model(
            Path(folder, MODELS),
            loader_module=SAMPLER.stem,
            data_path=str(models),
            code_paths=[sgan.__path__[0], str(SAMPLER)],
            signature=SIGNATURE,
            pip_requirements=REQUIREMENTS,
        )
        made = logged_model(client, run) or client.create_logged_model(
            run.info.experiment_id, MODELS, run.info.run_id, params=dict(params), model_type="generator"
        )
        client.log_model_artifacts(made.model_id, str(Path(folder, MODELS)))
    client.finalize_logged_model(made.model_id, "READY")
    if made.model_id not in [each.model_id for each in (run.outputs.model_outputs if run.outputs else ())]:
        client.log_outputs(run.info.run_id, [LoggedModelOutput(made.model_id, 0)])
    return made.model_id


def register(client: MlflowClient, run: Run, model: LoggedModel, name: str) -> str:
    """Register the model of a run under a name, with the alias `best`; returns its version."""
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description="Stacked GANs that `python sweeps/best.py --promote` chose.")
    held = client.search_model_versions(f"name = '{name}'")
    place, run_id = model.artifact_location, run.info.run_id
    version = next((each.version for each in held if (each.run_id, each.source) == (run_id, place)), None)
    if version is None:
        version = client.create_model_version(name, place, run_id, model_id=model.model_id).version
    client.set_registered_model_alias(name, BEST, version)
    return version
