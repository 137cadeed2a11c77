"""Runs the trials of an ablation or a search on Ray Tune.

Tune lists, starts and stops the trials, which are light (`LightTrial`); their stages run as Ray tasks, each once
(`StageScheduler`). All finished work is in the store: a worker, the scheduler, the driver or Tune's whole state
may be lost.
"""

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the record is in the store
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # `stop_flag` has the only handler
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000")  # nobody restores Tune's state, whose size grows
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import ray
from ray import tune
from ray.tune.search import Searcher

from sgan.checks import ConfigError
from sgan.store.local import Store
from sweeps.execution import mps
from sweeps.execution.light_trial import LightTrial
from sweeps.execution.progress import Progress
from sweeps.execution.stage_scheduler import StageScheduler
from sweeps.execution.worker import Job, run_stage_task
from sweeps.planning.trials import Trial, TrialSource

HEAD = {"node:__internal_head__": 0.0001}
"""A trial's resources: it is on the head node, holds no CPU, and keeps no node of an autoscaled cluster alive."""
LOST = 20  # A trial's light process is restarted this many times
STOP_SECONDS = 90.0  # The longest wait until all stages have stopped


@contextmanager
def stop_flag() -> Iterator[threading.Event]:
    """A flag that the first Ctrl-C or SIGTERM sets; a second one raises KeyboardInterrupt."""
    flag = threading.Event()

    def stop(number: int, frame: Any) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()
        print("Stopping: each stage leaves a checkpoint. Ctrl-C again stops at once.", flush=True)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class SourceSearcher(Searcher, tune.Stopper):
    """Gives Tune the trials of a source, passes on every result, and tells the source how its trials end."""

    def __init__(self, source: TrialSource, scheduler: Any, job: Job, stop: threading.Event, progress: Progress):
        super().__init__()
        self.source, self.scheduler, self.stop, self.progress = source, scheduler, stop, progress
        self.job = [ray.put(job)]
        self.live: dict[str, Trial] = {}
        self.stopped: ray.ObjectRef | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune saves this for a restore, which never happens

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the state is in the store."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.stop.is_set():
            return Searcher.FINISHED
        try:
            trial = self.source.next()
        except (OSError, ConfigError) as error:
            self.progress.wait(error)
            return None  # Tune asks again
        if trial is None:
            return Searcher.FINISHED
        self.live[trial_id] = trial
        self.scheduler.add.remote(trial, self.job)
        self.progress.begin(trial)
        return {"trial": trial.id}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Take a result of a trial. Returns False: Tune need not stop the trial, since it ends by itself."""
        trial = self.live.get(trial_id)
        if trial and "lost" in result:
            self.scheduler.add.remote(trial, self.job)
        elif trial and "outcome" in result:
            self._end(trial, result["outcome"], result["reason"], result["scores"])
        elif trial:
            self.progress.go_on(trial, result)
        return False

    def _end(self, trial: Trial, outcome: str, reason: str, scores: dict[str, Any]) -> None:
        self.progress.end(trial, outcome, reason, scores)
        self.source.end(trial, outcome, reason, scores)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self.live.pop(trial_id)
        self.scheduler.leave.remote(trial.id)
        if error and not self.stop.is_set():
            self._end(trial, "failed", f"its process on the head died more than {LOST} times", {})

    def stop_all(self) -> bool:
        """Whether the command is stopped; if so, the first call stops all stages."""
        if self.stop.is_set() and self.stopped is None:
            self.stopped = self.scheduler.stop.remote()
        return self.stopped is not None


def run(source: TrialSource, job: Job, store: Store) -> bool:
    """Run every trial of a source. The store has a failure file with the reason for each trial that failed.

    Ctrl-C or SIGTERM stops all: every stage ends its step and leaves a checkpoint. Returns False if it was stopped."""
    shown = Progress(store, source)
    with stop_flag() as stop, tempfile.TemporaryDirectory(prefix="tune-") as folder, shown.live:
        actor = ray.remote(StageScheduler).options(num_cpus=0, resources=HEAD, max_restarts=-1, max_task_retries=-1)
        scheduler: Any = actor.remote(store.address, job.slots, run_stage_task)
        searcher = SourceSearcher(source, scheduler, job, stop, shown)
        for trial in source.ahead:
            scheduler.add.remote(trial, searcher.job)
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(LightTrial, scheduler=scheduler), HEAD),
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                max_concurrent_trials=job.slots.count,
                search_alg=searcher,
                num_samples=-1,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=folder,
                verbose=0,
                stop=searcher,
                failure_config=tune.FailureConfig(max_failures=LOST),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        if source.expected:
            shown.say("starting: the first stages begin once Ray has their processes")
        tuner.fit()
        # Ray prints a raw line for a call that is open when its actor ends; this one is the last to be answered.
        ray.wait([searcher.stopped or scheduler.stop.remote()], timeout=STOP_SECONDS)
        ray.kill(scheduler)
        if 0 < job.slots.gpus < 1 and (nodes := mps.stop_everywhere(job.mark)):
            shown.say(f"CUDA's MPS was started on {nodes} node{'s' * (nodes > 1)} for this sweep, and is stopped now")
    return not stop.is_set()
