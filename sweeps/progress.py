"""What is printed while trials run: a line for every one that changes, with the share done and the time left."""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.result import DONE

from sgan.files import write_json
from sgan.stages import name
from sgan.store import Store
from sweeps.schedule import failure
from sweeps.trials import Trial, clock, missing, work

SILENCE_SECONDS = 60.0
"""A trial that goes on and on is heard of this often."""


class ProgressLines(tune.Callback):
    """One line for every trial that changes, with the share done and the time left; and a file in the store for a
    trial that failed.

    Args:
        trial_of: the trial that a Tune trial's config means.
        trials: those known before.
        expected: how many there will be in all, where trials come up on the way; those to come count as much as the
            mean of those known.
        finished: how many of those expected had ended before.
    """

    def __init__(
        self,
        trial_of: Callable[[dict[str, Any]], Trial],
        store: Store,
        trials: Sequence[Trial] = (),
        expected: int = 0,
        finished: int = 0,
    ):
        self.trial_of, self.store, self.expected = trial_of, store, max(expected, len(trials))
        self.trials = {each.plan.name: each for each in trials}
        self.stages = missing(trials, store)
        self.began, self.before, self.finished = time.monotonic(), finished, 0
        self.said: dict[str, tuple[str, float]] = {}
        self.shares: dict[str, float] = {}
        self.done: set[str] = set()
        self.peak = 0

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for a restore that nobody does, with the data that `trial_of` may hold

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info) -> None:
        self._trial(trial)

    def on_trial_result(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict, **info) -> None:
        if result[DONE] or "label" not in result:
            return
        mine, label, now = self._trial(trial), result["label"], time.monotonic()
        if result["share"] >= 0:
            self.shares[name(dict(mine.plan.stages)[label])] = result["share"]
        else:
            label = f"waiting for {label}"
        peak, fit = result.get("peak", (0, 0))
        if peak > 1.1 * self.peak:
            self.peak = peak
            self._say(mine, f"{label}: {peak / 2**30:.1f} GiB of a GPU; {fit} would fit (--trials-per-gpu)")
        before, when = self.said.get(trial.trial_id, ("", 0.0))
        if before != label or now - when > SILENCE_SECONDS:
            self.said[trial.trial_id] = label, now
            self._say(mine, label)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info) -> None:
        result = trial.last_result
        self._end(self._trial(trial), result.get("outcome", "stopped early"), result.get("reason", ""))

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info) -> None:
        mine = self._trial(trial)
        self.store.note("trial retried", trial=mine.title, name=mine.plan.name, reason=_reason(trial))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info) -> None:
        self._end(self._trial(trial), "failed", _reason(trial))

    def _end(self, trial: Trial, outcome: str, reason: str) -> None:
        self.finished += 1
        self.store.renew()  # a worker may have finished its stages a moment ago
        self.store.note(f"trial {outcome}", trial=trial.title, name=trial.plan.name, reason=reason)
        self.done |= {name(stage) for _, stage in trial.plan.stages}  # a trial that was stopped leaves stages open
        if self.store.has(trial.plan.name):
            scores = self.store.facts(trial.plan.name)["scores"]
            self._say(trial, f"done: Inception score {scores['inception_score']:.2f}, FID {scores['fid']:.2f}")
            return
        if outcome == "failed":
            said = {"trial": trial.plan.name, "error": reason, "time": time.time()}
            with contextlib.suppress(OSError):  # a full disk must not end the trials that run
                write_json(self.store.failure(trial.plan.name), said)
        self._say(trial, f"{outcome}: {reason}" if reason else outcome)

    def _trial(self, trial: TuneTrial) -> Trial:
        mine = self.trial_of(trial.config)
        if mine.plan.name not in self.trials:
            self.trials[mine.plan.name] = mine
            self.stages |= missing([mine], self.store)
        return mine

    def _share(self) -> float:
        """The share of the work that is done."""
        total, done = 0.0, 0.0
        for stage_name, stage in self.stages.items():
            total += work(stage)
            if self.store.has(stage_name) or stage_name in self.done:
                done += work(stage)
            else:
                done += work(stage) * self.shares.get(stage_name, 0.0)
        known = max(1, len(self.trials))
        return done / max(total * max(known, self.expected - self.before) / known, 1e-9)

    def _say(self, trial: Trial, what: str) -> None:
        share, spent = self._share(), time.monotonic() - self.began
        left = f"about {clock(spent * (1 - share) / share)} left" if share > 0.02 else "estimating the time left"
        bar = "█" * round(12 * share) + "░" * (12 - round(12 * share))
        ended = self.before + self.finished
        with contextlib.suppress(OSError):  # a full disk, to which this goes, must not end the trials that run
            print(
                f"{clock(spent)} {bar} {share:4.0%}, {left} | {ended}/{max(self.expected, ended)} trials | "
                f"{trial.title}: {what}",
                flush=True,
            )


def _reason(trial: TuneTrial) -> str:
    """Why a trial failed, in one line."""
    lines = failure(trial).splitlines()
    return lines[-1].strip() if lines else "its worker died"
