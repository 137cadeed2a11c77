"""Alarms: faults of a GAN that its scores and mean losses show."""

from collections.abc import Iterable, Mapping
from typing import Any

COLLAPSED, COPIED = "collapsed_classes", "copied"
EVALUATED = {"fid", "feature_fid", COLLAPSED}  # A point of a record with one of these has scores, not losses alone
ALARMS = {
    COLLAPSED: (1e-9, "collapse: {:.0%} of the classes are missed or repeat themselves"),
    COPIED: (0.2, "copies: {:.0%} of the samples are as near to a training image as 5% of real images are"),
    "entropy_ratio": (0.95, "the noise has no effect: the entropy loss is {:.0%} of what ignoring z gives"),
    "conditional_ratio": (
        0.95,
        "the condition has no effect: the conditional loss is {:.0%} of what ignoring it gives",
    ),
    "d_accuracy": (0.99, "the discriminator wins: it is right in {:.1%}"),
}
"""Metric -> the threshold from which it raises an alarm, and the alarm's text. A ratio divides a loss by the loss of a
generator that ignores its input. A discriminator that is nearly always right gives the generator almost no gradient.
The first two thresholds come from the calibration in docs/metrics.md."""


def alarms(metrics: Mapping[str, float]) -> list[str]:
    """Return a text for each fault that the scores and mean losses of one evaluation show.

    In the joint stage, the names of metrics begin with their level ("level0/entropy_ratio"), and so do the texts."""
    found = []
    for name, value in metrics.items():
        level, _, kind = name.rpartition("/")
        if kind in ALARMS and value >= ALARMS[kind][0]:
            text = ALARMS[kind][1].format(value)
            found.append(f"{level}: {text}" if level else text)
    return found


def latest(
    records: Mapping[str, Iterable[Mapping[str, Any]]], final: Mapping[str, float] | None = None
) -> dict[str, list[str]]:
    """Return stage label -> alarms, from the last evaluation of each stage after the first step. `records`: stage label
    -> lines of its record. An evaluated joint stage replaces the levels that it continues.

    `final`: the final scores. They alone decide on collapse and copies, since they use more samples."""
    stages: dict[str, Mapping[str, float]] = {}
    for label, lines in records.items():
        for line in lines:
            if line["images"] > 0 and not EVALUATED.isdisjoint(line["metrics"]):
                stages[label] = line["metrics"]
    stages = {"joint": stages["joint"]} if "joint" in stages else stages
    if final is not None:
        stages = {label: {**metrics, COLLAPSED: 0.0, COPIED: 0.0} for label, metrics in stages.items()}
        stages["score"] = {name: final.get(name, 0.0) for name in (COLLAPSED, COPIED)}
    return {label: found for label, metrics in stages.items() if (found := alarms(metrics))}
