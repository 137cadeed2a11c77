"""Where a trial stands, read from the store: the only answer to that question."""

from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from sgan.evaluation.alarms import latest
from sgan.store.files import RECORD_FILE, StoreError, read_json, read_record
from sgan.store.local import Store

JUDGING = ("judge", "score")
"""Kinds of stages that train no part of a variant."""


TRAINING = ("train_seconds", "generator_images", "discriminator_steps", "generator_steps", "flops")
"""What a trial's training took: seconds, images that the generator of images was updated on (steps x batch), steps of
both kinds, and FLOPs of these steps."""


@dataclass(frozen=True)
class State:
    """Where a trial stands.

    Attributes:
        outcome: done, diverged, failed, running or interrupted.
        reason: why it diverged or failed; "" otherwise.
        facts: stage.json of its finished stages, in order.
        end: when the last of them ended, in unix seconds; 0 before that.
    """

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
        failure = read_json(store.failure(trial["name"]), trial=trial["name"])
        return State("failed", failure["error"], facts, max(end, failure["time"]))
    return State("running" if live else "interrupted", "", facts, end)


def scores_of(state: State) -> dict[str, float | None]:
    """The scores of a finished trial, and of all of its stages TRAINING; a joint stage comes on top of the levels."""
    seconds = sum(fact["seconds"] for fact in state.facts if fact["kind"] not in JUDGING)
    work = {name: sum(fact.get(name, 0) for fact in state.facts) for name in TRAINING[1:]}
    return state.facts[-1]["scores"] | {"train_seconds": seconds} | work


def records_of(store: Store, trial: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The record of each stage of a trial, by label. One in progress that is damaged is left out: its stage makes it
    good when it goes on.

    Raises:
        StoreError: the record of a finished stage is damaged.
    """
    records = {}
    for label, name in ((stage["label"], stage["name"]) for stage in trial["stages"]):
        done = store.has(name)
        if done and RECORD_FILE in store.facts(name)["files"]:
            store.file(name, RECORD_FILE)  # raises where it is damaged
        with nullcontext() if done else suppress(StoreError):
            records[label] = read_record(store.look(name))
    return records


def alarm_of(store: Store, trial: Mapping[str, Any], state: State) -> str:
    """What is wrong with a trial by its newest evaluations, in words (`sgan.evaluation.alarms`); "" where all is well.

    Raises:
        StoreError: the record of a finished stage is damaged.
    """
    final = state.facts[-1]["scores"] if state.outcome == "done" else None
    alarms = latest(records_of(store, trial), final)
    return "; ".join(f"{label}: {text}" for label, texts in alarms.items() for text in texts)
