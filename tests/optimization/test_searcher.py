"""A search's first phase as a source of trials, on a scheduler in this process."""

import errno
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from search_runner import Toy, run

from sgan.checks import content_key
from sweeps.optimization.phases import Searcher
from sweeps.optimization.study import Distributions, Outcome

SPACE: Distributions = {"x": FloatDistribution(0.1, 10.0, log=True), "split": CategoricalDistribution(["a", "b"])}
GRID: Distributions = {"x": FloatDistribution(1.0, 1.0), "kind": CategoricalDistribution(list(range(12)))}
FIRST = {"x": 1.0, "split": "a"}


def score(params: Mapping[str, Any]) -> Outcome:
    """A peak at x = 2 that is higher on split b."""
    return Outcome("done", 5.0 - math.log(params["x"] / 2) ** 2 + (params["split"] == "b"))


def searcher(toy: Toy, target: int = 99, first: dict[str, Any] = FIRST) -> Searcher:
    """A command of the same search: all that it knows is the record."""
    toy.first = first
    return Searcher(toy, [*toy.rows.values()], target)  # pyright: ignore[reportArgumentType]


def planned(params: Mapping[str, Any]) -> Outcome | None:
    """Of twelve kinds 3 diverges, 5 collapses and 8 fails."""
    kind = params["kind"]
    wrong = {3: Outcome("diverged", 1.0, "planned"), 5: Outcome("collapsed", 1.0, "one class"), 8: None}
    return wrong.get(kind, Outcome("done", 2.0 + kind))


def test_every_way_to_end_reaches_the_study_as_what_it_was():
    toy = Toy(planned, GRID)
    source = searcher(toy, 12, first={"x": 1.0, "kind": 0})
    assert run(source, toy.end, slots=2) == 12
    written = [trial for trial in source.study.trials if trial.number in toy.rows]
    trials = {trial.params["kind"]: trial for trial in written}
    assert len(trials) == 12  # each config once
    assert len(toy.rows) == 12
    assert source.study.trials[0].params == {"x": 1.0, "kind": 0}
    for kind, tag in {3: "diverged", 5: "collapsed"}.items():
        assert (trials[kind].state, trials[kind].value) == (TrialState.COMPLETE, 1.0)
        assert trials[kind].user_attrs["outcome"] == tag
        assert trials[kind].user_attrs["reason"]
    for kind in (2, 4, 11):
        assert (trials[kind].state, trials[kind].value) == (TrialState.COMPLETE, 2.0 + kind)
        assert trials[kind].user_attrs["outcome"] == "done"
    assert (trials[8].state, trials[8].value) == (TrialState.FAIL, None)
    assert source.failed == 1
    assert trials[8].user_attrs["reason"] == "planned"

    # A config that failed runs again in the next command, under its number, and its good result counts.
    toy.ended.discard(trials[8].number)
    toy.outcomes = lambda params: Outcome("done", 8.5) if params["kind"] == 8 else planned(params)
    again = searcher(toy, 12)
    assert again.ended == 11
    assert [one.variant for one in again.ahead] == [f"config-{trials[8].number}"]
    assert run(again, toy.end) == 1
    found = {trial.params["kind"]: trial for trial in again.study.trials if trial.state != TrialState.FAIL}
    assert (found[8].number, found[8].state, found[8].value) == (trials[8].number, TrialState.COMPLETE, 8.5)
    assert [found[kind].value for kind in range(12) if kind != 8] == [trials[k].value for k in range(12) if k != 8]


def test_a_study_that_is_made_again_from_the_record_suggests_the_same_next_config():
    toy = Toy(score, SPACE)
    source = searcher(toy, target=17)
    suggested = []
    while trial := source.next():
        number = int(trial.variant.removeprefix("config-"))
        suggested.append(toy.rows[number]["params"])
        # A command that was killed here: another one asks for the same config first, and nothing else is open.
        again = searcher(toy, target=17)
        assert len(again.waiting) == 1
        assert again.next() == trial
        # One that was killed before it wrote that config's row.
        rows = toy.rows
        toy.rows = {each: row for each, row in rows.items() if each != number}
        fresh = searcher(toy, target=17)
        assert fresh.next() == trial
        assert toy.rows[number]["params"] == suggested[-1]
        toy.rows = rows
        source.end(trial, *toy.end(trial))
    assert len(suggested) == 17
    assert suggested[0] == FIRST
    assert len({content_key(params) for params in suggested}) == 17


@settings(max_examples=15)
@given(st.integers(1, 6), st.lists(st.integers(0, 5), max_size=4), st.integers(0, 99))
def test_a_search_that_is_stopped_at_any_time_goes_on_with_every_config(slots: int, stops: list[int], seed: int):
    """The record never has more than `slots` configs without an end, and no number is given twice."""
    toy = Toy(score, SPACE)
    for stop in [*stops, math.inf]:
        source = searcher(toy, target=14)
        before = set(source.waiting)
        run(source, toy.end, slots, stop_after=stop, seed=seed)
        assert len(toy.rows.keys() - toy.ended) <= slots
        assert before <= toy.ended or len(source.waiting) + len(source.live) > 0
    assert sorted(toy.rows) == list(range(14)) == sorted(toy.ended)
    study = searcher(toy, target=14).study
    assert [trial.value for trial in study.trials] == [score(trial.params).value for trial in study.trials]
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_a_finite_space_is_used_up():
    toy = Toy(planned, GRID)
    source = searcher(toy, first={"x": 1.0, "kind": 4})
    assert run(source, toy.end) == 12
    assert sorted(row["params"]["kind"] for row in toy.rows.values()) == list(range(12))  # each config once


def test_a_config_whose_outcome_is_known_before_it_starts_counts_like_any_other():
    toy = Toy(score, SPACE)
    toy.ended = set(range(5))  # their stages were trained by another search
    source = searcher(toy, target=7)
    assert run(source, toy.end) == source.ended == 7
    assert [trial.value for trial in source.study.trials] == [score(t.params).value for t in source.study.trials]


def test_a_disk_that_is_full_loses_no_config():
    toy, write = Toy(score, SPACE), Toy.write
    source = searcher(toy, target=3)

    def full(trial) -> None:
        raise OSError(errno.ENOSPC, "full")

    toy.write = full
    for _ in range(3):
        with pytest.raises(OSError, match="full"):
            source.next()
    toy.write = lambda trial: write(toy, trial)
    assert run(source, toy.end) == 3
    assert sorted(toy.rows) == [0, 1, 2]
    assert toy.rows[0]["params"] == FIRST


def test_a_row_that_was_deleted_leaves_the_numbers_of_the_others():
    toy = Toy(score, SPACE)
    run(searcher(toy, target=5), toy.end)
    del toy.rows[2]
    source = searcher(toy, target=6)
    assert [trial.number for trial in source.study.trials if trial.state == TrialState.COMPLETE] == [0, 1, 3, 4]
    assert run(source, toy.end) == 2
    assert sorted(toy.rows) == [0, 1, 3, 4, 5, 6]


def test_a_trial_that_was_stopped_with_the_command_is_asked_again():
    toy = Toy(score, SPACE)
    source = searcher(toy)
    trial = source.next()
    assert trial
    again = searcher(toy)
    assert again.next() == trial
