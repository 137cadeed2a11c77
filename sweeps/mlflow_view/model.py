"""A trained stack as an MLflow model: `mlflow.pyfunc.load_model("runs:/<run id>/model").predict(labels)` samples.

MLflow loads it by the name of this module, so that nothing is pickled; the code that it needs travels with it.
"""

import functools
import os
import platform
import shutil
import warnings
from modulefinder import ModuleFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from sgan.models.export import Model

ROOT = Path(__file__).resolve().parents[2]
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
    from sgan.models.export import BEST, LAST, load

    return Sampler({which: load(data_path, which=which) for which in (LAST, BEST)})


def write(models: Path, destination: Path) -> None:
    """Write the models `last` and `best` in a folder as one MLflow model, laid out as by MLflow's `save_model`, which
    takes a second to look through all packages that are installed. What is sent as it stands is a link."""
    shutil.copytree(models, destination / "data" / models.name, copy_function=os.symlink)
    for module in _code():
        there = destination / "code" / module.relative_to(ROOT)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.symlink_to(module)
    with warnings.catch_warnings(action="ignore"):  # MLflow's, about its own type hints and an absent example
        _describe(f"data/{models.name}", destination)


@functools.cache
def _code() -> list[Path]:
    """The files of ours that this module needs, found from what they import."""
    finder = ModuleFinder([str(ROOT)])
    finder.run_script(__file__)
    files = [vars(module)["__file__"] for module in finder.modules.values()]
    # This module was read as a script, whose package is not looked for.
    return sorted({Path(file) for file in files if file} | {ROOT / "sweeps" / "__init__.py"})


def _describe(data: str, destination: Path) -> None:
    import mlflow.pyfunc
    import yaml
    from mlflow.models import Model
    from mlflow.models.signature import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
    from numpy import dtype

    python, pip = platform.python_version(), [f"mlflow=={mlflow.__version__}", *REQUIREMENTS]
    packages = [f"python={python}", "pip", {"pip": pip}]
    conda = {"name": "mlflow-env", "channels": ["conda-forge"], "dependencies": packages}
    virtual = {"python": python, "build_dependencies": ["pip", "setuptools"], "dependencies": ["-r requirements.txt"]}
    (destination / "requirements.txt").write_text("\n".join(pip))
    (destination / "conda.yaml").write_text(yaml.safe_dump(conda, sort_keys=False))
    (destination / "python_env.yaml").write_text(yaml.safe_dump(virtual, sort_keys=False))
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.long, "label")]),
        outputs=Schema([TensorSpec(dtype("uint8"), (-1, -1, -1, -1))]),
        params=ParamSchema(
            [ParamSpec("seed", DataType.long, default=0), ParamSpec("which", DataType.string, default="last")]
        ),
    )
    model, environment = Model(signature=signature), {"conda_env": "conda.yaml", "python_env": "python_env.yaml"}
    mlflow.pyfunc.add_to_model(model, loader_module=__name__, data=data, code="code", **environment)
    model.save(str(destination / "MLmodel"))
