"""How many trials a search runs, and what they cost: the plan before, the account after."""

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

EXPLORE = 0.7
"""Share of the budget that explores; the rest confirms on seeds that the search never saw."""
SIMULATIONS = 400


@dataclass(frozen=True)
class Limits:
    """What a search may use: so many trials in all, and so many seconds of wall time, each infinite where not set."""

    trials: float
    seconds: float

    def explored(self) -> float:
        """How many configs are explored at most: at least two trials are left, which confirm one config."""
        return (
            self.trials if math.isinf(self.trials) else max(1, min(round(EXPLORE * self.trials), int(self.trials - 2)))
        )


def confirmations(trials: float, top: int | None, seeds: int | None, configs: int) -> tuple[int, int]:
    """How many of the best configs are confirmed and on how many seeds each, with about `trials` trials; at least one
    config on two seeds, at most five on five unless asked for."""
    count = seeds or min(5, max(2, round(math.sqrt(min(trials, 25)))))
    best = top or max(1, min(5, int(min(trials, 1e6) // count)))
    return min(best, configs), count


@dataclass(frozen=True)
class Estimate:
    """Seconds of wall time: the median of simulated searches, with the range that nine in ten of them fall into."""

    median: float
    low: float
    high: float

    def times(self, factor: float) -> "Estimate":
        """The estimate of so many times as much."""
        return Estimate(factor * self.median, factor * self.low, factor * self.high)

    def after(self, seconds: float) -> "Estimate":
        """The estimate of what begins so many seconds later."""
        return Estimate(self.median + seconds, self.low + seconds, self.high + seconds)


def simulate(
    splits: Sequence[float],
    explore: Sequence[float | None],
    confirm: Sequence[float | None],
    shared: Sequence[Sequence[float]],
    slots: int,
) -> Estimate:
    """Simulate searches over splits of unknown merit: half of the trials explore any, half return to a favourite, which
    is then confirmed.

    Args:
        splits: of each split, seconds of the stages that every trial of it runs itself.
        explore, confirm: the trials of each phase that have not ended: seconds of the stages of their own that the
            store has not, or None where the config is not known yet.
        shared: of each phase, seconds of each stage that several trials share and that the store has not: its trials
            go on when they are done.
        slots: trials at the same time.
    """
    rng, walls = random.Random(0), []
    waited = sum(_wall(each, slots) for each in shared)
    for _ in range(SIMULATIONS):
        favourite = rng.choice(splits)
        unknown = (rng.choice(splits) if rng.random() < 0.5 else favourite for _ in explore)
        first = [each if known is None else known for each, known in zip(unknown, explore, strict=True)]
        second = [favourite if known is None else known for known in confirm]
        noise = rng.lognormvariate(0.0, 0.2)  # between a few measured steps and hours of training
        walls.append((_wall(first, slots) + _wall(second, slots) + waited) * noise)
    walls.sort()
    low, high = walls[SIMULATIONS // 20], walls[-SIMULATIONS // 20]
    return Estimate(statistics.median(walls), low, high)


def _wall(costs: Sequence[float], slots: int) -> float:
    """Wall time of trials that start in order, each on the slot that is free first."""
    free = [0.0] * max(1, slots)
    for cost in costs:
        index = free.index(min(free))
        free[index] += cost
    return max(free)
