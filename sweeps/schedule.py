"""Runs trials on Ray Tune: in parallel on what the machine or cluster has, each in a worker that serves many.

Tune only executes. What is finished lies elsewhere, so a worker, a driver or all of Tune's state may be lost.
"""

import collections
import dataclasses
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the record is in the store
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # `stoppable` has its own

import ray
from ray import tune
from ray.air._internal import usage
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial
from ray.tune.result import DONE
from ray.tune.search import Searcher

from sgan.files import passing
from sweeps.cluster import Slots

if TYPE_CHECKING:
    from sgan.config import Config
    from sgan.datasets import Arrays

# Ray has a process ready for each CPU by now, and takes none of them for an actor with variables of its own, as Tune
# gives them for the sake of PyTorch Lightning.
class_cache.DEFAULT_ENV_VARS.clear()
# For what Ray is told of its use, which is off, Tune would import MLflow: two seconds before the first trial.
usage.tag_callbacks = lambda callbacks: False

RETRIES = 3
"""A trial whose worker dies, or that raises, starts again this many times."""
NODES = 20
"""A trial whose node dies starts again this many times more: the node was most likely not the trial's to lose."""
PROBED = 2000
"""Training images that stages are measured on."""
Work = Callable[[dict[str, Any]], Generator[dict[str, Any]]]
"""What runs a trial: yields results, of which the last one has DONE; closing it stops the trial."""


class Runner(tune.Trainable):
    """A Tune trial. A class, so that a worker process, with what it has imported and loaded, serves many trials."""

    def setup(self, config: dict[str, Any], work: Work) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.work, self.results = work, work(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self.results = self.work(new_config)
        return True

    def step(self) -> dict[str, Any]:
        return {DONE: False, **next(self.results)}

    def cleanup(self) -> None:
        self.results.close()  # frees what a trial in progress holds

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: trials keep their own checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: a trial goes on from what it kept."""


def failure(trial: Trial) -> str:
    """What Ray said of a trial's last failure, "" where it has had none."""
    path = trial.error_file  # a copy of it is in the trial's storage, but later
    return Path(path).read_text().rpartition("Failure #")[2].strip() if path and Path(path).exists() else ""


class _LostNodes(tune.Callback):
    """Gives a trial back the retry that the death of its node has cost it, NODES times. Tune itself does so for nodes
    that the autoscaler drains, and counts those that just go, as spot instances do."""

    def __init__(self):
        self.lost: collections.Counter[str] = collections.Counter()

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info) -> None:
        if "its node has died" in failure(trial) and self.lost[trial.trial_id] < NODES:
            self.lost[trial.trial_id] += 1
            trial.run_metadata.num_failures -= 1


@contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C or SIGTERM once: Tune ends all trials after the steps in progress, and each leaves a checkpoint. Twice:
    this process ends at once, as if it were killed, with exit status 130."""
    if threading.current_thread() is not threading.main_thread():  # which alone may ask for signals
        yield
        return
    asked = False

    def stop(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            print("Stopped at once; the same command goes on from the last checkpoints.", flush=True)
            os._exit(128 + signal.SIGINT)
        asked = True
        print("Stopping: every trial ends its step and leaves a checkpoint. Ctrl-C again stops at once.", flush=True)
        os.kill(os.getpid(), signal.SIGUSR1)  # which Tune takes as the wish to end

    def early(number: int, frame: Any) -> None:
        raise KeyboardInterrupt  # Tune does not listen yet, or no more

    handlers = {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGUSR1: early}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fit(
    work: Work,
    slots: Slots,
    folder: Path,
    configs: Iterable[int] | Searcher,
    callbacks: Iterable[tune.Callback] = (),
    retries: int = RETRIES,
    stop: Callable[[str, Mapping[str, Any]], bool] | None = None,
) -> None:
    """Run one trial for each number, in their order, with the config {"trial": number}, or one for each config that a
    searcher suggests, until all have ended.

    Ctrl-C stops all after the steps in progress, as `stoppable` says.

    Args:
        work: lies once in Ray's object store, from where each worker takes it; of its numpy arrays the workers of a
            node read one copy there, which nobody may change.
        folder: Tune's own state lies in a folder of this run alone inside it, which is removed at the end.
        retries: so many times a trial whose worker died or that raised starts again; where its node died, NODES times
            more.
        stop: called with a trial's id and each of its results; true ends the trial.
    """
    trainable = tune.with_resources(tune.with_parameters(Runner, work=work), {"cpu": slots.cpus, "gpu": slots.gpus})
    searcher = configs if isinstance(configs, Searcher) else None
    space = {} if isinstance(configs, Searcher) else {"trial": tune.grid_search(list(configs))}
    with passing(folder, "tune-") as tune_folder:
        tuner = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                max_concurrent_trials=slots.count,
                search_alg=searcher,
                num_samples=-1 if searcher else 1,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=str(tune_folder),
                verbose=0,
                stop=stop,
                callbacks=[_LostNodes(), *callbacks],
                failure_config=tune.FailureConfig(max_failures=retries),
                # By default Tune asks a worker for one, and the worker looks for Tune's folder, which the head has.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        with stoppable():
            tuner.fit()


def measure(
    configs: "Sequence[Config]", data: "Arrays", slots: Slots, inception_weights: Path | None = None
) -> tuple[dict[str, float], float]:
    """`sgan.probe.stage_seconds` on as many workers at once as there are slots, the mean of what they say; and the
    seconds that these workers took to start.

    Args:
        inception_weights: a file on this machine; it is sent to the workers.
    """
    device, images, began = "cuda" if slots.gpus else "cpu", len(data.images), time.monotonic()
    weights = ray.put(inception_weights.read_bytes() if inception_weights else b"")

    def probe() -> tuple[dict[str, float], float]:
        import torch

        from sgan.probe import stage_seconds

        torch.set_num_threads(slots.cpus)
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weights" if inception_weights else None
            if path:
                path.write_bytes(ray.get(weights))
            found = stage_seconds(list(configs), ray.get(few).tensors().to(device), images, device, path)
        return found, time.monotonic() - began

    few = ray.put(dataclasses.replace(data, images=data.images[:PROBED], labels=data.labels[:PROBED]))
    remote = ray.remote(num_cpus=slots.cpus, num_gpus=slots.gpus)(probe)
    found = ray.get([remote.remote() for _ in range(slots.count)])
    start = time.monotonic() - began - max(took for _, took in found)
    return {stage: sum(each[stage] for each, _ in found) / len(found) for stage in found[0][0]}, start
