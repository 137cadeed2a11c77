"""Faults on a cluster of hosts whose store is a bucket: a stage's process, a raylet, the head's Ray and the MLflow
server are killed, and the S3 API answers with errors, slowly, or not at all, while an ablation runs. What comes out is
compared with the same ablation on one machine: the table, the bytes of all weights, the scores, the runs in MLflow.

    make chaos-cluster SEED=0 ROUNDS=3

A seed and a round choose the order of the faults; when exactly they strike depends on the machine.
"""

import argparse
import functools
import json
import math
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hosts import BIN, S3_HOST, WORKERS, Bucket, Cluster, start_cluster
from namespaces import ROOT, lacking

from sgan.store.files import read_json, sha256

SMALL = ("encoder.images=1280", "judge.images=12800", "samples=500", "evaluations=1")
SWEEP = (
    "--budget",
    "0.1",
    "--seeds",
    "2",
    "--variants",
    "sgan",
    "sgan-no-joint",
    "dcgan-adv-cond",
    "--override",
    *SMALL,
)
FAULTS = ("worker", "raylet", "head", "mlflow", "errors", "slowness", "away")
PROCESSES = {"worker": "^ray::(judge|encoder|level|joint|score)-", "raylet": "raylet/raylet"}
"""Regular expressions of command lines on a worker's host. Ray names a stage's process after the stage."""
LOST_HEAD = 137
"""Exit status of a command whose cluster has no head any more."""
PATIENCE = 1200.0
"""Seconds that a round may last."""
WITHIN = 60.0
"""Seconds within which a command whose head is gone ends."""
FINISHED = """
import json, s3fs, sys
files = s3fs.S3FileSystem(endpoint_url=sys.argv[1])
print(json.dumps({path.rpartition("/")[2][:-5]: json.loads(files.cat_file(path)) for path in files.find(sys.argv[2])}))
"""


def table(output: str) -> list[list[str]]:
    """The table that a command ends with."""
    return [[cell.strip() for cell in line.split("|")] for line in output.splitlines() if line.startswith("| ")]


def weights(store: Path) -> dict[str, str]:
    """The digest of every file of tensors that a stage has left."""
    return {path.relative_to(store).as_posix(): sha256(path) for path in (store / "stages").glob("*/*.safetensors")}


def scores(store: Path) -> dict[str, dict[str, float]]:
    return {path.parent.name: read_json(path)["scores"] for path in (store / "stages").glob("score-*/stage.json")}


def start_alone(store: Path) -> tuple[subprocess.Popen[str], Callable[[], tuple[Path, str]]]:
    """The sweep on this machine alone, and how to wait for it: its store and what it says."""
    command = [sys.executable, str(ROOT / "sweeps" / "ablation.py"), *SWEEP, "--store", str(store), "--slots", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    @functools.cache
    def ended() -> tuple[Path, str]:
        said, _ = process.communicate(timeout=500)
        assert process.returncode == 0, said
        return store, said

    return process, ended


class Round:
    """One sweep under faults, in a store of its own."""

    def __init__(self, cluster: Cluster, bucket: Bucket, seed: int, number: int):
        self.cluster, self.bucket = cluster, bucket
        self.dice = random.Random(f"{seed} {number}")
        self.store = f"s3://bucket/chaos-{seed}-{number}"
        self.log = cluster.config.with_name(f"chaos-{seed}-{number}.log")
        self.mended = math.inf
        """When the S3 API answers well again."""

    def start(self) -> subprocess.Popen[bytes]:
        words = f"{BIN / 'python'} {ROOT / 'sweeps' / 'ablation.py'} {' '.join(SWEEP)} --store {self.store}"
        with open(self.log, "ab") as file:
            command = self.cluster.head.command("bash", "-c", f". ~/.sgan.env; exec {words}")
            return subprocess.Popen(command, stdout=file, stderr=file)

    def on_head(self, *words: str) -> str:
        """What a Python command on the head prints."""
        command = f". ~/.sgan.env; cd {ROOT}; exec python {' '.join(words)}"
        done = self.cluster.head.run("bash", "-c", command, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def strike(self, fault: str) -> bool:
        """Do it; whether there was something to hit."""
        hosts = [self.cluster.network[name] for name in WORKERS]
        busy = [host for host in hosts if host.processes(PROCESSES["worker"])]
        if not busy:
            return False
        if fault in PROCESSES:
            self.dice.choice(busy).run("pkill", "-KILL", "-f", PROCESSES[fault], check=False)
        elif fault == "head":
            self.cluster.head.run("pkill", "-KILL", "gcs_server")
        elif fault == "mlflow":
            listening = self.cluster.head.run("ss", "-ltnpH", "sport = :5000").stdout
            for process in set(re.findall(r"pid=(\d+)", listening)):
                self.cluster.head.run("kill", "-KILL", process, check=False)
        else:
            self.mended = time.monotonic() + self.dice.uniform(5, 20)
            if fault == "away":
                self.bucket.host.pull_cable()
            else:
                self.bucket.misbehave(**({"share": 0.3} if fault == "errors" else {"delay": 0.5}))
        return True

    def mend(self) -> None:
        self.bucket.misbehave()
        self.bucket.host.plug_in()
        self.mended = math.inf

    def play(self) -> str:
        """The sweep through all faults; says in which order they struck."""
        faults, struck, lives = list(FAULTS), [], 1
        self.dice.shuffle(faults)
        end, following, lost = time.monotonic() + PATIENCE, 0.0, math.inf
        driver = self.start()
        try:
            while driver.poll() != 0:
                now = time.monotonic()
                assert now < end, f"it does not end; see {self.log}"
                if driver.returncode is not None:
                    said = self.log.read_text()
                    assert driver.returncode == LOST_HEAD, said
                    assert "`ray up`" in said.splitlines()[-1]
                    assert now < lost, f"it took more than {WITHIN:g} s until it ended without a head"
                    struck[-1] += f" (it ended after {now - lost + WITHIN:.0f} s)"
                    self.mend()
                    self.cluster.up()
                    driver, lives, lost = self.start(), lives + 1, math.inf
                elif now > self.mended:
                    self.mend()
                elif faults and now > following and lost == math.inf and self.strike(faults[0]):
                    struck.append(faults.pop(0))
                    following = now + self.dice.uniform(3, 8)
                    lost = now + WITHIN if struck[-1] == "head" else lost
                time.sleep(0.2)
        finally:
            driver.kill()
            self.mend()
        return f"{', '.join(struck)}; {lives} commands"

    def compare(self, reference: Path, said: str) -> str:
        """Assert that the bucket holds what the folder `reference` does, that nothing was trained twice, and that
        MLflow has all of it; says what was compared."""
        output = self.log.read_text()
        assert "Traceback" not in output, output
        assert table(output)[-len(table(said)) :] == table(said)
        finished = json.loads(self.on_head("-c", f"'{FINISHED}'", self.bucket.url, f"{self.store[5:]}/done"))
        found = {
            f"stages/{name}/{file}": digest
            for name, facts in finished.items()
            for file, digest in facts["files"].items()
            if file.endswith(".safetensors") and "/" not in file
        }
        assert found == weights(reference)
        assert finished.keys() == {path.name for path in (reference / "stages").iterdir()}
        for name, values in scores(reference).items():
            assert finished[name]["scores"] == pytest.approx(values, rel=1e-9, nan_ok=True)
        ledger = self.on_head("sweeps/ledger.py", self.store)
        assert "trained more than once: nothing" in ledger, ledger
        assert ledger.count("stage published") == len(finished)
        self.on_head("-m", "sweeps.tracking", "sync", self.store, "--verify")
        return f"{len(finished)} stages of the same weights and scores, the same table, MLflow verified"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    if lacking():
        print(f"error: {lacking()}", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="chaos-cluster-"))
    for name in ("hosts", "shared"):
        (folder / name).mkdir()
    _, alone = start_alone(folder / "alone")
    reference, said = alone()
    with start_cluster(folder / "hosts", folder / "shared") as cluster:
        bucket = Bucket(cluster, cluster.network[S3_HOST])
        for number in range(arguments.rounds):
            began = time.monotonic()
            played = Round(cluster, bucket, arguments.seed, number)
            struck = played.play()
            same = played.compare(reference, said)
            spent = time.monotonic() - began
            print(f"seed {arguments.seed} round {number}: {struck}, {spent:.0f} s: {same}", flush=True)
    print(f"survived {arguments.rounds} rounds")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
