"""Both phases of a search on real SGANs, trained in this process; digits at a tiny budget."""

import dataclasses
import shutil
from pathlib import Path

import optuna
import pytest
import tyro
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from search_runner import train

from sgan.checks import ConfigError
from sgan.data.batches import Data
from sgan.stages.cost import recorded_rate, seconds_per_unit
from sgan.stages.graph import ClassifierStage, JudgeStage, cost, name, plan
from sgan.store.s3 import open_store
from sweeps.optimization.phases import START, Searcher, SearchRun
from sweeps.optimization.search_options import Search
from sweeps.planning import manifest
from sweeps.planning.basis import prepare
from sweeps.planning.trials import ListSource

ORIGIN = {"command": "python sweeps/search.py", "commit": "abc", "machine": "here"}
LEARNT = ("encoder.images=1280", "judge.images=12800", "samples=500", "image_level=6400", "feature_level=3200")
LEARNT += ("gan.adam.learning_rate=2e-3", "evaluations=1")  # few configs collapse
BASE = ("--dataset", "digits", "--variant", "sgan-no-joint")
SEARCH = (*BASE, "--splits", "none", "fc3", "--adversarial", "0.5", "1", "--conditional", "1", "2", "--zeros")
SEARCH += ("--entropy", "5", "10", "--trials", "5")


def search_run(store: Path, *options: str) -> SearchRun:
    """A command of a search, up to its plan."""
    search = tyro.cli(Search, args=[*options, "--store", str(store), "--override", *LEARNT])
    basis = prepare(search, 0)
    return SearchRun(search, basis, open_store(search.store), 1)


def begin(run: SearchRun) -> None:
    manifest.write(run.store, run.record(ORIGIN))
    run.copy_study()


def explored(run: SearchRun, data: Data, stop_after: float = float("inf")) -> Searcher:
    """The first phase."""
    searcher = run.replay()
    run.plan(lambda: 1e-4)
    begin(run)
    train(searcher, run.store, data, stop_after)
    assert len(searcher.taken) <= searcher.target
    return searcher


def stored(run: SearchRun) -> list[optuna.trial.FrozenTrial]:
    """The study as another process sees it."""
    storage = JournalStorage(JournalFileBackend(str(run.study_path)))
    return optuna.load_study(study_name=run.name, storage=storage).trials


@pytest.fixture(scope="module")
def searched(tmp_path_factory, digits: Data) -> Path:
    """A store in which a first command was stopped after two configs, and a second one has explored all."""
    store = tmp_path_factory.mktemp("searched")
    first = explored(search_run(store, *SEARCH), digits, 2)
    assert (first.ended, len(first.live)) == (2, 1)
    run = search_run(store, *SEARCH)
    run.study_path.unlink()
    second = explored(run, digits)
    assert second.ended == len(second.taken) == 3
    return store


@pytest.mark.slow
def test_a_search_that_was_stopped_goes_on_as_it_would_have(searched: Path, tmp_path: Path, digits: Data):
    for path in (searched / "stages").glob("[je][un]*"):  # its judge and encoder, which are no part of the search
        shutil.copytree(path, tmp_path / "stages" / path.name)
    whole = explored(search_run(tmp_path, *SEARCH), digits).study.trials
    run = search_run(searched, *SEARCH)
    again = run.replay().study.trials
    assert [(t.params, t.values, t.user_attrs) for t in again] == [(t.params, t.values, t.user_attrs) for t in whole]
    assert [(t.params, t.values, t.state) for t in stored(run)] == [(t.params, t.values, t.state) for t in whole]
    assert whole[0].params == {  # the paper's point is tried first
        "split": "fc3", "losses": "adv+cond+ent", "adversarial": 1.0, "conditional": 1.0, "entropy": 10.0
    }  # fmt: skip
    for trial in whole:  # told what the store has
        scores = run.store.facts(trial.user_attrs["trial"])["scores"]
        assert trial.value == (scores["fid"] if trial.user_attrs["outcome"] == "done" else 500.0)


@pytest.mark.slow
def test_the_best_is_confirmed_on_fresh_seeds(searched: Path, digits: Data):
    run = search_run(searched, *SEARCH)
    run.replay()
    made = run.plan(lambda: 0.0)
    begin(run)
    confirmed = run.best(made.best, made.seeds)
    winner, *others = [one.record["number"] for one in confirmed if one.seed == 1001]
    assert [one.seed for one in confirmed] == [seed for seed in (1001, 1002) for _ in (winner, *others)]
    assert winner == 0 or others == [0]  # the default beside the best
    source = ListSource(confirmed, run.store, lambda: run.write(*confirmed))
    assert train(source, run.store, digits)
    best = run.write_best(confirmed, ORIGIN)
    assert best
    content = yaml.safe_load(best.read_text())
    number = content["provenance"]["trial"]
    chosen = [one for one in confirmed if one.record["number"] == number]
    outcomes = {one.record["title"]: run.outcome(one.record) for one in confirmed if one not in chosen}
    wrong = [title for title, outcome in outcomes.items() if not outcome or outcome.tag != "done"]
    assert run.chosen.startswith(f"Best: {chosen[0].record['title']}.")
    assert [title for title in outcomes if f"{title} has " in run.chosen] == wrong
    scores = [run.store.facts(one.plan.name)["scores"]["fid"] for one in chosen]
    found = content["provenance"]["confirmed"]
    assert found["seeds"] == [1001, 1002]
    assert found["fid"] == scores
    record = manifest.read(run.store, run.key)
    assert sorted((row["phase"], row["seed"]) for row in record["trials"]) == [
        *(("confirm", one.seed) for one in confirmed), *(3 * [("explore", 1000)])
    ]  # fmt: skip
    assert record["score"] == "fid"
    manifest.write(run.store, run.record(ORIGIN))
    shares = manifest.read(run.store, run.key)["importance"]
    assert shares.keys() <= run.space.distributions.keys()
    assert all(0 <= share <= 1 for each in shares.values() for share in each)

    # What it would take now is nothing; more trials extend it.
    def planned(*more: str) -> tuple[SearchRun, Searcher]:
        run = search_run(searched, *SEARCH[:-1], *more)
        return run, run.replay()

    run, searcher = planned("5")
    done = run.plan(lambda: 0.0)
    assert done.seconds == 0.0
    assert run.best(done.best, done.seeds) == confirmed
    run, searcher = planned("6")
    assert (searcher.ended, searcher.target) == (3, 4)
    assert run.plan(lambda: 0.0).seconds > 0
    run, searcher = planned("1000000")
    assert searcher.target == 700_000
    assert run.plan(lambda: 0.0).seconds > 1e5


def test_the_judges_count_once_in_the_predicted_time_and_an_encoder_once_for_each_seed(tmp_path: Path):
    """With one slot the time is the sum of all work."""
    run = search_run(tmp_path / "runs", *SEARCH[:-1], "12")
    target = run.replay().target
    made = run.plan(lambda: 1.0)
    stages = [stage for config in run.templates.values() for _, stage in plan(config).stages]
    costs = {
        kind: sum(cost(each) for each in set(stages) if isinstance(each, kind))
        for kind in (ClassifierStage, JudgeStage)
    }
    own = sum(cost(each) for each in stages if not isinstance(each, ClassifierStage | JudgeStage)) / len(run.templates)
    explored, confirmed = target, (made.best + 1) * made.seeds
    expected = 2 * START + costs[JudgeStage] + (1 + made.seeds) * costs[ClassifierStage] + (explored + confirmed) * own
    assert costs[JudgeStage] > 0
    assert made.seconds == pytest.approx(expected)


def test_a_batch_to_vary_that_is_larger_than_the_data_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"--vary: .*at most the 1347 .*gan.batch=2000; give gan.batch"):
        search_run(tmp_path, *SEARCH, "--vary", "gan.batch=64:2000")


def test_a_dry_run_writes_nothing(searched: Path, tmp_path: Path):
    before = {path: path.stat().st_mtime_ns for path in searched.rglob("*")}
    run = search_run(searched, *SEARCH)
    run.replay()
    run.plan(lambda: 0.0)
    search = tyro.cli(Search, args=[*SEARCH, "--store", str(tmp_path / "none")])
    basis = prepare(search, 0)
    fresh = SearchRun(search, basis, open_store(str(tmp_path / "fresh")), 2)
    fresh.replay()
    made = fresh.plan(lambda: 1e-4)
    assert made.seconds > 0
    assert {path: path.stat().st_mtime_ns for path in searched.rglob("*")} == before
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_cost_of_a_config_times_the_measured_seconds_of_a_unit_is_about_its_time(searched: Path, digits: Data):
    run = search_run(searched, *SEARCH)
    config = run.templates["fc3"]
    stages = {stage for split in run.templates.values() for _, stage in plan(split).stages}
    have = [stage for stage in stages if run.store.has(name(stage))]
    seconds = sum(run.store.facts(name(stage))["seconds"] for stage in have)
    rate = recorded_rate(run.store, stages)
    assert rate
    assert rate * sum(map(cost, have)) == pytest.approx(seconds)
    absent = dataclasses.replace(plan(config).score.levels[0], seed=9)
    assert recorded_rate(run.store, [absent]) is None
    measured = seconds_per_unit(config, digits, "cpu")
    assert 0.05 < measured / rate < 20  # this machine may have other work meanwhile
