"""Trials, where each of them stands by the store, and the sources that the scheduler takes them from."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from typing_extensions import TypedDict

from sgan.config import Config
from sgan.evaluation.alarms import latest
from sgan.stages.cost import cost
from sgan.stages.graph import Plan, Stage, name, plan
from sgan.store.files import RECORD_FILE, StoreError, read_json, read_record
from sgan.store.local import Store

JUDGING = ("judge", "score")  # Kinds of stages that train no part of a variant
TRAINING = ("train_seconds", "generator_images", "discriminator_steps", "generator_steps", "flops")
"""What a trial's training took: seconds, images that the generator of images was updated on (steps x batch), steps of
both kinds, and FLOPs of these steps."""


@dataclass(frozen=True)
class Trial:
    """One config of a sweep or a search; `variant` is the name of its row."""

    variant: str
    seed: int
    config: Config
    plan: Plan

    @property
    def title(self) -> str:
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


def trial(variant: str, seed: int, config: Config) -> Trial:
    return Trial(variant, seed, config, plan(config))


class Failure(TypedDict):
    """The last error of a trial, at a time in unix seconds."""

    trial: str
    error: str
    time: float


@dataclass(frozen=True)
class State:
    """Where a trial stands: done, diverged, failed, running or interrupted; why it diverged or failed; stage.json of
    its finished stages, in order; and when the last of them ended, in unix seconds, 0 before that."""

    outcome: str
    reason: str
    facts: list[dict[str, Any]]
    end: float


def state_of(store: Store, trial: Mapping[str, Any], live: bool = False) -> State:
    """Where a trial stands; one that has not ended is running with `live`, otherwise interrupted. One of whose
    stages was deleted has not ended: its seconds and images would be too few."""
    facts = [store.facts(stage["name"]) for stage in trial["stages"] if store.has(stage["name"])]
    end = max((fact["finished"] for fact in facts), default=0.0)
    for fact in facts:
        if fact["status"] == "diverged":
            return State("diverged", fact["reason"], facts, end)
    if len(facts) == len(trial["stages"]):
        return State("done", "", facts, end)
    if store.failure(trial["name"]).exists():
        failure = read_json(store.failure(trial["name"]), Failure, trial=trial["name"])
        return State("failed", failure["error"], facts, max(end, failure["time"]))
    return State("running" if live else "interrupted", "", facts, end)


def scores_of(state: State) -> dict[str, float | None]:
    """The scores of a finished trial, and of all of its stages TRAINING; a joint stage comes on top of the levels."""
    seconds = sum(fact["seconds"] for fact in state.facts if fact["kind"] not in JUDGING)
    work = {name: sum(fact.get(name, 0) for fact in state.facts) for name in TRAINING[1:]}
    return state.facts[-1]["scores"] | {"train_seconds": seconds} | work


def records_of(store: Store, trial: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The record of each stage of a trial, by label. One in progress that is damaged is left out: its stage makes it
    good when it goes on. StoreError where that of a finished stage is damaged."""
    records = {}
    for stage in trial["stages"]:
        done = store.has(stage["name"])
        if done and RECORD_FILE in store.facts(stage["name"])["files"]:
            store.file(stage["name"], RECORD_FILE)  # raises where it is damaged
        with nullcontext() if done else suppress(StoreError):
            records[stage["label"]] = read_record(store.look(stage["name"]))
    return records


def alarm_of(store: Store, trial: Mapping[str, Any], state: State) -> str:
    """What is wrong with a trial by its newest evaluations, in words (`sgan.evaluation.alarms`); "" where all is well.
    StoreError as from `records_of`."""
    final = state.facts[-1]["scores"] if state.outcome == "done" else None
    alarms = latest(records_of(store, trial), final)
    lines = [(label, text) for label, texts in alarms.items() for text in texts]
    return "; ".join(text if label == "score" else f"{label}: {text}" for label, text in lines)


def ended(trial: Trial, store: Store) -> bool:
    """Whether a trial is done or has diverged: running it again changes nothing."""
    return state_of(store, trial.row).outcome in ("done", "diverged")


def missing(trials: Sequence[Trial], store: Store) -> dict[str, Stage]:
    """The stages that trials which have not ended still need, each once."""
    stages = {name(stage): stage for each in trials for _, stage in each.plan.stages}
    return {each: stage for each, stage in stages.items() if not store.has(each)}


class TrialSource(Protocol):
    """Where the scheduler takes trials from: an ablation's list, or a search. So many are `expected` in all, as far as
    is known; those `ahead` are known before the first one runs, so that their stages can be put in the best order."""

    expected: int
    ahead: Sequence[Trial]

    def next(self) -> Trial | None:
        """The next trial to start; None where no trial will come any more."""

    def end(self, trial: Trial, outcome: str, reason: str) -> None:
        """A trial has ended: "done", "diverged", "failed", or "stopped" with the command."""


class ListSource:
    """A list of trials as a TrialSource: hands out those that have not ended, the longest way to go first."""

    def __init__(self, trials: Sequence[Trial], store: Store):
        ways = [(sum(map(cost, missing([each], store).values())), each) for each in trials if not ended(each, store)]
        self.ahead: Sequence[Trial] = [each for _, each in sorted(ways, key=lambda way: -way[0])]
        self.expected, self._left = len(self.ahead), iter(self.ahead)

    def next(self) -> Trial | None:
        return next(self._left, None)

    def end(self, trial: Trial, outcome: str, reason: str) -> None:
        """The store has the result."""


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))
