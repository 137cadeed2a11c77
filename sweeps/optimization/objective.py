"""A search's objective, and the value that Optuna is told for a config that has ended."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from sgan.evaluation.alarms import COLLAPSED as COLLAPSED_CLASSES
from sgan.evaluation.alarms import alarms
from sweeps.planning.trials import State


class Objective(NamedTuple):
    """The score that a search is for, its direction, and its floor: the worst value, told for a trial that diverged or
    collapsed."""

    score: str
    direction: Literal["maximize", "minimize"]
    floor: float


OBJECTIVES = {
    "inception-score": Objective("inception_score", "maximize", 1.0),
    "fid": Objective("fid", "minimize", 500.0),
}
"""1 is the least Inception score there is; an FID has no worst value, and 500 is beyond what noise scores."""
DONE, DIVERGED, COLLAPSED = "done", "diverged", "collapsed"


@dataclass(frozen=True)
class Outcome:
    """How a config ended.

    Attributes:
        tag: done, diverged or collapsed.
        value: the score, no worse than its floor; the floor where the config went wrong.
        reason: why it went wrong; "" otherwise.
    """

    tag: str
    value: float
    reason: str = ""


def outcome_of(state: State, objective: Objective) -> Outcome | None:
    """The outcome of a trial; None where it has not ended or failed.

    A sampler learns nothing from a failed trial, so a config that diverged or collapsed counts with the floor.
    """
    if state.outcome == "diverged":
        return Outcome(DIVERGED, objective.floor, state.reason)
    if state.outcome != "done":
        return None
    scores = state.facts[-1]["scores"]
    # Inception score does not see that a class repeats itself: searched by it alone, such configs would win.
    collapsed = alarms({COLLAPSED_CLASSES: scores.get(COLLAPSED_CLASSES, 0.0)})
    if collapsed:
        return Outcome(COLLAPSED, objective.floor, collapsed[0])
    value = scores.get(objective.score)
    if value is None or not math.isfinite(value):
        return Outcome(DIVERGED, objective.floor, f"its {objective.score} is {value}")
    return Outcome(DONE, (max if objective.direction == "maximize" else min)(value, objective.floor))
