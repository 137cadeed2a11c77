"""Where a sweep's time goes: the share of slots x wall in which stages trained, and what took the rest.

    python benchmarks/efficiency.py [--json FILE] [OPTIONS OF sweeps/ablation.py]

Runs `sweeps/ablation.py` with these options in a store of its own, and reads from it when each stage ran. Without
options: two seeds at a quarter of the budget. Of slots x wall:

    stages      stages in progress: the efficiency
    start       from the command to a slot's first stage
    waiting     a free slot while the stages that the next one needs were not finished
    hand-over   between two stages of a slot, but for waiting
    tail        a slot that had nothing to do before the last stage ended
    end         from the last stage to the command's end: MLflow's rest and the table

and CPU seconds of the processes, as a share of cores x wall: what does not train takes time from what does. MLflow's
are told apart by when they were used. Those while stages ran are what it took from training at most: part of them it
used where a core was idle. Those before the first stage and after the last one cost what they make
start and end longer.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SHORT = ["--seeds", "2", "--budget", "0.25"]
KINDS = {
    "sweeps.mlflow_view.follow": "MLflow",
    "ray::StageScheduler": "scheduler",
    "Trainable": "trials",
    "ray::": "workers",
    "ablation.py": "driver",
}
"""What a command line has in it -> whose process it is; the others are Ray's own."""
PHASES = ("before the first stage", "while stages ran", "after the last stage")
SAMPLED = 0.2
"""Seconds between two looks at the processes."""


@dataclass(frozen=True)
class Span:
    """A stage that ran: its name, when (unix seconds), and the names of the stages that it needs."""

    name: str
    began: float
    ended: float
    parents: frozenset[str]


def spans(store: Path) -> list[Span]:
    """All stages of the sweeps in a store, in the order in which they began."""
    from sgan.store.local import Store
    from sweeps.planning import manifest

    opened, parents = Store(store), defaultdict(set)
    for key in manifest.keys(opened):
        for trial in manifest.read(opened, key)["trials"]:
            labels = [(stage["label"].rstrip("0123456789"), stage["name"]) for stage in trial["stages"]]
            for label, name in labels:
                ahead = [other for kind, other in labels if kind != label and other != name]
                parents[name] |= set(ahead[: [other for _, other in labels].index(name)])
    found = []
    for name, needed in parents.items():
        facts = opened.facts(name)
        found.append(Span(name, facts["finished"] - facts["seconds"], facts["finished"], frozenset(needed)))
    return sorted(found, key=lambda span: span.began)


def shares(ran: list[Span], slots: int, began: float, ended: float) -> dict[str, float]:
    """Slot-seconds by what they went into. A stage ran in the slot that had last fallen free."""
    free: list[float | None] = [None] * slots
    finished = {span.name: span.ended for span in ran}
    lost: dict[str, float] = dict.fromkeys(("stages", "start", "waiting", "hand-over", "tail", "end"), 0.0)
    for span in ran:
        ready = [place for place, since in enumerate(free) if since is not None and since <= span.began]
        place = max(ready, key=lambda place: free[place] or 0.0) if ready else free.index(None)
        since = free[place]
        if since is None:
            lost["start"] += span.began - began
        else:
            needed = max((finished[name] for name in span.parents), default=0.0)
            waited = min(max(0.0, needed - since), span.began - since)
            lost["waiting"] += waited
            lost["hand-over"] += span.began - since - waited
        lost["stages"] += span.ended - span.began
        free[place] = span.ended
    last = max(finished.values())
    lost["tail"] = sum(last - (since or began) for since in free)
    lost["end"] = slots * (ended - last)
    return lost


def descendants(pid: int) -> dict[int, str]:
    """Processes that a process started, those that these started, and itself: number -> command line."""
    children, lines = defaultdict(list), {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            lines[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            children[int((folder / "stat").read_text().rpartition(")")[2].split()[1])].append(int(folder.name))
        except OSError:
            continue  # it ended meanwhile
    found, todo = {}, [pid]
    while todo:
        each = todo.pop()
        found[each] = lines.get(each, "")
        todo += children[each]
    return found


class Watch(threading.Thread):
    """Notes the CPU seconds of a process and of all that come from it, by kind."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.pid, self.used = pid, dict[tuple[int, str], float]()
        self.times = list[tuple[float, float]]()  # when (unix seconds), and what MLflow had used by then

    def run(self) -> None:
        while os.path.exists(f"/proc/{self.pid}"):
            for pid, line in descendants(self.pid).items():
                if not line:
                    continue  # it has ended
                kind = next((kind for part, kind in KINDS.items() if part in line), "Ray")
                try:
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                self.used[pid, kind] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            self.times.append((time.time(), self.seconds().get("MLflow", 0.0)))
            time.sleep(SAMPLED)

    def seconds(self) -> dict[str, float]:
        """CPU seconds by kind."""
        most, found = {}, defaultdict(float)
        for (pid, kind), used in sorted(self.used.items(), key=lambda item: item[1]):
            most[pid] = kind, used  # a worker is Ray's before it has a name
        for kind, used in most.values():
            found[kind] += used
        return dict(found)

    def phases(self, first: float, last: float) -> list[float]:
        """MLflow's CPU seconds until the first stage began, until the last one had ended, and after that."""
        until = [max((used for when, used in self.times if when <= end), default=0.0) for end in (first, last)]
        return [until[0], until[1] - until[0], self.times[-1][1] - until[1]]


def measure(options: list[str]) -> list[dict[str, Any]]:
    """Run an ablation and say where its time went."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        words = [sys.executable, str(ROOT / "sweeps" / "ablation.py"), *options, f"--store={folder}"]
        driver = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        watch = Watch(driver.pid)
        watch.start()
        assert driver.stdout is not None
        said = driver.stdout.read()
        if driver.wait():
            sys.exit(said)
        ended = time.time()
        watch.join()
        found = re.search(r"slots +(\d+) stages? at a time", said)
        assert found, said
        slots, ran = int(found[1]), spans(Path(folder))
        lost = shares(ran, slots, began, ended)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    wall, cores = ended - began, os.cpu_count() or 1
    values = {
        "wall": (wall, "s"),
        "slots": (slots, ""),
        "stages": (len(ran), ""),
        "first stage": (ran[0].began - began, "s"),
        "store": (size / 2**20, "MiB"),
    }
    values |= {f"of slots x wall: {what}": (100 * each / slots / wall, "%") for what, each in lost.items()}
    values |= {f"of CPU: {kind}": (100 * each / cores / wall, "%") for kind, each in watch.seconds().items()}
    trials = sum(span.name.startswith("score-") for span in ran)
    values["MLflow: CPU a trial"] = (watch.seconds().get("MLflow", 0.0) / trials, "s")
    parts = watch.phases(ran[0].began, max(span.ended for span in ran))
    values |= {f"MLflow: {phase}": (100 * each / cores / wall, "%") for phase, each in zip(PHASES, parts, strict=True)}
    return [
        {"benchmark": "efficiency", "measure": what, "value": round(value, 2), "unit": unit}
        for what, (value, unit) in values.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows into this file")
    arguments, options = parser.parse_known_args()
    rows = measure(options or SHORT)
    for row in rows:
        print(f"{row['measure']:<32}{row['value']:>10} {row['unit']}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
