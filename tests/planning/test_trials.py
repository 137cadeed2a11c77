"""The trials of a list: the order in which they start, and those that have ended."""

import shutil
from pathlib import Path

import pytest

from sgan.stages import graph
from sgan.stages.graph import cost, name
from sgan.store.local import Store
from sweeps.planning.ablation import plan_ablation, seconds_left
from sweeps.planning.options import Sweep
from sweeps.planning.trials import ListSource, Trial, config_key, ended, missing


def trials(seeds: int, *variants: str) -> list[Trial]:
    sweep = Sweep(seeds=seeds, variants=variants) if variants else Sweep(seeds=seeds)
    return list(plan_ablation(sweep, gpus=0).trials)


def finish(store: Store, trial: Trial, *labels: str, **facts: str) -> None:
    for label, stage in trial.plan.stages:
        if label in labels or not labels:
            store.begin(name(stage))
            store.publish(name(stage), {"status": "done"} | facts)


def handed_out(source: ListSource) -> list[Trial]:
    return list(iter(source.next, None))


def test_a_config_has_one_key_at_all_seeds_and_another_with_other_code(monkeypatch):
    first, second = trials(2, "sgan")
    assert first.record["config_key"] == second.record["config_key"] == first.plan.name
    monkeypatch.setattr(graph, "code_digest", lambda kind: f"edited {kind}")
    graph.name.cache_clear()
    try:
        assert config_key(first.config) != first.record["config_key"]
    finally:
        graph.name.cache_clear()


def test_the_time_that_is_left_is_that_of_the_stages_that_are_missing(tmp_path: Path):
    """On one slot their sum; on many the longest way of a trial."""
    made, store = plan_ablation(Sweep(seeds=2, variants=("sgan", "sgan-no-joint")), gpus=0), Store(tmp_path)
    stages = {name(stage): cost(stage) for trial in made.trials for _, stage in trial.plan.stages}
    ways = [sum(cost(stage) for _, stage in trial.plan.stages) for trial in made.trials]
    assert seconds_left(made, store, 0.5, 1) == pytest.approx(0.5 * sum(stages.values()))
    assert seconds_left(made, store, 0.5, 100) == pytest.approx(0.5 * max(ways))
    finish(store, made.trials[0], "judge", "encoder")
    done = [cost(stage) for label, stage in made.trials[0].plan.stages if label in ("judge", "encoder")]
    assert seconds_left(made, store, 0.5, 1) == pytest.approx(0.5 * (sum(stages.values()) - sum(done)))


def test_a_list_hands_out_each_trial_once_and_the_longest_way_first(tmp_path: Path):
    some, store = trials(2), Store(tmp_path)
    found = handed_out(ListSource(some, store))
    assert {trial.id for trial in found} == {trial.id for trial in some}
    assert len(found) == len(some) == 12
    ways = [sum(cost(stage) for _, stage in trial.plan.stages) for trial in found]
    assert ways == sorted(ways, reverse=True)
    # Stages that are finished are no part of the way.
    longest = found[0]
    finish(store, longest, *[label for label, _ in longest.plan.stages[:-1]])
    short = handed_out(ListSource(some, store))[-2:]  # the other one shares all but joint training and scores
    assert longest.id in [trial.id for trial in short]


def test_a_list_skips_trials_that_are_done_or_have_diverged(tmp_path: Path):
    store, (done, diverged, fresh) = Store(tmp_path), trials(1, "sgan", "dcgan-adv", "dcgan-adv-ent")
    finish(store, done)
    finish(store, diverged, "level0", status="diverged", reason="the loss is nan")
    source = ListSource([done, diverged, fresh], store)
    assert (source.expected, source.ahead) == (1, [fresh])
    assert source.next() is fresh
    source.end(fresh, "done", "", {})
    assert source.next() is None


def test_a_finished_trial_makes_a_stage_again_that_was_deleted(tmp_path: Path):
    store, (one,) = Store(tmp_path), trials(1, "sgan")
    finish(store, one)
    assert ended(one, store)
    level = dict(one.plan.stages)["level1"]
    shutil.rmtree(store.stage(name(level)))
    assert not ended(one, store)
    assert missing([one], store) == {name(level): level}
