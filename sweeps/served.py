"""A trained stack as an MLflow model: `mlflow.pyfunc.load_model("runs:/<run id>/model").predict(labels)` samples.

MLflow loads it by the name of this module, so that nothing is pickled; the code that it needs travels with it.
"""

import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from sgan.model import Model

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ["torch>=2.11", "torchvision", "safetensors", "numpy", "pandas"]


class Sampler:
    """What MLflow's `predict` calls."""

    def __init__(self, models: "dict[str, Model]"):
        self.models = models

    def predict(self, model_input: "pd.DataFrame", params: dict[str, Any] | None = None) -> "np.ndarray":
        """Images (n, size, size, channels) uint8, one a row of `model_input`, of the label in its column `label`.

        Params: seed (0), which ("last" or "best").
        """
        asked = {"seed": 0, "which": "last", **(params or {})}
        images = self.models[asked["which"]].sample(model_input["label"].tolist(), int(asked["seed"]))
        return images.permute(0, 2, 3, 1).numpy()


def _load_pyfunc(data_path: str) -> Sampler:
    """MLflow's entry: `data_path` is a folder with the models `last` and `best`."""
    from sgan.model import BEST, LAST, load

    return Sampler({which: load(data_path, which=which) for which in (LAST, BEST)})


def write(models: Path, destination: Path) -> None:
    """Write the models `last` and `best` in a folder as one MLflow model."""
    with warnings.catch_warnings(action="ignore"):  # MLflow's, about its own type hints and an absent example
        _write(models, destination)
    for cache in list(destination.rglob("__pycache__")):
        shutil.rmtree(cache)


def _write(models: Path, destination: Path) -> None:
    import mlflow.pyfunc
    from mlflow.models.signature import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
    from numpy import dtype

    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.long, "label")]),
        outputs=Schema([TensorSpec(dtype("uint8"), (-1, -1, -1, -1))]),
        params=ParamSchema(
            [ParamSpec("seed", DataType.long, default=0), ParamSpec("which", DataType.string, default="last")]
        ),
    )
    mlflow.pyfunc.save_model(
        destination,
        loader_module="sweeps.served",
        data_path=str(models),
        code_paths=[str(ROOT / "sgan"), str(ROOT / "sweeps")],
        pip_requirements=REQUIREMENTS,
        signature=signature,
    )
