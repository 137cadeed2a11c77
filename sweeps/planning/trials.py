"""The trials of SGANs: what one is, what it still needs, and in which order they start.

What is finished lies in the store, so the same command goes on where it was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sgan.config import IMAGE, Config
from sgan.stages.graph import ClassifierStage, InceptionStage, JointStage, LevelStage, Plan, ScoreStage, Stage, plan
from sgan.store.local import Store


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


@dataclass(frozen=True)
class Point:
    """An evaluation of a stage in progress: the stage's label, images seen, and its scores."""

    label: str
    images: int
    scores: Mapping[str, float]


@dataclass(frozen=True)
class End:
    """How a trial ended: "done", "diverged", "failed", or "stopped" (early, or with the command); and why."""

    outcome: str
    reason: str = ""


class TrialSource(Protocol):
    """Where the scheduler takes trials from: an ablation's list, or a search.

    Attributes:
        expected: number of trials in all, as far as it is known.
    """

    expected: int

    def next(self) -> Trial | None:
        """The next trial to start; None where there is none now."""
        ...

    def exhausted(self) -> bool:
        """Whether no trial will come any more."""
        ...

    def report(self, trial: Trial, point: Point) -> bool:
        """Take an evaluation of a trial in progress; true ends that trial early."""
        ...

    def end(self, trial: Trial, end: End) -> None:
        """Take the end of a trial."""
        ...


def trial(variant: str, seed: int, config: Config) -> Trial:
    """A trial with its plan."""
    return Trial(variant, seed, config, plan(config))


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
    there = [stage_name for stage_name in names if store.has(stage_name)]
    return len(there) == len(names) or any(store.facts(stage_name)["status"] == "diverged" for stage_name in there)


def missing(trials: Sequence[Trial], store: Store) -> dict[str, Stage]:
    """The stages that trials which have not ended still need, each once."""
    stages = {
        stage_name: stage
        for trial in trials
        for stage_name, (_, stage) in zip(trial.plan.names, trial.plan.stages, strict=True)
    }
    return {stage_name: stage for stage_name, stage in stages.items() if not store.has(stage_name)}


def in_order(trials: Sequence[Trial], store: Store, slots: int) -> list[Trial]:
    """The order in which trials that have not ended start, so that no slot waits or is idle at the end.

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


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
