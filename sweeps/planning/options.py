"""The options of the commands, as dataclasses for tyro that check themselves.

It imports nothing that takes seconds, so that --help is fast.
"""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import AfterValidator, DirectoryPath, Field, FilePath, NonNegativeFloat, PositiveInt

from sgan.addresses import store_address
from sgan.checks import ConfigError, one_of, require, validated, with_fields
from sgan.config import Budget, Recipe, Seed, Taps, Weights
from sgan.presets import DATASETS, FOLDER, RECIPES, TRAINING_IMAGES, VARIANTS, Row, folder_row
from sgan.shapes import Dataset, Width
from sweeps.planning.rows import assignment, own_rows

AUTO, DEFAULT_CUTS, DEFAULT_DATA = "auto", ("fc3",), Path("data")
INCEPTION_SAMPLES = 50_000  # Samples of the paper's Inception scores, and of all published ones

LENGTH = "--budget 0.5 halves the training of every GAN stage, and --override image_level=N sets its images"
GPUS = "Ray's GPUs are used as they are; CUDA_VISIBLE_DEVICES chooses, --trials-per-gpu packs several stages onto one"
ASKED = {
    **dict.fromkeys(("--epochs", "--steps", "--iterations"), LENGTH),
    **dict.fromkeys(("--lr", "--learning-rate"), "--override gan.adam.learning_rate=X joint.adam.learning_rate=X"),
    **dict.fromkeys(("--batch-size", "--batch"), "--override gan.batch=N joint.batch=N"),
    **dict.fromkeys(("--gpus", "--gpu", "--device"), GPUS),
    **dict.fromkeys(("--workers", "--jobs", "--cpus"), "--slots N runs at most N stages at the same time"),
    **dict.fromkeys(("--resume", "--continue"), "the same command goes on where it was"),
    "--seed": "--first-seed N --seeds 1",
    "--seeds": "--seeds is their number: --seeds 3 runs 0, 1 and 2, with --first-seed 5 it runs 5, 6 and 7",
}
"""Options that people try -> the option that does it."""
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def flag(field: str) -> str:
    """A field's name on the command line."""
    return f"--{field.replace('_', '-')}"


def choice(*choices: str) -> tuple[Any, Any]:
    """Metadata of a text option that takes only these values, and shows them in --help."""
    return one_of(*choices), tyro.conf.arg(metavar=f"{{{','.join(choices)}}}")


@dataclass(frozen=True)
class Data:
    """The training data."""

    dataset: Annotated[str, *choice(AUTO, *DATASETS, FOLDER)] = AUTO
    """Dataset: auto (by the hardware), digits, mnist, svhn, cifar10, or folder (the images in --data)."""
    image_size: int | None = None
    """With --dataset folder: height and width of the images in pixels, a multiple of 4; by default 32."""
    channels: int | None = None
    """With --dataset folder: 1 for grey or 3 for colour images; by default 3."""


@dataclass(frozen=True)
class Training:
    """How to train and score."""

    recipe: Annotated[str, *choice(AUTO, *RECIPES)] = AUTO
    """How to train: paper (the paper's text), released (the authors' code), laptop (minutes on a CPU), or auto: laptop
    without a GPU, otherwise released."""
    budget: Budget = 1.0
    """Factor on the training images of every GAN stage."""
    width: Width = 1.0
    """Factor on every hidden width of the networks; 1 is the released architecture."""
    override: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD=VALUE ...")] = ()
    """Fields of the recipe to change, as gan.image_noise=0.1 or joint.adam.learning_rate=1e-4."""

    judge: Annotated[str, *choice(AUTO, "held-out", "inception", "dinov2")] = AUTO
    """The network that scores: held-out (a classifier of another architecture than the encoder, trained on test images
    that nothing else sees), inception (exact Inception scores, FID, KID, precision and recall on 50,000 samples; slow
    without a GPU), dinov2 (needs timm and --judge-weights), or auto: inception with --judge-weights, or for colour
    images on a GPU; otherwise held-out. Scores in pixels are always computed, too."""


@dataclass(frozen=True)
class Places:
    """The places of data, weights and results."""

    data: DirectoryPath | None = None
    """Folder with the dataset's files, as torchvision lays them out; by default they are downloaded into ./data, and
    digits need none. With --dataset folder: a folder with a sub-folder for each class, or with two such folders, train
    and test."""
    judge_weights: FilePath | None = None
    """Weights file of the network that scores; by default torch-fidelity's file is downloaded for inception."""
    store: Annotated[str, AfterValidator(store_address)] = dataclasses.field(
        default_factory=lambda: os.environ.get("SGAN_STORE") or "runs"
    )
    """Output store for every finished stage, the MLflow record and the report. A folder (on a cluster, one that all
    hosts share) or s3://bucket/folder; by default $SGAN_STORE or runs."""
    mlflow: str | None = None
    """Address of an MLflow server, such as http://127.0.0.1:5000; by default $MLFLOW_TRACKING_URI or an SQLite file in
    the store."""


@dataclass(frozen=True)
class Machine:
    """The machine, and how many stages run at the same time."""

    dry_run: Flag = False
    """Print the plan and stop."""

    slots: PositiveInt | None = None
    """Maximum of stages that run at the same time; by default one per CPU, or as many as the GPUs carry."""
    trials_per_gpu: Annotated[int, Field(ge=1, le=100)] = 1
    """Number of stages that share one GPU."""
    deterministic: Flag = False
    """On a GPU, compute every sum in one order: this is slower, but a repeated or resumed run is then equal bit for
    bit. On CPUs it always is."""


@validated(flag)
class Options(Data, Training, Places, Machine):
    """The options that ablation and search share: data, training, scores, and places of results."""

    def __post_init__(self):
        fits = self.judge_weights is None or self.judge != "held-out"
        require(fits, "--judge-weights is given, but --judge held-out uses none; leave one of them out")
        if self.dataset == FOLDER:
            require(self.data is not None, "--dataset folder needs --data, whose sub-folders are the classes")
        for name in ("image_size", "channels"):
            unused = self.dataset == FOLDER or getattr(self, name) is None
            require(unused, f"{flag(name)} needs --dataset folder; images of {self.dataset} have one size")
        self.some_recipe()

    def some_recipe(self) -> Recipe:
        """The recipe without a GPU, or the one with a GPU if only that is valid: an error of both shows before the
        hardware is known. For an image folder of unknown size, the recipe for a thousand images."""
        errors = []
        for gpus in (0, 1):
            dataset, recipe, _ = self.choose(gpus)
            try:
                return self.build_recipe(self.dataset_row(dataset), recipe, TRAINING_IMAGES.get(dataset, 1000))
            except ConfigError as error:
                errors.append(error)
        raise errors[0]

    def choose(self, gpus: int) -> tuple[str, str, str]:
        """Names of dataset and recipe for this number of GPUs, and the reason for them in words."""
        dataset, recipe, reason = self.dataset, self.recipe, f"{self.dataset}, as given"
        if dataset == AUTO:
            dataset, reason = "digits", "Ray has no GPU: the digits job (the paper's CIFAR-10 job needs one)"
            if gpus:
                dataset, reason = "cifar10", f"Ray has {gpus} GPU{'s' * (gpus > 1)}: the paper's CIFAR-10 job"
        if recipe == AUTO:
            recipe = "released" if gpus else "laptop"
        return dataset, recipe, f"{reason}, recipe {recipe}"

    def dataset_row(self, name: str) -> Dataset:
        """The row of a dataset, at full width; ConfigError for a bad image folder."""
        if name != FOLDER:
            return DATASETS[name]
        from sgan.data.image_folder import class_names  # it imports torch, which no other option needs

        assert self.data is not None
        size, channels = (32 if self.image_size is None else self.image_size), self.channels
        return folder_row(size, 3 if channels is None else channels, len(class_names(self.data)))

    def build_recipe(self, dataset: Dataset, recipe: str, images: int, judge: str = "held-out") -> Recipe:
        """The recipe's row with --budget, the samples of Inception scores and --override."""
        fields: dict[str, Any] = {"samples": INCEPTION_SAMPLES} if judge == "inception" else {}
        fields |= dict(assignment(change, "--override") for change in self.override)
        return with_fields(RECIPES[recipe](dataset, images).budget(self.budget), fields, "--override")


@dataclass(frozen=True)
class Stack:
    """Cuts and loss weights of all rows."""

    cuts: Taps = DEFAULT_CUTS
    """Layers at which the stacked variants are cut, from the image up: any of conv1 pool1 conv2 pool2 fc3. N cuts make
    N + 1 levels."""
    weights: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] | None = None
    """Weights of the adversarial, conditional and entropy loss; a loss that a variant does not have keeps weight 0. By
    default the paper's 1 1 10, and 1 0 1 for infogan."""


@dataclass(frozen=True)
class Rows:
    """The rows of the table, and their seeds."""

    variants: Annotated[tuple[Annotated[str, one_of(*VARIANTS)], ...], tyro.conf.arg(metavar="NAME ...")] = tuple(
        name for name, row in VARIANTS.items() if row.default
    )
    """Variants to train, each a row of the table: by default the paper's six; also sgan-no-entropy, full-gan,
    sgan-unsupervised, infogan. Without a name: only the rows of --rows and --row."""
    rows: Annotated[tuple[FilePath, ...], tyro.conf.arg(metavar="FILE ...")] = ()
    """YAML files with custom rows, such as sweeps/rows/released.yaml: each row has a base variant and the fields of the
    variant or the recipe that it changes."""
    row: Annotated[
        tyro.conf.UseAppendAction[tuple[Annotated[tuple[str, ...], Field(min_length=1)], ...]],
        tyro.conf.arg(metavar="NAME FIELD=VALUE ..."),
    ] = ()
    """One custom row: NAME base=sgan FIELD=VALUE ..., with fields such as weights.entropy, cuts, joint or
    gan.fresh_noise."""
    seeds: PositiveInt = 3
    """Number of training seeds per variant: 3 gives the seeds 0, 1, 2."""
    first_seed: Seed = 0
    """The first of these seeds."""
    match: Literal["none", "images", "flops"] = "none"
    """Equal compute: every row's GAN training is lengthened to that of the largest, measured in images that its image
    generator is trained with, or in FLOPs; none: the paper's protocol."""
    config: Path | None = None
    """The best.yaml of a search: it sets the options that the command line does not name."""


@validated(flag)
class Sweep(Rows, Stack, Options):
    """Train and score the ablation of Stacked GANs: variants x seeds, in parallel, each stage once.

    With no options it runs the largest job that the hardware carries: the paper's CIFAR-10 job where Ray has GPUs,
    otherwise the digits that come with scikit-learn. The same command again trains nothing; more seeds or variants
    train only the new ones.

    Examples:

        python sweeps/ablation.py --dry-run
        python sweeps/ablation.py --seeds 5 --variants sgan dcgan-adv
        python sweeps/ablation.py --row mine base=sgan weights.entropy=5
        python sweeps/ablation.py --dataset mnist --data DIR --budget 0.1
    """

    def __post_init__(self):
        last = self.first_seed + self.seeds - 1
        require(last <= 2**31 - 3, f"seeds must be at most {2**31 - 3}, but --first-seed and --seeds end at {last}")
        if self.weights:
            Weights(*self.weights)  # not all of them may be 0
        require(bool(self.all_rows), "--variants names no variant, and there is no --rows or --row; name one")
        titles = [row.title for row in self.all_rows.values()]
        twice = next((title for title in titles if titles.count(title) > 1), None)
        require(twice is None, f"two rows have the title {twice!r}; give one of them another title")
        super().__post_init__()

    @property
    def loss_weights(self) -> Weights | None:
        return Weights(*self.weights) if self.weights else None

    @property
    def all_rows(self) -> dict[str, Row]:
        """The rows of the ablation by name: the variants, and the custom rows."""
        return {name: VARIANTS[name] for name in self.variants} | own_rows(self.rows, self.row)

    @property
    def seed_range(self) -> range:
        return range(self.first_seed, self.first_seed + self.seeds)
