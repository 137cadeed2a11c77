"""The paired statistics against numbers worked out by hand and references written from their definitions."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sgan.store.local import Store
from sweeps.reporting import comparisons
from sweeps.reporting.results import COLUMNS, SCORES, Sweep

Values = Mapping[str, Sequence[float | None]]


def make(root: Path, **scores: Values) -> Sweep:
    """A sweep whose variants have these values by seed: outcome -> variant -> values, None for a seed that failed."""
    names = list(next(iter(scores.values())))
    seeds = range(len(next(iter(next(iter(scores.values())).values()))))
    rows = []
    for name, seed in itertools.product(names, seeds):
        own = {score: values[name][seed] for score, values in scores.items()}
        outcome = "failed" if None in own.values() else "done"
        of = {"trial": f"{name}-{seed}", "variant": name, "seed": seed, "outcome": outcome, "reason": "", "alarm": ""}
        rows.append({**of, **(own if outcome == "done" else {})})
    trials = pd.DataFrame(rows, columns=[*COLUMNS, *SCORES]).astype(dict.fromkeys(SCORES, float))
    variants = [{"name": name, "title": name.upper(), "paper": "", "changes": {}} for name in names]
    return Sweep(Store(root), {"variants": variants}, trials, pd.DataFrame(trials[:0]), {}, {})


def test_a_contrast_against_numbers_worked_out_by_hand(tmp_path):
    sweep = make(tmp_path, fid={"sgan": [2.0, 2.0, 0.0], "other": [1.0, 2.0, 3.0], "half": [4.0, None, 1.0]})
    other, half = comparisons.contrasts(sweep)
    assert (other.variant, other.outcome, other.n, other.mean) == ("other", "fid", 3, pytest.approx(2 / 3))
    # The differences -1, 0, 3 with all signs have the sums 4, 2, -2 and -4, each twice: all are as far from 0 as their
    # own sum, 2.
    assert other.p == 1.0
    # FID: lower is better. Of nine pairs two have the smaller value, and two are equal.
    assert other.better == pytest.approx((2 + 2 / 2) / 9)
    assert (half.n, half.mean, half.p) == (2, pytest.approx(1.5), 0.5)  # seeds 0 and 2: both differences are positive


def test_sign_flips_against_all_of_them():
    rng = np.random.default_rng(0)
    for n in (2, 5, 9):
        values, reference = rng.normal(0.5, 1, n), rng.normal(0, 1, n)
        sums = [np.dot(signs, values - reference) for signs in itertools.product((1, -1), repeat=n)]
        expected = np.mean(np.abs(sums) >= abs(np.sum(values - reference)) - 1e-12)
        assert comparisons.sign_flip(values - reference) == pytest.approx(expected)
    assert comparisons.sign_flip(np.ones(1)) == comparisons.sign_flip(np.zeros(4)) == 1.0


def test_the_interval_of_three_values_by_the_distribution_of_their_resamples():
    # The mean of a resample of 0, 0, 1 is 0 with 8/27, 1/3 with 12/27, 2/3 with 6/27 and 1 with 1/27 = 3.7 %.
    assert comparisons.interval(np.array([0.0, 0.0, 1.0])) == (0.0, 1.0)
    # One of 40 values is not 0: its count is binomial, and at most three in 97.5 % of the resamples.
    assert comparisons.interval(np.eye(40)[0]) == pytest.approx((0.0, 3 / 40))
    assert all(map(math.isnan, comparisons.interval(np.ones(1))))


def test_holms_correction_by_hand():
    # Sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1, which is not below the one before it.
    assert comparisons.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert comparisons.holm([0.5, 0.6]) == [1.0, 1.0]
    assert comparisons.holm([]) == []


def test_the_verdict_says_what_few_seeds_cannot_tell(tmp_path):
    sweep = make(tmp_path, fid={"sgan": [6.0, 7.0, 8.0], "other": [9.0, 10.0, 12.0]})
    told = comparisons.verdict(sweep, comparisons.contrasts(sweep))
    assert told == (
        "SGAN has the lowest mean FID, 7.00; OTHER is 3.33 higher than SGAN on the same 3 seeds (95% interval of the "
        "difference +3.00 to +4.00). With 3 paired seeds no order can be established: 1 comparison needs 6 seeds "
        "(p < 0.05 after Holm's correction)."
    )
    one = make(tmp_path, fid={"sgan": [6.0], "other": [5.0]})
    told = comparisons.verdict(one, comparisons.contrasts(one))
    assert told == (
        "OTHER has the lowest mean FID, 5.00; this is 1.00 lower than SGAN on the same 1 seed (one seed: no interval)"
        ". With 1 paired seed no order can be established: 1 comparison needs 6 seeds (p < 0.05 after Holm's "
        "correction)."
    )
    alone = make(tmp_path, fid={"sgan": [6.0, 7.0]})
    assert "no other row with a common seed" in comparisons.verdict(alone, comparisons.contrasts(alone))
    nothing = make(tmp_path, fid={"sgan": [None, None], "other": [None, None]})
    assert comparisons.contrasts(nothing) == []
    assert comparisons.verdict(nothing, []) == "No trial has finished with a FID. There is nothing to compare."


def test_the_verdict_names_what_ten_seeds_establish(tmp_path):
    rng = np.random.default_rng(0)
    base = rng.normal(10, 1, 10)
    fid = {"sgan": base, "worse": base + rng.uniform(1, 2, 10), "same": base + rng.normal(0, 1, 10), "better": base - 3}
    sweep = make(tmp_path, fid={name: list(values) for name, values in fid.items()})
    found = comparisons.contrasts(sweep)
    assert [each.p for each in found][::2] == [2 / 2**10] * 2
    assert found[0].holm == pytest.approx(3 * 2 / 2**10)
    told = comparisons.verdict(sweep, found)
    assert "this is 3.00 lower than SGAN on the same 10 seeds" in told
    assert told.endswith(
        "Established by FID against SGAN (p < 0.05 after Holm's correction): WORSE worse, BETTER better; for 1 of 3 "
        "rows the seeds establish nothing."
    )


def test_a_judge_that_orders_rows_otherwise_is_named(tmp_path):
    fid = {"sgan": [1.0], "b": [2.0], "c": [3.0]}
    sweep = make(tmp_path, **{"fid": fid, "pixels/fid": {"sgan": [5.0], "b": [4.0], "c": [6.0]}})
    assert comparisons.disagreements(sweep) == [
        "The judges disagree: FID orders 1 of 3 pairs of rows differently in features and in pixels (SGAN / B)."
    ]
    assert comparisons.disagreements(make(tmp_path, **{"fid": fid, "pixels/fid": fid})) == []


def test_weights_at_the_best_evaluation_that_are_worse_beyond_the_seeds_noise_are_named(tmp_path):
    last = {"sgan": [1.0, 3.0], "b": [2.0, 2.0], "c": [1.0, 1.0]}
    best = {"sgan": [2.0, 4.0], "b": [1.0, 2.0], "c": [3.0, 0.5]}
    sweep = make(tmp_path, fid=last, best_fid=best, recall=last, best_recall=best)
    assert comparisons.worse_at_best(sweep, "sgan") == ["FID 3.000 against 2.000"]
    assert comparisons.worse_at_best(sweep, "b") == []
    assert comparisons.worse_at_best(sweep, "c") == []
    one = make(
        tmp_path, fid={"sgan": [1.0]}, best_fid={"sgan": [2.0]}, recall={"sgan": [1.0]}, best_recall={"sgan": [0.5]}
    )
    assert comparisons.worse_at_best(one, "sgan") == ["FID 2.000 against 1.000", "Recall 0.500 against 1.000"]
