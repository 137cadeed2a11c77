"""The alarm: what has gone wrong in a GAN, read from the record of its training."""

from collections.abc import Iterable, Mapping
from typing import Any

COLLAPSED = "collapsed_classes"
IGNORED = 0.95
"""A loss at this share of what a generator scores that ignores its input says that it does."""
BEATEN = 0.99
"""A discriminator that is right this often leaves the generator hardly a gradient."""


def alarms(metrics: Mapping[str, float]) -> list[str]:
    """What is wrong, a sentence each, by the scores and the mean losses of one evaluation.

    Metrics of the joint stage carry their level ("level0/entropy_ratio"); so do their sentences.
    """
    found = []
    for name, value in metrics.items():
        level, _, kind = name.rpartition("/")
        text = ""
        if kind == COLLAPSED and value > 0:
            text = f"collapse: {value:.0%} of the classes are missed or repeat themselves"
        elif kind == "entropy_ratio" and value >= IGNORED:
            text = f"the noise has no effect: the entropy loss is {value:.0%} of what ignoring z gives"
        elif kind == "conditional_ratio" and value >= IGNORED:
            text = f"the condition has no effect: the conditional loss is {value:.0%} of what ignoring it gives"
        elif kind == "d_accuracy" and value >= BEATEN:
            text = f"the discriminator wins: it is right in {value:.1%}"
        if text:
            found.append(f"{level}: {text}" if level else text)
    return found


def latest(
    records: Mapping[str, Iterable[Mapping[str, Any]]], final: Mapping[str, float] | None = None
) -> dict[str, list[str]]:
    """The alarms of a trial's stages (label -> lines of its record), each by its last evaluation after the first step.

    Once the joint stage has an evaluation, it stands for the levels that it goes on with; whether classes have
    collapsed is said by the final scores, once there are any, since they see more samples.
    """
    evaluated = {
        label: [line["metrics"] for line in lines if line["images"] > 0 and _is_evaluation(line["metrics"])]
        for label, lines in records.items()
    }
    stages = {label: lines[-1] for label, lines in evaluated.items() if lines}
    stages = {"joint": stages["joint"]} if "joint" in stages else stages
    if final is not None:
        kept = {
            label: {name: value for name, value in metrics.items() if name != COLLAPSED}
            for label, metrics in stages.items()
        }
        stages = {**kept, "score": {name: value for name, value in final.items() if name == COLLAPSED}}
    return {label: found for label, metrics in stages.items() if (found := alarms(metrics))}


def _is_evaluation(metrics: Mapping[str, float]) -> bool:
    return COLLAPSED in metrics or "feature_fid" in metrics
