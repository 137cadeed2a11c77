"""A search's objective, and the values that Optuna is told for a config that has ended."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sgan.evaluation.alarms import COLLAPSED as COLLAPSED_CLASSES
from sgan.evaluation.alarms import alarms
from sweeps.planning.state import State

OBJECTIVES = {
    "inception-score": {"inception_score": "maximize"},
    "fid": {"fid": "minimize"},
    "pareto": {"inception_score": "maximize", "fid": "minimize", "diversity": "maximize"},
}
"""Of each objective the scores and their directions."""
FLOOR = {"inception_score": 1.0, "fid": 500.0, "diversity": 0.0}
"""The worst value of each score: told for a trial that diverged or collapsed. 1 is the least Inception score there is;
an FID has no worst value, and 500 is beyond what noise scores."""
DONE, DIVERGED, COLLAPSED = "done", "diverged", "collapsed"


@dataclass(frozen=True)
class Outcome:
    """How a config ended.

    Attributes:
        tag: done, diverged or collapsed.
        values: one for each objective, none worse than its floor; the floors where the config went wrong.
        reason: why it went wrong; "" otherwise.
    """

    tag: str
    values: tuple[float, ...] = ()
    reason: str = ""


def outcome_of(state: State, scores: Sequence[str]) -> Outcome | None:
    """The outcome of a trial by these scores; None where it has not ended or failed.

    A sampler learns nothing from a failed trial, so a config that diverged or collapsed counts with the floor.
    """
    floor = tuple(FLOOR[score] for score in scores)
    if state.outcome == "diverged":
        return Outcome(DIVERGED, floor, state.reason)
    if state.outcome != "done":
        return None
    found = state.facts[-1]["scores"]
    # Inception score does not see that a class repeats itself: searched by it alone, such configs would win.
    collapsed = alarms({COLLAPSED_CLASSES: found.get(COLLAPSED_CLASSES, 0.0)})
    if collapsed:
        return Outcome(COLLAPSED, floor, collapsed[0])
    values = [math.nan if found.get(score) is None else found[score] for score in scores]
    if not all(map(math.isfinite, values)):
        return Outcome(DIVERGED, floor, f"its values are {values}")
    worst = {"inception_score": max, "fid": min, "diversity": max}
    values = [worst[score](value, FLOOR[score]) for score, value in zip(scores, values, strict=True)]
    # As diverse as real data is enough.
    return Outcome(DONE, tuple(min(v, 1.0) if s == "diversity" else v for s, v in zip(scores, values, strict=True)))
