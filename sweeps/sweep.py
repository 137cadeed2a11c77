"""A sweep: the options of the command line, validated, and the trials that they mean."""

import dataclasses
import json
import math
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sgan.checks import as_json, content_key, require
from sgan.config import Recipe, Variant, Weights
from sgan.presets import (
    DATASETS,
    FOLDER,
    REAL_DATA_PAPER,
    RECIPES,
    TRAINING_IMAGES,
    VARIANTS,
    configure,
    folder_row,
    recipe_row,
)
from sgan.shapes import Dataset

if TYPE_CHECKING:
    from sgan.data import Data
    from sgan.store import Store
    from sweeps.schedule import Trial

AUTO = "auto"
DEFAULT_CUTS, DEFAULT_SIZE = ("fc3",), 32
SCORERS = (AUTO, "classifier", "inception")
INCEPTION_SAMPLES = 50_000
"""Of the paper and of every published Inception score."""
DEFAULT_DATA = Path("data")


@dataclass(frozen=True)
class Sweep:
    """Train and score the ablation of Stacked GANs: variants x seeds, in parallel, each stage once.

    With no options it runs the largest job that the hardware carries: the paper's CIFAR-10 job where Ray has GPUs,
    otherwise the digits that come with scikit-learn. The same command again trains nothing; more seeds or variants
    train only what is new.
    """

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
    variants: tuple[str, ...] = tuple(name for name, row in VARIANTS.items() if row.default)
    """Rows of the ablation; beside the paper's six there are sgan-no-entropy, full-gan, sgan-unsupervised and
    infogan."""
    seeds: int = 3
    """Number of training seeds a variant."""
    first_seed: int = 0
    """The first of those seeds."""
    recipe: str = AUTO
    """How to train: auto, paper (the paper's text), released (the authors' code) or laptop (minutes on a CPU). auto is
    laptop without a GPU where the dataset has one, otherwise released."""
    cuts: tuple[str, ...] = DEFAULT_CUTS
    """Where the stacked variants are cut, from the image up: any of conv1 pool1 conv2 pool2 fc3. N cuts make N + 1
    levels."""
    weights: tuple[float, float, float] | None = None
    """Weights of the adversarial, conditional and entropy loss; a variant without one of them keeps 0 there. Without
    this option they are the paper's 1 1 10, and 1 0 1 for infogan."""
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
    store: Path = Path("runs")
    """Output store: every finished stage, the MLflow record, the table."""
    mlflow: str | None = None
    """Address of an MLflow server; without it, an SQLite file in the store."""
    slots: int | None = None
    """At most this many trials at the same time; without it, one a CPU or as many as the GPUs carry."""
    trials_per_gpu: int = 1
    """Trials that share one GPU."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the plan and stop."""

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
        require(len(self.variants) > 0, f"--variants needs at least one of {', '.join(VARIANTS)}")
        for variant in self.variants:
            require(
                variant in VARIANTS,
                f"unknown variant {variant!r} in --variants; choose from {', '.join(VARIANTS)}",
            )
        require(self.seeds >= 1, f"--seeds must be at least 1, but got {self.seeds}")
        require(0 <= self.first_seed <= 2**31 - 2 - self.seeds, f"--first-seed must be >= 0, but got {self.first_seed}")
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
        Variant(self.cuts, self.loss_weights or Weights(), joint=False)  # validates both
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
        if self.dataset != AUTO and self.recipe != AUTO:
            images = TRAINING_IMAGES.get(self.dataset, 1000)
            self.build_recipe(self.row(self.dataset), self.recipe, images)

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
        """The row of a dataset, at full width; FolderError where the image folder is none."""
        if name != FOLDER:
            return DATASETS[name]
        from sgan.folder import class_names

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
        return _replaced(recipe_row(recipe, dataset, images).budget(self.budget), changes, "")

    @property
    def loss_weights(self) -> Weights | None:
        """The weights asked for, if any."""
        return Weights(*self.weights) if self.weights else None

    @property
    def seed_range(self) -> range:
        """The training seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)


def _replaced(row: Any, changes: dict[str, Any], path: str) -> Any:
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
        new[name] = _replaced(fields[name], change, f"{path}{name}.") if nested else _value(fields[name], change, name)
    return dataclasses.replace(row, **new)


def _value(old: Any, text: str, name: str) -> Any:
    """Text as a value of the old one's type: JSON, or a plain word."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if isinstance(old, float) and type(value) is int:
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
class Resolved:
    """A sweep with everything chosen.

    Attributes:
        key: content key of all that its trials share; the same sweep with other variants or seeds has the same.
        why: why this dataset and recipe.
        title: heading of its table.
    """

    sweep: Sweep
    dataset: Dataset
    recipe: Recipe
    data: "Data"
    folder: Path
    inception_weights: Path | None
    trials: "tuple[Trial, ...]"
    key: str
    why: str
    title: str


def resolve(sweep: Sweep, gpus: int) -> Resolved:
    """Choose dataset and recipe, read the data, and plan every trial.

    Raises:
        ConfigError: data are absent or torn, or a value does not fit the dataset or the recipe.
    """
    from sgan.data import load
    from sgan.stages import code_version
    from sweeps.schedule import trial

    dataset_name, recipe_name, why = sweep.choose(gpus)
    row = sweep.row(dataset_name)
    inception = sweep.with_inception(row, gpus)
    folder = (sweep.data or DEFAULT_DATA).absolute()
    if dataset_name != FOLDER:  # what can be wrong with the options comes before the data are read
        sweep.build_recipe(row, recipe_name, TRAINING_IMAGES[dataset_name], inception)
    data = load(row, folder)
    images = TRAINING_IMAGES.get(dataset_name, len(data.images))
    recipe = sweep.build_recipe(row, recipe_name, images, inception)
    weights_file, weights_digest = None, ""
    if inception:
        from sgan.inception import check_weights, find_weights

        weights_file = find_weights(sweep.inception_weights)
        weights_digest = check_weights(weights_file)
    for part in (recipe.encoder, recipe.scorer, recipe.gan, recipe.joint):
        require(
            part.batch <= len(data.images),
            f"a batch must be at most the {len(data.images)} training images, but got {part.batch}",
        )
    dataset, weights = row.scaled(sweep.width), sweep.loss_weights
    shared = (dataset, row, data.digest, recipe)
    trials = tuple(
        trial(
            variant,
            seed,
            configure(*shared, VARIANTS[variant].variant, seed, weights, sweep.cuts, weights_digest),
        )
        for seed in sweep.seed_range
        for variant in dict.fromkeys(sweep.variants)
    )
    parts = (*shared, weights, sweep.cuts, weights_digest, code_version())
    key = content_key([as_json(part) for part in parts])
    extras = [
        f"cuts {' '.join(sweep.cuts) or 'none'}" if sweep.cuts != DEFAULT_CUTS else "",
        f"weights {' '.join(f'{value:g}' for value in sweep.weights)}" if sweep.weights else "",
        f"budget x {sweep.budget:g}" if sweep.budget != 1 else "",
        f"width x {sweep.width:g}" if sweep.width != 1 else "",
        "exact Inception scores" if inception else "",
        *sweep.override,
    ]
    what = dataset_name
    if dataset_name == FOLDER:
        what = f"folder {folder.name} ({len(data.images):,} training images, {row.size}x{row.size})"
    title = ", ".join([f"{what}, recipe {recipe_name}", *filter(None, extras)])
    return Resolved(sweep, dataset, recipe, data, folder, weights_file, trials, key, why, title)


def write_manifest(resolved: Resolved, store: "Store", machine: str, commit: str) -> None:
    """Tell tracking and report what the sweep consists of; trials of earlier commands of the same sweep stay."""
    from sgan.stages import name
    from sgan.store import read_json, write_json

    path = store.sweep(resolved.key)
    with store.lock(f"manifest-{resolved.key}"):
        earlier = read_json(path) if path.exists() else {"trials": [], "started": time.time()}
        rows = {(row["variant"], row["seed"]): row for row in earlier["trials"]}
        rows |= {(trial.variant, trial.seed): _row(trial) for trial in resolved.trials}
        order = list(VARIANTS)
        trials = sorted(rows.values(), key=lambda row: (order.index(row["variant"]), row["seed"]))
        write_json(
            path,
            {
                "key": resolved.key,
                "title": resolved.title,
                "command": command(),
                "commit": commit,
                "machine": machine,
                "started": earlier["started"],
                "settings": _settings(resolved),
                "paper_real": REAL_DATA_PAPER,
                "judges": [name(stage) for stage in resolved.trials[0].plan.judges],
                "variants": [
                    {"name": variant, "title": VARIANTS[variant].title, "paper": VARIANTS[variant].paper}
                    for variant in order
                    if any(row["variant"] == variant for row in trials)
                ],
                "trials": trials,
            },
        )


def _row(trial: "Trial") -> dict[str, Any]:
    """A trial in the manifest. `run` names its run in MLflow: under some options two variants are one and the same
    trial, and both have a row."""
    from sgan.stages import name

    return {
        "name": trial.plan.name,
        "run": f"{trial.variant}-{trial.seed}-{trial.plan.name}",
        "variant": trial.variant,
        "seed": trial.seed,
        "cuts": ",".join(trial.config.variant.cuts) or "none",
        "config": as_json(trial.config),
        "config_key": content_key(trial.config),
        "stages": [{"label": label, "name": name(stage)} for label, stage in trial.plan.stages],
    }


def _settings(resolved: Resolved) -> dict[str, Any]:
    """The options that all trials of the sweep share."""
    sweep = resolved.sweep
    return {
        "dataset": resolved.dataset.name,
        "recipe": resolved.recipe.name,
        "cuts": list(sweep.cuts),
        "weights": list(sweep.weights or ()),
        "budget": sweep.budget,
        "width": sweep.width,
        "override": list(sweep.override),
    }


def command() -> str:
    """The command line that was given, without folders of this machine."""
    words = [word if "://" in word else re.sub(r"(^|=)/.*/", r"\1", word) for word in sys.argv[1:]]
    words = [re.sub(r"//[^/@]*@", "//", word) for word in words]  # nor passwords
    return shlex.join(["python", "sweeps/ablation.py", *words])


def commit() -> str:
    """The commit of this checkout, with "-dirty" where tracked files differ from it; "unknown" outside of git."""
    here = Path(__file__).resolve().parent
    try:
        git = ["git", "-C", str(here)]
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("-dirty" if changes.stdout.strip() else "")
