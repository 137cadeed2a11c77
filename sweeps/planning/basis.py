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
from sgan.evaluation.judges import INCEPTION, JUDGES
from sgan.presets import FOLDER, TRAINING_IMAGES, configure
from sgan.shapes import Dataset
from sweeps.planning.options import AUTO, DEFAULT_CUTS, DEFAULT_DATA, Options


@dataclass(frozen=True)
class Basis:
    """The values that all trials of a command share, with all options resolved. In words: `why` this dataset and recipe
    were chosen, with warnings on the data; `what` the dataset is; `notes` on options that are not at their default. The
    judge's weights are a file with its SHA-256; None and "" if the sweep trains the judge."""

    dataset: Dataset
    recipe: Recipe
    data: Data
    judge: str
    judge_weights: Path | None
    judge_digest: str
    why: str
    what: str
    notes: tuple[str, ...]

    def config(self, variant: Variant, seed: int, weights: Weights | None = None, cuts: Taps = DEFAULT_CUTS) -> Config:
        """The config of one trial, by `sgan.presets.configure`."""
        config = configure(self.dataset, self.data.digest, self.recipe, variant, seed, weights, cuts)
        return dataclasses.replace(config, judge=self.judge, judge_weights=self.judge_digest)

    @property
    def chosen(self) -> dict[str, Any]:
        """The options that may be left to the hardware, with the chosen values."""
        return {"dataset": self.dataset.name, "recipe": self.recipe.name, "judge": self.judge}

    @property
    def shared(self) -> list[Any]:
        return [self.dataset, self.data.digest, self.recipe, self.judge, self.judge_digest]


def prepare(options: Options, gpus: int) -> Basis:
    """Choose dataset and recipe for hardware with this many GPUs, and read the data. ConfigError if data are missing or
    damaged, or a value does not fit the dataset or the recipe."""
    dataset_name, recipe_name, why = options.choose(gpus)
    unused = dataset_name == "digits" and options.data is not None
    require(not unused, f"digits do not use --data {options.data}; name its --dataset: folder, mnist, svhn or cifar10")
    row = options.dataset_row(dataset_name)
    judge, folder = options.judge, (options.data or DEFAULT_DATA).absolute()
    if judge == AUTO:
        judge = INCEPTION if options.judge_weights or (gpus > 0 and row.channels == 3) else "held-out"
    data = read(row, folder)
    images = TRAINING_IMAGES.get(dataset_name, len(data.images))
    recipe = options.build_recipe(row, recipe_name, images, judge)
    weights_file, weights_digest = None, ""
    if given := JUDGES[judge].given:
        weights_file = given.find_weights(options.judge_weights)
        weights_digest = given.check_weights(weights_file)
    check_batch(recipe, len(data.images))
    what = dataset_name
    if dataset_name == FOLDER:
        what = f"folder {folder.name} ({len(data.images):,} training images, {row.size}x{row.size})"
        why += f"\n  data    {describe(folder)}"
    notes = [f"recipe {recipe_name}"]
    notes += [f"{name} x {value:g}" for name in ("budget", "width") if (value := getattr(options, name)) != 1]
    notes += [*(["exact Inception scores"] if judge == INCEPTION else [f"judge {judge}"] * bool(weights_digest))]
    notes += options.override
    dataset = row.scaled(options.width)
    return Basis(dataset, recipe, data, judge, weights_file, weights_digest, why, what, tuple(notes))


def check_batch(recipe: Recipe, images: int, where: str = "") -> None:
    """Raise ConfigError, whose message begins with `where`, for a batch that is larger than the training set."""
    batches = {part: getattr(recipe, part).batch for part in ("encoder", "judge", "gan", "joint")}
    large = [part for part, batch in batches.items() if batch > images]
    held = ", ".join(f"{part}.batch={batches[part]}" for part in large)
    fitting = " ".join(f"{part}.batch={images}" for part in large)
    enough = f"a batch must be at most the {images} training images, but got {held}"
    require(not large, f"{where}{enough}; give {'' if where else '--override '}{fitting}, or more images")
