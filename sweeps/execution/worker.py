"""How trials run on Ray: what every worker is given, and what it does with it.

The code that trains is imported where it trains, and Ray Tune where trials run: the driver plans without them.
"""

import inspect
import platform
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sgan.checks import ConfigError, require
from sgan.host import importing
from sgan.stages.graph import code_version
from sgan.store.files import remove
from sgan.store.local import Store
from sweeps.execution.cluster import Slots
from sweeps.execution.sharing import see
from sweeps.planning.trials import ListSource, Trial

if TYPE_CHECKING:
    from sgan.data.datasets import Arrays
    from sgan.stages.runners import Worker

Given = TypeVar("Given")
End = TypeVar("End")
REPORT_SECONDS = 2.0
"""A trial reports to Tune this often, so that a short step costs the driver nothing."""
UNASKED = 20.0
"""A trial that nobody asks for so many seconds to go on frees its stage: its machine may be off the network, and then
it is as good as dead to the driver, which has another one go on with the trial."""


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
        reason. A trial that is not asked for the next one within UNASKED leaves a checkpoint, from which it goes on
        when it is.

        Args:
            seconds: between two results, at least.
        """
        with importing():
            from ray.tune.result import DONE
        yield {"label": "", **(yield from while_asked(lambda: self._results(trial, seconds), UNASKED)), DONE: True}

    def _results(self, trial: Trial, seconds: float) -> Generator[dict[str, Any], None, dict[str, str]]:
        """The results on the way; returns the outcome and the reason."""
        with importing():
            from sgan.stages.run import run_trial
            from sgan.training.loop import Diverged
            from sweeps.execution import memory

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
        return {"outcome": outcome, "reason": reason}

    def _worker(self, trial: Trial) -> "Worker":
        """This process; ConfigError where it cannot run what the driver has planned."""
        import ray
        import torch

        from sgan.stages.run import be_deterministic
        from sgan.stages.runners import Worker
        from sweeps.execution import memory

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


def while_asked(make: Callable[[], Generator[Given, None, End]], patience: float) -> Generator[Given, None, End]:
    """What a generator yields and returns; it is closed where nobody asks for more within `patience` seconds, and made
    anew, to go on from what it kept, when somebody does: who is slow and not gone is then waited for twice as long."""
    made = make()
    try:
        while True:
            try:
                each = next(made)
            except StopIteration as end:
                return end.value
            closing = threading.Timer(patience, made.close)
            closing.daemon = True
            closing.start()
            try:
                yield each
            finally:
                closing.cancel()
                closing.join()
            if inspect.getgeneratorstate(made) == inspect.GEN_CLOSED:
                made, patience = make(), 2 * patience
    finally:
        made.close()


@dataclass(frozen=True)
class _Listed:
    """Runs the trials of a list."""

    job: Job
    trials: tuple[Trial, ...]

    def __call__(self, config: dict[str, Any]) -> Generator[dict[str, Any]]:
        return self.job.results(self.trials[config["trial"]])


def run(trials: Sequence[Trial], job: Job, store: Store, slots: Slots) -> None:
    """Run the trials that have not ended; what one could not finish for is in its failure file in the store."""
    todo = ListSource(trials, store).ahead
    if not todo:
        return
    for each in todo:
        remove(store.failure(each.plan.name))
    from sweeps.execution.progress import ProgressLines
    from sweeps.execution.scheduler import fit

    lines = ProgressLines(lambda config: todo[config["trial"]], store, todo)
    fit(_Listed(job, tuple(todo)), slots, store.root, range(len(todo)), [lines])
