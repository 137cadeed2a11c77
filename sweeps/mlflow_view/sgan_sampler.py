"""The file by which MLflow loads a trained stack. It travels with each model beside the package sgan, and needs nothing
else of this repository."""

from typing import Any

import numpy as np
import pandas as pd

from sgan.checks import ConfigError
from sgan.models.export import BEST, LAST, Model, load


class Sampler:
    """A trained stack whose `predict` MLflow calls."""

    def __init__(self, models: dict[str, Model]):
        self.models = models

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> np.ndarray:
        """Images (n, size, size, channels) uint8, one for each row of `model_input`, of the class in its `label`.

        Args:
            params: seed (0), and which ("last" or "best"); ConfigError for another one.
        """
        options = {"seed": 0, "which": LAST, **(params or {})}
        if options["which"] not in self.models:
            raise ConfigError(f"which must be one of {', '.join(self.models)}, but got {options['which']!r}")
        images = self.models[options["which"]].sample(model_input["label"].tolist(), int(options["seed"]))
        return images.permute(0, 2, 3, 1).numpy()


def _load_pyfunc(data_path: str) -> Sampler:
    """MLflow's entry point. `data_path`: a folder with the models `last` and `best`."""
    return Sampler({which: load(data_path, which=which) for which in (LAST, BEST)})
