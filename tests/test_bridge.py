"""The bridge between Optuna and Tune on real Ray workers and real storages, with an objective that fails by plan."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import ray
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray import cloudpickle

from sweeps import schedule
from sweeps.bridge import Outcome, Point, explore, reconcile

ROOT = Path(__file__).parent.parent
SPACE = {"x": FloatDistribution(0.1, 10.0, log=True), "kind": CategoricalDistribution(["a", "b"])}
GRID = {"x": FloatDistribution(1.0, 1.0), "kind": CategoricalDistribution(list(range(12)))}


@pytest.fixture(scope="module")
def slots():
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    schedule.connect()
    yield schedule.slots(2, 1)
    ray.shutdown()


def study_in(folder: Path, **options) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(folder / "study.log")))
    options = {"direction": "maximize", "sampler": optuna.samplers.TPESampler(seed=0)} | options
    return optuna.create_study(storage=storage, study_name="toy", load_if_exists=True, **options)


def reread(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """The study as another process sees it."""
    storage = JournalStorage(JournalFileBackend(str(folder / "study.log")))
    return optuna.load_study(study_name="toy", storage=storage).trials


class Planned:
    """Fails by the trial's kind: the first three kinds are well."""

    def __init__(self, folder: Path):
        self.folder = str(folder)

    def first_time(self, kind: int) -> bool:
        path = Path(self.folder) / f"ran-{kind}"
        path.write_text((path.read_text() if path.exists() else "") + "x")
        return len(path.read_text()) == 1

    def __call__(self, params):
        kind = params["kind"]
        first = self.first_time(kind)
        if kind == 3:
            return math.nan
        if kind == 4:
            return math.inf
        if kind == 5:
            return Outcome(tag="collapsed", reason="one class")
        if kind == 6 and first:
            raise RuntimeError("planned")
        if kind == 7 and first:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == 8:
            raise RuntimeError("always")
        if kind == 9:
            return Outcome(tag="diverged", reason="g_adversarial is nan")
        if kind == 10:
            return -100.0
        return float(kind)


def test_every_way_to_end_reaches_the_study_as_what_it_was(slots, tmp_path: Path):
    study = study_in(tmp_path)
    failed = explore(study, GRID, Planned(tmp_path), 12, slots, tmp_path, floor=[1.0], retries=2)
    trials = {trial.params["kind"]: trial for trial in reread(tmp_path)}
    assert len(trials) == len(reread(tmp_path)) == 12  # each config once
    assert failed == [trials[8].number]
    for kind, tag in {3: "diverged", 4: "diverged", 5: "collapsed", 9: "diverged"}.items():
        assert (trials[kind].state, trials[kind].value) == (TrialState.COMPLETE, 1.0)
        assert trials[kind].user_attrs["outcome"] == tag
        assert trials[kind].user_attrs["reason"]
    for kind in (6, 7, 2, 11):  # what a retry brought counts
        assert (trials[kind].state, trials[kind].value) == (TrialState.COMPLETE, float(kind))
        assert trials[kind].user_attrs["outcome"] == "done"
    assert trials[10].value == 1.0  # no value is worse than the floor
    assert (trials[8].state, trials[8].value) == (TrialState.WAITING, None)
    ran = {path.name: len(path.read_text()) for path in tmp_path.glob("ran-*")}
    assert ran == {f"ran-{kind}": {6: 2, 7: 2, 8: 3}.get(kind, 1) for kind in range(12)}

    # What failed for good runs again in the next run, under its number, and its good result counts.
    assert explore(study, GRID, lambda params: 8.5, 12, slots, tmp_path, floor=[1.0]) == []
    again = {trial.params["kind"]: trial for trial in reread(tmp_path)}
    assert (again[8].number, again[8].state, again[8].value) == (trials[8].number, TrialState.COMPLETE, 8.5)
    assert len(again) == 12
    assert sum(len(path.read_text()) for path in tmp_path.glob("ran-*")) == sum(ran.values())


def climb(params):
    """Scores on the way; bad ones after the first few are stopped early."""
    for step in range(1, 5):
        time.sleep(0.1)
        yield Point(step, params["x"] * step)
    return params["x"] * 5


def test_an_early_stop_is_pruned_with_its_last_score(slots, tmp_path: Path):
    pruner = optuna.pruners.MedianPruner(n_startup_trials=3)
    study = study_in(tmp_path, pruner=pruner)
    for x in (5.0, 6.0, 7.0, 0.2, 0.3, 9.0):
        study.enqueue_trial({"x": x, "kind": "a"})
    one = schedule.slots(1, 1)
    explore(study, SPACE, climb, 6, one, tmp_path, floor=[0.0])
    trials = {trial.params["x"]: trial for trial in reread(tmp_path)}
    assert {x: trial.state.name for x, trial in trials.items() if x < 5} == {0.2: "PRUNED", 0.3: "PRUNED"}
    for x in (0.2, 0.3):
        assert trials[x].value == pytest.approx(x)
        assert trials[x].intermediate_values == {1: pytest.approx(x)}
        assert trials[x].user_attrs["outcome"] == "pruned"
    assert {x: trials[x].value for x in (5.0, 6.0, 7.0, 9.0)} == {5.0: 25.0, 6.0: 30.0, 7.0: 35.0, 9.0: 45.0}


def test_a_finite_space_is_left_when_it_is_used_up_and_known_outcomes_do_not_run(slots, tmp_path: Path):
    study = study_in(tmp_path, sampler=optuna.samplers.RandomSampler(seed=0))
    known = {kind: Outcome((float(kind),)) for kind in range(1, 12)}
    objective = Planned(tmp_path)
    explore(study, GRID, objective, 12, slots, tmp_path, floor=[0.0], known=lambda params: known.get(params["kind"]))
    assert sorted(trial.params["kind"] for trial in reread(tmp_path)) == list(range(12))
    assert [path.name for path in tmp_path.glob("ran-*")] == ["ran-0"]


def test_several_objectives_keep_their_floors(slots, tmp_path: Path):
    study = study_in(tmp_path, direction=None, directions=["maximize", "minimize"])
    objective = lambda params: (params["kind"], math.nan if params["kind"] == 3 else 700.0)  # noqa: E731
    explore(study, GRID, objective, 12, slots, tmp_path, floor=[1.0, 500.0])
    values = {trial.params["kind"]: trial.values for trial in reread(tmp_path)}
    assert values == {kind: [1.0 if kind == 3 else max(1.0, kind), 500.0] for kind in range(12)}


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_bridge as toy
from sweeps import schedule
from sweeps.bridge import explore

def slow(params):
    for _ in range(8):
        time.sleep(0.05)
        yield None
    with open({folder!r} + "/ran", "a") as file:
        file.write(str(params["kind"]) + "\\n")
    return float(params["kind"])

schedule.connect()
explore(toy.study_in(Path({folder!r})), toy.GRID, slow, 12, schedule.slots(2, 1), Path({folder!r}), floor=[0.0])
"""


def test_a_killed_driver_leaves_a_study_that_goes_on(tmp_path: Path):
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    first = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 90
    while not (tmp_path / "ran").exists() or len((tmp_path / "ran").read_text().split()) < 4:
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.05)
    first.kill()
    first.wait()
    states = [trial.state for trial in reread(tmp_path)]
    assert TrialState.RUNNING in states
    done = {trial.number: trial.datetime_complete for trial in reread(tmp_path) if trial.state == TrialState.COMPLETE}
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=120)
    trials = reread(tmp_path)
    assert sorted(trial.params["kind"] for trial in trials) == list(range(12))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert {number: trials[number].datetime_complete for number in done} == done
    assert [trial.value for trial in trials] == [float(trial.params["kind"]) for trial in trials]


def test_a_trial_that_lost_its_worker_before_its_params_were_written_is_asked_again(tmp_path: Path):
    study = study_in(tmp_path)
    study.ask()
    study.ask(SPACE)
    assert reconcile(study) == 2
    assert {trial.state for trial in reread(tmp_path)} == {TrialState.WAITING}
    kept = reread(tmp_path)[1].params
    assert study.ask(SPACE).params.keys() == SPACE.keys()
    assert study.ask(SPACE).params == kept
    assert json.dumps(kept)
