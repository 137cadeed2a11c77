"""What scheduling costs as a sweep grows: trials whose stages only sleep, through `sweeps.execution.scheduler.run`, on
simulated slots; a search whose stages do nothing; and the whole command on trials that train about a second.

    python benchmarks/scale.py [--trials 10 100] [--slots 16] [--seconds 5] [--configs 10 100 1000] [--train 10]
        [--json FILE] [--plot FILE]

Ray takes any number of CPUs that a node claims, so that 64 slots need no 64 CPUs. A trial has two stages of its own,
and all share one. Each number of trials has a driver, and a Ray, of its own. Prints, and writes with --json, for each
number of trials whose stages sleep:

    driver CPU a trial     of the driver alone
    driver growth          how much larger it is at its end than before the first trial
    hand-over, 95 %        from the end of a stage to the beginning of the next one in the same process
    efficiency             sleep in all / (slots that had work x time from the first stage's beginning to the last end)
    first, last slot       from `run` to the first stage, and to the last process's first stage
    wall                   from `run` to its end
    workers, their memory  processes that ran stages

for each number of configs of a search whose stages do nothing (their scores are made up):

    CPU a suggestion       of the driver, without the time in Optuna's sampler
    sampler                the time in Optuna's sampler, a suggestion
    bytes a suggestion     written by the driver, Tune's own state among them

and for each number of trials that train: wall of `sweeps/ablation.py`, the driver's largest memory, size of the store.
--plot draws them over the number of trials.
"""

import argparse
import itertools
import json
import logging
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from optuna.samplers import TPESampler

from sgan.stages.context import Context
from sgan.stages.graph import Stage, name
from sgan.store.s3 import open_store
from sgan.training.loop import Progress
from sweeps.execution import scheduler
from sweeps.execution.cluster import Slots, leave_mark
from sweeps.execution.worker import Job
from sweeps.optimization import study
from sweeps.optimization.phases import SearchRun
from sweeps.optimization.search_options import Search
from sweeps.planning import manifest
from sweeps.planning.ablation import plan_ablation
from sweeps.planning.basis import prepare
from sweeps.planning.options import Sweep
from sweeps.planning.trials import ListSource

ROOT = Path(__file__).parent.parent
SECOND = ["encoder.images=640", "judge.images=12800", "samples=500", "evaluations=1", "image_level=3200"]
"""Overrides by which a digits trial of one level trains about a second."""
SEARCH_SLOTS = 4
DRAWN = ("wall", "driver growth", "driver CPU a trial", "driver memory", "store")


NOTE = "slept.json"
"""In a stage that slept: its process, when it began and ended, in unix seconds, and the MiB of the process."""


@dataclass(frozen=True)
class Sleep:
    """Runs a stage: sleeps. Times differ by half, as those of stages do."""

    seconds: float

    def __call__(self, stage: Stage, judge: Stage | None, context: Context) -> Generator[Progress]:
        began, mine = time.time(), name(stage)
        end = began + self.seconds * random.Random(mine).uniform(0.5, 1.5)
        folder = context.store.begin(mine)
        while (left := end - time.time()) > 0:
            yield Progress(1, 2)
            time.sleep(min(left, 1.0))  # a stage that trains reports once a second, too
        line = {"worker": os.getpid(), "began": began, "ended": time.time(), "mib": memory("Pss")}
        (folder / NOTE).write_text(json.dumps(line))
        scores = {"inception_score": 1 + 9 * random.Random(mine).random(), "fid": 1.0, "collapsed_classes": 0.0}
        context.store.publish(mine, {"status": "done", "reason": None, "kind": stage.kind, "scores": scores})


def memory(kind: str) -> float:
    """Memory of this process in MiB: Rss, or Pss, in which what processes share is divided between them."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) / 1024


def measure(trials: int, slots: int, seconds: float) -> dict[str, tuple[float, str]]:
    """One sweep of trials whose stages sleep."""
    own = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(num_cpus=slots, object_store_memory=200 * 2**20, **own)
    with tempfile.TemporaryDirectory() as folder:
        options = Sweep(dataset="digits", variants=("dcgan-adv",), seeds=trials, store=folder)
        ablation, store = plan_ablation(options, 0), open_store(folder)
        leave_mark(store, "scale")
        where = Slots(slots, 1, 0.0, 0, "simulated")
        job = Job(ablation.basis.data, store.address, "scale", "", where, False, Sleep(seconds))
        before, cpu, began = memory("Rss"), driver_cpu(), time.time()
        assert scheduler.run(ListSource(ablation.trials, store), job, store)
        cpu, grown, ended = driver_cpu() - cpu, memory("Rss") - before, time.time()
        lines = [json.loads(path.read_text()) for path in store.root.glob(f"stages/*/{NOTE}")]
    assert len(lines) == 2 * trials + 1
    workers: dict[int, list[dict[str, float]]] = {}
    for line in sorted(lines, key=lambda line: line["began"]):
        workers.setdefault(line["worker"], []).append(line)
    gaps = sorted(
        1000 * (after["began"] - before["ended"])
        for own in workers.values()
        for before, after in itertools.pairwise(own)
    )
    firsts = sorted(own[0]["began"] for own in workers.values())
    last = max(line["ended"] for line in lines)
    slept = sum(line["ended"] - line["began"] for line in lines)
    return {
        "driver CPU a trial": (1000 * cpu / trials, "ms"),
        "driver growth": (grown, "MiB"),
        "hand-over": (gaps[len(gaps) // 2], "ms"),
        "hand-over, 95 %": (gaps[int(0.95 * (len(gaps) - 1))], "ms"),
        "efficiency": (100 * slept / (min(slots, trials) * (last - firsts[0])), "%"),
        "first": (firsts[0] - began, "s"),
        "last slot": (firsts[-1] - began, "s"),
        "wall": (ended - began, "s"),
        "workers": (len(workers), ""),
        "memory of a worker": (sum(line["mib"] for line in lines) / len(lines), "MiB"),
    }


class Timed(TPESampler):
    """Optuna's sampler, with the CPU time in it."""

    cpu = 0.0

    def infer_relative_search_space(self, *arguments: Any) -> Any:
        return self._timed(super().infer_relative_search_space, *arguments)

    def sample_relative(self, *arguments: Any) -> Any:
        return self._timed(super().sample_relative, *arguments)

    def sample_independent(self, *arguments: Any) -> Any:
        return self._timed(super().sample_independent, *arguments)

    def _timed(self, call: Callable[..., Any], *arguments: Any) -> Any:
        before = time.process_time()
        found = call(*arguments)
        Timed.cpu += time.process_time() - before
        return found


def suggest(configs: int) -> dict[str, tuple[float, str]]:
    """A search's first phase, by its own code, whose stages do nothing."""
    own = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(num_cpus=SEARCH_SLOTS, object_store_memory=200 * 2**20, **own)
    with tempfile.TemporaryDirectory() as folder:
        search = Search(dataset="digits", store=folder, trials=2 * configs)
        basis, where = prepare(search, 0), Slots(SEARCH_SLOTS, 1, 0.0, 0, "simulated")
        run = SearchRun(search, basis, open_store(folder), where.count)
        leave_mark(run.store, "scale")
        searcher = run.replay()
        searcher.target = configs
        manifest.write(run.store, run.record({"command": "", "commit": "", "machine": ""}))
        run.copy_study()
        job = Job(basis.data, run.store.address, "scale", "", where, False, Sleep(0.0))
        study.TPESampler = Timed
        Timed.cpu, before, written = 0.0, driver_cpu(), bytes_written()
        assert scheduler.run(searcher, job, run.store)
        cpu, written = driver_cpu() - before - Timed.cpu, bytes_written() - written
    assert searcher.ended == configs
    return {
        "CPU a suggestion": (1000 * cpu / configs, "ms"),
        "sampler": (1000 * Timed.cpu / configs, "ms"),
        "bytes a suggestion": (written / configs, "B"),
    }


def train(trials: int) -> dict[str, tuple[float, str]]:
    """One ablation of so many trials that train."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--variants", "dcgan-adv", "--seeds", str(trials), "--store", folder, "--override", *SECOND]
        began = time.time()
        driver = [sys.executable, str(ROOT / "sweeps" / "ablation.py"), *words]
        process = subprocess.Popen(driver, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        return {
            "wall": (time.time() - began, "s"),
            "driver memory": (used.ru_maxrss / 1024, "MiB"),
            "store": (size / 2**20, "MiB"),
        }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot what the rows say over the number of trials."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        what, kind = row["measure"].split(" ", 1)[1].split(": ")
        if kind in DRAWN:
            curves.setdefault(kind, {}).setdefault(what, []).append(row)
    size = {"figsize": (3.2 * len(curves), 3.0), "layout": "constrained", "squeeze": False}
    figure, places = pyplot.subplots(1, len(curves), **size)
    for place, (kind, lines) in zip(places[0], curves.items(), strict=True):
        for what, points in lines.items():
            numbers = [int(row["measure"].split()[0]) for row in points]
            place.plot(numbers, [row["value"] for row in points], marker="o", label=what)
            place.set_ylabel(points[0]["unit"])
        # Linear both ways: what grows with the trials is a straight line.
        place.set(title=kind, xlabel="trials", xlim=(0, None), ylim=(0, None))
        place.legend()
    figure.savefig(path, dpi=80)


def bytes_written() -> int:
    """Bytes that this process has written to files (proc_pid_io(5))."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["wchar"])


def driver_cpu() -> float:
    """CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="*", default=[10, 100], help="numbers of trials that sleep")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0, help="mean sleep of a stage")
    parser.add_argument("--train", type=int, nargs="*", default=[10], help="numbers of trials that train")
    parser.add_argument("--configs", type=int, nargs="*", default=[10, 100, 1000], help="configs of a search")
    parser.add_argument("--json", type=Path, help="add the rows to those in this file")
    parser.add_argument("--plot", type=Path, help="draw all rows of --json into this file")
    arguments = parser.parse_args()
    if kind := os.environ.get("SCALE_DRIVER"):
        number = arguments.trials[0]
        found = suggest(number) if kind == "suggest" else measure(number, arguments.slots, arguments.seconds)
        print(json.dumps(found), flush=True)
        return
    rows = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else []
    for what, numbers in (("sleep", arguments.trials), ("suggest", arguments.configs), ("train", arguments.train)):
        for trials in numbers:
            if what == "train":
                found = train(trials)
            else:
                words = [f"--trials={trials}", f"--slots={arguments.slots}", f"--seconds={arguments.seconds}"]
                driver = [sys.executable, __file__, *words]
                environment = os.environ | {"SCALE_DRIVER": what}
                done = subprocess.run(driver, env=environment, check=True, stdout=subprocess.PIPE, text=True)
                found = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
            for kind, (value, unit) in found.items():
                row = {"measure": f"{trials} trials that {what}: {kind}", "value": round(value, 1), "unit": unit}
                rows.append({"benchmark": "scale", **row})
                print(f"{row['measure']:<48}{row['value']:>10} {unit}", flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=1))
    if arguments.plot:
        draw(rows, arguments.plot)


if __name__ == "__main__":
    main()
