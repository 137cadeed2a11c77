"""Stages that train nothing: for tests and benchmarks of the scheduler."""

import errno
import json
import os
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import TINY, tiny_recipe

from sgan.data.datasets import read
from sgan.presets import DATASETS, VARIANTS, configure
from sgan.stages.context import Context
from sgan.stages.graph import Stage, name
from sgan.store.local import Store
from sgan.training.loop import Progress
from sweeps.execution.cluster import Slots, leave_mark
from sweeps.execution.worker import Job
from sweeps.planning.trials import Trial, trial

SCORES = {"inception_score": 1.0, "fid": 2.0}


@dataclass
class ListSource:
    """Trials of a list; keeps what it is told."""

    ahead: Sequence[Trial]
    ends: dict[str, tuple[str, str]] = field(default_factory=dict)
    given: int = 0
    most: int = 0

    def __post_init__(self):
        self.expected = len(self.ahead)

    def next(self) -> Trial | None:
        if self.given == len(self.ahead):
            return None
        self.given += 1
        self.most = max(self.most, self.given - len(self.ends))
        return self.ahead[self.given - 1]

    def end(self, trial: Trial, outcome: str, reason: str, scores: Mapping[str, Any]) -> None:
        assert outcome != "done" or scores == SCORES
        self.ends[trial.title] = (outcome, reason)


def trials(variants: Sequence[str], seeds: int = 1) -> list[Trial]:
    """Tiny trials of the digits."""
    digest, recipe = read(DATASETS["digits"], Path()).digest, tiny_recipe()
    return [
        trial(each, seed, configure(TINY, digest, recipe, VARIANTS[each].variant, seed, None, ("fc3",)))
        for seed in range(seeds)
        for each in variants
    ]


def stage_name(trial: Trial, label: str) -> str:
    return name(dict(trial.plan.stages)[label])


@dataclass(frozen=True)
class Waiting:
    """Runs a stage: notes that it began, waits for some seconds or while the file `hold-<stage>` is there, and
    publishes. A file `raise-<stage>` has it raise, and a file `full-<stage>` as on a full disk."""

    folder: Path
    seconds: float = 0.0

    def __call__(self, stage: Stage, judge: Stage | None, context: Context) -> Generator[Progress]:
        began, mine = time.time(), name(stage)
        folder = context.store.begin(mine)
        with open(self.folder / f"begun-{mine}", "a") as file:
            file.write(f"{os.getpid()}\n")
        while time.time() - began < self.seconds or (self.folder / f"hold-{mine}").exists():
            yield Progress(1, 2, 0.0, {"stop": float((self.folder / f"stop-{mine}").exists())})
            time.sleep(0.05)
        if (self.folder / f"raise-{mine}").exists():
            raise ValueError("the stage raises")
        if (self.folder / f"full-{mine}").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        (folder / "who.json").write_text(json.dumps({"pid": os.getpid(), "began": began, "ended": time.time()}))
        context.store.publish(mine, {"status": "done", "reason": None, "kind": stage.kind, "scores": SCORES})

    def begun(self, stage_name: str) -> list[int]:
        """The processes that have begun a stage, in order."""
        path = self.folder / f"begun-{stage_name}"
        return [int(line) for line in path.read_text().split()] if path.exists() else []


def job(store: Store, folder: Path, seconds: float = 0.0, slots: int = 2) -> Job:
    """A job of stages that wait."""
    leave_mark(store, "test")
    data, where = read(DATASETS["digits"], Path()), Slots(slots, 1, 0.0, 0, "here")
    return Job(data, store.address, "test", "commit", where, False, Waiting(folder, seconds))
