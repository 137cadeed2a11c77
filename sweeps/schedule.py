"""Runs trials on Ray: one Tune trial a variant and seed, in parallel on what the machine or cluster has.

Tune only executes. What is finished lies in the store, so a worker, a driver or all of Tune's state may be lost, and
the same command goes on where it was.
"""

import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default; silences its notice
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # the nodes have the environment already
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the record is in the store
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import ray
import torch
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.result import DONE

from sgan.checks import ConfigError, require
from sgan.config import IMAGE, Config
from sgan.data import load
from sgan.loop import Diverged
from sgan.run import Event, Worker, run_trial
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
from sgan.store import Store, write_json

REPORT_SECONDS = 2.0
"""A worker reports to Tune this often, so that a short step costs the driver nothing."""
RETRIES = 3
"""A trial whose worker dies starts again from its last checkpoint this many times."""
SILENCE_SECONDS = 60.0
"""A trial that goes on and on is heard of this often."""


@dataclass(frozen=True)
class Trial:
    """One variant and seed of a sweep."""

    variant: str
    seed: int
    config: Config
    plan: Plan

    @property
    def title(self) -> str:
        return f"{self.variant} seed {self.seed}"


@dataclass(frozen=True)
class Job:
    """What every worker is given: the trials, where the data and the store lie, the commit to note, and the version of
    the code by which the trials were planned."""

    trials: tuple[Trial, ...]
    data: Path
    store: Path
    commit: str
    code: str


@dataclass(frozen=True)
class Slots:
    """What runs at the same time.

    Attributes:
        count: trials at the same time.
        cpus: CPUs, and torch threads, a trial.
        gpus: GPUs a trial; a fraction packs several onto one.
        all_gpus: GPUs in all.
        where: the machine or cluster, in words.
    """

    count: int
    cpus: int
    gpus: float
    all_gpus: int
    where: str


def connect() -> None:
    """Join the cluster of RAY_ADDRESS or of `ray start` on this machine; where there is none, start Ray here, for this
    process alone.

    Raises:
        ConfigError: there is an address, and no cluster answers there.
    """
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        address = os.environ.get("RAY_ADDRESS", "left by an earlier `ray start`")
        raise ConfigError(
            f"no Ray cluster answers at the address {address} ({str(error).splitlines()[0]}); start it, or set "
            "RAY_ADDRESS=local to use this machine alone"
        ) from error


def slots(limit: int | None, trials_per_gpu: int) -> Slots:
    """How many trials the connected Ray runs at the same time: one a CPU, or `trials_per_gpu` a GPU.

    CPUs a trial are what the node with the fewest a GPU can give, so that a trial fits on every GPU.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (int(sum(node.get(kind, 0) for node in nodes)) for kind in ("CPU", "GPU"))
    share = 1
    if gpus:
        with_gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
        share = max(1, min(int(node["CPU"] // (node["GPU"] * trials_per_gpu)) for node in with_gpus))
        count = int(sum(min(node["GPU"] * trials_per_gpu, node["CPU"] // share) for node in with_gpus))
    else:
        count = cpus
    models = sorted({key.partition(":")[2] for node in nodes for key in node if key.startswith("accelerator_type:")})
    counted = f"{gpus or 'no'} GPU{'s' if gpus > 1 else ''}{' (' + ', '.join(models) + ')' if models else ''}"
    where = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}, {cpus} CPUs, {counted}"
    return Slots(max(1, min(count, limit or count)), share, 1 / trials_per_gpu if gpus else 0.0, gpus, where)


class TrialRun(tune.Trainable):
    """A Tune trial. A class, so that a worker process, with torch imported and the data loaded, serves many trials;
    everything random is seeded in each training step, so nothing carries over from one to the next."""

    def setup(self, config: dict[str, Any], job: Job, cpus: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        torch.set_num_threads(cpus)
        require(
            code_version() == job.code,
            "this worker has other code than the driver: the checkout changed during the sweep or differs between "
            "nodes; run the command again with one version",
        )
        self.job, self.events = job, None
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._start(new_config)
        return True

    def _start(self, config: dict[str, Any]) -> None:
        self.trial = self.job.trials[config["trial"]]
        self.events = self._events()

    def _events(self) -> Generator[Event]:
        device = "cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu"
        config = self.trial.config
        data = load(config.judge, self.job.data)
        require(
            data.digest == config.data,
            f"the {config.dataset.name} data in {self.job.data} on {platform.node()} are not those that the driver has",
        )
        yield from run_trial(Worker(Store(self.job.store), data.to(device), device, self.trial.plan, self.job.commit))

    def step(self) -> dict[str, Any]:
        """Train until there is something to report: a stage begins, some seconds have passed, or the trial ends."""
        since, label = time.monotonic(), None
        assert self.events is not None
        try:
            for event in self.events:
                changed = label is not None and event.label != label
                label = event.label
                if changed or time.monotonic() - since > REPORT_SECONDS:
                    share = event.progress.images / max(1, event.progress.total) if event.progress else -1.0
                    return {"label": event.label, "share": share, "outcome": "running", DONE: False}
        except Diverged as error:
            return {"label": "", "outcome": "diverged", "reason": str(error), DONE: True}
        except ConfigError as error:  # it would be the same again: no retry
            return {"label": "", "outcome": "failed", "reason": str(error), DONE: True}
        return {"label": "", "outcome": "done", DONE: True}

    def cleanup(self) -> None:
        if self.events is not None:
            self.events.close()  # frees the claim of a stage in progress

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: stages keep their own checkpoints in the store."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: a trial goes on from what the store has."""


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
    """Whether a trial is finished, or one of its stages diverged, which it would do again."""
    names = [name(stage) for _, stage in trial.plan.stages]
    return store.has(trial.plan.name) or any(
        store.has(stage_name) and store.facts(stage_name)["status"] == "diverged" for stage_name in names
    )


def missing(trials: Sequence[Trial], store: Store) -> dict[str, Stage]:
    """The stages that trials which have not ended still need, each once."""
    stages = {name(stage): stage for trial in trials if not ended(trial, store) for _, stage in trial.plan.stages}
    return {stage_name: stage for stage_name, stage in stages.items() if not store.has(stage_name)}


def run(trials: Sequence[Trial], data: Path, store: Store, commit: str, slots: Slots) -> None:
    """Run the trials that have not ended; what one could not finish for is in its failure file in the store. Ctrl-C
    stops all after the steps in progress.

    Trials with the longest way to go start first; so the stacks of different seeds, which share nothing, come before
    the trials that wait for their stages.
    """
    todo = [trial for trial in trials if not ended(trial, store)]
    if not todo:
        return
    todo.sort(key=lambda trial: -sum(work(stage) for stage in missing([trial], store).values()))
    for trial in todo:
        store.failure(trial.plan.name).unlink(missing_ok=True)
    job = Job(tuple(todo), data, store.root, commit, code_version())
    trainable = tune.with_resources(
        tune.with_parameters(TrialRun, job=job, cpus=slots.cpus), {"cpu": slots.cpus, "gpu": slots.gpus}
    )
    # Tune's own state is nobody's: a folder of this run alone, since two drivers may share the store.
    tune_folder = tempfile.mkdtemp(dir=store.root, prefix="tune-")
    tuner = tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search(list(range(len(todo))))},
        tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=slots.count),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=tune_folder,
            verbose=0,
            callbacks=[ProgressLines(todo, store)],
            failure_config=tune.FailureConfig(max_failures=RETRIES),
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(tune_folder, ignore_errors=True)


class ProgressLines(tune.Callback):
    """One line for every trial that changes, with the share done and the time left; and a file in the store for a
    trial that failed."""

    def __init__(self, trials: Sequence[Trial], store: Store):
        self.trials, self.store = trials, store
        self.stages = missing(trials, store)
        self.total = sum(map(work, self.stages.values()))
        self.began, self.finished = time.monotonic(), 0
        self.said: dict[str, tuple[str, float]] = {}
        self.shares: dict[str, float] = {}

    def on_trial_result(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict, **info) -> None:
        if result[DONE]:
            return
        mine, label, now = self._trial(trial), result["label"], time.monotonic()
        if result["share"] >= 0:
            self.shares[name(dict(mine.plan.stages)[label])] = result["share"]
        else:
            label = f"waiting for {label}"
        before, when = self.said.get(trial.trial_id, ("", 0.0))
        if before != label or now - when > SILENCE_SECONDS:
            self.said[trial.trial_id] = label, now
            self._say(mine, label)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info) -> None:
        result = trial.last_result
        self._end(self._trial(trial), result["outcome"], result.get("reason", ""))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info) -> None:
        lines = str(trial.get_error() or "its worker died").strip().splitlines()
        self._end(self._trial(trial), "failed", lines[-1] if lines else "its worker died")

    def _end(self, trial: Trial, outcome: str, reason: str) -> None:
        self.finished += 1
        if self.store.has(trial.plan.name):
            scores = self.store.facts(trial.plan.name)["scores"]
            self._say(trial, f"done: Inception score {scores['inception_score']:.2f}, FID {scores['fid']:.2f}")
            return
        if outcome == "failed":
            write_json(self.store.failure(trial.plan.name), {"error": reason, "time": time.time()})
        self._say(trial, f"{outcome}: {reason}")

    def _trial(self, trial: TuneTrial) -> Trial:
        return self.trials[trial.config["trial"]]

    def _say(self, trial: Trial, what: str) -> None:
        done = 0.0
        for stage_name, stage in self.stages.items():
            if self.store.has(stage_name):
                done += work(stage)
            elif stage_name in self.shares:
                done += work(stage) * self.shares[stage_name]
        share, spent = done / self.total, time.monotonic() - self.began
        left = f"about {clock(spent * (1 - share) / share)} left" if share > 0.02 else "estimating the time left"
        bar = "█" * round(12 * share) + "░" * (12 - round(12 * share))
        print(
            f"{clock(spent)} {bar} {share:4.0%}, {left} | {self.finished}/{len(self.trials)} trials | "
            f"{trial.title}: {what}",
            flush=True,
        )


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def trial(variant: str, seed: int, config: Config) -> Trial:
    """A trial with its plan."""
    return Trial(variant, seed, config, plan(config))
