"""Runs trials on Ray: one Tune trial a variant and seed, in parallel on what the machine or cluster has.

Tune only executes. What is finished lies in the store, so a worker, a driver or all of Tune's state may be lost, and
the same command goes on where it was.
"""

import logging
import os
import shutil
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

from sgan.config import IMAGE, Config, ConfigError
from sgan.data import load
from sgan.run import Event, Worker, run_trial
from sgan.stages import ClassifierStage, JointStage, LevelStage, Plan, ScoreStage, Stage, name, plan
from sgan.store import Store, write_json
from sgan.train import Diverged

REPORT_SECONDS = 2.0
"""A worker reports to Tune this often, so that a short step costs the driver nothing."""
RETRIES = 3
"""A trial whose worker dies starts again from its last checkpoint this many times."""


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
    """What every worker is given: the trials, where the data and the store lie, and the commit to note."""

    trials: tuple[Trial, ...]
    data: Path
    store: Path
    commit: str


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
    """How many trials the connected Ray runs at the same time: one a CPU, or `trials_per_gpu` a GPU."""
    resources = ray.cluster_resources()
    cpus, gpus, nodes = int(resources.get("CPU", 1)), int(resources.get("GPU", 0)), len(ray.nodes())
    count = gpus * trials_per_gpu if gpus else cpus
    where = f"{nodes} node{'s' if nodes > 1 else ''}, {cpus} CPUs, {gpus or 'no'} GPU{'s' if gpus > 1 else ''}"
    count = min(count, limit) if limit else count
    return Slots(count, max(1, cpus // count) if gpus else 1, 1 / trials_per_gpu if gpus else 0.0, gpus, where)


class TrialRun(tune.Trainable):
    """A Tune trial. A class, so that a worker process, with torch imported and the data loaded, serves many trials;
    everything random is seeded in each training step, so nothing carries over from one to the next."""

    def setup(self, config: dict[str, Any], job: Job, cpus: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        torch.set_num_threads(cpus)
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
        data = load(self.trial.config.dataset.name, self.job.data).to(device)
        scorer = self.trial.plan.score.scorer
        yield from run_trial(self.trial.plan, Worker(Store(self.job.store), data, device, scorer, self.job.commit))

    def step(self) -> dict[str, Any]:
        """Train until there is something to report: a stage begins, some seconds have passed, or the trial ends."""
        since, label = time.monotonic(), None
        assert self.events is not None
        try:
            for event in self.events:
                changed = label is not None and event.label != label
                label = event.label
                if changed or time.monotonic() - since > REPORT_SECONDS:
                    images = event.progress.images if event.progress else -1
                    return {"label": event.label, "images": images, "outcome": "running", DONE: False}
        except Diverged as error:
            return {"label": "", "images": 0, "outcome": "diverged", "reason": str(error), DONE: True}
        return {"label": "", "images": 0, "outcome": "done", DONE: True}

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
            return 0.1 * stage.samples


def missing(trials: Sequence[Trial], store: Store) -> dict[str, Stage]:
    """The stages that the trials still need, each once."""
    stages = {name(stage): stage for trial in trials for _, stage in trial.plan.stages}
    return {stage_name: stage for stage_name, stage in stages.items() if not store.has(stage_name)}


def run(trials: Sequence[Trial], data: Path, store: Store, commit: str, slots: Slots) -> list[Trial]:
    """Run the trials that are not finished; returns those that failed. Ctrl-C stops after the steps in progress.

    Trials with the longest way to go start first, and trials that share their way keep apart, so that few wait.
    """
    todo = [trial for trial in trials if missing([trial], store)]
    if not todo:
        return []
    todo.sort(key=lambda trial: -sum(work(stage) for stage in missing([trial], store).values()))
    job = Job(tuple(todo), data, store.root, commit)
    tune_folder = store.root / "tune"
    shutil.rmtree(tune_folder, ignore_errors=True)
    trainable = tune.with_resources(
        tune.with_parameters(TrialRun, job=job, cpus=slots.cpus), {"cpu": slots.cpus, "gpu": slots.gpus}
    )
    progress = ProgressLines(todo, store, slots)
    tuner = tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search(list(range(len(todo))))},
        tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=slots.count),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(tune_folder),
            verbose=0,
            callbacks=[progress],
            failure_config=tune.FailureConfig(max_failures=RETRIES),
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(tune_folder, ignore_errors=True)
    return progress.failed


class ProgressLines(tune.Callback):
    """One line for every trial that changes, with the share done and the time left; and a file in the store for a
    trial that failed."""

    def __init__(self, trials: Sequence[Trial], store: Store, slots: Slots):
        self.trials, self.store, self.slots = trials, store, slots
        self.stages = missing(trials, store)
        self.total = sum(map(work, self.stages.values()))
        self.began, self.finished, self.failed = time.monotonic(), 0, []
        self.labels: dict[str, str] = {}
        self.images: dict[str, int] = {}

    def on_trial_result(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict, **info) -> None:
        mine = self._trial(trial)
        if result[DONE]:
            return
        stage = dict(mine.plan.stages)[result["label"]]
        if result["images"] >= 0:
            self.images[name(stage)] = result["images"]
        label = result["label"] if result["images"] >= 0 else f"waiting for {result['label']}"
        if self.labels.get(trial.trial_id) != label:
            self.labels[trial.trial_id] = label
            self._say(mine, label)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info) -> None:
        mine = self._trial(trial)
        self.finished += 1
        self.store.failure(mine.plan.name).unlink(missing_ok=True)
        if trial.last_result["outcome"] == "diverged":
            self._say(mine, f"diverged: {trial.last_result['reason']}")
        else:
            scores = self.store.facts(mine.plan.name)["scores"]
            self._say(mine, f"done: Inception score {scores['inception_score']:.2f}, FID {scores['fid']:.2f}")

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info) -> None:
        mine = self._trial(trial)
        self.finished += 1
        self.failed.append(mine)
        error = str(trial.get_error() or "its worker died").strip().splitlines()[-1]
        write_json(self.store.failure(mine.plan.name), {"error": error, "time": time.time()})
        self._say(mine, f"failed: {error}")

    def _trial(self, trial: TuneTrial) -> Trial:
        return self.trials[trial.config["trial"]]

    def _say(self, trial: Trial, what: str) -> None:
        done = 0.0
        for stage_name, stage in self.stages.items():
            if self.store.has(stage_name):
                done += work(stage)
            elif stage_name in self.images:
                size = stage.samples if isinstance(stage, ScoreStage) else _images(stage)
                done += work(stage) * self.images[stage_name] / size
        share, spent = done / self.total, time.monotonic() - self.began
        left = f"about {clock(spent * (1 - share) / share)} left" if share > 0.02 else "estimating the time left"
        bar = "█" * round(12 * share) + "░" * (12 - round(12 * share))
        print(
            f"{clock(spent)} {bar} {share:4.0%}, {left} | {self.finished}/{len(self.trials)} trials | "
            f"{trial.title}: {what}",
            flush=True,
        )


def _images(stage: Stage) -> int:
    return stage.recipe.images if isinstance(stage, ClassifierStage) else stage.images  # pyright: ignore[reportAttributeAccessIssue]


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def trial(variant: str, seed: int, config: Config) -> Trial:
    """A trial with its plan."""
    return Trial(variant, seed, config, plan(config))
