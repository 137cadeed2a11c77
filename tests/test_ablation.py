"""The main job from its command line: Ray, the store, MLflow and the table, all real; digits at a tiny budget."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

import sgan
from sgan.store import Store, read_json

ROOT = Path(__file__).parent.parent
SMALL = ("encoder.images=1280", "scorer.images=12800", "samples=500", "evaluations=1")
TINY = ("--budget", "0.1", "--slots", "2", "--override", *SMALL)
ROWS = ("sgan", "sgan-no-joint", "dcgan-adv-cond")


def start(store: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "sweeps" / "ablation.py"), *TINY, "--store", str(store), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def complete(store: Path, *arguments: str) -> str:
    process = start(store, *arguments)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def stages(store: Path) -> dict[str, float]:
    """Finished stages, and when each was finished."""
    return {path.parent.name: read_json(path)["finished"] for path in (store / "stages").glob("*/stage.json")}


def scores(store: Path) -> dict[str, dict[str, float]]:
    return {path.parent.name: read_json(path)["scores"] for path in (store / "stages").glob("score-*/stage.json")}


def table(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("| ")]


def runs(store: Path) -> list:
    client = MlflowClient(tracking_uri=f"sqlite:///{store / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("sgan")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


@pytest.fixture(scope="module")
def quiet(tmp_path_factory) -> tuple[Path, str]:
    """A store after one undisturbed run of two seeds, and what the run printed."""
    store = tmp_path_factory.mktemp("quiet") / "runs"
    return store, complete(store, "--seeds", "2", "--variants", *ROWS)


def test_every_stage_runs_once_and_the_table_has_a_row_a_variant(quiet: tuple[Path, str]):
    store, output = quiet
    kinds = sorted(name.split("-")[0] for name in stages(store))
    # Two seeds: an encoder each, the two levels that both stacks share and the DCGAN's one, one joint stage, 3 scores.
    assert kinds == sorted(["scorer"] + 2 * (["encoder"] + 3 * ["level"] + ["joint"] + 3 * ["score"]))
    titles = [line.split("|")[1].strip() for line in table(output)]
    assert titles == ["Variant", "SGAN", "SGAN-no-joint", "DCGAN (adv+cond)", "Real data"]
    assert (store / "RESULTS.md").read_text().strip() in output
    assert "mlflow ui --backend-store-uri" in output


def test_mlflow_has_one_run_a_trial_below_one_for_the_sweep(quiet: tuple[Path, str]):
    store, _ = quiet
    found = runs(store)
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert (len(parents), len(children), len(found)) == (1, 6, 7)
    assert {run.info.status for run in found} == {"FINISHED"}
    for run in children:
        assert {"variant", "seed", "cuts", "dataset", "recipe", "config_key", "commit"} <= set(run.data.tags)
        assert run.data.metrics["fid"] == scores(store)[run.data.tags["trial"]]["fid"]
        assert "level0/g_adversarial" in run.data.metrics
        assert "level0/fid" in run.data.metrics
        assert run.data.params["variant.weights.conditional"] == "1.0"
    folder = Path(children[0].info.artifact_uri.removeprefix("file://"))
    for figure in ("classes", "fixed_condition", "interpolation_noise", "real"):
        assert Image.open(folder / "figures" / f"{figure}.png").size == (10 * 34 + 2, 10 * 34 + 2)
    assert (folder / "figures" / "neighbours.png").exists()
    assert sgan.load(folder / "model").sample(3).shape == (3, 1, 8, 8)
    assert children[0].data.tags["alarm"]
    assert children[0].data.tags["collapsed"] in ("yes", "no")
    found = json.loads(children[0].data.tags["fingerprint"])["scores"]
    assert (found["samples"], found["splits"]) == (500, 10)
    out = store / "drawn.png"
    command = [sys.executable, "-m", "sgan.sample", children[0].info.run_id, "--store", str(store), "--out", str(out)]
    subprocess.run(command, check=True, timeout=100)
    assert Image.open(out).size == (8 * 34 + 2, 8 * 34 + 2)
    assert list((folder / "images").glob("level0+step+*.png"))


def test_the_same_command_trains_nothing_and_gives_the_same_table(quiet: tuple[Path, str]):
    store, output = quiet
    before = stages(store)
    again = complete(store, "--seeds", "2", "--variants", *ROWS)
    assert stages(store) == before
    assert table(again) == table(output)
    assert "6 finished, 0 to run" in again
    assert len(runs(store)) == 7


def test_more_variants_train_only_what_is_new(quiet: tuple[Path, str]):
    store, _ = quiet
    before = stages(store)
    output = complete(store, "--seeds", "2", "--variants", "sgan", "dcgan-adv")
    new = sorted(name.split("-")[0] for name in set(stages(store)) - set(before))
    assert new == ["level", "level", "score", "score"]
    assert [line.split("|")[1].strip() for line in table(output)] == ["Variant", "SGAN", "DCGAN (adv)", "Real data"]
    assert sum("mlflow.parentRunId" not in run.data.tags for run in runs(store)) == 1


def wait_for(condition, seconds: float = 90.0):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)
    return value


def workers(driver: int) -> list[int]:
    """Processes of Ray that run trials for this driver: Ray names them after its wrapper of the trainable."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text()
            names[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:
            continue
        parents[int(folder.name)] = int(status.rsplit(")", 1)[1].split()[1])

    def below(process: int) -> bool:
        while process in parents:
            if process == driver:
                return True
            process = parents[process]
        return False

    return [process for process, name in names.items() if "ResourceTrainable" in name and below(process)]


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds workers through /proc")
def test_a_killed_worker_an_interrupt_and_a_killed_driver_change_nothing(quiet: tuple[Path, str], tmp_path: Path):
    reference, store = quiet[0], tmp_path / "runs"
    arguments = ("--seeds", "2", "--variants", *ROWS)
    driver = start(store, *arguments)
    wait_for(lambda: list((store / "work").glob("level-*")))
    os.kill(wait_for(lambda: workers(driver.pid))[0], signal.SIGKILL)
    done = len(stages(store))
    wait_for(lambda: len(stages(store)) > done)
    os.kill(driver.pid, signal.SIGINT)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "the same command goes on" in output
    assert not table(output)
    assert {run.info.status for run in runs(store)} <= {"FINISHED", "KILLED"}

    driver, done = start(store, *arguments), len(stages(store))
    wait_for(lambda: len(stages(store)) > done + 1 and list((store / "work").glob("*-*")))
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate(timeout=60)
    kept = stages(store)
    assert len(kept) < 17
    complete(store, *arguments)
    assert {name: stages(store)[name] for name in kept} == kept
    assert scores(store) == {name: scores(reference)[name] for name in scores(store)}
    found = runs(store)
    assert len(found) == 7
    assert {run.info.status for run in found} == {"FINISHED"}
    assert not list(Store(store).work("").glob("*"))
