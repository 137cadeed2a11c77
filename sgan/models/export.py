"""Trained stacks as files: safetensors and JSON, without pickle and without the state of training.

A model's folder holds generator.safetensors (the generators' parameters and buffers, "0/..." for the lowest level) and
model.json (the settings that rebuild them, the SHA-256 of the weights, and their origin).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sgan.checks import ConfigError, as_json, from_json, require
from sgan.config import GanRecipe, Level
from sgan.models.generator import new_generator
from sgan.models.stack import Stack, balanced_labels, label_condition, sample
from sgan.models.tensors import load_modules, module_tensors, read_tensors, write_tensors
from sgan.shapes import Dataset
from sgan.store.files import read_json, sha256, write_json
from sgan.store.local import MODELS

MODEL_FILE, WEIGHTS_FILE = "model.json", "generator.safetensors"
FORMAT = 1
LAST, BEST = "last", "best"


@dataclass(frozen=True)
class Model:
    """A trained stack: its generators, its `dataset` with the widths of its networks, `sampling` (batch normalisation
    by "running" averages or "batch" statistics), and `about` (its trial, seed, commit and scores)."""

    stack: Stack
    dataset: Dataset
    sampling: str
    about: dict[str, Any]

    @property
    def classes(self) -> int:
        """Number of classes; labels are 0 to classes - 1."""
        return self.dataset.classes

    def sample(self, labels: Sequence[int] | Tensor | int, seed: int = 0) -> Tensor:
        """Return images (n, channels, size, size) uint8 of labels (n,), or, for an int n, of all classes in turn. The
        same seed gives the same images. A stack without labels uses only their number. ConfigError for a bad label."""
        try:
            many = isinstance(labels, int)
            wanted = balanced_labels(max(labels, 0), self.classes) if many else torch.as_tensor(labels)
            torch.Generator().manual_seed(seed)
        except (RuntimeError, TypeError, ValueError) as error:  # torch's errors for values that are not numbers
            raise ConfigError(
                f"labels and seed must be whole numbers, but got {labels!r:.99}, seed {seed!r}"
            ) from error
        if wanted.dim() != 1 or len(wanted) == 0 or wanted.is_floating_point():
            raise ConfigError(f"labels must be at least one whole number in a row, but got {labels!r}")
        if self.sampling == "batch" and len(wanted) < 2:
            raise ConfigError("this stack samples by statistics of the batch and needs at least two labels, but got 1")
        for label in wanted.unique().tolist():
            if not 0 <= label < self.classes:
                raise ConfigError(f"label {label} is no class of this model; its classes are 0 to {self.classes - 1}")
        condition = label_condition(self.stack[-1], wanted.to(self.stack[0].mean.device).long())
        return sample(self.stack, condition, self.sampling, seed).cpu()


def save(folder: Path, stack: Stack, dataset: Dataset, recipe: GanRecipe, sampling: str, about: dict[str, Any]) -> None:
    """Write a stack as a model. `recipe`: the recipe that built its generators; the other arguments are as in Model."""
    write_tensors(folder / WEIGHTS_FILE, module_tensors(_named(stack)))
    facts = {"format": FORMAT, "weights": sha256(folder / WEIGHTS_FILE), "about": about, "sampling": sampling}
    facts |= {"dataset": dataset, "recipe": recipe, "levels": [generator.level for generator in stack]}
    write_json(folder / MODEL_FILE, as_json(facts))


def _named(stack: Stack) -> dict[str, nn.Module]:
    return {str(index): generator for index, generator in enumerate(stack)}


def load(path: str | Path, device: str = "cpu", which: str = LAST) -> Model:
    """Read a model from its own folder, or from the folder of a finished score stage or MLflow's copy of it. There,
    `which` selects the weights: "last" (end of training) or "best" (best score while training). ConfigError or
    StoreError where files are missing or damaged, and ConfigError for an unusable device."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch's, with many lines
        reason = str(error).partition("\n")[0][:200]
        raise ConfigError(f"device {device!r} cannot be used here ({reason}); use 'cpu'") from error
    require(which in (LAST, BEST), f"which must be {LAST!r} or {BEST!r}, but got {which!r}")
    path = Path(path)
    places = (path, path / which, path / MODELS / which, path / "data" / MODELS / which)
    folder = next((place for place in places if (place / MODEL_FILE).exists()), None)
    if folder is None:
        raise ConfigError(f"there is no model at {path}: it must hold {MODEL_FILE}, or {MODELS}/{which} with one")
    facts, weights = read_json(folder / MODEL_FILE), folder / WEIGHTS_FILE
    known = facts.get("format") == FORMAT
    require(known, f"{folder / MODEL_FILE} is no model of format {FORMAT}; this version reads no other")
    whole = weights.is_file() and sha256(weights) == facts.get("weights")
    require(whole, f"{weights} is missing or damaged; copy the model again")
    kinds: dict[str, Any] = {"dataset": Dataset, "recipe": GanRecipe, "levels": tuple[Level, ...], "sampling": str}
    dataset, recipe, levels, sampling = (from_json(kind, facts.get(name), name) for name, kind in kinds.items())
    with torch.random.fork_rng([]):  # building draws weights, which are replaced
        stack = [new_generator(dataset, recipe, level) for level in levels]
    saved = read_tensors(weights)
    shapes = [{name: each.shape for name, each in of.items()} for of in (saved, module_tensors(_named(stack)))]
    require(shapes[0] == shapes[1], f"the weights in {weights} do not fit {MODEL_FILE}; copy the model again")
    load_modules(_named(stack), saved)
    for generator in stack:
        generator.to(device).eval().requires_grad_(False)
    return Model(stack, dataset, sampling, facts.get("about", {}))
