"""Alarms: faults of a GAN, read from the record of its training."""

from collections.abc import Iterable, Mapping
from typing import Any

COLLAPSED, COPIED = "collapsed_classes", "copied"
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
"""Metric -> the value from which on it is an alarm, and its sentence. A ratio is a loss as a share of the loss of a
generator that ignores its input; a discriminator that is nearly always right leaves the generator hardly a gradient.
The first two are set from docs/metrics.md's calibration."""


def alarms(metrics: Mapping[str, float]) -> list[str]:
    """The faults, a sentence each, by the scores and the mean losses of one evaluation.

    Metrics of the joint stage carry their level ("level0/entropy_ratio"); so do their sentences."""
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
    """The alarms of a trial's stages (label -> lines of its record), each by its last evaluation after the first step.

    Once the joint stage has an evaluation, it replaces the levels that it continues. Once there are final scores, they
    alone say whether classes have collapsed and images are copied, since they are of more samples."""
    stages: dict[str, Mapping[str, float]] = {}
    for label, lines in records.items():
        for line in lines:
            if line["images"] > 0 and (COLLAPSED in line["metrics"] or "feature_fid" in line["metrics"]):
                stages[label] = line["metrics"]
    stages = {"joint": stages["joint"]} if "joint" in stages else stages
    if final is not None:
        stages = {label: {**metrics, COLLAPSED: 0.0, COPIED: 0.0} for label, metrics in stages.items()}
        stages["score"] = {name: final.get(name, 0.0) for name in (COLLAPSED, COPIED)}
    return {label: found for label, metrics in stages.items() if (found := alarms(metrics))}
