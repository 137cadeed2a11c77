"""How many trials a search runs, and what they cost: the plan before, the account after."""

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

EXPLORE = 0.7
"""Share of the budget that explores; the rest confirms on seeds that the search never saw."""
START = 10.0
"""Seconds until the first stage of a phase runs: Ray starts processes, and these import torch."""
NOISE, DRAWS = 0.2, 400
"""Standard deviation of the logarithm of actual over predicted time, and draws of it for each split."""


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
class Ahead:
    """The rest of a phase: its trials, and of each stage that they all wait for its seconds."""

    trials: int
    shared: Sequence[float] = ()

    def wall(self, seconds: float, slots: int) -> float:
        """Seconds of wall time on so many slots, where each trial takes `seconds`."""
        shared = max(sum(self.shared) / slots, max(self.shared, default=0.0))
        start = START if self.trials else 0.0
        return start + shared + math.ceil(self.trials / slots) * seconds


@dataclass(frozen=True)
class Estimate:
    """Seconds of wall time: the median, and the range that nine in ten searches fall into."""

    median: float
    low: float
    high: float


def estimate(splits: Sequence[float], explore: Ahead, confirm: Ahead, slots: int) -> Estimate:
    """The time of searches over splits of unknown merit: half of the configs have any split, half a favourite one,
    which is then confirmed.

    Args:
        splits: of each split, seconds of the stages that every trial of it runs itself.
        slots: stages at the same time.
    """
    rng, mean = random.Random(0), statistics.fmean(splits)
    walls = sorted(
        (explore.wall((mean + favourite) / 2, slots) + confirm.wall(favourite, slots)) * rng.lognormvariate(0.0, NOISE)
        for favourite in splits
        for _ in range(DRAWS)
    )
    return Estimate(statistics.median(walls), walls[len(walls) // 20], walls[-len(walls) // 20])
