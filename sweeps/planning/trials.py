"""Trials, their state in the store, and the sources from which the scheduler takes them."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from typing_extensions import TypedDict

from sgan.checks import as_json
from sgan.config import Config
from sgan.evaluation.alarms import latest
from sgan.stages.graph import Plan, Stage, cost, name, plan
from sgan.store.files import RECORD_FILE, StoreError, read_json, read_record
from sgan.store.local import Store

JUDGING = ("judge", "score")  # Kinds of stages that train no part of a variant
TRAINING = ("train_seconds", "generator_images", "discriminator_steps", "generator_steps", "flops")
"""The cost of a trial's training: seconds, images that the image generator was updated on (steps x batch), steps of
both kinds, and FLOPs of these steps."""


@dataclass(frozen=True)
class Trial:
    """One config of a sweep or a search; `variant` is the name of its row, and `record` is its entry in the record of
    the sweep: the argument of `state_of`."""

    variant: str
    seed: int
    config: Config
    plan: Plan
    record: dict[str, Any]

    @property
    def title(self) -> str:
        return f"{self.variant} seed {self.seed}"

    @property
    def id(self) -> str:
        """The unique name of the trial in its sweep: under some options two variants have the same plan."""
        return self.record["run"]


def config_key(config: Config) -> str:
    """The key of a config without its seed: the name of the score stage at seed 0. Edited code makes another key, so
    that scores of both never share a mean."""
    return plan(dataclasses.replace(config, seed=0)).name


def trial(variant: str, seed: int, config: Config, **about: Any) -> Trial:
    """A trial with its record: what follows from the config, and what is `about` it (`manifest.TrialRow`)."""
    stages = plan(config)
    record = {
        "name": stages.name,
        "stages": [{"label": label, "name": name(stage)} for label, stage in stages.stages],
        "run": f"{variant}-{seed}-{stages.name}",
        "variant": variant,
        "seed": seed,
        "cuts": ",".join(config.variant.cuts) or "none",
        "config": as_json(config),
        "config_key": config_key(config),
    }
    return Trial(variant, seed, config, stages, record | about)


class Failure(TypedDict):
    """The last error of a trial, with its time in unix seconds."""

    trial: str
    error: str
    time: float


@dataclass(frozen=True)
class State:
    """The state of a trial. `outcome`: done, diverged, failed, running or interrupted. `reason`: why it diverged or
    failed. `facts`: stage.json of its finished stages, in order. `end`: unix seconds of the last one's end, else 0."""

    outcome: str
    reason: str
    facts: list[dict[str, Any]]
    end: float


def state_of(store: Store, trial: Mapping[str, Any], live: bool = False) -> State:
    """The state of a trial; one that has not ended is running with `live`, otherwise interrupted. A trial with a
    deleted stage has not ended: its seconds and images would be too few."""
    there = {stage["label"]: store.facts(stage["name"]) for stage in trial["stages"] if store.has(stage["name"])}
    facts = list(there.values())
    end = max((fact["finished"] for fact in facts), default=0.0)
    for label, fact in there.items():
        if fact["status"] == "diverged":
            return State("diverged", f"{label}: {fact['reason']}", facts, end)
    if len(facts) == len(trial["stages"]):
        return State("done", "", facts, end)
    if store.failure(trial["name"]).exists():
        failure = read_json(store.failure(trial["name"]), Failure, trial=trial["name"])
        return State("failed", failure["error"], facts, max(end, failure["time"]))
    return State("running" if live else "interrupted", "", facts, end)


def scores_of(state: State) -> dict[str, float | None]:
    """The scores of a finished trial, and TRAINING summed over all of its stages, including the joint stage."""
    seconds = sum(fact["seconds"] for fact in state.facts if fact["kind"] not in JUDGING)
    work = {name: sum(fact.get(name, 0) for fact in state.facts) for name in TRAINING[1:]}
    return state.facts[-1]["scores"] | {"train_seconds": seconds} | work


def records_of(store: Store, trial: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The record of each stage of a trial, by label. A damaged record of a stage in progress is left out: the stage
    repairs it when it goes on. StoreError if the record of a finished stage is damaged."""
    records = {}
    for stage in trial["stages"]:
        done = store.has(stage["name"])
        if done and RECORD_FILE in store.facts(stage["name"])["files"]:
            store.file(stage["name"], RECORD_FILE)  # raises where it is damaged
        with nullcontext() if done else suppress(StoreError):
            records[stage["label"]] = read_record(store.look(stage["name"]))
    return records


def of_real_features(trial: Mapping[str, Any], label: str) -> bool:
    """Whether evaluations in a stage of this label score a stack's image level alone, given features of real images;
    the whole stack, given those that it makes, is scored in the joint stage and at the end."""
    return label == "level0" and any(stage["label"] == "level1" for stage in trial["stages"])


def alarm_of(store: Store, trial: Mapping[str, Any], state: State) -> str:
    """The alarms of a trial's newest evaluations in words (`sgan.evaluation.alarms`), "" if there are none. StoreError
    as from `records_of`."""
    final = state.facts[-1]["scores"] if state.outcome == "done" else None
    alarms = latest(records_of(store, trial), final)
    lines = [(label, text) for label, texts in alarms.items() for text in texts]
    return "; ".join(text if label == "score" else f"{label}: {text}" for label, text in lines)


def ended(trial: Trial, store: Store) -> bool:
    """Whether a trial is done or has diverged: running it again changes nothing."""
    return state_of(store, trial.record).outcome in ("done", "diverged")


def missing(trials: Sequence[Trial], store: Store) -> dict[str, Stage]:
    """The stages of these trials that the store does not have yet, each once, by name."""
    stages = {name(stage): stage for each in trials for _, stage in each.plan.stages}
    return {each: stage for each, stage in stages.items() if not store.has(each)}


class TrialSource(Protocol):
    """The source of the scheduler's trials: an ablation's list, or a search. `expected`: the number of all trials as
    far as known. `ahead`: those known before the first one runs, so that their stages can be put in order."""

    expected: int
    ahead: Sequence[Trial]

    def next(self) -> Trial | None:
        """The next trial to start; None if there are no more."""

    def end(self, trial: Trial, outcome: str, reason: str, scores: Mapping[str, Any]) -> None:
        """Take the outcome of a trial: "done" with its final scores, "diverged" or "failed"."""


class ListSource:
    """A list of trials as a TrialSource: returns those that have not ended, the one with the most work first. `record`
    writes the list into its record, before the first trial; where it raises, it is called again for the next one."""

    def __init__(self, trials: Sequence[Trial], store: Store, record: Callable[[], None] = lambda: None):
        ways = [(sum(map(cost, missing([each], store).values())), each) for each in trials if not ended(each, store)]
        self.ahead: Sequence[Trial] = [each for _, each in sorted(ways, key=lambda way: -way[0])]
        self.expected, self.record = len(self.ahead), record
        self._left: Iterator[Trial] | None = None

    def next(self) -> Trial | None:
        if self._left is None:
            self.record()
            self._left = iter(self.ahead)
        return next(self._left, None)

    def end(self, trial: Trial, outcome: str, reason: str, scores: Mapping[str, Any]) -> None:
        """Do nothing: the store has the result."""


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))
