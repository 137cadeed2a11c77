"""How many trials a search runs and how long that takes, against what theory says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.optimization.phases import START, confirmations, explored, wall


def test_equal_trials_take_whole_rounds():
    assert [wall(count, (), 2.0, 3) - START for count in (1, 3, 4, 7)] == [2.0, 2.0, 4.0, 6.0]
    assert wall(0, (), 2.0, 3) == 0.0


def test_trials_wait_for_what_they_share():
    # With two slots a judge and an encoder are trained side by side, and four encoders in two rounds.
    assert wall(2, [9.0, 1.0], 6.0, 2) == START + 9.0 + 6.0
    assert wall(2, [4.0] * 4, 6.0, 2) == START + 8.0 + 6.0


@given(st.integers(2, 1000), st.integers(1, 500))
def test_confirmations_use_about_the_trials_there_are(trials: int, configs: int):
    best, seeds = confirmations(trials, configs)
    assert 1 <= best <= min(5, configs)
    assert 2 <= seeds <= 5
    assert best * seeds <= max(2, trials)


@pytest.mark.parametrize(
    ("trials", "expected"),
    [(2, (1, 2)), (4, (2, 2)), (6, (3, 2)), (9, (3, 3)), (25, (5, 5)), (300, (5, 5))],
)
def test_confirmations_are_spread_over_configs_and_seeds(trials: int, expected: tuple[int, int]):
    assert confirmations(trials, 100) == expected


def test_seventy_percent_explore():
    for trials in (7, 10, 20, 100, 1000):
        assert explored(trials) == pytest.approx(0.7 * trials, abs=0.5)
    for trials in range(3, 30):  # both phases together are no more than what was asked for
        best, seeds = confirmations(trials - explored(trials), explored(trials))
        assert explored(trials) >= 1
        assert explored(trials) + best * seeds <= trials
