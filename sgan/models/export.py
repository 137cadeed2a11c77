"""Trained stacks as files that last: safetensors and JSON, no pickle, nothing of the training.

A model's folder holds generator.safetensors (the generators' parameters and buffers, "0/..." the lowest level's) and
model.json (all that rebuilds them, the SHA-256 of the weights, and where they come from).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgan.checks import ConfigError, as_json, from_json
from sgan.config import Codes, GanRecipe
from sgan.data.batches import to_pixels
from sgan.models.generator import new_generator
from sgan.models.stack import Level, balanced_labels, label_condition, sample
from sgan.shapes import Dataset
from sgan.store.files import read_json, read_tensors, sha256, write_json, write_tensors
from sgan.store.local import MODELS

MODEL_FILE, WEIGHTS_FILE = "model.json", "generator.safetensors"
FORMAT = 1
LAST, BEST = "last", "best"


@dataclass(frozen=True)
class LevelRow:
    """All that rebuilds a level: the fields of `Level` but its generator."""

    low: str
    high: str
    labels: bool
    codes: Codes | None
    through: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """A trained stack, from the image up, with its dataset's row as its networks are, how batch normalisation samples
    ("running" averages or "batch" statistics), and its trial, seed, commit and scores."""

    levels: list[Level]
    dataset: Dataset
    sampling: str
    about: dict[str, Any]

    @property
    def classes(self) -> int:
        """Number of classes; labels are 0 to classes - 1."""
        return self.dataset.classes

    def sample(self, labels: Sequence[int] | Tensor | int, seed: int = 0) -> Tensor:
        """Images (n, channels, size, size) uint8 of these labels (n,), or, given n, of all classes in turn. The same
        seed gives the same images; ConfigError where a label is no class. Without labels, their number alone counts."""
        try:
            many = isinstance(labels, int)
            wanted = balanced_labels(max(labels, 0), self.classes) if many else torch.as_tensor(labels)
            torch.Generator().manual_seed(seed)
        except (RuntimeError, TypeError, ValueError) as error:  # torch's, of what are no numbers
            raise ConfigError(
                f"labels and seed must be whole numbers, but got {labels!r:.99}, seed {seed!r}"
            ) from error
        if wanted.dim() != 1 or len(wanted) == 0 or wanted.is_floating_point():
            raise ConfigError(f"labels must be at least one whole number in a row, but got {labels!r}")
        for label in wanted.unique().tolist():
            if not 0 <= label < self.classes:
                raise ConfigError(f"label {label} is no class of this model; its classes are 0 to {self.classes - 1}")
        mean = self.levels[0].generator.mean
        condition = label_condition(self.levels[-1], wanted.to(mean.device).long(), self.classes)
        parts = sample(self.levels, condition, self.sampling, seed)
        return torch.cat([to_pixels(part[self.levels[0].low], mean) for part in parts]).cpu()


def save(
    folder: Path, levels: list[Level], dataset: Dataset, recipe: GanRecipe, sampling: str, about: dict[str, Any]
) -> None:
    """Write a stack as a model; `recipe` is the one that its generators were built by, the rest as in Model."""
    rows = [LevelRow(level.low, level.high, level.labels, level.codes, level.through) for level in levels]
    write_tensors(folder / WEIGHTS_FILE, _tensors(levels))
    facts = {"format": FORMAT, "weights": sha256(folder / WEIGHTS_FILE), "about": about}
    facts |= {"dataset": dataset, "recipe": recipe, "levels": rows, "sampling": sampling}
    write_json(folder / MODEL_FILE, as_json(facts))


def load(path: str | Path, device: str = "cpu", which: str = LAST) -> Model:
    """Read a model from its folder, or the `last` (at the end of training) or `best` one (at the best score while
    training) from a finished score stage's folder or MLflow's copy. ConfigError or StoreError where it is not whole, or
    there is no such device."""
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
    saved, built = read_tensors(weights), _tensors(levels)
    if {name: tensor.shape for name, tensor in saved.items()} != {name: tensor.shape for name, tensor in built.items()}:
        raise ConfigError(f"the weights in {weights} do not fit {MODEL_FILE}; copy the model again")
    for name, tensor in built.items():
        tensor.copy_(saved[name])
    for level in levels:
        level.generator.to(device).eval().requires_grad_(False)
    return Model(levels, dataset, sampling, facts.get("about", {}))


def _tensors(levels: list[Level]) -> dict[str, Tensor]:
    """The generators' parameters and buffers themselves, "0/..." the lowest level's."""
    states = enumerate(level.generator.state_dict() for level in levels)
    return {f"{index}/{name}": tensor for index, state in states for name, tensor in state.items()}
