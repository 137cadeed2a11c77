"""A search's first phase as a source of trials: Optuna suggests configs, and is told how they end."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import optuna
from optuna.trial import TrialState

from sweeps.optimization.objective import Outcome
from sweeps.optimization.study import REASON, DistinctSampler, StoredStudy, note, replay, tell
from sweeps.planning.trials import End, Trial

Row = Mapping[str, Any]


class Configs(Protocol):
    """A searcher's view of the search whose configs it suggests."""

    def trial(self, number: int, params: Mapping[str, Any]) -> tuple[Trial, Row]:
        """The trial of a config, and its row in the record."""
        ...

    def write(self, row: Row) -> None:
        """Write a row into the record."""
        ...

    def outcome(self, row: Row) -> Outcome | None:
        """How a trial of the record ended; None where it has not, or failed."""
        ...

    def in_time(self, seconds: float) -> bool:
        """Whether a config that takes so many seconds may still begin."""
        ...


@dataclass
class Running:
    """A trial that runs: Optuna's, its row, and when it began."""

    trial: optuna.Trial
    row: Row
    began: float = field(default_factory=time.monotonic)


class Searcher:
    """A `TrialSource`.

    A trial that diverged or collapsed is told with the floor. Of one that failed
    or was stopped with the command nothing is told: the next command runs it under the same number.

    Args:
        study: an empty study in memory; `sampler` suggests its configs.
        rows: of this phase in the record: what earlier commands have asked for.
        first: params of the first config.
        target: number of configs in all.
    """

    def __init__(
        self,
        study: optuna.Study,
        sampler: DistinctSampler,
        configs: Configs,
        rows: Sequence[Row],
        first: Mapping[str, Any],
        target: float = math.inf,
    ):
        self.study, self.sampler, self.configs, self.target = study, sampler, configs, target
        found = {row["number"]: configs.outcome(row) for row in rows}
        self.waiting = replay(study, sampler.space, rows, {each: how for each, how in found.items() if how})
        self.ended = len(found) - len(self.waiting)
        self.count = max(found, default=-1) + 1
        sampler.taken |= {row["config_key"] for row in rows}
        if not rows:
            study.enqueue_trial(dict(first))
        self.live: dict[str, Running] = {}
        self.failed: set[int] = set()
        self.seconds: list[float] = []
        self.copy: StoredStudy | None = None
        self.finished: Sequence[Trial] = ()
        self.over, self.expected = False, len(self.waiting)
        self.ahead: Sequence[Trial] = [configs.trial(number, trial.params)[0] for number, trial in self.waiting.items()]

    def mean_seconds(self) -> float:
        """Mean wall time of the trials that have ended; 0 before there are any."""
        return statistics.fmean(self.seconds) if self.seconds else 0.0

    def next(self) -> Trial | None:
        while not self.exhausted():
            if not self.waiting:
                asked = self.study.ask(self.sampler.space)
                if self.sampler.key(asked.params) in self.sampler.taken:
                    self.study.tell(asked, state=TrialState.FAIL)
                    self.over = True
                    break
                self.waiting[asked.number], self.count = asked, asked.number + 1
            number = min(self.waiting)
            asked = self.waiting[number]
            trial, row = self.configs.trial(number, asked.params)
            self.sampler.taken.add(row["config_key"])
            self.configs.write(row)
            del self.waiting[number]  # not before it is written: a full disk may refuse it
            outcome = self.configs.outcome(row)
            if outcome is None:
                self.live[trial.variant] = Running(asked, row)
                return trial
            self._tell(asked, row, outcome)
        return None

    def exhausted(self) -> bool:
        if not self.over and not self.waiting:
            self.over = self.count >= self.target or not self.configs.in_time(self.mean_seconds())
        return self.over and not self.waiting

    def end(self, trial: Trial, end: End) -> None:
        running = self.live[trial.variant]
        if end.outcome != "stopped":
            outcome = self.configs.outcome(running.row)
            self.seconds.append(time.monotonic() - running.began)
            if outcome:
                self._tell(running.trial, running.row, outcome)
            else:
                self.failed.add(running.trial.number)
                note(running.trial, {REASON: end.reason})
                self._copy()
        del self.live[trial.variant]  # not before its row is written: a full disk may refuse it

    def _tell(self, asked: optuna.Trial, row: Row, outcome: Outcome) -> None:
        tell(self.study, asked, row, outcome)
        self.ended += 1
        self._copy()

    def _copy(self) -> None:
        if self.copy:
            self.copy.update(self.failed)
