"""The dataset, recipe, data and weights that the trials of one command share."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgan.checks import require
from sgan.config import Config, Recipe, Taps, Variant, Weights
from sgan.data.batches import Data
from sgan.data.datasets import read
from sgan.data.image_folder import describe
from sgan.evaluation.inception import check_weights, find_weights
from sgan.presets import FOLDER, TRAINING_IMAGES, configure
from sgan.shapes import Dataset
from sweeps.planning.options import DEFAULT_CUTS, DEFAULT_DATA, Options


@dataclass(frozen=True)
class Basis:
    """What all trials of a command share: the options with everything chosen.

    Attributes:
        dataset: the networks that are trained.
        inception_weights, inception: file and SHA-256 of the weights of the Inception network that scores; None and ""
            where the held-out judge does.
        why: why this dataset and recipe, and what to beware of.
        what: the dataset in words.
        notes: the options that differ from their defaults, in words."""

    dataset: Dataset
    recipe: Recipe
    data: Data
    inception_weights: Path | None
    inception: str
    why: str
    what: str
    notes: tuple[str, ...]

    def config(self, variant: Variant, seed: int, weights: Weights | None = None, cuts: Taps = DEFAULT_CUTS) -> Config:
        """The config of one trial, by `sgan.presets.configure`."""
        config = configure(self.dataset, self.data.digest, self.recipe, variant, seed, weights, cuts)
        return dataclasses.replace(config, inception=self.inception)

    @property
    def chosen(self) -> dict[str, Any]:
        """The options that may be left to the hardware, as they were chosen."""
        judge = "inception" if self.inception else "held-out"
        return {"dataset": self.dataset.name, "recipe": self.recipe.name, "judge": judge}

    @property
    def shared(self) -> list[Any]:
        """The parts that every trial's config has."""
        return [self.dataset, self.data.digest, self.recipe, self.inception]


def prepare(options: Options, gpus: int) -> Basis:
    """Choose dataset and recipe for hardware with this many GPUs, and read the data. ConfigError where they are absent
    or torn, or a value does not fit the dataset or the recipe."""
    dataset_name, recipe_name, why = options.choose(gpus)
    row = options.dataset_row(dataset_name)
    inception, folder = options.with_inception(row, gpus), (options.data or DEFAULT_DATA).absolute()
    data = read(row, folder)
    images = TRAINING_IMAGES.get(dataset_name, len(data.images))
    recipe = options.build_recipe(row, recipe_name, images, inception)
    weights_file = find_weights(options.inception_weights) if inception else None
    weights_digest = check_weights(weights_file) if weights_file else ""
    check_batch(recipe, len(data.images))
    what = dataset_name
    if dataset_name == FOLDER:
        what = f"folder {folder.name} ({len(data.images):,} training images, {row.size}x{row.size})"
        why += f"\n  data    {describe(folder)}"
    notes = [f"recipe {recipe_name}"]
    notes += [f"{name} x {value:g}" for name in ("budget", "width") if (value := getattr(options, name)) != 1]
    notes += [*(["exact Inception scores"] * inception), *options.override]
    dataset = row.scaled(options.width)
    return Basis(dataset, recipe, data, weights_file, weights_digest, why, what, tuple(notes))


def check_batch(recipe: Recipe, images: int) -> None:
    """Raise ConfigError where a batch is larger than the training set."""
    batches = {part: getattr(recipe, part).batch for part in ("encoder", "judge", "gan", "joint")}
    large = [part for part, batch in batches.items() if batch > images]
    held = ", ".join(f"{part}.batch={batches[part]}" for part in large)
    fitting = " ".join(f"{part}.batch={images}" for part in large)
    enough = f"a batch must be at most the {images} training images, but got {held}; give --override {fitting}"
    require(not large, f"{enough}, or more images")
