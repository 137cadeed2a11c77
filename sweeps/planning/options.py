"""What the commands of an ablation and of a search share: their options, validated, and what these stand for."""

import dataclasses
import functools
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from sgan.checks import ConfigError, as_json, require
from sgan.config import Config, Recipe, Variant, Weights
from sgan.host import multiplies_bfloat16, processor
from sgan.presets import (
    DATASETS,
    FOLDER,
    RECIPES,
    TRAINING_IMAGES,
    configure,
    folder_row,
    recipe_row,
)
from sgan.shapes import Dataset
from sgan.store.local import NO_ROOM
from sgan.store.s3 import is_bucket

if TYPE_CHECKING:
    from sgan.data.batches import Data

AUTO = "auto"
Made = TypeVar("Made")
DEFAULT_CUTS, DEFAULT_SIZE = ("fc3",), 32
SCORERS = (AUTO, "classifier", "inception")
INCEPTION_SAMPLES = 50_000
"""Of the paper and of every published Inception score."""
DEFAULT_DATA = Path("data")
BAD, INTERRUPTED = 2, 130
"""Exit statuses of a command that somebody can mend and give again, and of one that was stopped."""


@dataclass(frozen=True)
class Options:
    """What to train on, how, what scores, where the results go."""

    dataset: str = AUTO
    """What to train on: auto, digits, mnist, svhn, cifar10, or folder: the images in --data."""
    data: Path | None = None
    """Folder with the dataset's files, as torchvision lays them out. Without it they are downloaded into ./data;
    digits need none. For an image folder: the folder whose sub-folders are the classes, or that has such a folder
    train and one test."""
    image_size: int | None = None
    """Of an image folder: images are brought to so many pixels square, a multiple of 4; without it 32."""
    channels: int | None = None
    """Of an image folder: 1 for grey or 3 for colour; without it 3."""
    recipe: str = AUTO
    """How to train: auto, paper (the paper's text), released (the authors' code) or laptop (minutes on a CPU). auto is
    laptop without a GPU where the dataset has one, otherwise released."""
    budget: float = 1.0
    """Factor on the training images of every GAN stage."""
    width: float = 1.0
    """Factor on every hidden width of the networks; 1 is the released architecture."""
    override: tuple[str, ...] = ()
    """Fields of the recipe to change, as gan.image_noise=0.1 or joint.adam.learning_rate=1e-4."""
    scorer: str = AUTO
    """What scores: classifier (trained on the dataset's own images), inception (exact Inception scores, FID, KID,
    precision and recall on 50,000 samples; slow without a GPU) or auto: inception for colour images on a GPU."""
    inception_weights: Path | None = None
    """Weights file of the Inception network; without it torch-fidelity's is downloaded."""
    store: str = dataclasses.field(default_factory=lambda: os.environ.get("SGAN_STORE") or "runs")
    """Output store: every finished stage, the MLflow record, the table. A folder, on a cluster one that all its hosts
    share, or s3://bucket/folder. Without it, $SGAN_STORE or runs."""
    mlflow: str | None = dataclasses.field(default_factory=lambda: os.environ.get("MLFLOW_TRACKING_URI") or None)
    """Address of an MLflow server. Without it, $MLFLOW_TRACKING_URI or an SQLite file in the store."""
    slots: int | None = None
    """At most this many trials at the same time; without it, one a CPU or as many as the GPUs carry."""
    trials_per_gpu: int = 1
    """Trials that share one GPU."""
    deterministic: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """On a GPU, compute every sum in one order: slower, and a run that is repeated or resumed there is the same bit for
    bit. On CPUs it always is."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the plan and stop."""
    attach: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """On a cluster: follow the command that runs there, whatever its options."""
    stop: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """On a cluster: stop this command where it runs (with --attach: the command that runs)."""

    def __post_init__(self):
        require(
            self.dataset in (AUTO, *DATASETS, FOLDER),
            f"unknown dataset {self.dataset!r} in --dataset; choose one of {AUTO}, {', '.join(DATASETS)}, {FOLDER}",
        )
        require(
            self.recipe in (AUTO, *RECIPES),
            f"unknown recipe {self.recipe!r} in --recipe; choose one of {AUTO}, {', '.join(RECIPES)}",
        )
        require(
            self.scorer in SCORERS, f"unknown scorer {self.scorer!r} in --scorer; choose one of {', '.join(SCORERS)}"
        )
        require(
            self.inception_weights is None or self.inception_weights.is_file(),
            f"the weights file {self.inception_weights} of --inception-weights is not there",
        )
        require(
            self.inception_weights is None or self.scorer != "classifier",
            "--inception-weights is given, but --scorer classifier uses none; leave one of them out",
        )
        require(self.slots is None or self.slots >= 1, f"--slots must be at least 1, but got {self.slots}")
        require(
            1 <= self.trials_per_gpu <= 100, f"--trials-per-gpu must be from 1 to 100, but got {self.trials_per_gpu}"
        )
        for name, value in (("--budget", self.budget), ("--width", self.width)):
            require(math.isfinite(value) and value > 0, f"{name} must be a finite number > 0, but got {value}")
        require(self.width <= 4, f"--width must be at most 4, but got {self.width}")
        require(
            self.mlflow is None or "://" in self.mlflow,
            f"--mlflow takes an address such as http://127.0.0.1:5000, but got {self.mlflow!r}",
        )
        is_bucket(self.store)
        require(
            self.data is None or self.data.is_dir(),
            f"the data folder {self.data} of --data is not there, or is no folder; name the folder that holds the "
            f"dataset's files, or leave --data out to download into ./{DEFAULT_DATA}",
        )
        if self.dataset == FOLDER:
            require(
                self.data is not None, "--dataset folder needs --data with the folder whose sub-folders are classes"
            )
            self.row(FOLDER)
        else:
            for name, value in (("--image-size", self.image_size), ("--channels", self.channels)):
                require(value is None, f"{name} is for --dataset folder alone: {self.dataset} has images of one size")
        self.recipes()

    def recipes(self) -> list[Recipe]:
        """The recipe without a GPU and that with one, of which one must be valid: what is wrong with both is known
        before the hardware is. Of an image folder, whose size is not known yet, for a thousand images."""

        def build(dataset: str, recipe: str) -> Recipe:
            return self.build_recipe(self.row(dataset), recipe, TRAINING_IMAGES.get(dataset, 1000))

        chosen = dict.fromkeys(self.choose(gpus)[:2] for gpus in (0, 1))
        return valid(functools.partial(build, *names) for names in chosen)

    def choose(self, gpus: int) -> tuple[str, str, str]:
        """Dataset, recipe, and why these, on hardware with this many GPUs."""
        dataset = self.dataset
        if dataset == AUTO:
            dataset = "cifar10" if gpus else "digits"
            why = (
                f"Ray has {gpus} GPU{'s' if gpus > 1 else ''}: the paper's CIFAR-10 job"
                if gpus
                else "Ray has no GPU: the embedded digits job (the paper's CIFAR-10 job needs one)"
            )
        else:
            why = f"{dataset}, as asked for"
        recipe = self.recipe
        if recipe == AUTO:
            recipe = "released" if gpus else "laptop"
        return dataset, recipe, f"{why}, recipe {recipe}"

    def with_inception(self, dataset: Dataset, gpus: int) -> bool:
        """Whether the Inception network scores, on hardware with this many GPUs."""
        wanted = self.inception_weights is not None or (gpus > 0 and dataset.channels == 3)
        return self.scorer == "inception" or (self.scorer == AUTO and wanted)

    def row(self, name: str) -> Dataset:
        """The row of a dataset, at full width; DataError where the image folder is none."""
        if name != FOLDER:
            return DATASETS[name]
        from sgan.data.image_folder import class_names

        assert self.data is not None
        size = DEFAULT_SIZE if self.image_size is None else self.image_size
        return folder_row(size, 3 if self.channels is None else self.channels, len(class_names(self.data)))

    def build_recipe(self, dataset: Dataset, recipe: str, images: int, inception: bool = False) -> Recipe:
        """The recipe's row with the budget and the overrides of this sweep, and the Inception score's number of
        samples."""
        changes: dict[str, Any] = {"samples": str(INCEPTION_SAMPLES)} if inception else {}
        for change in self.override:
            path, equals, text = change.partition("=")
            require(bool(equals), f"--override takes FIELD=VALUE, but got {change!r}")
            *parents, field = path.split(".")
            inner = changes
            for parent in parents:
                inner = inner.setdefault(parent, {})
                require(isinstance(inner, dict), f"--override {change} changes a part of what another one sets")
            inner[field] = text
        return replaced(recipe_row(recipe, dataset, images).budget(self.budget), changes, "")


def valid(makes: Iterable[Callable[[], Made]]) -> list[Made]:
    """What some of these make; the first one's ConfigError where all raise one."""
    made, errors = list[Made](), list[ConfigError]()
    for make in makes:
        try:
            made.append(make())
        except ConfigError as error:
            errors.append(error)
    if errors and not made:
        raise errors[0]
    return made


def replaced(row: Any, changes: dict[str, Any], path: str) -> Any:
    """A dataclass with fields replaced: name -> text, or name -> the changes inside that field. All changes of one
    dataclass are made together, since it validates them together."""
    fields = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    new = {}
    for name, change in changes.items():
        require(
            name in fields and isinstance(change, dict) == dataclasses.is_dataclass(fields[name]),
            f"no field {path + name!r} for --override; here there are "
            + ", ".join(f"{path}{n}{'.…' if dataclasses.is_dataclass(v) else ''}" for n, v in fields.items()),
        )
        nested = isinstance(change, dict)
        new[name] = replaced(fields[name], change, f"{path}{name}.") if nested else _value(fields[name], change, name)
    return dataclasses.replace(row, **new)


def _value(old: Any, text: str, name: str) -> Any:
    """Text as a value of the old one's type: JSON, or a plain word."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if isinstance(old, float) and type(value) is int:
        with suppress(OverflowError):  # no float is so large: refused below
            value = float(value)
    if isinstance(old, tuple) and isinstance(value, list):
        value = tuple(tuple(item) if isinstance(item, list) else item for item in value)
    require(
        type(value) is type(old),
        f"--override {name}={text}: {name} takes {type(old).__name__} values such as {json.dumps(as_json(old))}, "
        f"but got {text!r}",
    )
    return value


@dataclass(frozen=True)
class Basis:
    """What all trials of a command share: the options with everything chosen.

    Attributes:
        row: the dataset's row at full width, by which the scorer is trained; `dataset`: the one that is trained.
        inception_weights, inception: file and SHA-256 of the weights of the Inception network that scores; None and ""
            where the dataset's classifier does.
        why: why this dataset and recipe, and what to beware of.
        what: the dataset in words.
        notes: the options that differ from their defaults, in words.
    """

    row: Dataset
    dataset: Dataset
    recipe: Recipe
    data: "Data"
    inception_weights: Path | None
    inception: str
    why: str
    what: str
    notes: tuple[str, ...]

    def config(
        self,
        variant: Variant,
        seed: int,
        weights: Weights | None = None,
        cuts: tuple[str, ...] = DEFAULT_CUTS,
        recipe: Recipe | None = None,
    ) -> Config:
        """The config of one trial, by `sgan.presets.configure`."""
        shared = (self.dataset, self.row, self.data.digest, recipe or self.recipe)
        return configure(*shared, variant, seed, weights, cuts, self.inception)

    @property
    def shared(self) -> list[Any]:
        """All that every trial's config has of this, as plain JSON values: for content keys."""
        return [*map(as_json, (self.dataset, self.row, self.data.digest, self.recipe)), self.inception]


def prepare(options: Options, gpus: int) -> Basis:
    """Choose dataset and recipe for hardware with this many GPUs, and read the data.

    Raises:
        ConfigError: data are absent or torn, or a value does not fit the dataset or the recipe.
    """
    from sgan.data.datasets import read

    dataset_name, recipe_name, why = options.choose(gpus)
    row = options.row(dataset_name)
    inception = options.with_inception(row, gpus)
    folder = (options.data or DEFAULT_DATA).absolute()
    if dataset_name != FOLDER:  # what can be wrong with the options comes before the data are read
        options.build_recipe(row, recipe_name, TRAINING_IMAGES[dataset_name], inception)
    data = read(row, folder)
    images = TRAINING_IMAGES.get(dataset_name, len(data.images))
    recipe = options.build_recipe(row, recipe_name, images, inception)
    weights_file, weights_digest = None, ""
    if inception:
        from sgan.evaluation.inception import check_weights, find_weights

        weights_file = find_weights(options.inception_weights)
        weights_digest = check_weights(weights_file)
    if gpus == 0 and "bfloat16" in (recipe.gan.precision, recipe.joint.precision) and not multiplies_bfloat16():
        why += (
            f"\n  warning: precision=bfloat16 on a processor without instructions for it ({processor()}): a step takes "
            "many times as long as in float32"
        )
    for part in (recipe.encoder, recipe.scorer, recipe.gan, recipe.joint):
        require(
            part.batch <= len(data.images),
            f"a batch must be at most the {len(data.images)} training images, but got {part.batch}",
        )
    what = dataset_name
    if dataset_name == FOLDER:
        what = f"folder {folder.name} ({len(data.images):,} training images, {row.size}x{row.size})"
    notes = [
        f"recipe {recipe_name}",
        f"budget x {options.budget:g}" if options.budget != 1 else "",
        f"width x {options.width:g}" if options.width != 1 else "",
        "exact Inception scores" if inception else "",
        *options.override,
    ]
    return Basis(
        row,
        row.scaled(options.width),
        recipe,
        data,
        weights_file,
        weights_digest,
        why,
        what,
        tuple(filter(None, notes)),
    )


def status(command: Callable[[], int]) -> int:
    """Run a command; returns its exit status. A bad value, a store without room, something else in a file's place,
    Ctrl-C and SIGTERM end in one line."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return command()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
    except (IsADirectoryError, NotADirectoryError) as error:
        print(f"error: {error}; delete it, then run the same command: it goes on where it was", file=sys.stderr)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        print(f"error: {error}; make room, then run the same command: it goes on where it was", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on where it was.")
        return INTERRUPTED
    return BAD
