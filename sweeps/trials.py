"""The trials of SGANs: what one is, what it still needs, and how it runs on Ray.

What is finished lies in the store, so the same command goes on where it was. The code that trains is imported where it
trains: the driver plans without it.
"""

import contextlib
import platform
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.result import DONE

from sgan.checks import ConfigError, require
from sgan.config import IMAGE, Config
from sgan.files import remove, write_json
from sgan.stages import (
    ClassifierStage,
    InceptionStage,
    JointStage,
    LevelStage,
    Plan,
    ScoreStage,
    Stage,
    code_version,
    name,
    plan,
)
from sgan.store import Store
from sweeps.schedule import Slots, failure, fit
from sweeps.sharing import see

if TYPE_CHECKING:
    from sgan.runners import Worker

REPORT_SECONDS = 2.0
"""A trial reports to Tune this often, so that a short step costs the driver nothing."""
SILENCE_SECONDS = 60.0
"""A trial that goes on and on is heard of this often."""


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
    """What every worker is given: where the data lie, the store's address and the mark that the driver left there, the
    commit to note, the version of the code by which the trials were planned, the CPUs and GPUs of a trial, and whether
    GPUs are to be deterministic.
    """

    data: Path
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

        from sgan.data import load
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
        data = load(trial.config.judge, self.data)
        require(
            data.digest == trial.config.data,
            f"the {trial.config.dataset.name} data in {self.data} on {platform.node()} are not those that the driver "
            "has",
        )
        return Worker(see(self.store, self.mark, platform.node()), data.to(device), device, trial.plan, self.commit)


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
    names = [name(stage) for _, stage in trial.plan.stages]
    return all(map(store.has, names)) or any(
        store.has(stage_name) and store.facts(stage_name)["status"] == "diverged" for stage_name in names
    )


def missing(trials: Sequence[Trial], store: Store) -> dict[str, Stage]:
    """The stages that trials which have not ended still need, each once."""
    stages = {name(stage): stage for trial in trials if not ended(trial, store) for _, stage in trial.plan.stages}
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
    lines = ProgressLines(lambda config: todo[config["trial"]], store, todo)
    fit(_Listed(job, tuple(todo)), slots, store.root, range(len(todo)), [lines])


class ProgressLines(tune.Callback):
    """One line for every trial that changes, with the share done and the time left; and a file in the store for a
    trial that failed.

    Args:
        trial_of: the trial that a Tune trial's config means.
        trials: those known before.
        expected: how many there will be in all, where trials come up on the way; those to come count as much as the
            mean of those known.
        finished: how many of those expected had ended before.
    """

    def __init__(
        self,
        trial_of: Callable[[dict[str, Any]], Trial],
        store: Store,
        trials: Sequence[Trial] = (),
        expected: int = 0,
        finished: int = 0,
    ):
        self.trial_of, self.store, self.expected = trial_of, store, max(expected, len(trials))
        self.trials = {each.plan.name: each for each in trials}
        self.stages = missing(trials, store)
        self.began, self.before, self.finished = time.monotonic(), finished, 0
        self.said: dict[str, tuple[str, float]] = {}
        self.shares: dict[str, float] = {}
        self.done: set[str] = set()
        self.peak = 0

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info) -> None:
        self._trial(trial)

    def on_trial_result(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict, **info) -> None:
        if result[DONE] or "label" not in result:
            return
        mine, label, now = self._trial(trial), result["label"], time.monotonic()
        if result["share"] >= 0:
            self.shares[name(dict(mine.plan.stages)[label])] = result["share"]
        else:
            label = f"waiting for {label}"
        peak, fit = result.get("peak", (0, 0))
        if peak > 1.1 * self.peak:
            self.peak = peak
            self._say(mine, f"{label}: {peak / 2**30:.1f} GiB of a GPU; {fit} would fit (--trials-per-gpu)")
        before, when = self.said.get(trial.trial_id, ("", 0.0))
        if before != label or now - when > SILENCE_SECONDS:
            self.said[trial.trial_id] = label, now
            self._say(mine, label)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info) -> None:
        result = trial.last_result
        self._end(self._trial(trial), result.get("outcome", "stopped early"), result.get("reason", ""))

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info) -> None:
        mine = self._trial(trial)
        self.store.note("trial retried", trial=mine.title, name=mine.plan.name, reason=_reason(trial))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info) -> None:
        self._end(self._trial(trial), "failed", _reason(trial))

    def _end(self, trial: Trial, outcome: str, reason: str) -> None:
        self.finished += 1
        self.store.note(f"trial {outcome}", trial=trial.title, name=trial.plan.name, reason=reason)
        self.done |= {name(stage) for _, stage in trial.plan.stages}  # a trial that was stopped leaves stages open
        if self.store.has(trial.plan.name):
            scores = self.store.facts(trial.plan.name)["scores"]
            self._say(trial, f"done: Inception score {scores['inception_score']:.2f}, FID {scores['fid']:.2f}")
            return
        if outcome == "failed":
            said = {"trial": trial.plan.name, "error": reason, "time": time.time()}
            with contextlib.suppress(OSError):  # a full disk must not end the trials that run
                write_json(self.store.failure(trial.plan.name), said)
        self._say(trial, f"{outcome}: {reason}" if reason else outcome)

    def _trial(self, trial: TuneTrial) -> Trial:
        mine = self.trial_of(trial.config)
        if mine.plan.name not in self.trials:
            self.trials[mine.plan.name] = mine
            self.stages |= missing([mine], self.store)
        return mine

    def _share(self) -> float:
        """The share of the work that is done."""
        total, done = 0.0, 0.0
        for stage_name, stage in self.stages.items():
            total += work(stage)
            if self.store.has(stage_name) or stage_name in self.done:
                done += work(stage)
            else:
                done += work(stage) * self.shares.get(stage_name, 0.0)
        known = max(1, len(self.trials))
        return done / max(total * max(known, self.expected - self.before) / known, 1e-9)

    def _say(self, trial: Trial, what: str) -> None:
        share, spent = self._share(), time.monotonic() - self.began
        left = f"about {clock(spent * (1 - share) / share)} left" if share > 0.02 else "estimating the time left"
        bar = "█" * round(12 * share) + "░" * (12 - round(12 * share))
        ended = self.before + self.finished
        with contextlib.suppress(OSError):  # a full disk, to which this goes, must not end the trials that run
            print(
                f"{clock(spent)} {bar} {share:4.0%}, {left} | {ended}/{max(self.expected, ended)} trials | "
                f"{trial.title}: {what}",
                flush=True,
            )


def _reason(trial: TuneTrial) -> str:
    """Why a trial failed, in one line."""
    lines = failure(trial).splitlines()
    return lines[-1].strip() if lines else "its worker died"


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
