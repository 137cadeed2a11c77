"""A search's first phase as a source of trials, on a scheduler in this process."""

import errno
import math
from collections.abc import Mapping
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from search_runner import Toy, run

from sgan.checks import content_key
from sweeps.optimization.objective import Outcome
from sweeps.optimization.searcher import Searcher
from sweeps.optimization.study import SAMPLERS, DistinctSampler, new_study
from sweeps.planning.trials import End

Space = dict[str, BaseDistribution]
SPACE: Space = {"x": FloatDistribution(0.1, 10.0, log=True), "split": CategoricalDistribution(["a", "b"])}
GRID: Space = {"x": FloatDistribution(1.0, 1.0), "kind": CategoricalDistribution(list(range(12)))}
FIRST = {"x": 1.0, "split": "a"}


def score(params: Mapping[str, Any]) -> Outcome:
    """A peak at x = 2 that is higher on split b."""
    return Outcome("done", (5.0 - math.log(params["x"] / 2) ** 2 + (params["split"] == "b"),))


def searcher(
    toy: Toy,
    space: Space = SPACE,
    target: float = 99,
    sampler: str = "tpe",
    first: dict[str, Any] = FIRST,
    ways: tuple[str, ...] = ("maximize",),
) -> Searcher:
    """A command of the same search: all that it knows is the record."""
    distinct = DistinctSampler(SAMPLERS[sampler], 7, space, content_key)
    return Searcher(
        new_study({str(n): way for n, way in enumerate(ways)}, distinct),
        distinct,
        toy,
        [*toy.rows.values()],
        first,
        target,
    )


def planned(params: Mapping[str, Any]) -> Outcome | None:
    """Of twelve kinds 3 diverges, 5 collapses and 8 fails."""
    kind = params["kind"]
    wrong = {3: Outcome("diverged", (1.0,), "planned"), 5: Outcome("collapsed", (1.0,), "one class"), 8: None}
    return wrong.get(kind, Outcome("done", (float(kind),)))


def test_every_way_to_end_reaches_the_study_as_what_it_was():
    toy = Toy(planned)
    source = searcher(toy, GRID, 12, first={"x": 1.0, "kind": 0})
    assert run(source, toy.end, slots=2) == 12
    trials = {trial.params["kind"]: trial for trial in source.study.trials}
    assert len(trials) == len(source.study.trials) == 12  # each config once
    assert source.study.trials[0].params == {"x": 1.0, "kind": 0}
    for kind, tag in {3: "diverged", 5: "collapsed"}.items():
        assert (trials[kind].state, trials[kind].value) == (TrialState.COMPLETE, 1.0)
        assert trials[kind].user_attrs["outcome"] == tag
        assert trials[kind].user_attrs["reason"]
    for kind in (2, 4, 11):
        assert (trials[kind].state, trials[kind].value) == (TrialState.COMPLETE, float(kind))
        assert trials[kind].user_attrs["outcome"] == "done"
    assert (trials[8].state, trials[8].value) == (TrialState.RUNNING, None)  # nothing was told
    assert source.failed == {trials[8].number}
    assert trials[8].user_attrs["reason"] == "planned"

    # A config that failed runs again in the next command, under its number, and its good result counts.
    toy.ended.discard(trials[8].number)
    toy.outcomes = lambda params: Outcome("done", (8.5,)) if params["kind"] == 8 else planned(params)
    again = searcher(toy, GRID, 12)
    assert again.ended == 11
    assert [one.variant for one in again.ahead] == [f"config-{trials[8].number}"]
    assert run(again, toy.end) == 1
    found = {trial.params["kind"]: trial for trial in again.study.trials}
    assert (found[8].number, found[8].state, found[8].value) == (trials[8].number, TrialState.COMPLETE, 8.5)
    assert [found[kind].value for kind in range(12) if kind != 8] == [trials[k].value for k in range(12) if k != 8]


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_a_study_that_is_made_again_from_the_record_suggests_the_same_next_config(sampler: str):
    toy = Toy(score)
    source = searcher(toy, target=17, sampler=sampler)
    suggested = []
    while trial := source.next():
        number = int(trial.variant.removeprefix("config-"))
        suggested.append(toy.rows[number]["params"])
        # A command that was killed here: another one asks for the same config first, and nothing else is open.
        again = searcher(toy, target=17, sampler=sampler)
        assert len(again.waiting) == 1
        assert again.next() == trial
        # One that was killed before it wrote that config's row.
        rows = toy.rows
        toy.rows = {each: row for each, row in rows.items() if each != number}
        fresh = searcher(toy, target=17, sampler=sampler)
        assert fresh.next() == trial
        assert toy.rows[number]["params"] == suggested[-1]
        toy.rows = rows
        source.end(trial, toy.end(trial))
    assert len(suggested) == 17
    assert suggested[0] == FIRST
    assert len({content_key(params) for params in suggested}) == 17


@settings(max_examples=15)
@given(st.integers(1, 6), st.lists(st.integers(0, 5), max_size=4), st.integers(0, 99))
def test_a_search_that_is_stopped_at_any_time_goes_on_with_every_config(slots: int, stops: list[int], seed: int):
    """The record never has more than `slots` configs without an end, and no number is given twice."""
    toy = Toy(score)
    for stop in [*stops, math.inf]:
        source = searcher(toy, target=14, sampler="random")
        before = set(source.waiting)
        run(source, toy.end, slots, stop_after=stop, seed=seed)
        assert len(toy.rows.keys() - toy.ended) <= slots
        assert before <= toy.ended or len(source.waiting) + len(source.live) > 0
    assert sorted(toy.rows) == list(range(14)) == sorted(toy.ended)
    study = searcher(toy, target=14).study
    assert [trial.value for trial in study.trials] == [score(trial.params).values[0] for trial in study.trials]
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}

    def sample_independent(self, study, trial, param_name, param_distribution):
        assert isinstance(param_distribution, FloatDistribution | CategoricalDistribution)
        single = isinstance(param_distribution, FloatDistribution)
        return param_distribution.low if single else param_distribution.choices[0]


class Stuck(optuna.samplers.RandomSampler):
    """Suggests one config for ever."""

    def sample_independent(self, study, trial, param_name, param_distribution):
        assert isinstance(param_distribution, FloatDistribution | CategoricalDistribution)
        single = isinstance(param_distribution, FloatDistribution)
        return param_distribution.low if single else param_distribution.choices[0]


def test_a_sampler_that_repeats_itself_uses_a_finite_space_up():
    toy, distinct = Toy(planned), DistinctSampler(lambda seed: Stuck(seed), 0, GRID, content_key)
    source = Searcher(new_study({"s": "maximize"}, distinct), distinct, toy, [], {"x": 1.0, "kind": 4})
    assert run(source, toy.end) == 12
    trials = [trial for trial in source.study.trials if trial.state != TrialState.FAIL]
    assert sorted(trial.params["kind"] for trial in trials) == list(range(12))  # each config once


def test_a_config_whose_outcome_is_known_does_not_run():
    toy = Toy(score)
    toy.ended = set(range(5))  # their stages were trained by another search
    source = searcher(toy, target=7)
    assert run(source, toy.end) == 2
    assert [trial.value for trial in source.study.trials] == [score(t.params).values[0] for t in source.study.trials]


def test_a_disk_that_is_full_loses_no_config():
    toy, write = Toy(score), Toy.write
    source = searcher(toy, target=3, sampler="random")

    def full(row) -> None:
        raise OSError(errno.ENOSPC, "full")

    toy.write = full
    for _ in range(3):
        with pytest.raises(OSError, match="full"):
            source.next()
    toy.write = lambda row: write(toy, row)
    assert run(source, toy.end) == 3
    assert sorted(toy.rows) == [0, 1, 2]
    assert toy.rows[0]["params"] == FIRST


def test_a_row_that_was_deleted_leaves_the_numbers_of_the_others():
    toy = Toy(score)
    run(searcher(toy, target=5), toy.end)
    del toy.rows[2]
    source = searcher(toy, target=6)
    assert [trial.number for trial in source.study.trials if trial.state == TrialState.COMPLETE] == [0, 1, 3, 4]
    assert run(source, toy.end) == 1
    assert sorted(toy.rows) == [0, 1, 3, 4, 5]


def test_no_config_begins_for_which_there_is_no_time():
    toy = Toy(score)
    source = searcher(toy)
    one, other = source.next(), source.next()
    assert one
    assert other
    toy.time = False
    assert source.next() is None
    assert source.exhausted()
    toy.time = True  # what is over stays over
    assert source.exhausted()
    for trial in (one, other):
        source.end(trial, toy.end(trial))
    assert len(toy.rows) == 2


def test_a_trial_that_was_stopped_with_the_command_is_asked_again():
    toy = Toy(score)
    source = searcher(toy)
    trial = source.next()
    assert trial
    source.end(trial, End("stopped"))
    assert source.failed == set()
    again = searcher(toy)
    assert again.next() == trial
