"""How many trials a search runs and how long that takes, against what theory says."""

import dataclasses
import math
from pathlib import Path

import pytest
from conftest import STACK, finish, tiny_plan
from hypothesis import given
from hypothesis import strategies as st

from sgan.stages.graph import name
from sgan.store.local import Store
from sweeps.optimization.budget import Limits, _wall, confirmations, simulate
from sweeps.optimization.phases import still
from sweeps.search import Search

NO_JOINT = dataclasses.replace(STACK, joint=False)
COSTS = st.lists(st.floats(0.1, 100.0), min_size=1, max_size=30)


@given(COSTS, st.integers(1, 8))
def test_wall_time_lies_within_grahams_bounds(costs: list[float], slots: int):
    # Graham 1966: any list schedule takes at most sum/m + (1 - 1/m) max; none takes less than sum/m or max.
    wall = _wall(costs, slots)
    assert wall >= max(sum(costs) / slots, max(costs)) - 1e-6
    assert wall <= sum(costs) / slots + (1 - 1 / slots) * max(costs) + 1e-6
    if slots == 1:
        assert wall == pytest.approx(sum(costs))


def test_equal_trials_take_whole_rounds():
    assert [_wall([2.0] * count, 3) for count in (1, 3, 4, 7)] == [2.0, 2.0, 4.0, 6.0]


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
    estimate = simulate([6.0], [None] * 10, [None] * 6, [[6.0, 1.0], [1.0]], 1)
    exact = (10 + 2 * 3) * 6.0 + 8.0
    assert estimate.median == pytest.approx(exact, rel=0.05)
    # The estimate's noise is log-normal with sigma 0.2: nine in ten lie within 1.645 sigma.
    assert estimate.low == pytest.approx(exact * math.exp(-0.2 * 1.645), rel=0.07)
    assert estimate.high == pytest.approx(exact * math.exp(0.2 * 1.645), rel=0.07)


def test_trials_wait_for_what_they_share():
    # With two slots a scorer and an encoder are trained side by side, and three encoders in two rounds.
    estimate = simulate([6.0], [None] * 2, [None] * 2, [[9.0, 1.0], [4.0, 4.0, 4.0]], 2)
    assert estimate.median == pytest.approx(9.0 + 6.0 + 8.0 + 6.0, rel=0.05)


def test_what_is_known_of_trials_counts_instead_of_the_mean_of_the_splits():
    exact = 10 * 6.0 + (0.0 + 1.5) + 2 * 2.5 + 8.0
    estimate = simulate([6.0], [0.0, 1.5, *[None] * 10], [2.5, 2.5], [[8.0], []], 1)
    assert estimate.median == pytest.approx(exact, rel=0.05)


def test_a_stage_that_the_store_has_or_that_trials_share_costs_once_or_nothing(root: Path):
    store, one, other, fresh = Store(root), tiny_plan(), tiny_plan(variant=NO_JOINT), tiny_plan(seed=1)
    assert [stage.kind for _, stage in one.stages if store.has(name(stage))] == ["scorer", "encoder"]
    price = {"scorer": 1.0, "encoder": 2.0, "level1": 4.0, "level0": 8.0, "joint": 16.0, "score": 32.0}
    ahead = [[(stage, price[label]) for label, stage in each.stages] for each in (one, other, fresh)]
    # The levels of the two variants are the same stages; another seed has an encoder and levels of its own.
    own, shared, saved = still(ahead, store)
    assert own == [4.0 + 8.0 + 16.0 + 32.0, 32.0, 4.0 + 8.0 + 16.0 + 32.0]
    assert shared == [[], [], [2.0]]
    assert saved == (1.0 + 2.0) + (1.0 + 2.0 + 4.0 + 8.0) + 1.0
    assert sum(own) + sum(map(sum, shared)) + saved == sum(cost for each in ahead for _, cost in each)
    finish(one, root)
    assert still(ahead[:1], store) == ([0.0], [[]], sum(price.values()))


def test_more_slots_are_faster_and_nothing_to_do_takes_nothing():
    splits = [1.0, 3.0]
    walls = [simulate(splits, [None] * 40, [None] * 9, [], slots).median for slots in (1, 2, 4)]
    assert walls == sorted(walls, reverse=True)
    assert walls[0] / walls[1] == pytest.approx(2.0, rel=0.1)
    nothing = simulate(splits, [], [], [], 2)
    assert (nothing.median, nothing.low, nothing.high) == (0.0, 0.0, 0.0)


def test_an_unequal_choice_of_splits_widens_the_interval():
    same, apart = (simulate([2.0, b], [None] * 20, [None] * 9, [], 1) for b in (2.0, 40.0))
    assert apart.high / apart.low > 2 * same.high / same.low


def test_limits_of_the_options():
    assert Search().limits(1) == Limits(20, math.inf)
    assert Search(hours=2.0).limits(1) == Limits(math.inf, 7200.0)
    assert Search(trials=50, hours=2.0).limits(1) == Limits(50, 7200.0)
    # 12 an hour and GPU, four GPUs, 24 to spend: half an hour.
    assert Search(max_cost=24.0, gpu_hour_price=12.0).limits(4) == Limits(math.inf, 1800.0)
    assert Search(max_cost=24.0, gpu_hour_price=12.0, hours=0.1).limits(4).seconds == 360.0
    assert Search(gpu_hour_price=12.0).limits(4) == Limits(20, math.inf)
