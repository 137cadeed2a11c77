"""How many trials a search runs, and how long they take."""

import math
from collections.abc import Sequence

EXPLORE = 0.7
"""Share of the trials that explores; the rest confirms on seeds that the search never saw."""
START = 10.0
"""Seconds until the first stage of a phase runs: Ray starts processes, and these import torch."""


def explored(trials: int) -> int:
    """How many configs are explored at most: at least two trials are left, which confirm one config."""
    return max(1, min(round(EXPLORE * trials), trials - 2))


def confirmations(trials: int, configs: int) -> tuple[int, int]:
    """How many of the best configs are confirmed and on how many seeds each, with about `trials` trials: at least one
    config on two seeds, at most five on five."""
    seeds = min(5, max(2, round(math.sqrt(trials))))
    return min(5, max(1, trials // seeds), configs), seeds


def wall(trials: int, shared: Sequence[float], seconds: float, slots: int) -> float:
    """Seconds of wall time of a phase on so many slots.

    Args:
        trials: how many there are, of `seconds` each.
        shared: seconds of the stages that they all wait for.
    """
    waiting = max(sum(shared) / slots, max(shared, default=0.0))
    return (START if trials else 0.0) + waiting + math.ceil(trials / slots) * seconds
