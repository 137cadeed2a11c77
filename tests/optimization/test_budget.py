"""How many trials a search runs and how long that takes, against what theory says."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.optimization.budget import START, Ahead, Estimate, Limits, confirmations, estimate
from sweeps.optimization.search_options import Search


def test_equal_trials_take_whole_rounds():
    assert [Ahead(count).wall(2.0, 3) - START for count in (1, 3, 4, 7)] == [2.0, 2.0, 4.0, 6.0]


@given(st.floats(2, 1000), st.integers(1, 500))
def test_confirmations_use_about_the_trials_there_are(trials: float, configs: int):
    best, seeds = confirmations(trials, None, None, configs)
    assert 1 <= best <= min(5, configs)
    assert 2 <= seeds <= 5
    assert best * seeds <= max(2, trials)


@pytest.mark.parametrize(
    ("trials", "expected"),
    [(2, (1, 2)), (4, (2, 2)), (6, (3, 2)), (9, (3, 3)), (25, (5, 5)), (300, (5, 5)), (math.inf, (5, 5))],
)
def test_confirmations_are_spread_over_configs_and_seeds(trials: float, expected: tuple[int, int]):
    assert confirmations(trials, None, None, 100) == expected


def test_what_is_asked_for_stands():
    assert confirmations(6, 7, 4, 100) == (7, 4)
    assert confirmations(6, 7, 4, 3) == (3, 4)


def test_seventy_percent_explore():
    for trials in (7, 10, 20, 100, 1000):
        assert Limits(trials, math.inf).explored() == pytest.approx(0.7 * trials, abs=0.5)
    for trials in range(3, 30):  # both phases together are no more than what was asked for
        explored = int(Limits(trials, math.inf).explored())
        best, seeds = confirmations(trials - explored, None, None, explored)
        assert explored >= 1
        assert explored + best * seeds <= trials
    assert math.isinf(Limits(math.inf, 3600.0).explored())


def test_one_split_on_one_slot_takes_the_sum_but_for_the_noise_of_the_estimate():
    found = estimate([6.0], Ahead(10, shared=[6.0, 1.0]), Ahead(6, shared=[1.0]), 1)
    exact = (10 + 2 * 3) * 6.0 + 8.0 + 2 * START
    assert found.median == pytest.approx(exact, rel=0.05)
    # The estimate's noise is log-normal with sigma 0.2: nine in ten lie within 1.645 sigma.
    assert found.low == pytest.approx(exact * math.exp(-0.2 * 1.645), rel=0.07)
    assert found.high == pytest.approx(exact * math.exp(0.2 * 1.645), rel=0.07)


def test_trials_wait_for_what_they_share():
    # With two slots a judge and an encoder are trained side by side, and four encoders in two rounds.
    found = estimate([6.0], Ahead(2, shared=[9.0, 1.0]), Ahead(2, shared=[4.0] * 4), 2)
    assert found.median == pytest.approx(9.0 + 6.0 + 8.0 + 6.0 + 2 * START, rel=0.05)


def test_more_slots_are_faster_and_nothing_to_do_takes_nothing():
    splits = [1e4, 3e4]  # beside which what a start takes is nothing
    walls = [estimate(splits, Ahead(40), Ahead(8), slots).median for slots in (1, 2, 4)]
    assert walls == sorted(walls, reverse=True)
    assert walls[0] / walls[1] == pytest.approx(2.0, rel=0.1)
    assert estimate(splits, Ahead(0), Ahead(0), 2) == Estimate(0.0, 0.0, 0.0)


def test_an_unequal_choice_of_splits_widens_the_interval():
    same, apart = (estimate([2e4, b], Ahead(20), Ahead(9), 1) for b in (2e4, 4e5))
    assert apart.high / apart.low > 2 * same.high / same.low


def test_limits_of_the_options():
    assert Search().limits(1) == Limits(20, math.inf)
    assert Search(hours=2.0).limits(1) == Limits(math.inf, 7200.0)
    assert Search(trials=50, hours=2.0).limits(1) == Limits(50, 7200.0)
    # 12 an hour and GPU, four GPUs, 24 to spend: half an hour.
    assert Search(max_cost=24.0, gpu_hour_price=12.0).limits(4) == Limits(math.inf, 1800.0)
    assert Search(max_cost=24.0, gpu_hour_price=12.0, hours=0.1).limits(4).seconds == 360.0
    assert Search(gpu_hour_price=12.0).limits(4) == Limits(20, math.inf)
