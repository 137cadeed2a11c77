"""A trained stack as an MLflow model: `mlflow.pyfunc.load_model("runs:/<run id>/model").predict(labels)` samples."""

import warnings
from pathlib import Path

import mlflow.pyfunc
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

import sgan

SAMPLER = Path(__file__).with_name("sgan_sampler.py")  # not imported: it imports torch
REQUIREMENTS = ["torch>=2.11", "torchvision", "safetensors", "numpy", "pandas"]
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.long, "label")]),
    outputs=Schema([TensorSpec(np.dtype("uint8"), (-1, -1, -1, -1))]),
    params=ParamSchema(
        [ParamSpec("seed", DataType.long, default=0), ParamSpec("which", DataType.string, default="last")]
    ),
)


def save_model(models: Path, destination: Path) -> None:
    """Write the models `last` and `best` in a folder as one MLflow model, with the code that it needs."""
    with warnings.catch_warnings(action="ignore"):  # about an absent input example
        mlflow.pyfunc.save_model(
            destination,
            loader_module=SAMPLER.stem,
            data_path=str(models),
            code_paths=[sgan.__path__[0], str(SAMPLER)],
            signature=SIGNATURE,
            pip_requirements=[f"mlflow=={mlflow.__version__}", *REQUIREMENTS],
        )
