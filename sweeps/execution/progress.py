"""Lines about the trials that run: one for each that changes, with the share of the work done and the time left."""

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sgan.checks import ConfigError
from sgan.stages.cost import cost
from sgan.stages.graph import Stage, name
from sgan.store.files import lack, write_json
from sgan.store.local import Store
from sweeps.planning.trials import End, Trial, TrialSource, clock

SILENCE = 60.0
"""Seconds after which a trial that goes on has a line again."""


class Progress:
    """Prints the lines, and writes a file into the store for a trial that failed.

    Trials that are still to come count as much as the mean of those known.
    """

    def __init__(self, store: Store, source: TrialSource):
        self.store, self.source = store, source
        self.began, self.ended = time.monotonic(), 0
        self.stages: dict[str, Stage] = {}
        self.shares: dict[str, float] = {}
        self.trials: set[str] = set()
        self.last: dict[str, tuple[str, float]] = {}
        self.peak = 0
        for trial in source.ahead:
            self.begin(trial)

    def begin(self, trial: Trial) -> None:
        """Take a trial in."""
        if trial.id not in self.trials:
            self.trials.add(trial.id)
            with suppress(OSError):
                self.store.failure(trial.plan.name).unlink(missing_ok=True)
            new = {name(stage): stage for _, stage in trial.plan.stages if name(stage) not in self.stages}
            self.stages |= {each: stage for each, stage in new.items() if not self.store.has(each)}

    def go_on(self, trial: Trial, result: Mapping[str, Any]) -> None:
        """A trial's stage has gone on, or waits."""
        label, stages = result.get("label", ""), dict(trial.plan.stages)
        if label:
            self.shares |= {name(stages[each]): 1.0 for each in trial.plan.needs[label]}
            self.shares[name(stages[label])] = result.get("share", 0.0)
        peak, fit = result.get("peak", (0, 0))
        if peak > 1.1 * self.peak:
            self.peak = peak
            self._line(trial, f"{label}: {peak / 2**30:.1f} GiB of a GPU; {fit} would fit (--trials-per-gpu)")
        waiting, blocked = result.get("waiting", ""), result.get("blocked", "")
        what = label or (f"{waiting}: {blocked}" if blocked else f"waits for {waiting}")
        if self._is_news(trial.id, what):
            self._line(trial, what)

    def end(self, trial: Trial, end: End) -> None:
        """A trial has ended."""
        self.ended += 1
        self.store.renew()  # a node has finished its stages a moment ago
        self.store.note(f"trial {end.outcome}", trial=trial.title, name=trial.plan.name, reason=end.reason)
        self.shares |= {name(stage): 1.0 for _, stage in trial.plan.stages}
        what = f"{end.outcome}: {end.reason}" if end.reason else end.outcome
        with suppress(OSError):  # a full disk must not end the trials that run
            if end.outcome == "done":
                scores = self.store.facts(trial.plan.name)["scores"]
                what = f"done: Inception score {scores['inception_score']:.2f}, FID {scores['fid']:.2f}"
            if end.outcome == "failed":
                content = {"trial": trial.plan.name, "error": end.reason, "time": time.time()}
                write_json(self.store.failure(trial.plan.name), content)
        self._line(trial, what)

    def wait(self, error: OSError | ConfigError) -> None:
        """The store does not let the command go on now."""
        if trouble := lack(error):
            what = f"waiting for the store {self.store.address} ({trouble.strerror})"
        else:
            what = f"the store is in the way: {error}"
        if self._is_news("", what):
            self.say(what)

    def say(self, text: str) -> None:
        """Print a line of its own."""
        with suppress(OSError):
            print(f"{clock(time.monotonic() - self.began)} {text}", flush=True)

    def _is_news(self, of: str, what: str) -> bool:
        """Whether a line differs from the last one of its kind, or that is long ago."""
        before, when = self.last.get(of, ("", 0.0))
        if what == before and time.monotonic() - when < SILENCE:
            return False
        self.last[of] = what, time.monotonic()
        return True

    def _share(self) -> float:
        """The share of the work that is done."""
        total = sum(map(cost, self.stages.values()))
        done = sum(cost(stage) * self.shares.get(each, 0.0) for each, stage in self.stages.items())
        known = max(1, len(self.trials))
        return done / max(total * max(known, self.source.expected) / known, 1e-9)

    def _line(self, trial: Trial, what: str) -> None:
        share, spent = self._share(), time.monotonic() - self.began
        left = f"about {clock(spent * (1 - share) / share)} left" if share > 0.02 else "estimating the time left"
        bar = "█" * round(12 * share) + "░" * (12 - round(12 * share))
        count = f"{self.ended}/{max(self.source.expected, self.ended)} trials"
        self.say(f"{bar} {share:4.0%}, {left} | {count} | {trial.title}: {what}")
