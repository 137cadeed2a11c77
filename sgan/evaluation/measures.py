"""The measures of images by name, in the order of tables. docs/metrics.md has formulas, sources and calibration."""

from typing import Literal, NamedTuple


class Measure(NamedTuple):
    """A measure of a set of images: its column's heading, the decimals shown, and which values are better, if any."""

    heading: str
    decimals: int
    better: Literal["higher", "lower", ""]


_SPACE = {
    "fid": Measure("FID", 2, "lower"),
    "kid": Measure("KID", 4, "lower"),
    "precision": Measure("Precision", 2, "higher"),
    "recall": Measure("Recall", 2, "higher"),
    "density": Measure("Density", 2, "higher"),
    "coverage": Measure("Coverage", 2, "higher"),
    "train_on_generated": Measure("Train on generated", 3, "higher"),
}
"""Measures that every feature space gives."""
MEASURES: dict[str, Measure] = {
    **_SPACE,
    "inception_score": Measure("Inception score", 2, "higher"),
    "judge_accuracy": Measure("Judge accuracy", 3, "higher"),
    "accuracy": Measure("Encoder accuracy", 3, "higher"),
    "diversity": Measure("Diversity", 2, ""),
    "collapsed_classes": Measure("Collapsed", 2, "lower"),
    "copied": Measure("Copied", 2, "lower"),
    **{f"pixels/{name}": each._replace(heading=f"{each.heading} (pixels)") for name, each in _SPACE.items()},
}
"""Name -> measure. Names without prefix are of the leading judge; "pixels/..." of the judge that needs no training."""
LEADING = "fid"  # The measure that leads tables, and by which configs are ordered
BEST = "best_"  # Prefix of measures of the weights at the best evaluation while training
