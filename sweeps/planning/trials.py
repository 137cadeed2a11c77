"""Trials, the sources that the scheduler takes them from, and the stages that they still need."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from sgan.config import Config
from sgan.stages.cost import cost
from sgan.stages.graph import Plan, Stage, name, plan
from sgan.store.local import Store
from sweeps.planning.state import state_of


@dataclass(frozen=True)
class Trial:
    """One config of a sweep or a search; `variant` is the name of its row."""

    variant: str
    seed: int
    config: Config
    plan: Plan

    @property
    def title(self) -> str:
        """The trial for people."""
        return f"{self.variant} seed {self.seed}"

    @property
    def id(self) -> str:
        """The trial among all of its sweep: under some options two variants have one and the same plan."""
        return f"{self.variant}-{self.seed}-{self.plan.name}"

    @property
    def row(self) -> dict[str, Any]:
        """The name of the trial and its stages, as in the record of its sweep: `state_of` takes it."""
        stages = [{"label": label, "name": name(stage)} for label, stage in self.plan.stages]
        return {"name": self.plan.name, "stages": stages}


@dataclass(frozen=True)
class End:
    """How a trial ended: "done", "diverged", "failed", or "stopped" with the command; and why."""

    outcome: str
    reason: str = ""


class TrialSource(Protocol):
    """Where the scheduler takes trials from: an ablation's list, or a search.

    Attributes:
        expected: number of trials in all, as far as it is known.
        ahead: trials that are known before the first one runs: their stages can be put in the best order.
        finished: trials that have ended before.
    """

    @property
    def expected(self) -> int: ...

    @property
    def ahead(self) -> Sequence[Trial]: ...

    @property
    def finished(self) -> Sequence[Trial]: ...

    def next(self) -> Trial | None:
        """The next trial to start; None where there is none now."""
        ...

    def exhausted(self) -> bool:
        """Whether no trial will come any more."""
        ...

    def end(self, trial: Trial, end: End) -> None:
        """Take the end of a trial."""
        ...


def trial(variant: str, seed: int, config: Config) -> Trial:
    """A trial with its plan."""
    return Trial(variant, seed, config, plan(config))


def ended(trial: Trial, store: Store) -> bool:
    """Whether a trial is done or has diverged: running it again changes nothing."""
    return state_of(store, trial.row).outcome in ("done", "diverged")


def missing(trials: Sequence[Trial], store: Store) -> dict[str, Stage]:
    """The stages that trials which have not ended still need, each once."""
    stages = {name(stage): stage for each in trials for _, stage in each.plan.stages}
    return {each: stage for each, stage in stages.items() if not store.has(each)}


class ListSource:
    """A list of trials as a TrialSource: hands out those that have not ended, the longest way to go first."""

    def __init__(self, trials: Sequence[Trial], store: Store):
        ways = [(sum(map(cost, missing([each], store).values())), each) for each in trials if not ended(each, store)]
        self.ahead: Sequence[Trial] = [each for _, each in sorted(ways, key=lambda way: -way[0])]
        self.finished: Sequence[Trial] = [each for each in trials if each not in self.ahead]
        self.expected, self._left = len(self.ahead), list(self.ahead)

    def next(self) -> Trial | None:
        return self._left.pop(0) if self._left else None

    def exhausted(self) -> bool:
        return not self._left

    def end(self, trial: Trial, end: End) -> None:
        pass  # the store has the result


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))
