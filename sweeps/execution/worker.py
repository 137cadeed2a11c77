"""The process that runs one stage. It does not know trials: it takes the stage's claim (lock), runs it, and reports."""

import functools
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from ray.actor import ActorHandle

from sgan.checks import ConfigError
from sgan.config import Config
from sgan.data.batches import Data
from sgan.stages.context import Context
from sgan.stages.cost import seconds_per_unit
from sgan.stages.graph import Stage, name
from sgan.stages.run import be_deterministic, run_stage
from sgan.store.files import StoreError, lack
from sgan.store.local import LostClaim
from sgan.training.loop import Progress
from sweeps.execution import mps
from sweeps.execution.cluster import Slots, open_shared_store, versions

SILENCE = 20.0  # Seconds without an answer of the scheduler after which a worker stops its stage
CONTEXT = 2**29  # Bytes of CUDA's own context in each process


@dataclass(frozen=True)
class Job:
    """The input of every worker of a sweep: the `data`, one copy on each node; the address of the `store`; the driver's
    `mark` in it; the `commit` that is recorded with every stage; the driver's `versions`; whether GPUs sum in one order
    (`deterministic`); and the function that runs a stage (`run`; benchmarks have one that sleeps)."""

    data: Data
    store: str
    mark: str
    commit: str
    slots: Slots
    deterministic: bool = False
    run: Callable[..., Generator[Progress]] = run_stage
    versions: str = field(default_factory=versions)

    def context(self) -> Context:
        """The context in which a stage runs here. ConfigError if this process cannot run the driver's plan."""
        store = open_shared_store(self.store, self.mark, self.versions)
        be_deterministic(self.deterministic)
        torch.set_num_threads(self.slots.cpus)
        if 0 < self.slots.gpus < 1:
            mps.start(self.mark)  # before this process begins to use the GPU
        cap_memory(self.slots.gpus)
        device = "cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu"
        return Context(store, self.data.to(device), device, self.commit)


def cap_memory(share: float) -> None:
    """Limit this process to its share of the GPU's memory: Ray only counts shares, so one stage could take the memory
    that its neighbours need."""
    if 0 < share < 1:
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction(max(0.01, share - CONTEXT / total))


def out_of_memory(error: BaseException, stage: Stage, slots: Slots) -> str:
    """An error message in one line for a stage that ran out of memory in this process, with advice. What it needs in
    all is unknown, so the advice is half as many at a time."""
    said = ". ".join(str(error).split(". ")[:3]) or type(error).__name__  # requested and free memory
    option, together = ("--trials-per-gpu", round(1 / slots.gpus)) if slots.gpus else ("--slots", slots.count)
    fewer = f"{option} {together // 2} leaves each stage twice the memory; or " if together > 1 else ""
    return (
        f"out of memory in {stage.kind} ({said}): {fewer}change the config with --override: a smaller gan.batch, "
        "joint.batch or samples"
    )


class _Reports:
    """Sends a worker's progress to the scheduler while its stage runs. At most one report is on its way, so that a step
    never waits for the network. Without an answer for SILENCE seconds the stage stops: the machine may be offline, and
    another one continues the stage."""

    def __init__(self, stage_name: str, scheduler: ActorHandle):
        self.send = functools.partial(scheduler.report.remote, stage_name)
        self.answer, self.sent = self.send({"share": 0.0}), time.monotonic()

    def go_on(self, **progress: Any) -> bool:
        """Report progress; returns whether the stage is to go on."""
        if not ray.wait([self.answer], timeout=0)[0]:
            return time.monotonic() - self.sent < SILENCE
        if not ray.get(self.answer):
            return False
        self.answer, self.sent = self.send(progress), time.monotonic()
        return True


def run_stage_under_claim(job: Job, stage: Stage, judge: Stage | None, scheduler: ActorHandle) -> dict[str, Any]:
    """Run a stage whose parents are finished.

    Returns:
        `status`: done, diverged or failed; waiting, if it was stopped and left a checkpoint; held, if another process
        trains it or has finished it; or full, if the store has no room or cannot be opened; the `reason`; and the
        `scores` of a stage that has some."""
    reports, context = _Reports(name(stage), scheduler), None
    try:
        context = job.context()
        with context.store.claim(name(stage)) as mine:
            if not mine:
                return {"status": "held", "reason": "another process trains it"}
            steps = job.run(stage, judge, context)
            for progress in steps:
                share = progress.images / max(1, progress.total)
                if not reports.go_on(share=share, scores=progress.metrics):
                    steps.close()  # the stage leaves a checkpoint
                    return {"status": "waiting"}
        facts = context.store.facts(name(stage))
        return {key: facts.get(key) for key in ("status", "reason", "scores")}
    except (ConfigError, OSError) as error:
        if trouble := lack(error):
            return {"status": "full", "reason": f"waiting for the store {job.store} ({trouble.strerror})"}
        if isinstance(error, StoreError) and context is None:  # it cannot be opened, and may be back in a moment
            return {"status": "full", "reason": str(error)}
        if isinstance(error, LostClaim):
            return {"status": "held", "reason": str(error)}
        if isinstance(error, ConfigError | PermissionError):  # a retry would fail in the same way
            return {"status": "failed", "reason": str(error)}
        raise
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)):
            raise
        return {"status": "failed", "reason": out_of_memory(error, stage, job.slots)}


run_stage_task = ray.remote(max_retries=0)(run_stage_under_claim)


def measured_here(config: Config, data: Data, slots: Slots) -> float:
    """Seconds of one unit of cost (`sgan.stages.cost`), measured in this process."""
    torch.set_num_threads(slots.cpus)
    device = "cuda" if slots.gpus and torch.cuda.is_available() else "cpu"
    return seconds_per_unit(config, data.to(device), device)


def measured_in_a_slot(config: Config, data: Data, slots: Slots) -> float:
    """The same, measured where stages run: the driver's machine may be another one, without a GPU."""
    task = ray.remote(max_retries=1)(measured_here).options(num_cpus=slots.cpus, num_gpus=slots.gpus)
    return ray.get(task.remote(config, data, slots))
