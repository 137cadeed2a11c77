"""Kills drivers, workers, raylets, uploaders and a real MLflow server at random, and fills the disk (as root), while an
ablation and a search run on one store, and compares what comes out with a quiet run: the tables, the bytes of every
file of every stage, the study and the best config, the runs in MLflow.

    make chaos SEED=0 ROUNDS=10

A seed and a round choose the faults and their order; when exactly they strike depends on the machine.
"""

import argparse
import collections
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import optuna
import yaml
from conftest import FILLER, fill, mount
from mlflow import MlflowClient
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from sgan.store.files import RECORD_FILE, read_record
from sgan.store.local import Store
from sweeps.mlflow_view.runs import runs_of
from sweeps.planning import manifest

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("--override", "encoder.images=1280", "judge.images=12800", "samples=500", "evaluations=1")
SHORT = ("image_level=6400", "feature_level=3200", "joint_images=3200", "gan.adam.learning_rate=2e-3")
NARROW = ("--adversarial", "0.5", "1", "--conditional", "1", "2", "--entropy", "5", "10", "--zeros")
COMMANDS = {
    "ablation": ("--slots", "2", "--seeds", "1", "--variants", "sgan", "sgan-no-joint", "dcgan-adv-cond"),
    "search": ("--slots", "1", "--trials", "4", "--variant", "sgan-no-joint", "--splits", "none", "fc3", *NARROW),
}
FAULTS = ("driver", "worker", "worker", "trial", "scheduler", "raylet", "uploader", "mlflow")
FAULTS += ("interrupt", "two interrupts", "terminate")
SIGNALS = {"driver": signal.SIGKILL, "terminate": signal.SIGTERM}
PROCESSES = {
    "worker": r"^ray::(judge|encoder|level|joint|score)-",
    "trial": r"^ray::\w*Trainable",
    "scheduler": r"^ray::StageScheduler",
    "uploader": r"sweeps\.mlflow_view\.follow",
    "raylet": r"raylet/raylet",
}
"""Regular expressions of a command line by which a process is found. Ray names a stage's process after the stage."""
DISK = "256m"
"""Size of a round's store, where one can be mounted."""
ENDS = (1, 2, 130, -signal.SIGKILL, -signal.SIGINT, -signal.SIGTERM)
"""How a driver may end before it is through: 2 where its disk is full, the last two where Python itself is starting or
ending."""
PATIENCE = 400.0
"""Seconds that a quiet driver, or a round, may last."""
LIVES = 30


class Server:
    """A real MLflow server on SQLite."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri, self.folder, self.process = f"http://127.0.0.1:{self.port}", folder, None
        MlflowClient(f"sqlite:///{folder / 'server.db'}").search_experiments()  # migrates

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        null = subprocess.DEVNULL
        self.process = subprocess.Popen(command, env=environment, stdout=null, stderr=null, start_new_session=True)

    def kill(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(20)
            self.process = None


def start(name: str, store: Path, uri: str | None = None) -> subprocess.Popen[bytes]:
    """A driver of a command; what it says goes to a file beside the store."""
    command = [sys.executable, str(ROOT / "sweeps" / f"{name}.py"), "--dataset", "digits", *COMMANDS[name]]
    command += [*SMALL, *SHORT, "--store", str(store), *(["--mlflow", uri] if uri else [])]
    with open(log(store, name), "ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


def log(store: Path, name: str) -> Path:
    return store.parent / f"{store.name}-{name}.log"


def processes() -> dict[int, tuple[int, str]]:
    """Process -> its parent and its command line."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            found[int(folder.name)] = parent, (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def below(process: int, found: dict[int, tuple[int, str]]) -> set[int]:
    """A process and all that descend from it."""
    tree, size = {process}, 0
    while len(tree) > size:
        size = len(tree)
        tree |= {each for each, (parent, _) in found.items() if parent in tree}
    return tree


def victims(kind: str, driver: int, found: dict[int, tuple[int, str]]) -> list[int]:
    """The processes of a kind that belong to a driver."""
    tree = below(driver, found) & found.keys()
    return sorted(each for each in tree if re.search(PROCESSES[kind], found[each][1]))


def strike(fault: str, driver: subprocess.Popen[bytes], store: Path, server: Server, dice: random.Random) -> bool:
    """Do it; whether there was something to hit."""
    found = processes()
    if fault in PROCESSES:
        mine = victims(fault, driver.pid, found)
        if mine:
            os.kill(dice.choice(mine), signal.SIGKILL)
        return bool(mine)
    if fault == "mlflow":
        there = server.process is not None
        server.kill()
        return there
    if not (store / "work").exists() or not any((store / "work").iterdir()):
        return False  # it has not begun
    if fault == "full disk":
        fill(store)
        return True
    driver.send_signal(SIGNALS.get(fault, signal.SIGINT))
    if fault == "two interrupts":
        time.sleep(dice.uniform(0, 0.5))
        driver.send_signal(signal.SIGINT)
    return True


def disturbed(dice: random.Random, folder: Path, server: Server) -> str:
    """Both commands at once, through many faults, in the store `folder`/runs; says what struck."""
    store = folder / "runs"
    kinds = ["worker", "mlflow", *(dice.choice(FAULTS) for _ in range(dice.randint(1, 4)))]
    kinds += ["full disk"] * os.path.ismount(store)
    faults = [("driver", name) for name in COMMANDS] + [(kind, dice.choice(sorted(COMMANDS))) for kind in kinds]
    dice.shuffle(faults)
    struck, lives = collections.Counter(), 0
    if dice.random() < 0.7:
        server.start()
    following, back, room = time.monotonic() + dice.uniform(0, 10), 0.0, math.inf
    drivers: dict[str, subprocess.Popen[bytes]] = {}
    until, left = time.monotonic() + PATIENCE, set(COMMANDS)
    try:
        while left:
            now = time.monotonic()
            assert now < until, f"the drivers do not end; see {folder}"
            for name in sorted(left):
                driver = drivers.get(name)
                status = driver.poll() if driver else -signal.SIGKILL
                if status == 0:
                    left.remove(name)
                elif status is not None:
                    assert status in ENDS, f"exit status {status}; see {log(store, name)}"
                    lives += 1
                    assert lives < LIVES, f"after {lives} lives the drivers are not through; see {folder}"
                    drivers[name] = start(name, store, server.uri)
            if server.process is None and now > back:
                server.start()
            if faults and left and now > following:
                fault, name = faults[0]
                if strike(fault, drivers[name if name in left else min(left)], store, server, dice):
                    struck[fault] += 1
                    del faults[0]
                    following, back = now + dice.uniform(0.5, 8), now + dice.uniform(0, 15)
                    room = now + dice.uniform(0, 20) if (store / FILLER).exists() else room
            if now > room:
                (store / FILLER).unlink()
                room = math.inf
            time.sleep(0.05)
    finally:
        for driver in drivers.values():
            driver.kill()
    said = ", ".join(f"{count} x {fault}" for fault, count in sorted(struck.items()))
    return f"{said}; {lives} lives of 2 drivers"


def files(store: Path) -> dict[str, dict[str, str]]:
    """Stage -> file -> SHA-256, the record's without its times."""
    found = {}
    for path in sorted((store / "stages").iterdir()):
        held = Store(store).facts(path.name)["files"]
        if RECORD_FILE in held:
            held[RECORD_FILE] = str([(line["images"], line["metrics"]) for line in read_record(path)])
        for file in [file for file in held if file.endswith("model.json")]:
            held.pop(file)  # names the commit, and is otherwise made of what is compared
        found[path.name] = held
    return found


def table(path: Path) -> list[list[str]]:
    """The cells of the tables, without the column of the training time."""
    rows, place = [], 0
    for line in path.read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if line.startswith("| Variant"):
            (place, *_) = [index for index, title in enumerate(cells) if title.startswith("Training (s)")] or [0]
        if line.startswith("| "):
            rows.append(cells[:place] + cells[place + 1 :])
    return rows


def study(store: Path) -> list[tuple]:
    """What the search's study holds, but for the times."""
    (path,) = store.glob("sweeps/*/optuna.log")
    storage = JournalStorage(JournalFileBackend(str(path)))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = optuna.load_study(study_name=None, storage=storage)
    return [(each.number, each.state, each.params, each.values, each.user_attrs) for each in found.trials]


def best(store: Path) -> dict[str, Any]:
    """The best config and where it comes from, but for the command, which names the store."""
    content = yaml.safe_load((store / "best.yaml").read_text())
    del content["provenance"]["command"]
    return content


def compare(quiet: Path, store: Path, server: Server) -> str:
    """Assert that two stores hold the same, and that MLflow holds all of the second; says what was compared."""
    expected, found = files(quiet), files(store)
    assert found.keys() == expected.keys()
    for stage in expected:
        assert found[stage] == expected[stage], f"{stage} differs"
    reports = [path.relative_to(quiet) for path in sorted(quiet.glob("sweeps/*/report.md"))]
    assert len(reports) == 2
    assert [table(store / path) for path in reports] == [table(quiet / path) for path in reports]
    assert study(store) == study(quiet)
    assert best(store) == best(quiet)
    assert not list((store / "work").iterdir())
    published = collections.Counter(
        event["stage"] for event in Store(store).events() if event["event"] == "stage published"
    )
    assert set(published.values()) == {1}, "a stage was trained twice"
    sync = [sys.executable, "-m", "sweeps.tracking", "sync", str(store), "--mlflow", server.uri, "--verify"]
    done = subprocess.run(sync, check=False, capture_output=True, text=True, timeout=400, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    client = MlflowClient(server.uri)
    runs = [run for key in manifest.keys(Store(store)) for run in runs_of(client, key)]
    assert {run.info.status for run in runs} == {"FINISHED"}
    return f"{len(found)} stages of the same bytes, the same tables and study, {len(runs)} MLflow runs verified"


def undisturbed(folder: Path) -> Path:
    """The store of quiet runs."""
    store = folder / "quiet"
    for name, driver in {name: start(name, store) for name in COMMANDS}.items():
        assert driver.wait(PATIENCE) == 0, log(store, name).read_text()
    return store


def play(seed: int, number: int, quiet: Path, folder: Path) -> str:
    """One round; what happened in it."""
    began, dice = time.monotonic(), random.Random(f"{seed} {number}")
    store = folder / "runs"
    store.mkdir(parents=True)
    mounted = os.geteuid() == 0 and mount("-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(store))
    server = Server(folder)
    try:
        said = disturbed(dice, folder, server)
        if server.process is None:
            server.start()
        same = compare(quiet, store, server)
    finally:
        server.kill()
        if mounted and sys.exc_info()[0] is None:  # otherwise somebody wants to look at it
            subprocess.run(["umount", "--lazy", str(store)], check=True, timeout=20)
    return f"seed {seed} round {number}: {said}, {time.monotonic() - began:.0f} s: {same}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    quiet = undisturbed(folder)
    for number in range(arguments.rounds):
        print(play(arguments.seed, number, quiet, folder / f"round{number}"), flush=True)
        shutil.rmtree(folder / f"round{number}")
    print(f"survived {arguments.rounds} rounds")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
