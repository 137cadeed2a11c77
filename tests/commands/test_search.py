"""The search from its command line: Ray, Optuna, the store, MLflow and the table, all real; digits at a tiny budget."""

import json
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import yaml
from command import finished, runs, stages, started
from optuna.trial import TrialState
from optuna_dashboard._storage_url import get_storage

from sgan.command_line import status
from sgan.store.files import read_json
from sweeps import best
from sweeps.search import run

ROOT = Path(__file__).parents[2]
SMALL = ("encoder.images=1280", "judge.images=12800", "samples=500", "evaluations=1")
LEVELS = ("image_level=6400", "feature_level=3200", "gan.adam.learning_rate=2e-3")
# Where few configs collapse, however short they train; the paper's point is among them.
RANGES = ("--adversarial", "0.5", "1", "--conditional", "1", "2", "--entropy", "5", "10", "--zeros")
SPACE = ("--variant", "sgan-no-joint", "--splits", "none", "fc3", *RANGES)
TINY = ("--dataset", "digits", "--slots", "2", *SPACE, "--override", *SMALL, *LEVELS)
TRIALS = ("--trials", "5")


def start(store: Path, *arguments: str) -> subprocess.Popen[str]:
    return started("sweeps/search.py", *TINY, "--store", store, *arguments)


def complete(store: Path, *arguments: str) -> str:
    return finished(start(store, *arguments))


def study(store: Path) -> optuna.Study:
    """The study as optuna-dashboard reads it."""
    (path,) = store.glob("sweeps/*/optuna.log")
    storage = get_storage(str(path), storage_class="JournalFileStorage")
    (found,) = optuna.get_all_study_summaries(storage)
    return optuna.load_study(study_name=found.study_name, storage=storage)


def named(store: Path) -> list[str]:
    """The trials of MLflow's runs."""
    return [run.data.tags["sgan.trial"] for run in runs(store) if "sgan.trial" in run.data.tags]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory) -> tuple[Path, str]:
    """A store after one undisturbed search, and what the search printed."""
    store = tmp_path_factory.mktemp("quiet") / "runs"
    return store, complete(store, *TRIALS)


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_a_search_ends_in_a_confirmed_config(quiet: tuple[Path, str]):
    store, output = quiet
    trials = study(store).trials
    assert [trial.state for trial in trials] == 3 * [TrialState.COMPLETE]
    assert len({json.dumps(trial.params, sort_keys=True) for trial in trials}) == 3
    assert trials[0].params == {  # the paper's point is tried first
        "split": "fc3", "losses": "adv+cond+ent", "adversarial": 1.0, "conditional": 1.0, "entropy": 10.0
    }  # fmt: skip
    assert trials[0].user_attrs["outcome"] in ("done", "collapsed")
    for trial in trials:  # told what the store has
        if trial.user_attrs["outcome"] == "done":
            assert (
                trial.value == read_json(store / "stages" / trial.user_attrs["trial"] / "stage.json")["scores"]["fid"]
            )

    found = runs(store)
    # Three explored, and confirmed on two seeds the best and, where it is another one, the default.
    confirmed = {run.data.tags["variant"] for run in found if run.data.tags.get("phase") == "confirm"}
    assert "config-0" in confirmed
    assert len(named(store)) == len(set(named(store))) == 3 + 2 * len(confirmed) <= 7
    assert {run.info.status for run in found} == {"FINISHED"}
    phases = sorted((run.data.tags["phase"], run.data.tags["seed"]) for run in found if "phase" in run.data.tags)
    fresh = [("confirm", seed) for seed in ("1001", "1002") for _ in confirmed]
    assert phases == [*fresh, *(3 * [("explore", "1000")])]

    rows = [line for line in output.splitlines() if line.startswith("| ")]
    assert len(rows) >= 3 + len(confirmed)  # heading, real data twice; a narrow table breaks its cells
    (page,) = store.glob("sweeps/*/report.html")
    assert f"Report: {page}\n" in output
    assert page.read_text().count("<img") >= 5  # samples and scores
    assert "Predicted" in output

    content = yaml.safe_load((store / "best.yaml").read_text())
    proven, winner = content["provenance"]["confirmed"], f"config-{content['provenance']['trial']}"
    of_winner = [run for run in found if run.data.tags.get("variant") == winner]
    scores = [run.data.metrics["fid"] for run in of_winner if run.data.tags["phase"] == "confirm"]
    assert proven["seeds"] == [1001, 1002]
    assert sorted(proven["fid"]) == sorted(scores)


@pytest.mark.slow
def test_benchmarks_measure_its_plan_and_its_record(quiet: tuple[Path, str]):
    store, _ = quiet
    for name, words, told in (("plan", (*TINY, "--store", store), "| score "), ("tracking", (store,), "passes over")):
        command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *map(str, words)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        assert told in done.stdout


@pytest.mark.slow
def test_the_best_configs_are_listed_with_the_command_that_trains_nothing_again(quiet: tuple[Path, str], capsys):
    store, _ = quiet
    assert best.main(str(store)) == 0
    listed = capsys.readouterr().out
    (command,) = [line[3:] for line in listed.splitlines() if line.startswith("1  ") and "ablation.py" in line]
    words = command.split()
    assert words[1] == "sweeps/ablation.py"
    ran = subprocess.run(
        [sys.executable, str(ROOT / words[1]), *words[2:], "--store", str(store), "--dry-run"],
        capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    assert "2 finished, 0 to run" in ran.stdout


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_more_trials_extend_it_and_train_only_what_is_new(quiet: tuple[Path, str]):
    store, _ = quiet
    before, told = stages(store), [(trial.number, trial.params, trial.value) for trial in study(store).trials]
    output = complete(store, "--trials", "6")
    assert {name: stages(store)[name] for name in before} == before
    after = [(trial.number, trial.params, trial.value) for trial in study(store).trials]
    assert after[:3] == told
    assert len(after) == 4
    assert "3 trials finished" in output
    assert len(named(store)) == len(set(named(store)))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--splits", "fc9"], "fc9"),
        (["--trials", "1"], "--trials"),
        (["--vary", "gan.nothing=0:1"], "gan.nothing"),
        (["--vary", "gan.adam.beta1=0.5:7"], "beta1"),
        (["--override", "joint.nothing=1"], "joint.nothing"),
    ],
)
@pytest.mark.parametrize("dataset", ["auto", "digits"])
def test_a_bad_option_ends_in_status_2_before_ray_starts(
    dataset: str, arguments: list[str], named: str, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["search.py", "--dataset", dataset, *arguments])
    assert status(run) == 2
    said = capsys.readouterr()
    assert named in said.err
    assert "Ray" not in said.out


@pytest.mark.slow
def test_help_imports_neither_torch_nor_ray_nor_mlflow(tmp_path: Path):
    code = "import sys, sweeps.search; print([m for m in ('torch', 'ray', 'mlflow') if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert ended.stdout.strip() == "[]", ended.stderr


@pytest.mark.slow
def test_a_bad_option_ends_without_a_traceback(tmp_path: Path):
    command = [sys.executable, str(ROOT / "sweeps" / "search.py"), "--dataset", "digits", "--splits", "fc9"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert ended.returncode == 2
    assert "fc9" in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
