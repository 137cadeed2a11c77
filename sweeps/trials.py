"""The trials of SGANs: what one is, what it still needs, and how it runs on Ray.

What is finished lies in the store, so the same command goes on where it was. The code that trains is imported where it
trains, and Ray Tune where trials run: the driver plans without them.
"""

import platform
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sgan.checks import ConfigError, require
from sgan.config import IMAGE, Config
from sgan.files import remove
from sgan.host import importing
from sgan.stages import (
    ClassifierStage,
    InceptionStage,
    JointStage,
    LevelStage,
    Plan,
    ScoreStage,
    Stage,
    code_version,
    plan,
)
from sgan.store import Store
from sweeps.cluster import Slots
from sweeps.sharing import see

if TYPE_CHECKING:
    from sgan.datasets import Arrays
    from sgan.runners import Worker

REPORT_SECONDS = 2.0
"""A trial reports to Tune this often, so that a short step costs the driver nothing."""


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


def trial(variant: str, seed: int, config: Config) -> Trial:
    """A trial with its plan."""
    return Trial(variant, seed, config, plan(config))


@dataclass(frozen=True)
class Job:
    """What every worker is given: the data, read by the driver alone, the store's address and the mark that the driver
    left there, the commit to note, the version of the code by which the trials were planned, the CPUs and GPUs of a
    trial, and whether GPUs are to be deterministic.
    """

    data: "Arrays"
    store: str
    mark: str
    commit: str
    code: str
    slots: Slots
    deterministic: bool = False

    def results(self, trial: Trial, seconds: float = REPORT_SECONDS) -> Generator[dict[str, Any]]:
        """Run a trial. Results have `label` (the stage), `share` of it that is done (-1 while another process trains
        it), and `peak`, what `memory.peak` says; the last one has `outcome` "done", "diverged" or "failed", and the
        reason.

        Args:
            seconds: between two results, at least.
        """
        with importing():
            from ray.tune.result import DONE

            from sgan.loop import Diverged
            from sgan.run import run_trial
            from sweeps import memory

        since, label = time.monotonic(), None
        outcome, reason = "done", ""
        try:
            for event in run_trial(self._worker(trial)):
                changed = label is not None and event.label != label
                label = event.label
                if changed or time.monotonic() - since > seconds:
                    since = time.monotonic()
                    share = event.progress.images / max(1, event.progress.total) if event.progress else -1.0
                    yield {"label": event.label, "share": share, "peak": memory.peak()}
        except Diverged as error:
            outcome, reason = "diverged", str(error)
        except ConfigError as error:  # it would be the same again: no retry
            outcome, reason = "failed", str(error)
        except (RuntimeError, MemoryError) as error:
            if not memory.is_lack(error):
                raise
            outcome, reason = "failed", memory.lack(error, label or trial.plan.stages[0][0], trial.config)
        yield {"label": "", "outcome": outcome, "reason": reason, DONE: True}

    def _worker(self, trial: Trial) -> "Worker":
        """This process; ConfigError where it cannot run what the driver has planned."""
        import ray
        import torch

        from sgan.run import be_deterministic
        from sgan.runners import Worker
        from sweeps import memory

        require(
            code_version() == self.code,
            "this worker has other code than the driver: the checkout changed during the sweep or differs between "
            "nodes; run the command again with one version",
        )
        be_deterministic(self.deterministic)
        torch.set_num_threads(self.slots.cpus)
        memory.cap(self.slots.gpus)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what the trial before has left
        device = "cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu"
        store, data = see(self.store, self.mark, platform.node()), self.data.tensors().to(device)
        return Worker(store, data, device, trial.plan, self.commit)


@dataclass(frozen=True)
class _Listed:
    """Runs the trials of a list."""

    job: Job
    trials: tuple[Trial, ...]

    def __call__(self, config: dict[str, Any]) -> Generator[dict[str, Any]]:
        return self.job.results(self.trials[config["trial"]])


def work(stage: Stage) -> float:
    """Rough cost of a stage, in image-level training images, for the order of trials and the time left."""
    match stage:
        case ClassifierStage():
            return 0.15 * stage.recipe.images
        case LevelStage():
            return stage.images * (1.0 if stage.low == IMAGE else 0.25)
        case JointStage():
            return 1.2 * stage.images
        case ScoreStage():
            return (2.0 if stage.inception else 0.1) * stage.samples
        case InceptionStage():
            return 50_000


def ended(trial: Trial, store: Store) -> bool:
    """Whether a trial is finished, or one of its stages diverged, which it would do again. One of whose stages was
    deleted is not: that one is made again."""
    names = trial.plan.names
    return all(map(store.has, names)) or any(
        store.has(stage_name) and store.facts(stage_name)["status"] == "diverged" for stage_name in names
    )


def missing(trials: Sequence[Trial], store: Store) -> dict[str, Stage]:
    """The stages that trials which have not ended still need, each once."""
    stages = {
        stage_name: stage
        for trial in trials
        if not ended(trial, store)
        for stage_name, (_, stage) in zip(trial.plan.names, trial.plan.stages, strict=True)
    }
    return {stage_name: stage for stage_name, stage in stages.items() if not store.has(stage_name)}


def in_order(trials: Sequence[Trial], store: Store, slots: int) -> list[Trial]:
    """The order in which trials start, so that no slot waits or is idle at the end.

    As many as there are slots start at once: those with the longest way to go, so that trials that share stages train
    one each. Later ones find most of what they share finished, so those follow first that have most to train that no
    earlier one trains, and the last ones are short.
    """
    needed = [(trial, missing([trial], store)) for trial in trials]
    needed.sort(key=lambda each: -sum(map(work, each[1].values())))
    counted: set[str] = set()
    own: list[tuple[float, Trial]] = []
    for trial, stages in needed:
        own.append((sum(work(stage) for stage_name, stage in stages.items() if stage_name not in counted), trial))
        counted |= stages.keys()
    later = sorted(own[slots:], key=lambda each: -each[0])
    return [trial for _, trial in [*own[:slots], *later]]


def run(trials: Sequence[Trial], job: Job, store: Store, slots: Slots) -> None:
    """Run the trials that have not ended; what one could not finish for is in its failure file in the store."""
    todo = in_order([trial for trial in trials if not ended(trial, store)], store, slots.count)
    if not todo:
        return
    for each in todo:
        remove(store.failure(each.plan.name))
    from sweeps.progress import ProgressLines
    from sweeps.schedule import fit

    lines = ProgressLines(lambda config: todo[config["trial"]], store, todo)
    fit(_Listed(job, tuple(todo)), slots, store.root, range(len(todo)), [lines])


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
