"""The configuration of one trial: frozen dataclasses that validate themselves. Values live in presets.py."""

import dataclasses
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from sgan.checks import checked, require, validated
from sgan.shapes import Dataset

TAPS = ("conv1", "pool1", "conv2", "pool2", "fc3", "fc4")
"""Taps: the encoder's named layers from the image up (paper, section 4: conv1-pool1-conv2-pool2-fc3-fc4)."""
INNER_TAPS = TAPS[:-1]  # Taps at which the stack can be cut; fc4 already gives the label
IMAGE, LABEL = "image", "label"


@validated()
class Weights:
    """The weights of a generator's loss: lambda1, lambda2 and lambda3 of the paper (1, 1, 10)."""

    adversarial: NonNegativeFloat = 1.0
    conditional: NonNegativeFloat = 1.0
    entropy: NonNegativeFloat = 10.0

    def __post_init__(self):
        require(any(vars(self).values()), "at least one loss weight must be > 0, but got 0 for all three")


def _in_order(taps: tuple[str, ...]) -> tuple[str, ...]:
    for tap in taps:
        require(tap in INNER_TAPS, f"unknown tap {tap!r}; the stack can be cut at layers {', '.join(INNER_TAPS)}")
    wanted = f"taps must be in the encoder's order, each once ({' < '.join(INNER_TAPS)}), but got {' '.join(taps)}"
    require(taps == tuple(tap for tap in INNER_TAPS if tap in taps), wanted)
    return taps


Taps = Annotated[tuple[str, ...], AfterValidator(_in_order)]  # from the image up
Rate = Annotated[float, Field(gt=0, le=1)]
Batch = Annotated[int, Field(ge=2)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 2)]
Budget = Annotated[float, Field(gt=0, le=1e6)]


@validated()
class Codes:
    """InfoGAN's codes (Chen et al. 2016): the last numbers of the noise z, which the network Q recovers. They are one
    one-hot code of `categorical` values, and `continuous` codes in U(0, 1)."""

    categorical: Annotated[int, Field(ge=2, le=1000)] = 10
    continuous: Annotated[int, Field(ge=1, le=1000)] = 2

    @property
    def size(self) -> int:
        """How many numbers of z the codes take."""
        return self.categorical + self.continuous


@validated()
class Level:
    """A level of a stack: its generator makes tap `low` from tap `high`; the other fields are as in Variant."""

    low: str
    high: str
    labels: bool = True
    codes: Codes | None = None
    through: Taps = ()

    @property
    def conditioned(self) -> bool:
        """Whether its generator is given more than noise."""
        return self.labels or self.high != LABEL


@validated()
class Variant:
    """One row of the ablation: where the stack is cut, which losses it has, and whether it is trained jointly.

    A DCGAN is a stack without cuts; an absent loss has weight 0.

    Attributes:
        labels: the top generator gets the label. If False, it gets no condition and has no conditional loss, and the
            encoder of a stack is trained without labels.
        through: inner taps that a generator without cuts passes through: a stack's generators are chained into one
            GAN, which has only the image's discriminator (paper, section 4.4).
        codes: Q recovers only these; None: Q recovers all of z."""

    cuts: Taps
    weights: Weights
    joint: bool
    labels: bool = True
    through: Taps = ()
    codes: Codes | None = None

    def __post_init__(self):
        require(not (self.cuts and self.through), "a variant may have cuts or through, but not both; empty one of them")
        require(bool(self.cuts) or not self.joint, "a variant without cuts has no levels to join: set joint to false")
        weight, nothing = self.weights.conditional, "a variant without labels and cuts has no condition to recover"
        recovers = bool(self.labels or self.cuts) or weight == 0
        require(recovers, f"{nothing}: its conditional weight must be 0, but got {weight}")
        trained = self.labels or self.weights.adversarial + self.weights.entropy > 0
        require(trained, "without labels, the top level needs an adversarial or entropy weight > 0, but got 0 for both")
        single = not (self.cuts or self.through)
        require(single or not self.codes, "codes need a single generator: such a variant has no cuts and no through")
        require(self.codes is None or self.weights.entropy > 0, "codes need an entropy weight > 0, but got 0")

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels from the image up to the label."""
        ends = pairwise((IMAGE, *self.cuts, LABEL))
        return tuple(Level(low, high, self.labels, self.codes, self.through) for low, high in ends)


@validated()
class AdamRecipe:
    """Adam's settings. `eps_in_root` divides by sqrt(v_hat + eps) (released code) instead of sqrt(v_hat) + eps."""

    learning_rate: Rate = 1e-4
    beta1: Annotated[float, Field(ge=0, le=0.9999)] = 0.5
    beta2: Annotated[float, Field(ge=0, le=0.999999)] = 0.999
    eps: Rate = 1e-8
    eps_in_root: bool = False


@validated()
class EncoderRecipe:
    """How the encoder is trained.

    Attributes:
        images: training images seen.
        objective: the encoder predicts the "labels", or, without labels, the multiple of 90 degrees by which each image
            was turned ("rotation", Gidaris et al. 2018).
        pixel_mean: subtract the per-pixel mean of the training images.
        feature_variance: mean variance of fc3's features over real images, to which they are scaled after training; fc4
            undoes the factor, so the logits stay. It sets the size of the conditional loss relative to the others. The
            released encoders have 0.441 (CIFAR-10) and 0.515 (MNIST). None: no scaling."""

    images: PositiveInt
    batch: Batch = 100
    adam: AdamRecipe = AdamRecipe(beta1=0.9)
    init_std: PositiveFloat = 0.01
    pixel_mean: bool = False
    flips: bool = False
    objective: Literal["labels", "rotation"] = "labels"
    feature_variance: PositiveFloat | None = None


@validated()
class JudgeRecipe:
    """How the held-out judge (sgan.evaluation.judges) is trained. `images`: images seen, each randomly warped."""

    images: PositiveInt
    batch: Batch = 64
    learning_rate: Rate = 4e-3
    flips: bool = False


def _falling(rule: tuple[tuple[float, int], ...]) -> tuple[tuple[float, int], ...]:
    thresholds = [threshold for threshold, _ in rule]
    wanted = "pairs (threshold, steps) need falling thresholds that end at 0, such as ((0.5, 1), (0.0, 3))"
    require(thresholds[-1:] == [0] and thresholds == sorted(set(thresholds))[::-1], f"{wanted}, but got {rule}")
    return rule


Steps = Annotated[int, Field(ge=1, le=100)]


@validated()
class GanRecipe:
    """How generators and discriminators are trained.

    Attributes:
        discriminator: "binary" has one logit l and D = sigmoid(l); "classes" has one logit per class and
            D = Z / (Z + 1) with Z = sum exp(l), and a class loss on real images, times class_weight.
        adversarial: the generator's loss: "non-saturating" -log D, or "saturating" log(1 - D).
        discriminator_scale: factor of the discriminator's adversarial loss, which is the sum of two terms.
        generator_steps: rule of (threshold, steps), highest threshold first: the number of generator steps after a
            discriminator step whose adversarial loss (half the sum of its terms) lies above the threshold.
        fresh_noise: every generator step draws new z; otherwise the first one reuses the discriminator step's batch,
            which then updates the generator's running averages (batch normalisation) once for both steps.
        pixel_mean: subtract the per-pixel mean of the training images (from G's sigmoid too).
        image_noise, feature_noise: std of the Gaussian noise on the input of an image or feature discriminator.
        hidden_noise: std of the noise before and after the layer of a vector discriminator that has batch
            normalisation (released code, cifar/train_joint.py).
        discriminator_norm: batch normalisation after every convolution of the image discriminator but the first
            (Radford et al. 2016), also where the dataset's row has none.
        init_std: weights start from N(0, init_std).
        convolution_std: the same std for a discriminator's convolutions; None: init_std.
        dense_glorot: weights of a discriminator's fully connected layers, heads included, are Glorot-uniform.
        dense_slope: slope below zero of the ReLU after a discriminator's fully connected layers; convolutions have 0.2.
        precision: number format of layers while training: "float32", or "bfloat16" where torch.autocast finds it safe.
            Weights, losses, Adam and all sampling are always float32; on a GPU, cuDNN multiplies float32 in TF32."""

    batch: Batch = 100
    adam: AdamRecipe = AdamRecipe()
    discriminator: Literal["binary", "classes"] = "binary"
    class_weight: NonNegativeFloat = 0.0
    adversarial: Literal["non-saturating", "saturating"] = "non-saturating"
    discriminator_scale: PositiveFloat = 1.0
    generator_steps: Annotated[tuple[tuple[NonNegativeFloat, Steps], ...], AfterValidator(_falling)] = ((0.0, 1),)
    fresh_noise: bool = False
    pixel_mean: bool = False
    image_noise: NonNegativeFloat = 0.0
    feature_noise: NonNegativeFloat = 0.0
    hidden_noise: NonNegativeFloat = 0.0
    discriminator_norm: bool = False
    dropout: Annotated[float, Field(ge=0, le=0.99)] = 0.0
    init_std: PositiveFloat = 0.02
    convolution_std: PositiveFloat | None = None
    dense_glorot: bool = False
    dense_slope: Annotated[float, Field(ge=0, lt=1)] = 0.2
    precision: Literal["float32", "bfloat16"] = "float32"


STAGE_IMAGES = ("image_level", "feature_level", "joint_images")


@validated()
class Recipe:
    """All settings of the training and scoring of one trial.

    Attributes:
        gan, joint: training in the independent stages, and in the joint stage.
        image_level, feature_level, joint_images: training images (discriminator steps x batch) of a level that makes
            images, of any other level, and of the joint stage.
        joint_start: the joint stage starts from the state of the levels after this share of their training; 0: from new
            weights (released MNIST code).
        fresh_adam: the joint stage starts with fresh Adam states (released code) instead of the levels' own.
        feedback: share of the gradient of the level below's loss that reaches the level above in the joint stage
            (1: end to end; 0.01: released CIFAR code; 0: released MNIST code).
        sampling: batch normalisation when sampling for scores: "running" averages or "batch" statistics.
        samples: number of generated images in a final score.
        evaluations: number of evaluations (scores and an image grid) while a stage trains."""

    name: str
    encoder: EncoderRecipe
    gan: GanRecipe
    joint: GanRecipe
    image_level: int
    feature_level: int
    joint_images: int
    judge: JudgeRecipe
    joint_start: Annotated[float, Field(ge=0, le=1)] = 1.0
    fresh_adam: bool = True
    feedback: Annotated[float, Field(ge=0, le=1)] = 1.0
    sampling: Literal["running", "batch"] = "running"
    samples: Annotated[int, Field(ge=100, le=10**7)] = 50_000
    evaluations: Annotated[int, Field(ge=1, le=1000)] = 4

    def __post_init__(self):
        for name, part in zip(STAGE_IMAGES, (self.gan, self.gan, self.joint), strict=True):
            images = getattr(self, name)
            require(images >= part.batch, f"{name} must be at least the batch of {part.batch}, but got {images}")
        for name in ("discriminator", "pixel_mean", *["discriminator_norm"] * (self.joint_start > 0)):
            same = getattr(self.gan, name) == getattr(self.joint, name)
            require(same, f"the joint stage continues the levels: {name} must be the same in gan and joint")

    def budget(self, factor: float) -> "Recipe":
        """The same recipe with the images of every GAN stage multiplied by `factor`."""
        factor, least = checked(Budget, factor, "budget"), max(self.gan.batch, self.joint.batch)
        images = {name: max(least, round(getattr(self, name) * factor)) for name in STAGE_IMAGES}
        return dataclasses.replace(self, **images)


@validated()
class Config:
    """All settings of one trial. `data`: digest of the images and labels. `judge`: the network that scores, a row of
    sgan.evaluation.judges. `judge_weights`: SHA-256 of its weights; "" for the held-out judge, which a sweep trains."""

    dataset: Dataset
    data: str
    recipe: Recipe
    variant: Variant
    seed: Seed
    judge: str = "held-out"
    judge_weights: str = ""

    def __post_init__(self):
        fits = self.variant.labels or self.recipe.gan.discriminator == "binary"
        require(fits, "a variant without labels needs gan.discriminator 'binary', but got 'classes'")
        recovers_labels = self.variant.labels and (bool(self.variant.cuts) or self.variant.weights.conditional > 0)
        objective = self.recipe.encoder.objective
        known = not recovers_labels or objective == "labels"
        require(known, f"with labels, encoder.objective must be 'labels', but got {objective!r}")
