"""The bridge between Optuna and Tune on real Ray workers and real storages, with an objective that fails by plan."""

import dataclasses
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import optuna
import pytest
import ray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray import cloudpickle

from sweeps.execution import cluster
from sweeps.execution import scheduler as schedule
from sweeps.optimization.bridge import Outcome, Point, explore, reconcile

ROOT = Path(__file__).parents[2]
SPACE = {"x": FloatDistribution(0.1, 10.0, log=True), "kind": CategoricalDistribution(["a", "b"])}
GRID = {"x": FloatDistribution(1.0, 1.0), "kind": CategoricalDistribution(list(range(12)))}


@pytest.fixture(scope="module")
def slots():
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    cluster.connect()
    yield cluster.slots(2, 1)
    ray.shutdown()


@pytest.fixture
def one(slots) -> schedule.Slots:
    """A worker less to start, where nothing depends on two."""
    return dataclasses.replace(slots, count=1)


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
        if kind == 6:
            return raising_late(first)
        if kind == 7 and first:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == 8:
            raise RuntimeError("always")
        if kind == 11:
            return None if first else 11.0  # no score: it is not tried again in this run
        if kind == 9:
            return Outcome(tag="diverged", reason="g_adversarial is nan")
        if kind == 10:
            return -100.0
        return float(kind)


def test_every_way_to_end_reaches_the_study_as_what_it_was(slots, one, tmp_path: Path):
    study = study_in(tmp_path)
    failed = explore(study, GRID, Planned(tmp_path), 12, slots, tmp_path, floor=[1.0], retries=1)
    trials = {trial.params["kind"]: trial for trial in reread(tmp_path)}
    assert len(trials) == len(reread(tmp_path)) == 12  # each config once
    assert set(failed) == {trials[8].number, trials[11].number}
    for kind, tag in {3: "diverged", 4: "diverged", 5: "collapsed", 9: "diverged"}.items():
        assert (trials[kind].state, trials[kind].value) == (TrialState.COMPLETE, 1.0)
        assert trials[kind].user_attrs["outcome"] == tag
        assert trials[kind].user_attrs["reason"]
    for kind in (6, 7, 2):  # what a retry brought counts
        assert (trials[kind].state, trials[kind].value) == (TrialState.COMPLETE, float(kind))
        assert trials[kind].user_attrs["outcome"] == "done"
    assert trials[10].value == 1.0  # no value is worse than the floor
    for kind in (8, 11):
        assert (trials[kind].state, trials[kind].value) == (TrialState.WAITING, None)
    ran = {path.name: len(path.read_text()) for path in tmp_path.glob("ran-*")}
    assert ran == {f"ran-{kind}": {6: 2, 7: 2, 8: 2}.get(kind, 1) for kind in range(12)}

    # What failed for good runs again in the next run, under its number, and its good result counts.
    assert explore(study, GRID, lambda params: 8.5, 12, one, tmp_path, floor=[1.0]) == []
    again = {trial.params["kind"]: trial for trial in reread(tmp_path)}
    for kind in (8, 11):
        found = again[kind]
        assert (found.number, found.state, found.value) == (trials[kind].number, TrialState.COMPLETE, 8.5)
    assert len(again) == 12
    assert sum(len(path.read_text()) for path in tmp_path.glob("ran-*")) == sum(ran.values())


def climb(params):
    """Scores on the way; bad ones after the first few are stopped early."""
    for step in range(1, 5):
        time.sleep(0.02)
        yield Point(step, params["x"] * step)
    return params["x"] * 5


def test_an_early_stop_is_pruned_with_its_last_score(one, tmp_path: Path):
    pruner = optuna.pruners.MedianPruner(n_startup_trials=3)
    study = study_in(tmp_path, pruner=pruner)
    for x in (5.0, 6.0, 7.0, 0.2, 0.3, 9.0):
        study.enqueue_trial({"x": x, "kind": "a"})
    explore(study, SPACE, climb, 6, one, tmp_path, floor=[0.0])
    trials = {trial.params["x"]: trial for trial in reread(tmp_path)}
    assert {x: trial.state.name for x, trial in trials.items() if x < 5} == {0.2: "PRUNED", 0.3: "PRUNED"}
    for x in (0.2, 0.3):
        assert trials[x].value == pytest.approx(x)
        assert trials[x].intermediate_values == {1: pytest.approx(x)}
        assert trials[x].user_attrs["outcome"] == "pruned"
    assert {x: trials[x].value for x in (5.0, 6.0, 7.0, 9.0)} == {5.0: 25.0, 6.0: 30.0, 7.0: 35.0, 9.0: 45.0}


def both(params):
    yield Point(1, 0.5)
    return params["kind"], math.nan if params["kind"] == 3 else 700.0


def test_several_objectives_keep_their_floors_and_leave_points_out(one, tmp_path: Path):
    study = study_in(tmp_path, direction=None, directions=["maximize", "minimize"], pruner=Broken())
    explore(study, GRID, both, 12, one, tmp_path, floor=[1.0, 500.0])
    values = {trial.params["kind"]: trial.values for trial in reread(tmp_path)}
    assert values == {kind: [1.0 if kind == 3 else max(1.0, kind), 500.0] for kind in range(12)}
    assert all(trial.intermediate_values == {} for trial in reread(tmp_path))


def late(step_score, end):
    yield Point(0, step_score)
    yield {"done": True, "outcome": "done", "values": [-1.0]}  # entries of the result: it has ended when it returns
    return end


def raising_late(first: bool):
    yield Point(1, 5.0)
    if first:
        raise ValueError("planned, late")
    return 6.0


def quits(error: type[BaseException]):
    raise error


ODD_RETURNS = {
    "None": lambda first: None,
    "text": lambda first: "3.5",
    "two values": lambda first: (1.0, 2.0),
    "no values": lambda first: Outcome(),
    "unknown tag": lambda first: Outcome((1.0,), "weird"),
    "beyond a float": lambda first: 10**400,
    "failed": lambda first: Outcome((), "failed", "planned"),
}
ODD_RAISES = {
    "GeneratorExit": lambda first: quits(GeneratorExit),
    "SystemExit": lambda first: quits(SystemExit),
    "point of None": lambda first: late(None, 1.0),
}
WELL = {
    "NaN point": (lambda first: late(math.nan, 2.0), 2.0),
    "late NaN": (lambda first: late(1.0, math.nan), 0.0),
    "list": (lambda first: [4.0], 4.0),
    "hang": (lambda first: time.sleep(1.0) or 6.0, 6.0),
}
ODD = {**ODD_RETURNS, **ODD_RAISES, **{name: made for name, (made, _) in WELL.items()}}


class Odd:
    """Ends as the name of its kind says; notes how often each ran."""

    def __init__(self, folder: Path):
        self.folder = str(folder)

    def __call__(self, params):
        path = Path(self.folder) / params["kind"]
        path.write_text((path.read_text() if path.exists() else "") + "x")
        return ODD[params["kind"]](len(path.read_text()) == 1)


def test_odd_returns_and_exceptions_have_a_clear_end(slots, tmp_path: Path):
    study = study_in(tmp_path)
    space: dict[str, BaseDistribution] = {"kind": CategoricalDistribution(list(ODD))}
    failed = explore(study, space, Odd(tmp_path), 99, slots, tmp_path, floor=[0.0], retries=0)
    trials = {trial.params["kind"]: trial for trial in reread(tmp_path)}
    assert trials.keys() == ODD.keys()
    assert len(reread(tmp_path)) == len(ODD)  # the space is used up long before the count
    ran = {kind: len((tmp_path / kind).read_text()) for kind in ODD}
    for kind in (*ODD_RETURNS, *ODD_RAISES):
        assert trials[kind].state == TrialState.WAITING
        assert trials[kind].number in failed
        assert trials[kind].user_attrs["reason"]
        assert ran[kind] == 1
    assert "returned '3.5'" in trials["text"].user_attrs["reason"]
    for kind, (_, value) in WELL.items():
        assert (trials[kind].state, trials[kind].value) == (TrialState.COMPLETE, value)
    assert trials["late NaN"].user_attrs["outcome"] == "diverged"
    assert len(failed) == len(ODD_RETURNS) + len(ODD_RAISES)


def stubborn(params):
    """Bad where its kind is odd, and goes on when it is closed."""
    try:
        for step in range(100):
            time.sleep(0.05)
            yield Point(step, -1.0 if params["kind"] % 2 else 1.0)
            if not params["kind"] % 2:
                return float(params["kind"])
    finally:
        yield None


def test_a_trial_that_will_not_stop_does_not_harm_the_next_one_of_its_worker(one, tmp_path: Path):
    study = study_in(tmp_path, pruner=optuna.pruners.ThresholdPruner(lower=0.0))
    space: dict[str, BaseDistribution] = {"kind": CategoricalDistribution(list(range(6)))}
    assert explore(study, space, stubborn, 6, one, tmp_path, floor=[-2.0]) == []
    states = {trial.params["kind"]: (trial.state.name, trial.value) for trial in reread(tmp_path)}
    assert {states[kind] for kind in (1, 3, 5)} == {("PRUNED", -1.0)}
    assert {kind: states[kind] for kind in (2, 4)} == {2: ("COMPLETE", 2.0), 4: ("COMPLETE", 4.0)}


class Broken(optuna.pruners.BasePruner):
    def prune(self, study, trial):
        raise ValueError("planned, in the pruner")


def test_a_broken_pruner_ends_the_run_and_nothing_stays_running(slots, one, tmp_path: Path):
    study = study_in(tmp_path, pruner=Broken())
    with pytest.raises(Exception, match="planned, in the pruner"):
        explore(study, SPACE, climb, 6, slots, tmp_path, floor=[0.0])
    states = {trial.state for trial in reread(tmp_path)}
    assert states == {TrialState.WAITING}
    study.pruner = optuna.pruners.NopPruner()
    explore(study, SPACE, lambda params: 1.0, 3, one, tmp_path, floor=[0.0])
    assert {trial.state for trial in reread(tmp_path)} == {TrialState.COMPLETE}


class Stuck(optuna.samplers.RandomSampler):
    """Suggests one config for ever."""

    def sample_independent(self, study, trial, name, distribution):
        return distribution.low if isinstance(distribution, FloatDistribution) else distribution.choices[0]


def test_a_sampler_that_repeats_itself_uses_a_finite_space_up_and_known_outcomes_do_not_run(one, tmp_path: Path):
    study, objective = study_in(tmp_path, sampler=Stuck()), Planned(tmp_path)
    known = {kind: Outcome((float(kind),)) for kind in range(1, 12)}
    explore(study, GRID, objective, 99, one, tmp_path, floor=[0.0], known=lambda params: known.get(params["kind"]))
    trials = reread(tmp_path)
    assert sorted(trial.params["kind"] for trial in trials) == list(range(12))  # each config once
    assert [trial.value for trial in trials] == [float(trial.params["kind"]) for trial in trials]
    assert [path.name for path in tmp_path.glob("ran-*")] == ["ran-0"]


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
