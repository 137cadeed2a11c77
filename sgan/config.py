"""The configuration of one trial: frozen dataclasses that validate themselves, and the content key of any of them.

A `Config` is complete: dataset row, recipe, variant and seed. Values live in presets.py.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from sgan.checks import integer, number, plain_floats, require
from sgan.shapes import Dataset

TAPS = ("conv1", "pool1", "conv2", "pool2", "fc3", "fc4")
"""The encoder's named layers from the image up (paper, section 4: conv1-pool1-conv2-pool2-fc3-fc4)."""
INNER_TAPS = TAPS[:-1]
"""Where the stack can be cut; fc4 is the label itself."""
IMAGE, LABEL = "image", "label"


@dataclass(frozen=True)
class Weights:
    """The weights lambda of a generator's loss: lambda1, lambda2 and lambda3 of the paper (1, 1, 10)."""

    adversarial: float = 1.0
    conditional: float = 1.0
    entropy: float = 10.0

    def __post_init__(self):
        for name, value in vars(self).items():
            number(f"the {name} weight", value, 0.0)
        plain_floats(self)
        require(
            self.adversarial > 0 or self.conditional > 0 or self.entropy > 0,
            "at least one loss weight must be > 0, but got 0 for all three: nothing would train the generator",
        )


def _require_taps(name: str, taps: tuple[str, ...]) -> None:
    for tap in taps:
        require(tap in INNER_TAPS, f"unknown tap {tap!r} in {name}; the stack can be cut at {', '.join(INNER_TAPS)}")
    order = [TAPS.index(tap) for tap in taps]
    require(
        order == sorted(set(order)),
        f"{name} must be in the encoder's order, each once ({' < '.join(INNER_TAPS)}), but got {' '.join(taps)}",
    )


@dataclass(frozen=True)
class Codes:
    """The part of z that Q recovers in InfoGAN (Chen et al. 2016): a categorical code of that many values, one-hot, and
    that many continuous codes in U(0, 1); they are the last numbers of z."""

    categorical: int = 10
    continuous: int = 2

    def __post_init__(self):
        integer("codes.categorical", self.categorical, 2, 1000)
        integer("codes.continuous", self.continuous, 1, 1000)

    @property
    def size(self) -> int:
        """How many numbers of z they take."""
        return self.categorical + self.continuous


@dataclass(frozen=True)
class Variant:
    """One row of the ablation: where the stack is cut, which losses it has, and whether it is trained jointly.

    A DCGAN is a stack without cuts; an absent loss has weight 0.

    Attributes:
        labels: the top generator is given the label. Without, it is given nothing and recovers no label, and the
            encoder of a stack is trained without labels.
        through: inner taps that a generator without cuts passes through: the generators of a stack chained into one
            GAN, with the image's discriminator alone (paper, section 4.4).
        codes: Q recovers these alone; None: all of z.
    """

    cuts: tuple[str, ...]
    weights: Weights
    joint: bool
    labels: bool = True
    through: tuple[str, ...] = ()
    codes: Codes | None = None

    def __post_init__(self):
        _require_taps("cuts", self.cuts)
        _require_taps("through", self.through)
        require(not (self.cuts and self.through), "a variant has cuts or passes through taps, not both")
        require(not (self.cuts and self.codes), "codes are of a single generator: a variant with codes has no cuts")
        require(
            self.labels or bool(self.cuts) or self.weights.conditional == 0,
            "a generator without labels has nothing to recover: its conditional weight must be 0, "
            f"but got {self.weights.conditional}",
        )
        require(
            not (self.through and self.codes), "codes are of a single generator: a variant with codes passes no taps"
        )
        require(self.codes is None or self.weights.entropy > 0, "codes need an entropy weight > 0, but got 0")

    @property
    def bounds(self) -> tuple[str, ...]:
        """The taps that bound the levels, from the image up to the label: level i lies between bounds i and i + 1."""
        return (IMAGE, *self.cuts, LABEL)


@dataclass(frozen=True)
class AdamRecipe:
    """Adam's settings. `eps_in_root` divides by sqrt(v + eps) (released code) instead of sqrt(v) + eps."""

    learning_rate: float = 1e-4
    beta1: float = 0.5
    beta2: float = 0.999
    eps: float = 1e-8
    eps_in_root: bool = False

    def __post_init__(self):
        number("learning_rate", self.learning_rate, 0.0, 1.0, open_low=True)
        number("beta1", self.beta1, 0.0, 0.9999)
        number("beta2", self.beta2, 0.0, 0.999999)
        number("eps", self.eps, 0.0, 1.0, open_low=True)
        plain_floats(self)


@dataclass(frozen=True)
class EncoderRecipe:
    """How a classifier is trained: the encoder, and the scorer.

    Attributes:
        images: training images seen.
        objective: what it learns to tell: "labels", or, without any label, by which of four right angles an image was
            turned ("rotation", Gidaris et al. 2018).
        pixel_mean: subtract the per-pixel mean of the training images.
        flips: random horizontal flips.
        shifts: random shifts by up to this many pixels.
    """

    images: int
    batch: int = 100
    adam: AdamRecipe = AdamRecipe(beta1=0.9)
    init_std: float = 0.01
    pixel_mean: bool = False
    flips: bool = False
    shifts: int = 0
    objective: Literal["labels", "rotation"] = "labels"

    def __post_init__(self):
        integer("encoder images", self.images, 1)
        require(
            self.objective in ("labels", "rotation"),
            f"objective must be 'labels' or 'rotation', but got {self.objective!r}",
        )
        integer("encoder batch", self.batch, 2)
        number("encoder init_std", self.init_std, 0.0, open_low=True)
        plain_floats(self)
        integer("encoder shifts", self.shifts, 0, 8)


@dataclass(frozen=True)
class GanRecipe:
    """How generators and discriminators are trained; every field is a difference between the two named recipes or a
    value they share.

    Attributes:
        discriminator: "binary" has one logit l and D = sigmoid(l); "classes" has one a class and
            D = Z / (Z + 1) with Z = sum exp(l), and a class loss on real images, times class_weight.
        adversarial: the generator's loss: "non-saturating" -log D, or "saturating" log(1 - D).
        discriminator_scale: factor of the discriminator's adversarial loss (1: the sum of its two terms; 0.5: half of
            each).
        generator_steps: rule of (threshold, steps), highest threshold first: the number of generator steps after a
            discriminator step whose adversarial loss (half the sum of its terms) lies above the threshold.
        fresh_noise: every generator step draws new z; otherwise the first one reuses the discriminator step's batch.
        pixel_mean: subtract the per-pixel mean of the training images (from G's sigmoid too).
        flips: random horizontal flips of the real images.
        image_noise, feature_noise: std of the Gaussian noise on the input of an image or feature discriminator.
        hidden_noise: std of the noise before and after the layer of a vector discriminator that has batch
            normalisation (released code, cifar/train_joint.py).
        discriminator_norm: batch normalisation after every convolution of the image discriminator but the first
            (Radford et al. 2016), also where the dataset's row has none.
        dropout: dropout of the image discriminator.
        norm_eps: epsilon of batch normalisation.
        precision: of the networks' layers while training: "float32", or "bfloat16" where torch.autocast finds it safe.
            Weights, losses and Adam are float32 in both, and so is all sampling.
    """

    batch: int = 100
    adam: AdamRecipe = AdamRecipe()
    discriminator: Literal["binary", "classes"] = "binary"
    class_weight: float = 0.0
    adversarial: Literal["non-saturating", "saturating"] = "non-saturating"
    discriminator_scale: float = 1.0
    generator_steps: tuple[tuple[float, int], ...] = ((0.0, 1),)
    fresh_noise: bool = False
    pixel_mean: bool = False
    flips: bool = False
    image_noise: float = 0.0
    feature_noise: float = 0.0
    hidden_noise: float = 0.0
    discriminator_norm: bool = False
    dropout: float = 0.0
    init_std: float = 0.02
    norm_eps: float = 1e-6
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        integer("batch", self.batch, 2)
        require(
            self.precision in ("float32", "bfloat16"),
            f"precision must be 'float32' or 'bfloat16', but got {self.precision!r}",
        )
        require(
            self.discriminator in ("binary", "classes"),
            f"discriminator must be 'binary' or 'classes', but got {self.discriminator!r}",
        )
        require(
            self.adversarial in ("non-saturating", "saturating"),
            f"adversarial must be 'non-saturating' or 'saturating', but got {self.adversarial!r}",
        )
        for name in ("class_weight", "image_noise", "feature_noise", "hidden_noise"):
            number(name, getattr(self, name), 0.0)
        number("discriminator_scale", self.discriminator_scale, 0.0, open_low=True)
        number("dropout", self.dropout, 0.0, 0.99)
        number("init_std", self.init_std, 0.0, open_low=True)
        number("norm_eps", self.norm_eps, 0.0, open_low=True)
        pairs = all(
            isinstance(pair, tuple) and len(pair) == 2 and type(pair[0]) in (int, float) and type(pair[1]) is int
            for pair in self.generator_steps
        )
        thresholds = [pair[0] for pair in self.generator_steps] if pairs else []
        require(
            len(thresholds) > 0 and thresholds == sorted(set(thresholds), reverse=True) and thresholds[-1] == 0,
            "generator_steps must be pairs (threshold, whole number of steps) with falling thresholds that end at 0, "
            f"such as ((0.5, 1), (0.0, 3)), but got {self.generator_steps}",
        )
        for threshold, steps in self.generator_steps:
            number("generator_steps' threshold", threshold, 0.0)
            integer("generator_steps' steps", steps, 1, 100)
        plain_floats(self)
        rule = tuple((float(threshold) + 0.0, steps) for threshold, steps in self.generator_steps)
        object.__setattr__(self, "generator_steps", rule)


@dataclass(frozen=True)
class Recipe:
    """All of the training and scoring of one trial.

    Attributes:
        encoder, gan: the classifier's training and the independent stages.
        joint: the joint stage's own settings (released code: more noise and dropout).
        image_level, feature_level, joint_images: training images (discriminator steps x batch) of a level that makes
            images, of any other level, and of the joint stage.
        joint_start: the joint stage starts from the state of the levels after this share of their training.
        fresh_adam: the joint stage starts with fresh Adam states (released code) instead of the levels' own.
        feedback: share of the gradient of the level below's loss that reaches the level above in the joint stage
            (1: end to end; 0.01: released CIFAR code; 0: released MNIST code).
        sampling: batch normalisation when sampling for scores: "running" averages or "batch" statistics.
        scorer: training of the classifier that scores.
        samples: generated images a score.
        evaluations: scores and grids drawn while a stage trains.
        best_by: the score of these evaluations whose best point is kept beside the last one; a level that makes
            features has its feature FID for that.
    """

    name: str
    encoder: EncoderRecipe
    gan: GanRecipe
    joint: GanRecipe
    image_level: int
    feature_level: int
    joint_images: int
    scorer: EncoderRecipe
    joint_start: float = 1.0
    fresh_adam: bool = True
    feedback: float = 1.0
    sampling: Literal["running", "batch"] = "running"
    samples: int = 50_000
    evaluations: int = 4
    best_by: Literal["inception_score", "fid"] = "inception_score"

    def __post_init__(self):
        for name in ("image_level", "feature_level", "joint_images"):
            batch = self.joint.batch if name == "joint_images" else self.gan.batch
            integer(name, getattr(self, name), batch)
        number("joint_start", self.joint_start, 0.0, 1.0, open_low=True)
        number("feedback", self.feedback, 0.0, 1.0)
        plain_floats(self)
        integer("evaluations", self.evaluations, 1, 1000)
        integer("samples", self.samples, 100, 10**7)
        require(
            self.sampling in ("running", "batch"), f"sampling must be 'running' or 'batch', but got {self.sampling!r}"
        )
        require(
            self.best_by in ("inception_score", "fid"),
            f"best_by must be 'inception_score' or 'fid', but got {self.best_by!r}",
        )
        require(
            self.gan.discriminator == self.joint.discriminator and self.gan.pixel_mean == self.joint.pixel_mean,
            "the joint stage continues the levels: discriminator and pixel_mean must be the same in gan and joint",
        )

    def budget(self, factor: float) -> "Recipe":
        """The same recipe with the images of every GAN stage multiplied by `factor`."""
        number("budget", factor, 0.0, 1e6, open_low=True)
        images = {
            name: max(self.gan.batch, self.joint.batch, round(getattr(self, name) * factor))
            for name in ("image_level", "feature_level", "joint_images")
        }
        return dataclasses.replace(self, **images)


@dataclass(frozen=True)
class Config:
    """One trial, complete.

    Attributes:
        dataset: the networks that are trained.
        judge: the dataset's own row, whose encoder shape the scorer has whatever the trial's width.
        data: digest of the dataset's images and labels, so that other data is another trial.
        inception: SHA-256 of the weights of the Inception network that scores; "": the dataset's classifier does.
    """

    dataset: Dataset
    judge: Dataset
    data: str
    recipe: Recipe
    variant: Variant
    seed: int
    inception: str = ""

    def __post_init__(self):
        integer("seed", self.seed, 0, 2**31 - 2)
        binary_only = self.variant.labels or self.recipe.gan.discriminator == "binary"
        require(
            binary_only,
            "a variant without labels cannot have labels in its discriminator; "
            "it is planned with a binary discriminator",
        )
        recovers_labels = self.variant.labels and (bool(self.variant.cuts) or self.variant.weights.conditional > 0)
        require(
            not recovers_labels or self.recipe.encoder.objective == "labels",
            "a variant with labels needs an encoder trained on them: encoder.objective must be 'labels', "
            f"but got {self.recipe.encoder.objective!r}",
        )
