"""The search from its command line: Ray, Optuna, the store, MLflow and the table, all real; digits at a tiny budget."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import yaml
from mlflow import MlflowClient
from optuna.trial import TrialState
from optuna_dashboard._storage_url import get_storage

from sgan.store import read_json
from sweeps import best

ROOT = Path(__file__).parent.parent
SMALL = ("encoder.images=1280", "scorer.images=12800", "samples=500", "evaluations=1")
TINY = ("--dataset", "digits", "--budget", "0.3", "--slots", "2", "--splits", "none", "fc3", "--override", *SMALL)


def start(store: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "sweeps" / "search.py"), *TINY, "--store", str(store), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def complete(store: Path, *arguments: str) -> str:
    process = start(store, *arguments)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    return output


def stages(store: Path) -> dict[str, float]:
    """Finished stages, and when each was finished."""
    return {path.parent.name: read_json(path)["finished"] for path in (store / "stages").glob("*/stage.json")}


def study(store: Path) -> list[optuna.trial.FrozenTrial]:
    """The study as optuna-dashboard reads it."""
    storage = get_storage(str(store / "optuna.log"), storage_class="JournalFileStorage")
    (found,) = optuna.get_all_study_summaries(storage)
    return optuna.load_study(study_name=found.study_name, storage=storage).trials


def runs(store: Path) -> list:
    client = MlflowClient(tracking_uri=f"sqlite:///{store / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("sgan")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> tuple[Path, str, dict[str, float]]:
    """A store whose search was killed once after its first trial, and went on; what it printed then; and the stages
    that had been finished at the kill."""
    store = tmp_path_factory.mktemp("search") / "runs"
    driver = start(store, "--trials", "5")
    deadline = time.monotonic() + 400
    while not list((store / "stages").glob("score-*/stage.json")):
        assert time.monotonic() < deadline
        assert driver.poll() is None
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate(timeout=60)
    time.sleep(3.0)  # workers notice and end
    kept = stages(store)
    assert TrialState.RUNNING in {trial.state for trial in study(store)}
    return store, complete(store, "--trials", "5"), kept


@pytest.mark.timeout(900)
def test_a_killed_search_goes_on_and_ends_in_a_confirmed_config(killed: tuple[Path, str, dict[str, float]]):
    store, output, kept = killed
    assert {name: stages(store)[name] for name in kept} == kept
    trials = study(store)
    assert [trial.state for trial in trials] == 3 * [TrialState.COMPLETE]
    assert len({json.dumps(trial.params, sort_keys=True) for trial in trials}) == 3
    assert trials[0].params == {  # the paper's point is tried first
        "split": "fc3", "losses": "adv+cond+ent", "adversarial": 1.0, "conditional": 1.0, "entropy": 10.0
    }  # fmt: skip
    assert trials[0].user_attrs["outcome"] in ("done", "collapsed")
    for trial in trials:  # told what the store has
        if trial.user_attrs["outcome"] == "done":
            assert (
                trial.value
                == read_json(store / "stages" / trial.user_attrs["trial"] / "stage.json")["scores"]["inception_score"]
            )

    found = runs(store)
    named = [run.data.tags["sgan.trial"] for run in found if "sgan.trial" in run.data.tags]
    assert len(named) == len(set(named)) == 5  # three explored, one confirmed on two seeds
    assert {run.info.status for run in found} == {"FINISHED"}
    phases = sorted((run.data.tags["phase"], run.data.tags["seed"]) for run in found if "phase" in run.data.tags)
    assert phases == [("confirm", "1001"), ("confirm", "1002"), *(3 * [("explore", "1000")])]
    (parent,) = [run for run in found if "sgan.trial" not in run.data.tags]
    client = MlflowClient(tracking_uri=f"sqlite:///{store / 'mlflow.db'}")
    plots = {Path(file.path).name for file in client.list_artifacts(parent.info.run_id, "plots")}
    assert {"history-inception_score.png", "parallel-inception_score.png"} <= plots

    table = (store / "SEARCH.md").read_text()
    assert table.strip() in output
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) == 3  # heading, the confirmed config, real data: nothing that was only explored
    for name in plots:
        assert any(name in line.replace("%2B", "+") for line in table.splitlines())
    assert all((store / line.split("(")[1][:-1]).exists() for line in table.splitlines() if line.startswith("!["))
    assert "Predicted" in output
    assert "saved" in output

    content = yaml.safe_load((store / "best.yaml").read_text())
    confirmed = content["provenance"]["confirmed"]
    scores = [run.data.metrics["inception_score"] for run in found if run.data.tags.get("phase") == "confirm"]
    assert confirmed["seeds"] == [1001, 1002]
    assert confirmed["inception_score"]["n"] == 2
    assert confirmed["inception_score"]["mean"] == pytest.approx(sum(scores) / 2)
    assert confirmed["inception_score"]["std"] == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)


@pytest.mark.timeout(900)
def test_more_trials_extend_it_and_train_only_what_is_new(killed: tuple[Path, str, dict[str, float]]):
    store, _, _ = killed
    before, told = stages(store), [(trial.number, trial.params, trial.value) for trial in study(store)]
    output = complete(store, "--trials", "6")
    assert {name: stages(store)[name] for name in before} == before
    after = [(trial.number, trial.params, trial.value) for trial in study(store)]
    assert after[:3] == told
    assert len(after) == 4
    assert "3 trials finished" in output
    named = [run.data.tags["sgan.trial"] for run in runs(store) if "sgan.trial" in run.data.tags]
    assert len(named) == len(set(named))


def test_the_best_configs_are_listed_with_the_command_that_trains_nothing_again(
    killed: tuple[Path, str, dict[str, float]], capsys
):
    store, _, _ = killed
    assert best.main(best.Filters(str(store), min_seeds=2)) == 0
    listed = capsys.readouterr().out
    (command,) = [line.split("  ")[1] for line in listed.splitlines() if line.startswith("1  ")]
    words = command.split()
    assert words[:2] == ["python", "sweeps/ablation.py"]
    ran = subprocess.run(
        [sys.executable, str(ROOT / words[1]), *words[2:], "--store", str(store), "--dry-run"],
        capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    assert "2 finished, 0 to run" in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--splits", "fc9"], "fc9"),
        (["--trials", "1"], "--trials"),
        (["--max-cost", "3"], "--gpu-hour-price"),
        (["--study-storage", "nowhere"], "nowhere"),
        (["--vary", "gan.nothing=0:1"], "gan.nothing"),
    ],
)
def test_a_bad_option_ends_in_one_line_and_status_2(arguments: list[str], named: str, tmp_path: Path):
    command = [sys.executable, str(ROOT / "sweeps" / "search.py"), "--dataset", "digits", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert ended.returncode == 2
    assert named in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
