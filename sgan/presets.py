"""Tables of values: datasets with their architectures, recipes and variants, and the code that looks them up.

Sources: SGAN = Huang et al., "Stacked Generative Adversarial Networks", CVPR 2017; released code = the authors'
repository xunhuang1995/SGAN (Theano and Lasagne), folders cifar10 and mnist.
"""

import json
from dataclasses import replace
from typing import Any

from sgan.checks import ConfigError, as_json, require, validated, with_fields
from sgan.config import AdamRecipe, Codes, Config, EncoderRecipe, GanRecipe, JudgeRecipe, Recipe, Variant, Weights
from sgan.shapes import Conv, Dataset, EncoderShape, GanShape

_CIFAR10 = GanShape(  # released code, cifar10
    maps=(256, 256, 128, 128),
    kernel=5,
    image_noise=16,
    feature_noise=50,
    noise_hidden=(128, 128),
    label_noise_hidden=256,
    label_hidden=512,
    vector_hidden=(512, 512),
    image_convs=(
        Conv(96),
        Conv(96, stride=2, norm=True),
        Conv(192, norm=True, dropout=True),
        Conv(192, stride=2, norm=True),
        Conv(192, padding=0, norm=True, dropout=True),
        Conv(192, kernel=1, padding=0),
    ),
    image_fc=(),
    mean_pool=True,
    vector_fc=((512, False), (512, True)),
    map_convs=(Conv(128), Conv(256, stride=2)),
    map_fc=(256,),
)
_MNIST = GanShape(  # released code, mnist
    maps=(128, 128, 64, 64),
    kernel=5,
    image_noise=50,
    feature_noise=50,
    noise_hidden=(128,),
    vector_hidden=(512, 512),
    image_convs=tuple(Conv(maps, kernel=5, stride=2, padding=2) for maps in (32, 64, 128)),
    image_fc=(256,),
    vector_fc=((256, False), (256, False)),
    map_convs=(Conv(64), Conv(128, stride=2)),
    map_fc=(256,),
    sigmoid_q=True,
)
_DIGITS = GanShape(  # our own: the MNIST layout at 8x8
    maps=(32, 16, 16, 8),
    kernel=3,
    image_noise=8,
    feature_noise=16,
    noise_hidden=(16,),
    vector_hidden=(64, 64),
    image_convs=(Conv(16, stride=2), Conv(32, stride=2, norm=True)),
    image_fc=(64,),
    vector_fc=((64, False), (64, False)),
    map_convs=(Conv(16), Conv(32, stride=2)),
    map_fc=(32,),
)
# Name, channels, size, classes; conv1's and conv2's maps, kernel, padding, width of fc3.
CIFAR10 = Dataset("cifar10", 3, 32, 10, EncoderShape((64, 128), 5, 0, 256), _CIFAR10, flips=True)
SVHN = replace(CIFAR10, name="svhn", flips=False)  # not in the released code; digits must not be mirrored
MNIST = Dataset("mnist", 1, 28, 10, EncoderShape((32, 32), 5, 0, 256), _MNIST)
DIGITS = Dataset("digits", 1, 8, 10, EncoderShape((8, 16), 3, 1, 32), _DIGITS)
DATASETS = {row.name: row for row in (DIGITS, MNIST, SVHN, CIFAR10)}

TRAINING_IMAGES = {"digits": 1_347, "mnist": 60_000, "svhn": 73_257, "cifar10": 50_000}
"""Number of training images of each dataset: one epoch."""
FOLDER = "folder"
SMALLEST, LARGEST, SMALL = 8, 128, 16
"""Smallest and largest size of an image folder's images. Below SMALL, discriminators are twice as wide as digits'."""


def folder_row(size: int, channels: int, classes: int) -> Dataset:
    """Return the row of an image folder: CIFAR-10's widths in colour, MNIST's in grey. ConfigError for bad values."""
    sizes = f"a multiple of 4 from {SMALLEST} to {LARGEST} (the encoder halves it twice)"
    require(size in range(SMALLEST, LARGEST + 1, 4), f"the image size must be {sizes}, but got {size}")
    require(channels in (1, 3), f"channels must be 1 (grey) or 3 (colour), but got {channels}")
    require(classes >= 2, f"an image folder needs at least 2 classes, but got {classes}")
    row = replace(CIFAR10 if channels == 3 else MNIST, name=FOLDER, size=size, classes=classes, flips=False)
    if size < SMALL:
        small = DIGITS.scaled(2).gan  # layers for larger images would leave no pixel
        gan = replace(row.gan, kernel=small.kernel, image_convs=small.image_convs, image_fc=small.image_fc)
        encoder = replace(row.encoder, kernel=DIGITS.encoder.kernel, padding=DIGITS.encoder.padding)
        row = replace(row, encoder=encoder, gan=replace(gan, mean_pool=False))
    return row


def _judge(dataset: Dataset) -> JudgeRecipe:
    """Return the judge's recipe, the same in every recipe of a dataset, so that their scores can be compared."""
    images = 28_800 if dataset.name == "digits" else 64_000 if dataset.channels == 1 else 256_000
    return JudgeRecipe(images, flips=dataset.flips)


_PAPER_ADAM = AdamRecipe(learning_rate=1e-4, beta1=0.5, eps=1e-8)
_RELEASED_ADAM = replace(_PAPER_ADAM, eps_in_root=True)


def _paper(dataset: Dataset, images: int) -> Recipe:
    """The paper's text: binary discriminator, -log D, alternating steps, end-to-end joint training. The paper does not
    mention Adam's state in joint training; this recipe keeps it from the levels."""
    epochs, adam = 200 * images, AdamRecipe(learning_rate=1e-3, beta1=0.9)
    # Neither source says how the encoder was trained, except for its weights N(0, 0.01) and the flips. The variance is
    # that of the released encoders' features.
    variance = 0.441 if dataset.channels == 3 else 0.515
    images = max(epochs // 10, 300_000)
    encoder = EncoderRecipe(images, adam=adam, flips=dataset.flips, feature_variance=variance)
    gan = GanRecipe(adam=_PAPER_ADAM)
    if dataset.channels == 3:
        gan = replace(gan, image_noise=0.05, feature_noise=0.2, dropout=0.1)
    return Recipe("paper", encoder, gan, gan, epochs, epochs, epochs, _judge(dataset), fresh_adam=False)


def _released(dataset: Dataset, images: int) -> Recipe:
    """The released code: its CIFAR-10 folder for colour images, its MNIST folder for grey ones."""
    paper = _paper(dataset, images)
    if dataset.channels == 1:
        gan = replace(paper.gan, adam=_RELEASED_ADAM, discriminator_scale=0.5, fresh_noise=True)
        # In train_independent.py, discriminators are leaky with N(0, 0.02) throughout; train_joint.py differs:
        joint = replace(gan, dense_slope=0.0, dense_glorot=True, convolution_std=0.01)
        return replace(paper, name="released", gan=gan, joint=joint, joint_start=0.0, fresh_adam=True, feedback=0.0)
    gan = replace(
        paper.gan,
        adam=_RELEASED_ADAM,
        discriminator="classes",
        class_weight=1.0,
        adversarial="saturating",
        discriminator_scale=0.5,
        generator_steps=((0.65, 1), (0.5, 3), (0.3, 5), (0.0, 7)),
        fresh_noise=True,
        pixel_mean=True,
    )
    encoder, joint = replace(paper.encoder, pixel_mean=True), replace(gan, hidden_noise=0.2, dropout=0.3)
    paper = replace(paper, name="released", encoder=encoder, gan=gan, joint=joint)
    return replace(paper, joint_start=190 / 200, fresh_adam=True, feedback=0.01)


def _laptop(dataset: Dataset, images: int) -> Recipe:
    """Our own recipe, chosen on seeds from 100 up and reported on others. It has values for digits, and values chosen
    on MNIST for all larger images."""
    adam, encoder = AdamRecipe(learning_rate=2.4e-3, beta1=0.5), AdamRecipe(learning_rate=1e-3, beta1=0.9)
    classifier = EncoderRecipe(images=64 * 600, batch=64, adam=encoder, init_std=0.1)
    gan = GanRecipe(64, adam, generator_steps=((0.65, 1), (0.5, 2), (0.0, 3)), feature_noise=0.3)
    judge = _judge(dataset)
    if dataset.name == "digits":
        gan = replace(gan, image_noise=0.1, init_std=0.1)
        joint = replace(gan, adam=replace(adam, learning_rate=1.2e-3))
        return Recipe("laptop", classifier, gan, joint, 64 * 800, 64 * 3500, 64 * 1500, judge, samples=10_000)
    classifier = replace(classifier, images=60_000, flips=dataset.flips, feature_variance=0.5)
    adam = replace(adam, learning_rate=1e-3)
    # D's adversarial loss has little weight: otherwise Q, which shares its layers, learns too slowly for z to have an
    # effect. In the joint stage z already has an effect, and a stronger D corrects faults that the weak one missed.
    gan = GanRecipe(
        64, adam, discriminator_scale=0.05, image_noise=0.05, feature_noise=0.1, discriminator_norm=True, init_std=0.05
    )
    joint = replace(gan, discriminator_scale=0.1)
    lengths = (64 * 1200, 64 * 2000, 64 * 750)
    return Recipe("laptop", classifier, gan, joint, *lengths, judge, samples=10_000, evaluations=2)


RECIPES = {"paper": _paper, "released": _released, "laptop": _laptop}
"""Name -> function from a dataset and its number of training images to the recipe."""


@validated()
class Row:
    """A row of an ablation.

    Attributes:
        title: its name in tables.
        changes: dotted names of fields of the variant and the recipe -> new values, as plain JSON. `joint` is a field
            of the variant, but `joint.dropout` one of the recipe.
        base: the row of VARIANTS that it changes.
        paper: Inception score on CIFAR-10 in the paper's table 1.
        default: whether it is one of that table's six rows, which a sweep runs by default."""

    title: str
    changes: dict[str, Any]
    base: str = "sgan"
    paper: str = ""
    default: bool = False

    @property
    def built_in(self) -> bool:
        return self in VARIANTS.values()

    @property
    def variant(self) -> Variant:
        """The variant at the paper's cuts and weights."""
        base = SGAN if self is VARIANTS["sgan"] else VARIANTS[self.base].variant
        return with_fields(base, self.of_variant, f"row {self.title}")

    @property
    def of_variant(self) -> dict[str, Any]:
        """The changes of the variant's fields."""
        names = [name for name in self.changes if hasattr(SGAN, name.split(".")[0]) and not name.startswith("joint.")]
        return {name: self.changes[name] for name in names}

    @property
    def told(self) -> str:
        """The row in words: its base and its changes."""
        words = {name: each if isinstance(each, str) else json.dumps(each) for name, each in self.changes.items()}
        return f"{self.base} with {', '.join(map(' '.join, words.items())) or 'no change'}"

    def config(self, base: Config, recipe: Recipe) -> Config:
        """Return its base's config with its changes. `recipe`: the recipe before `_fitted` adapts it to a variant."""
        where, own = f"row {self.title}", self.of_variant
        variant = with_fields(base.variant, own, where)
        recipe = with_fields(recipe, {name: each for name, each in self.changes.items() if name not in own}, where)
        try:
            return replace(base, variant=variant, recipe=_fitted(recipe, variant))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error


SGAN = Variant(("fc3",), Weights(), joint=True)
_DCGAN = {"cuts": [], "joint": False}
_UNLABELLED = _DCGAN | {"labels": False, "weights.conditional": 0.0}
VARIANTS: dict[str, Row] = {  # paper, table 1 and section 4.4
    "sgan": Row("SGAN", {}, paper="8.59 ± 0.12", default=True),
    "sgan-no-joint": Row("SGAN-no-joint", {"joint": False}, paper="8.37 ± 0.08", default=True),
    "dcgan-adv-cond-ent": Row("DCGAN (adv+cond+ent)", _DCGAN, paper="7.16 ± 0.10", default=True),
    "dcgan-adv-cond": Row("DCGAN (adv+cond)", _DCGAN | {"weights.entropy": 0.0}, paper="5.40 ± 0.08", default=True),
    "dcgan-adv-ent": Row("DCGAN (adv+ent)", _UNLABELLED, paper="5.40 ± 0.16", default=True),
    "dcgan-adv": Row("DCGAN (adv)", _UNLABELLED | {"weights.entropy": 0.0}, paper="6.16 ± 0.07", default=True),
    # the stack of the paper's figure panel (d)
    "sgan-no-entropy": Row("SGAN without entropy loss", {"weights.entropy": 0.0}),
    # the paper's other baseline: all generators as one, with only the image's discriminator
    "full-gan": Row("Full generator as one GAN", _DCGAN | {"through": ["fc3"]}, paper="fails"),
    # the paper's future work
    "sgan-unsupervised": Row("SGAN, unsupervised", {"labels": False}),
    # Chen et al. 2016: the entropy loss of a few codes, with their lambda, 1
    "infogan": Row("InfoGAN", _UNLABELLED | {"weights.entropy": 1.0, "codes": as_json(Codes())}),
}
REAL_DATA_PAPER = "11.24 ± 0.12"


def configure(
    dataset: Dataset,
    data: str,
    recipe: Recipe,
    variant: Variant,
    seed: int,
    weights: Weights | None,
    cuts: tuple[str, ...],
) -> Config:
    """Return the complete config of one trial, which the held-out judge scores. `weights`: new weights of the losses
    that the variant has; None keeps its own. `cuts`: the taps of a variant that has `cuts` or `through`."""
    if weights:
        present = {name: value for name, value in vars(weights).items() if getattr(variant.weights, name)}
        variant = replace(variant, weights=replace(variant.weights, **present))
    codes = replace(variant.codes, categorical=dataset.classes) if variant.codes else None
    cut, through = cuts if variant.cuts else (), cuts if variant.through else ()
    joint = variant.joint and bool(cut)  # one level has nothing to be trained with
    variant = replace(variant, cuts=cut, through=through, codes=codes, joint=joint)
    return Config(dataset, data, _fitted(recipe, variant), variant, seed)


def _fitted(recipe: Recipe, variant: Variant) -> Recipe:
    """Return the recipe, adapted to a variant without labels: a binary discriminator, and no labels for its encoder."""
    if not variant.labels:
        unlabelled = {"discriminator": "binary", "class_weight": 0.0}
        recipe = replace(recipe, gan=replace(recipe.gan, **unlabelled), joint=replace(recipe.joint, **unlabelled))
        if variant.cuts:
            # A mirrored image that was turned by 90 degrees looks like one that was turned by 270.
            encoder = replace(recipe.encoder, objective="rotation", flips=False)
            recipe = replace(recipe, encoder=encoder)
    return recipe
