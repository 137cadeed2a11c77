"""A search's first phase as a source of trials: Optuna suggests configs, and is told how they end."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import optuna

from sweeps.optimization.objective import Outcome
from sweeps.optimization.study import REASON, Space, StudyFile, ask, note, replay, tell
from sweeps.planning.trials import End, Trial

Row = Mapping[str, Any]


class Configs(Protocol):
    """A searcher's view of the search whose configs it suggests.

    Attributes:
        seed: of the search.
        distributions: name -> distribution; every config has all of them.
    """

    @property
    def seed(self) -> int: ...

    @property
    def distributions(self) -> Space: ...

    def config_key(self, params: Mapping[str, Any]) -> str:
        """What equal configs share: the "config_key" of their rows."""
        ...

    def trial(self, number: int, params: Mapping[str, Any]) -> tuple[Trial, Row]:
        """The trial of a config, and its row in the record."""
        ...

    def write(self, row: Row) -> None:
        """Write a row into the record."""
        ...

    def outcome(self, row: Row) -> Outcome | None:
        """How a trial of the record ended; None where it has not, or failed."""
        ...


class Searcher:
    """A `TrialSource`.

    A trial that diverged or collapsed is told with the floor. Of one that failed or was stopped with the command
    nothing is told: the next command runs it under the same number.

    Args:
        study: an empty study in memory.
        rows: of this phase in the record: what earlier commands have asked for.
        first: params of the first config.
        target: number of configs in all.
    """

    def __init__(
        self,
        study: optuna.Study,
        configs: Configs,
        rows: Sequence[Row],
        first: Mapping[str, Any],
        target: int,
    ):
        self.study, self.configs, self.target = study, configs, target
        found = {row["number"]: configs.outcome(row) for row in rows}
        self.waiting = replay(study, configs.distributions, rows, {each: how for each, how in found.items() if how})
        self.ended = len(found) - len(self.waiting)
        self.taken = {row["config_key"] for row in rows}
        if not rows:
            study.enqueue_trial(dict(first))
        self.live: dict[str, tuple[optuna.Trial, Row]] = {}
        self.failed: set[int] = set()
        self.file: StudyFile | None = None
        self.over, self.expected = False, len(self.waiting) + max(0, target - len(rows))
        self.ahead: Sequence[Trial] = [configs.trial(number, trial.params)[0] for number, trial in self.waiting.items()]

    def next(self) -> Trial | None:
        while not self.exhausted():
            if not self.waiting:
                asked = ask(self.study, self.configs.distributions, self.configs.seed, self._is_new)
                if asked is None:
                    self.over = True
                    break
                self.waiting[asked.number] = asked
            number = min(self.waiting)
            asked = self.waiting[number]
            trial, row = self.configs.trial(number, asked.params)
            self.taken.add(row["config_key"])
            self.configs.write(row)
            del self.waiting[number]  # not before it is written: a full disk may refuse it
            outcome = self.configs.outcome(row)
            if outcome is None:
                self.live[trial.variant] = asked, row
                return trial
            self._tell(asked, row, outcome)
        return None

    def exhausted(self) -> bool:
        return not self.waiting and (self.over or len(self.taken) >= self.target)

    def _is_new(self, params: Mapping[str, Any]) -> bool:
        return self.configs.config_key(params) not in self.taken

    def end(self, trial: Trial, end: End) -> None:
        asked, row = self.live[trial.variant]
        if end.outcome != "stopped":
            outcome = self.configs.outcome(row)
            if outcome:
                self._tell(asked, row, outcome)
            else:
                self.failed.add(asked.number)
                note(asked, {REASON: end.reason})
                self._copy()
        del self.live[trial.variant]  # not before its outcome is read: a store may refuse it

    def _tell(self, asked: optuna.Trial, row: Row, outcome: Outcome) -> None:
        tell(self.study, asked, row, outcome)
        self.ended += 1
        self._copy()

    def _copy(self) -> None:
        if self.file:
            self.file.update(self.failed)
