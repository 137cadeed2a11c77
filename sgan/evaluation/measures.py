"""The measures of images by name, in the order of tables. docs/metrics.md has formulas, sources and calibration."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Measure:
    """A measure of a set of images.

    Attributes:
        heading: of its column.
        decimals: shown.
        better: which values are better; "" where neither is.
        meaning: one line."""

    heading: str
    decimals: int
    better: Literal["higher", "lower", ""]
    meaning: str


_SPACE = {
    "fid": Measure("FID", 2, "lower", "Frechet distance of the features to those of the training images"),
    "kid": Measure("KID", 4, "lower", "squared maximum mean discrepancy to the training images, whatever the count"),
    "precision": Measure("Precision", 2, "higher", "share of the samples that lie among training images"),
    "recall": Measure("Recall", 2, "higher", "share of the training images that lie among samples"),
    "density": Measure("Density", 2, "higher", "how many neighbourhoods of training images a sample lies in"),
    "coverage": Measure("Coverage", 2, "higher", "share of the training images that have a sample near by"),
}
"""What needs a feature space alone."""
MEASURES: dict[str, Measure] = {
    **_SPACE,
    "train_on_generated": Measure(
        "Train on generated", 3, "higher", "accuracy on real held-out images of a classifier trained on the samples"
    ),
    "inception_score": Measure("Inception score", 2, "higher", "the judge is sure of each sample, and of all classes"),
    "judge_accuracy": Measure("Judge accuracy", 3, "higher", "share of the samples in which the judge sees the label"),
    "accuracy": Measure("Encoder accuracy", 3, "higher", "the same of the trial's own encoder, its training's target"),
    "diversity": Measure("Diversity", 2, "", "mean distance of two samples of a class, relative to training images"),
    "collapsed_classes": Measure("Collapsed", 2, "lower", "share of the classes that are missed or repeat themselves"),
    "copied": Measure("Copied", 2, "lower", "share of the samples nearer to a training image than held-out ones are"),
    **{
        f"pixels/{name}": Measure(f"{each.heading} (pixels)", each.decimals, each.better, f"{each.meaning}; by pixels")
        for name, each in _SPACE.items()
    },
    "pixels/train_on_generated": Measure(
        "Train on generated (pixels)", 3, "higher", "accuracy of a classifier trained on the samples; by pixels"
    ),
}
"""Name -> measure. Plain names are of the leading judge; "pixels/" of the one that needs no training."""
LEADING = "fid"  # The measure that orders tables
BEST = "best_"  # Beginning of the name of a measure of the weights at the best evaluation while training


def measure(name: str) -> Measure:
    """The measure of a name that may begin with BEST; KeyError where there is none."""
    plain = MEASURES[name.removeprefix(BEST)]
    return Measure(f"Best {plain.heading}", *list(vars(plain).values())[1:]) if name.startswith(BEST) else plain
