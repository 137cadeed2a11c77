"""A scheduler in this process, and a search whose configs end by plan."""

import random
from collections.abc import Callable, Mapping
from typing import Any

from conftest import run_trial, tiny_plan

from sgan.checks import content_key
from sgan.data.batches import Data
from sgan.stages.context import Context
from sgan.store.local import Store
from sgan.training.loop import Diverged
from sweeps.optimization.study import Distributions, Outcome, Row
from sweeps.planning.trials import Trial, TrialSource

PLAN = tiny_plan()


def run(
    source: TrialSource,
    end_of: Callable[[Trial], tuple[str, str, Mapping[str, Any]]],
    slots: int = 1,
    stop_after: float = float("inf"),
    seed: int = 0,
) -> int:
    """Run a source's trials, `slots` at a time, which end in random order; returns how many ended.

    Args:
        end_of: called where a trial ends.
        stop_after: the command is stopped after so many ends: nothing of the trials in progress is told.
    """
    live: list[Trial] = []
    ended, rng = 0, random.Random(seed)
    while ended < stop_after:
        while len(live) < slots and (trial := source.next()):
            live.append(trial)
        if not live:
            break
        trial = live.pop(rng.randrange(len(live)))
        source.end(trial, *end_of(trial))
        ended += 1
    return ended


class Toy:
    """A `SearchRun` whose record is in memory; configs end as `outcomes` says: params -> outcome; None: a failure."""

    seed, score = 7, "inception_score"

    def __init__(self, outcomes: Callable[[Mapping[str, Any]], Outcome | None], distributions: Distributions):
        self.outcomes, self.space = outcomes, self
        self.distributions, self.first = distributions, dict[str, Any]()
        self.rows: dict[int, Row] = {}
        self.ended: set[int] = set()

    def known_good(self) -> dict[str, Any]:
        return self.first

    def config_key(self, params: Mapping[str, Any]) -> str:
        return content_key(dict(params))

    def trial(self, number: int, params: Mapping[str, Any]) -> Trial:
        key = self.config_key(params)
        row = {"number": number, "params": dict(params), "title": str(number), "name": key, "config_key": key}
        return Trial(f"config-{number}", 0, PLAN.score, PLAN, row)  # pyright: ignore[reportArgumentType]

    def write(self, trial: Trial) -> None:
        self.rows[trial.record["number"]] = trial.record

    def outcome(self, row: Row) -> Outcome | None:
        return self.outcomes(row["params"]) if row["number"] in self.ended else None

    def end(self, trial: Trial) -> tuple[str, str, Mapping[str, Any]]:
        """The end of a trial's last stage."""
        number = int(trial.variant.removeprefix("config-"))
        self.ended.add(number)
        found = self.outcomes(self.rows[number]["params"])
        if found is None or found.tag == "diverged":
            return "diverged" if found else "failed", "planned", {}
        return "done", "", {self.score: found.value, "collapsed_classes": float(found.tag == "collapsed")}


def train(source: TrialSource, store: Store, data: Data, stop_after: float = float("inf")) -> bool:
    """Train a source's trials in this process, one after the other, until so many have ended: a scheduler's `run`."""
    ended = 0
    while trial := source.next():
        if ended >= stop_after:
            return False
        source.end(trial, *_train(trial, store, data))
        ended += 1
    return True


def _train(trial: Trial, store: Store, data: Data) -> tuple[str, str, Mapping[str, Any]]:
    try:
        for _ in run_trial(trial.plan, Context(store, data, "cpu", "test")):
            pass
    except Diverged as error:
        return "diverged", str(error), {}
    return "done", "", store.facts(trial.plan.name)["scores"]
