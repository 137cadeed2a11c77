"""What scheduling costs as a sweep grows: trials that only sleep, through `sweeps.schedule.fit`, on simulated slots.

python benchmarks/scale.py [--trials 10 100 1000] [--slots 64] [--seconds 10]

Ray takes any number of CPUs that a node claims, so that 64 slots need no 64 CPUs. Each number of trials has a driver,
and a Ray, of its own. Sleeping needs no torch, and 64 workers with it take 24 GiB: they get an empty one. It prints a
line of JSON each:

    driver_cpu_ms   CPU time of the driver a trial
    driver_mib      how much larger the driver is at its end than before the first trial
    gap_ms          from the end of a trial to the beginning of the next one in the same worker: median, 95 %, longest
    efficiency      sleep in all / (slots that had work x time from the first beginning to the last end)
    held            sleep in all / time from each worker's first beginning to its last end: without the start of workers
                    and the tail
    start_s         from `fit` to the first trial, and to the last slot's first trial
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
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TORCH = """
def set_num_threads(number): pass
class cuda:
    is_available = staticmethod(lambda: False)
"""
"""All that `sweeps.schedule` asks of torch."""


@dataclass(frozen=True)
class Sleep:
    """A trial: sleeps and leaves when, in which process, in a file. Times differ by half, as those of trials do."""

    folder: Path
    seconds: float

    def __call__(self, config: dict[str, Any]) -> Generator[dict[str, Any]]:
        from ray.tune.result import DONE

        began = time.time()
        time.sleep(self.seconds * random.Random(config["trial"]).uniform(0.5, 1.5))
        line = {"worker": os.getpid(), "began": began, "ended": time.time(), "mib": memory("Pss")}
        (self.folder / f"{config['trial']}.json").write_text(json.dumps(line))
        yield {DONE: True}


def memory(kind: str) -> float:
    """Memory of this process in MiB: Rss, or Pss, in which what processes share is divided between them."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) / 1024


def measure(trials: int, slots: int, seconds: float) -> dict[str, Any]:
    """One sweep."""
    import ray

    from sweeps import schedule

    own = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(num_cpus=slots, object_store_memory=200 * 2**20, **own)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "trials").mkdir()
        before, cpu, began = memory("Rss"), driver_cpu(), time.time()
        schedule.fit(
            Sleep(root / "trials", seconds), schedule.Slots(slots, 1, 0.0, 0, "simulated"), root, range(trials)
        )
        cpu, grown = driver_cpu() - cpu, memory("Rss") - before
        lines = [json.loads(path.read_text()) for path in (root / "trials").iterdir()]
    assert len(lines) == trials
    workers: dict[int, list[dict[str, float]]] = {}
    for line in sorted(lines, key=lambda line: line["began"]):
        workers.setdefault(line["worker"], []).append(line)
    gaps = sorted(
        1000 * (after["began"] - ended["ended"]) for own in workers.values() for ended, after in itertools.pairwise(own)
    )
    firsts = sorted(own[0]["began"] for own in workers.values())
    span = max(line["ended"] for line in lines) - firsts[0]
    slept = sum(line["ended"] - line["began"] for line in lines)
    return {
        "trials": trials,
        "slots": slots,
        "driver_cpu_s": round(cpu, 2),
        "driver_cpu_ms": round(1000 * cpu / trials, 1),
        "driver_mib": round(grown, 1),
        "gap_ms": [round(gaps[int(share * (len(gaps) - 1))]) for share in (0.5, 0.95, 1.0)] if gaps else None,
        "efficiency": round(slept / (min(slots, trials) * span), 3),
        "held": round(slept / sum(own[-1]["ended"] - own[0]["began"] for own in workers.values()), 4),
        "start_s": [round(firsts[0] - began, 1), round(firsts[-1] - began, 1)],
        "wall_s": round(time.time() - began, 1),
        "workers": len(workers),
        "worker_pss_mib": round(sum(line["mib"] for line in lines) / len(lines)),
        "load": [round(value, 1) for value in os.getloadavg()],
    }


def driver_cpu() -> float:
    """CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0, help="mean sleep of a trial")
    arguments = parser.parse_args()
    if os.environ.get("SCALE_DRIVER"):
        print(json.dumps(measure(arguments.trials[0], arguments.slots, arguments.seconds)), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "torch.py").write_text(TORCH)
        environment = os.environ | {"PYTHONPATH": folder, "SCALE_DRIVER": "1"}
        for trials in arguments.trials:
            words = [f"--trials={trials}", f"--slots={arguments.slots}", f"--seconds={arguments.seconds}"]
            driver = [sys.executable, __file__, *words]
            done = subprocess.run(driver, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            print(done.stdout.splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
