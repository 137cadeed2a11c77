"""Runs stages: one, or all that a trial still needs, sharing them with every other process on the same store."""

import functools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from sgan.checks import as_json
from sgan.config import IMAGE
from sgan.host import processor
from sgan.stages.graph import LevelStage, Stage, name
from sgan.stages.runners import RUNNERS, Worker
from sgan.store.local import NO_ROOM, ROOM_WAIT
from sgan.training.loop import WORK, Diverged, Progress, Spoiled


@dataclass(frozen=True)
class Event:
    """What a trial is doing: the label of a stage, and its progress; None while it waits: for another process that
    trains it, or for what the label says."""

    label: str
    progress: Progress | None


def run_trial(worker: Worker) -> Iterator[Event]:
    """Bring every stage of a trial into the store, each trained once whoever needs it.

    A stage that another process trains is left to it; meanwhile any other stage of the trial that is ready runs. Where
    the store's disk is full or read-only, the trial waits, and goes on from its last checkpoint when there is room.
    Raises:
        Diverged: a stage diverged, here or in an earlier run.
        StoreError: something in the store is damaged.
    """
    while True:
        try:
            yield from _run_trial(worker)
            return
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            trouble = f"room in the store {worker.store.address} ({error.strerror})"
        waited = False
        while not waited or not worker.store.has_room():
            yield Event(trouble, None)
            time.sleep(ROOM_WAIT)
            waited = True


def _run_trial(worker: Worker) -> Iterator[Event]:
    store, finished = worker.store, set()
    while len(finished) < len(worker.plan.stages):
        for label, stage in worker.plan.stages:
            if stage not in finished and store.has(name(stage)):
                facts = store.facts(name(stage))
                if facts["status"] == "diverged":
                    raise Diverged(f"{label}: {facts['reason']}")
                finished.add(stage)
        waiting = None
        for label, stage in worker.plan.stages:
            if stage in finished or not finished.issuperset(stage.parents):
                continue
            with store.claim(name(stage)) as mine:
                if mine:
                    for progress in run(stage, worker):
                        yield Event(label, progress)
                    break
            waiting = waiting or label
        else:
            if waiting and len(finished) < len(worker.plan.stages):
                yield Event(waiting, None)
                time.sleep(store.poll)


def run(stage: Stage, worker: Worker) -> Iterator[Progress]:
    """Run one stage whose parents are finished, and publish it; the caller holds its claim.

    A stage that diverges is published with the reason and its last checkpoints: run again, it would diverge again. One
    whose files somebody changed is made anew, once.
    Raises:
        StoreError: somebody changes them again, or those of a finished stage.
    """
    stage_name = name(stage)
    folder = worker.store.begin(stage_name)
    began = time.monotonic()
    outcome: dict[str, Any] = {"status": "done", "reason": None}
    progress = Progress(0, 0)
    for last in (False, True):
        states = RUNNERS[stage.kind](stage, worker, folder, outcome)
        try:
            for progress in states:
                worker.store.keep(stage_name)
                if progress.images < progress.total:  # what is through is published, not shown
                    yield progress
            break
        except Diverged as error:
            outcome = {"status": "diverged", "reason": str(error)}
            break
        except Spoiled:
            if last:
                raise
        except GeneratorExit:
            states.close()  # leaves a checkpoint
            worker.store.keep(stage_name, now=True)
            raise
    facts = {
        "kind": stage.kind,
        "images": progress.images,
        "makes_images": stage.kind == "joint" or (isinstance(stage, LevelStage) and stage.low == IMAGE),
        "seconds": progress.before + time.monotonic() - began,
        "commit": worker.commit,
        "machine": machine(worker.device),
        "torch": torch.__version__,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "fields": as_json(stage),
    }
    worker.store.publish(stage_name, facts | outcome, drop=WORK if outcome["status"] == "done" else ())


def be_deterministic(wanted: bool) -> None:
    """Have CUDA sum in one order, so that a run can be repeated bit for bit on the same GPU; slower. CPUs always do.

    Called before the first use of the GPU; a training step that has no such form raises RuntimeError.
    """
    if wanted:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read by cuBLAS when it starts
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = False


@functools.cache
def machine(device: str) -> str:
    """The machine in words, for tables."""
    gpu = torch.cuda.get_device_name() if device.startswith("cuda") and torch.cuda.is_available() else "no GPU"
    return f"{processor()}, {os.cpu_count()} cores, {gpu}"
