"""The paper's Table 1, from nothing to the scores: how long the six variants take, and what the GPU does meanwhile.

    python benchmarks/table1.py [--seconds 560] [--calls table1.json] [--out table1.md] [OPTIONS OF sweeps/ablation.py]

Runs `sweeps/ablation.py`; without options of it, the paper's recipe on CIFAR-10 (200 epochs a variant) in bfloat16, six
trials on the GPU at the same time. After --seconds it is stopped as by Ctrl-C, and the same command goes on from the
checkpoints: --calls keeps the times of all calls until then. A call that ends writes --out: time in all, use of the GPU
(nvidia-smi's utilization and memory, a look a second), stages' seconds by kind, and the table of scores. Exit status 1
where there is more to do.
"""

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from efficiency import spans

from sgan.command_line import INTERRUPTED

ROOT = Path(__file__).parent.parent
PAPERS = (
    *("--dataset", "cifar10", "--recipe", "paper", "--seeds", "1", "--trials-per-gpu", "6"),
    *("--override", "gan.precision=bfloat16", "joint.precision=bfloat16"),
)
ASKED = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
PATIENCE = 60.0
"""Seconds in which a sweep that is asked to stop leaves its checkpoints."""


class Looks(threading.Thread):
    """Looks at the GPUs once a second: (percent of the time in which a kernel ran, MiB used), means over GPUs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: list[tuple[float, float]] = []
        self.over = threading.Event()

    def run(self) -> None:
        while shutil.which(ASKED[0]) and not self.over.wait(1.0):
            said = subprocess.run(ASKED, capture_output=True, text=True, check=False).stdout
            rows = [[float(value) for value in line.split(",")] for line in said.splitlines()]
            if rows:
                self.seen.append((statistics.mean(row[0] for row in rows), statistics.mean(row[1] for row in rows)))


def call(options: list[str], seconds: float) -> tuple[int, dict[str, Any]]:
    """Run the ablation so long; returns its exit status and what this call took."""
    looks, began = Looks(), time.time()
    looks.start()
    driver = subprocess.Popen([sys.executable, str(ROOT / "sweeps" / "ablation.py"), *options])
    try:
        status = driver.wait(seconds)
    except subprocess.TimeoutExpired:
        driver.send_signal(signal.SIGINT)
        try:
            status = driver.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            driver.kill()  # its checkpoints are at most some minutes old
            status = driver.wait()
    looks.over.set()
    looks.join()
    took = {"began": began, "seconds": time.time() - began, "looks": len(looks.seen)}
    for place, what in enumerate(("utilization", "mib")):
        took[what] = statistics.mean(seen[place] for seen in looks.seen) if looks.seen else None
    return status, took


def text(command: str, store: Path, calls: list[dict[str, Any]]) -> str:
    """What the calls took, and the table."""
    from sgan.store.local import Store
    from sweeps.planning import manifest
    from sweeps.reporting.document import TEXT

    opened, by_kind = Store(store), defaultdict(float)
    tables = [(manifest.folder(opened, key) / TEXT).read_text() for key in manifest.keys(opened)]
    for span in spans(store):
        by_kind[opened.facts(span.name)["kind"]] += opened.facts(span.name)["seconds"]
    looks = sum(each["looks"] for each in calls)
    used = "not measured: there is no nvidia-smi"
    if looks:
        mean = {
            w: sum(each[w] * each["looks"] for each in calls if each["looks"]) / looks for w in ("utilization", "mib")
        }
        used = f"{mean['utilization']:.0f} % of the time, {mean['mib']:,.0f} MiB (means of {looks} looks)"
    kinds = ", ".join(f"{kind} {seconds:.0f}" for kind, seconds in sorted(by_kind.items()))
    machines = sorted({opened.facts(span.name)["machine"] for span in spans(store)})
    return (
        f"`{command}`, {len(calls)} call{'s' * (len(calls) > 1)}, on {'; '.join(machines)}\n\n"
        f"- time in all: {sum(each['seconds'] for each in calls) / 60:.1f} minutes\n- GPU: {used}\n"
        f"- seconds of stages: {kinds}\n\n{''.join(tables)}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=560.0, help="a call takes so long, and a minute more at most")
    parser.add_argument("--calls", type=Path, default=Path("table1.json"))
    parser.add_argument("--out", type=Path, default=Path("table1.md"))
    parser.add_argument("--store", default="table1")
    asked, options = parser.parse_known_args()
    options = [*(options or PAPERS), f"--store={asked.store}"]
    command = " ".join(["python sweeps/ablation.py", *options])
    known = json.loads(asked.calls.read_text()) if asked.calls.exists() else {}
    calls = known.setdefault(command, [])
    status, took = call(options, asked.seconds)
    calls.append(took)
    asked.calls.write_text(json.dumps(known, indent=1))
    if status:
        print(f"stopped with status {status} after {took['seconds']:.0f} s")
        return 1 if status in (INTERRUPTED, -signal.SIGKILL) else status
    asked.out.write_text(text(command, Path(asked.store), calls))
    print(f"written to {asked.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
