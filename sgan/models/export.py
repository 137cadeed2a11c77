"""Trained stacks as files: safetensors and JSON, without pickle and without the state of training.

A model's folder holds generator.safetensors (the generators' parameters and buffers, "0/..." for the lowest level) and
model.json (the settings that rebuild them, the SHA-256 of the weights, and their origin).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgan.checks import ConfigError, as_json, from_json
from sgan.config import Codes, GanRecipe
from sgan.models.generator import new_generator
from sgan.models.stack import Level, balanced_labels, label_condition, sample
from sgan.models.tensors import load_modules, module_tensors, read_tensors, write_tensors
from sgan.shapes import Dataset
from sgan.store.files import read_json, sha256, write_json
from sgan.store.local import MODELS

MODEL_FILE, WEIGHTS_FILE = "model.json", "generator.safetensors"
FORMAT = 1
LAST, BEST = "last", "best"


@dataclass(frozen=True)
class LevelRow:
    """The fields of `Level` that rebuild a level: all but its generator."""

    low: str
    high: str
    labels: bool
    codes: Codes | None
    through: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """A trained stack: its `levels` from the image up, its `dataset` with the widths of its networks, `sampling` (batch
    normalisation by "running" averages or "batch" statistics), and `about` (its trial, seed, commit and scores)."""

    levels: list[Level]
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
        device = self.levels[0].generator.mean.device
        condition = label_condition(self.levels[-1], wanted.to(device).long(), self.classes)
        return sample(self.levels, condition, self.sampling, seed).cpu()


def save(
    folder: Path, levels: list[Level], dataset: Dataset, recipe: GanRecipe, sampling: str, about: dict[str, Any]
) -> None:
    """Write a stack as a model. `recipe`: the recipe that built its generators; the other arguments are as in Model."""
    rows = [LevelRow(level.low, level.high, level.labels, level.codes, level.through) for level in levels]
    write_tensors(folder / WEIGHTS_FILE, module_tensors({str(i): level.generator for i, level in enumerate(levels)}))
    facts = {"format": FORMAT, "weights": sha256(folder / WEIGHTS_FILE), "about": about}
    facts |= {"dataset": dataset, "recipe": recipe, "levels": rows, "sampling": sampling}
    write_json(folder / MODEL_FILE, as_json(facts))


def load(path: str | Path, device: str = "cpu", which: str = LAST) -> Model:
    """Read a model from its own folder, or from the folder of a finished score stage or MLflow's copy of it. There,
    `which` selects the weights: "last" (end of training) or "best" (best score while training). ConfigError or
    StoreError where files are missing or damaged, and ConfigError for an unusable device."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch's, with many lines
        reason = str(error).partition("\n")[0][:200]
        raise ConfigError(f"device {device!r} cannot be used here ({reason}); use 'cpu'") from error
    if which not in (LAST, BEST):
        raise ConfigError(f"which must be {LAST!r} or {BEST!r}, but got {which!r}")
    path = Path(path)
    places = (path, path / which, path / MODELS / which, path / "data" / MODELS / which)
    folder = next((place for place in places if (place / MODEL_FILE).exists()), None)
    if folder is None:
        raise ConfigError(f"there is no model at {path}: it must hold {MODEL_FILE}, or {MODELS}/{which} with one")
    facts, weights = read_json(folder / MODEL_FILE), folder / WEIGHTS_FILE
    if facts.get("format") != FORMAT:
        raise ConfigError(f"{folder / MODEL_FILE} is no model of format {FORMAT}; this version reads no other")
    if not weights.is_file() or sha256(weights) != facts.get("weights"):
        raise ConfigError(f"{weights} is missing or damaged; copy the model again")
    kinds: dict[str, Any] = {"dataset": Dataset, "recipe": GanRecipe, "levels": tuple[LevelRow, ...], "sampling": str}
    dataset, recipe, rows, sampling = (from_json(kind, facts.get(name), name) for name, kind in kinds.items())
    with torch.random.fork_rng([]):  # building draws weights, which are replaced
        levels = [Level(generator=new_generator(dataset, recipe, **vars(row)), **vars(row)) for row in rows]
    generators = {str(index): level.generator for index, level in enumerate(levels)}
    saved, built = read_tensors(weights), module_tensors(generators)
    if {name: tensor.shape for name, tensor in saved.items()} != {name: tensor.shape for name, tensor in built.items()}:
        raise ConfigError(f"the weights in {weights} do not fit {MODEL_FILE}; copy the model again")
    load_modules(generators, saved)
    for level in levels:
        level.generator.to(device).eval().requires_grad_(False)
    return Model(levels, dataset, sampling, facts.get("about", {}))
