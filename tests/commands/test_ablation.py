"""The main job from its command line: Ray, the store, MLflow and the table, all real; digits at a tiny budget."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from chaos import below, processes, victims
from command import ended, finished, runs, stages, started
from PIL import Image
from waiting import wait_for

from sgan.command_line import python
from sgan.evaluation.grid import unlabelled
from sgan.stages.graph import name
from sgan.store.files import read_json, read_record
from sgan.store.local import Store
from sgan.training.checkpoint import CHECKPOINTS
from sweeps.planning.ablation import plan_ablation
from sweeps.planning.options import Sweep

ROOT = Path(__file__).parents[2]
SMALL = ("encoder.images=1280", "judge.images=12800", "samples=500", "evaluations=1")
TINY = ("--budget", "0.1", "--slots", "2", "--override", *SMALL)
ROWS = ("sgan", "sgan-no-joint", "dcgan-adv-cond")
ASKED = ("--seeds", "1", "--variants", *ROWS)


def start(store: Path, *arguments: str) -> subprocess.Popen[str]:
    return started("sweeps/ablation.py", *TINY, "--store", store, *arguments)


def complete(store: Path, *arguments: str) -> str:
    return finished(start(store, *arguments))


def scores(store: Path) -> dict[str, dict[str, float]]:
    return {path.parent.name: read_json(path)["scores"] for path in (store / "stages").glob("score-*/stage.json")}


def table(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("| ")]


def titles(output: str) -> list[str]:
    """The first column of the table, without marks."""
    return [line.split("|")[1].strip().rstrip(" ⚠†") for line in table(output)]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory) -> tuple[Path, str]:
    """A store after one undisturbed run, and what the run printed."""
    store = tmp_path_factory.mktemp("quiet") / "runs"
    return store, complete(store, *ASKED)


def test_every_stage_runs_once_after_what_it_needs_and_the_table_has_a_row_a_variant(quiet: tuple[Path, str]):
    store, output = quiet
    kinds = sorted(stage.split("-")[0] for stage in stages(store))
    # An encoder, the two levels that both stacks share and the DCGAN's one, one joint stage, 3 scores.
    published = [event["stage"] for event in Store(store).events() if event["event"] == "stage published"]
    assert sorted(published) == sorted(stages(store))
    assert kinds == sorted(["judge", "encoder"] + 3 * ["level"] + ["joint"] + 3 * ["score"])
    for trial in plan_ablation(Sweep(variants=ROWS, seeds=1, budget=0.1, override=SMALL), 0).trials:
        for _, stage in trial.plan.stages:
            for need in trial.plan.needs(stage):
                assert stages(store)[name(need)] < stages(store)[name(stage)]
    assert titles(output) == [
        "Variant",
        "SGAN",
        "SGAN-no-joint",
        "DCGAN (adv+cond)",
        "Real, held out",
        "Real, training",
    ]
    (page,) = store.glob("sweeps/*/report.html")
    assert f"Report: {page}\n" in output
    assert "\nMLflow: " in output
    assert "mlflow ui --backend-store-uri" in output
    assert f"\nNext:   {python()} sweeps/best.py " in output
    assert "data:image/png" in page.read_text()


def test_mlflow_has_one_run_a_trial_below_one_for_the_sweep(quiet: tuple[Path, str]):
    store, _ = quiet
    found = runs(store)
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert (len(parents), len(children), len(found)) == (1, 3, 4)
    assert {run.info.status for run in found} == {"FINISHED"}
    for run in children:
        assert {"variant", "seed", "cuts", "dataset", "recipe", "mlflow.source.git.commit"} <= set(run.data.tags)
        stage = f"score-{run.data.tags['sgan.trial'].rpartition('score-')[2]}"
        assert run.data.metrics["fid"] == scores(store)[stage]["fid"]
        assert "level0/g_adversarial" in run.data.metrics
        assert run.data.params["variant.weights.conditional"] == "1.0"
    folder = Path(children[0].info.artifact_uri.removeprefix("file://"))
    for figure in ("classes", "fixed_condition", "interpolation_noise", "real"):
        assert unlabelled(folder / "figures" / f"{figure}.png").size == (10 * 84 - 4, 10 * 84 - 4)
    assert (folder / "figures" / "neighbours.png").exists()
    assert children[0].data.tags["alarm"]
    out = store / "drawn.png"
    assert ended("sgan/sample.py", children[0].info.run_id, "--store", store, "--out", out) == 0
    assert Image.open(out).size == (8 * 52 + 20, 8 * 52 + 20)
    assert list((folder / "images").glob("level0+step+*.png"))


@pytest.mark.slow
def test_the_same_command_trains_nothing_and_makes_all_but_the_stages_again(quiet: tuple[Path, str]):
    """The finished stages are the truth: nothing else in the store is needed for the same table and the same runs."""
    store, output = quiet
    before = stages(store)
    for path in store.iterdir():
        if path.is_file():
            path.unlink()
        elif path.name != "stages":
            shutil.rmtree(path)
    again = complete(store, *ASKED)
    assert stages(store) == before
    assert table(again) == table(output)
    assert "3 finished, 0 to run" in again
    assert len(runs(store)) == 4
    assert [event["event"] for event in Store(store).events()] == ["sweep started", "sweep ended"]


@pytest.mark.slow
def test_more_variants_train_only_what_is_new(quiet: tuple[Path, str]):
    store, _ = quiet
    before = stages(store)
    output = complete(store, "--seeds", "1", "--variants", "sgan", "dcgan-adv")
    new = sorted(name.split("-")[0] for name in set(stages(store)) - set(before))
    assert new == ["level", "score"]
    assert titles(output) == [
        "Variant",
        "SGAN",
        "DCGAN (adv)",
        "Real, held out",
        "Real, training",
    ]
    assert sum("mlflow.parentRunId" not in run.data.tags for run in runs(store)) == 1


def trains(driver: subprocess.Popen[str]) -> list[int]:
    """The processes that run a driver's stages."""
    return victims("worker", driver.pid, processes())


def listening(tree: set[int]) -> set[str]:
    """Addresses, in the kernel's hexadecimal, at which processes listen for TCP."""
    sockets = set()
    for process in tree:
        with contextlib.suppress(OSError):
            for file in Path(f"/proc/{process}/fd").iterdir():
                with contextlib.suppress(OSError):
                    sockets.add(os.readlink(file).removeprefix("socket:[").rstrip("]"))
    lines = [
        line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]
    ]
    return {fields[1].partition(":")[0] for fields in lines if fields[3] == "0A" and fields[9] in sockets}


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
PROMPTLY = 30.0
"""Seconds: 5 and a step where nothing else runs, and Ray's own end."""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds processes through /proc")
@pytest.mark.timeout(600)
def test_a_local_run_listens_on_loopback_alone_and_ends_cleanly_on_one_interrupt_and_at_once_on_two(tmp_path: Path):
    store, arguments = tmp_path / "runs", ("--seeds", "1", "--variants", "sgan")
    driver = start(store, *arguments)
    wait_for(lambda: list((store / "work").glob("level-*")))
    tree = below(driver.pid, processes())
    assert len(tree) > 4
    assert listening(tree)
    assert listening(tree) <= LOOPBACK, listening(tree)
    os.kill(driver.pid, signal.SIGINT)
    output, _ = driver.communicate(timeout=PROMPTLY)
    assert driver.returncode == 130
    assert "Stopping: each stage leaves a checkpoint" in output
    assert "the same command goes on" in output
    assert not table(output)
    for folder in (store / "work").glob("level-*"):  # they train for less than the seconds between two checkpoints
        assert len(read_record(folder)) < 2 or list((folder / CHECKPOINTS).iterdir())
    wait_for(lambda: {run.info.status for run in runs(store)} <= {"FINISHED", "KILLED"})

    driver, kept = start(store, *arguments), stages(store)
    wait_for(lambda: trains(driver) and list((store / "work").glob("*-*")))
    tree = below(driver.pid, processes())
    os.kill(driver.pid, signal.SIGINT)
    time.sleep(0.1)
    os.kill(driver.pid, signal.SIGINT)
    assert driver.wait(15) == 130
    output, _ = driver.communicate(timeout=60)  # until Ray's processes have noticed, too
    assert "the same command goes on where" in output
    wait_for(lambda: not tree & processes().keys(), 60)
    assert {name: stages(store)[name] for name in kept} == kept


@pytest.mark.slow
@pytest.mark.parametrize("line", ["starting Ray", "  store"])
def test_before_there_are_trials_sigterm_is_a_ctrl_c_too(line: str, tmp_path: Path):
    driver = start(tmp_path / "runs", "--seeds", "1", "--variants", "sgan")
    assert driver.stdout
    while not driver.stdout.readline().startswith(line):
        assert driver.poll() is None
    for _ in range(3):  # Python drops an exception that a signal raises where C code has called back
        driver.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(30)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130, output
    assert "the same command goes on" in output


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_command_that_only_waits_for_another_process_ends_on_sigterm(tmp_path: Path):
    """The claim of the one stage that could run is held here."""
    options = Sweep(variants=("dcgan-adv",), seeds=1, budget=0.1, override=SMALL)
    judge = plan_ablation(options, 0).trials[0].plan.score.judge
    store, arguments = Store(tmp_path / "runs"), ("--seeds", "1", "--variants", "dcgan-adv")
    with store.claim(name(judge)):
        driver = start(store.root, *arguments)
        assert driver.stdout
        while "another process trains it" not in driver.stdout.readline():
            assert driver.poll() is None
        time.sleep(2)
        driver.send_signal(signal.SIGTERM)
        output, _ = driver.communicate(timeout=PROMPTLY)
    assert driver.returncode == 130, output
    assert "the same command goes on" in output


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_three_drivers_of_two_sweeps_on_one_store_train_each_stage_once(quiet: tuple[Path, str], tmp_path: Path):
    """Two of them run the same sweep; the third's differs in its scores alone, so that it shares all but those and the
    judge, which scores as many real images."""
    store, arguments = tmp_path / "runs", ("--seeds", "1", "--variants", "sgan", "dcgan-adv-cond", "--slots", "1")
    drivers = [start(store, *arguments), start(store, *arguments)]
    drivers.append(start(store, *arguments, "--override", *SMALL[:2], "samples=600", "evaluations=1"))
    seen: dict[str, int] = {}
    deadline = time.monotonic() + 400
    while any(driver.poll() is None for driver in drivers):
        assert time.monotonic() < deadline
        there = {path.parent.name: path.stat().st_ino for path in (store / "stages").glob("*/stage.json")}
        again = {path.name for path in (store / "work").glob("*-*")} & there.keys()
        assert not again, "a finished stage is trained again"
        assert {name: there[name] for name in seen} == seen, "a stage was trained twice"
        seen = there
        time.sleep(0.05)
    outputs = [driver.communicate()[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0, 0], outputs
    assert any("another process trains it" in output for output in outputs)
    assert table(outputs[0]) == table(outputs[1])
    assert len([name for name in stages(store) if not name.startswith("score-")]) == 2 + 1 + 3 + 1
    same = [name for name in scores(store) if name in scores(quiet[0])]
    assert len(same) == 2
    assert len(scores(store)) == 4
    assert {name: scores(store)[name] for name in same} == {name: scores(quiet[0])[name] for name in same}
    found = runs(store)
    assert len(found) == 2 + 2 * 2
    assert {run.info.status for run in found} == {"FINISHED"}
