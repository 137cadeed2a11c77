"""A trained stack as an MLflow model: `mlflow.pyfunc.load_model("runs:/<run id>/model").predict(labels)` samples."""

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import mlflow.pyfunc
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Run
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

import sgan
from sgan.store.local import MODELS

SAMPLER = Path(__file__).with_name("sgan_sampler.py")  # not imported: it imports torch
REQUIREMENTS = ["torch>=2.11", "torchvision", "safetensors", "numpy", "pandas"]
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.long, "label")]),
    outputs=Schema([TensorSpec(np.dtype("uint8"), (-1, -1, -1, -1))]),
    params=ParamSchema(
        [ParamSpec("seed", DataType.long, default=0), ParamSpec("which", DataType.string, default="last")]
    ),
)
DATA = f"data/{MODELS}"
"""Where the folders `last` and `best` lie in the MLflow model."""
BEST = "best"
"""The alias of a registered model's chosen version."""


def logged_model(client: MlflowClient, run: Run) -> LoggedModel | None:
    """The model of a run, if it has one."""
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
            pip_requirements=[f"mlflow=={mlflow.__version__}", *REQUIREMENTS],
        )
        made = logged_model(client, run) or client.create_logged_model(
            run.info.experiment_id, MODELS, run.info.run_id, params=dict(params), model_type="generator"
        )
        client.log_model_artifacts(made.model_id, str(Path(folder, MODELS)))
    client.finalize_logged_model(made.model_id, "READY")
    if not run.outputs or not run.outputs.model_outputs:
        client.log_outputs(run.info.run_id, [LoggedModelOutput(made.model_id, 0)])
    return made.model_id


def register(client: MlflowClient, run: Run, name: str) -> str:
    """Register the model of a run under a name, with the alias `best`; returns its version.

    Raises:
        MlflowException: the run has no model.
    """
    model = logged_model(client, run)
    if model is None:
        raise MlflowException(f"run {run.info.run_id} has no model")
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description="Stacked GANs that `python sweeps/best.py --promote` chose.")
    held = client.search_model_versions(f"name = '{name}'")
    version = next((each.version for each in held if each.model_id == model.model_id), None)
    if version is None:
        place, run_id = model.artifact_location, run.info.run_id
        version = client.create_model_version(name, place, run_id, model_id=model.model_id).version
    client.set_registered_model_alias(name, BEST, version)
    return version
