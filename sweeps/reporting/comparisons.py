"""Differences of each variant of a sweep to a reference, paired by seed, and their uncertainty.

Contrasts are fixed before any run is made: every variant against the sweep's reference, by `results.OUTCOMES`. Sources:
Agarwal et al. 2021 (intervals, probability of improvement), Holm 1979.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from sgan.evaluation.measures import BEST, MEASURES
from sweeps.reporting.results import OUTCOMES, Sweep

PIXELS = "pixels/"
SURE = 0.05
FLIPS = 9_999  # The sign-flip test is exact up to 13 seeds, with 2^13 flips; beyond that it draws this many
METHOD = (
    "Differences are paired by seed. Interval: 95% percentile bootstrap of the mean; with fewer than about ten seeds "
    "it is too narrow. p: two-sided sign-flip test of the mean difference (exact up to 13 seeds, beyond that 9,999 "
    "random flips); p (Holm): corrected for all contrasts of this table. P(better): probability that a seed of the row "
    "beats a seed of the reference; a tie counts half."
)


class Contrast(NamedTuple):
    """A variant against the reference by one outcome, on the n seeds that both have: the mean of the variant minus the
    reference, its 95% interval (NaN with one seed), two-sided p, the probability that the variant is better, and p
    corrected for all contrasts."""

    variant: str
    outcome: str
    n: int
    mean: float
    low: float
    high: float
    p: float
    better: float
    holm: float


def contrasts(sweep: Sweep) -> list[Contrast]:
    """Every variant against the reference, by every outcome that both have on a common seed."""
    found = []
    for outcome, variant in itertools.product(sweep.outcomes, sweep.titles):
        mine, other = (sweep.of(name).set_index("seed")[outcome].dropna() for name in (variant, sweep.reference))
        seeds = [seed for seed in mine.index if seed in other.index]
        if variant != sweep.reference and seeds:
            values, reference = np.array(mine[seeds]), np.array(other[seeds])
            numbers = (values - reference).mean(), *interval(values - reference), sign_flip(values - reference)
            sign = 1 if MEASURES[outcome].better == "higher" else -1
            better = np.mean(np.sign(sign * np.subtract.outer(values, reference)) + 1) / 2
            found.append((variant, outcome, len(seeds), *map(float, (*numbers, better))))
    corrected = holm([each[6] for each in found])
    return [Contrast(*each, holm=p) for each, p in zip(found, corrected, strict=True)]


def sign_flip(differences: np.ndarray) -> float:
    """Two-sided p of the mean of paired differences (n,), by flipping their signs; 1 for a single difference."""
    if len(differences) < 2:
        return 1.0
    options: Any = {"permutation_type": "samples", "n_resamples": FLIPS, "rng": 0}
    return float(stats.permutation_test((differences,), np.mean, vectorized=True, **options).pvalue)


def interval(values: np.ndarray) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean of values (n,), deterministic; NaN for one value."""
    if len(values) < 2:
        return float("nan"), float("nan")
    found = stats.bootstrap((values,), np.mean, method="percentile", rng=0).confidence_interval
    return float(found.low), float(found.high)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the i-th smallest of m values times m - i + 1, never falling, at most 1."""
    order, m = np.argsort(p, kind="stable"), len(p)
    corrected = np.empty(m)
    corrected[order] = np.maximum.accumulate(np.asarray(p)[order] * np.arange(m, 0, -1)).clip(max=1.0)
    return corrected.tolist()


def verdict(sweep: Sweep, found: Sequence[Contrast]) -> str:
    """The answer in two sentences: which row leads and by how much, and what the seeds can establish."""
    measure, titles, means = MEASURES[sweep.leading], sweep.titles, sweep.ranking
    heading, digits, reference = measure.heading, measure.decimals, sweep.reference_title
    if not means:
        return f"No trial has finished with a {heading}. There is nothing to compare."
    leader = next(iter(means))
    text = f"{titles[leader]} has the {measure.better[:-2]}est mean {heading}, {means[leader]:.{digits}f}"
    leading = {each.variant: each for each in found if each.outcome == sweep.leading}
    if not leading:
        return f"{text}. There is no other row with a common seed to compare it with."
    nearest = leading[next(name for name in means if name in leading)]
    size = f"{abs(nearest.mean):.{digits}f} {'higher' if nearest.mean > 0 else 'lower'}"
    of = f"{'this' if nearest.variant == leader else titles[nearest.variant]} is {size} than {reference}"
    text += f"; {of} on the same {nearest.n} seed{'s' * (nearest.n > 1)} ({said(nearest)}). "
    seeds = max(each.n for each in leading.values())
    needed = math.ceil(math.log2(2 * len(found) / SURE))  # seeds at which the least p of the test, 2 / 2^n, will do
    if seeds < needed:
        paired = f"With {seeds} paired seed{'s' * (seeds > 1)} no order can be established"
        them = "1 comparison needs" if len(found) == 1 else f"{len(found)} comparisons need"
        return f"{text}{paired}: {them} {needed} seeds (p < {SURE} after Holm's correction)."
    sure = {name: (each.mean > 0) == (measure.better == "higher") for name, each in leading.items() if each.holm < SURE}
    told = ", ".join(f"{titles[name]} {'better' if improves else 'worse'}" for name, improves in sure.items())
    told = f"Established by {heading} against {reference} (p < {SURE} after Holm's correction): {told or 'nothing'}"
    open_rows = len(leading) - len(sure)
    return f"{text}{told}{f'; for {open_rows} of {len(leading)} rows the seeds establish nothing' * (open_rows > 0)}."


def said(contrast: Contrast) -> str:
    digits = MEASURES[contrast.outcome].decimals
    if contrast.n < 2:
        return "one seed: no interval"
    low, high = (f"{bound:+.{digits}f}" for bound in (contrast.low, contrast.high))
    p = "" if 2 / 2**contrast.n > SURE else f", p {p_value(contrast.holm)}"  # with so few seeds it could not be small
    return f"95% interval of the difference {low} to {high}{p}"


def p_value(p: float) -> str:
    """A p value, as "= 0.031" or "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"= {p:.2g}"


def disagreements(sweep: Sweep) -> list[str]:
    """A line for each outcome by which pixels, the judge that needs no training, order two rows the other way."""
    lines = []
    for outcome in (each for each in OUTCOMES if PIXELS + each in MEASURES):
        names = (outcome, PIXELS + outcome)
        means = {title: [sweep.summary[name][each, "mean"] for each in names] for name, title in sweep.titles.items()}
        pairs = list(itertools.combinations([title for title, each in means.items() if np.isfinite(each).all()], 2))
        swapped = [f"{a} / {b}" for a, b in pairs if np.prod(np.subtract(means[a], means[b])) < 0]
        if swapped:
            few = ", ".join(swapped[:4]) + ", …" * (len(swapped) > 4)
            lines.append(
                f"The judges disagree: {MEASURES[outcome].heading} orders {len(swapped)} of {len(pairs)} pairs of rows "
                f"differently in features and in pixels ({few})."
            )
    return lines


def worse_at_best(sweep: Sweep, variant: str) -> list[str]:
    """The outcomes, in words, by which a variant's weights at the best evaluation are worse than its last: those whose
    95% interval of the difference, paired by seed, excludes 0; of one seed, which has none, any that are worse."""
    found = []
    for outcome in OUTCOMES:
        last, best = sweep.of(variant)[[outcome, BEST + outcome]].dropna().to_numpy(float).T
        if not len(last):
            continue
        low, high = interval(best - last) if len(last) > 1 else (best - last).tolist() * 2
        if low > 0 if MEASURES[outcome].better == "lower" else high < 0:
            digits = MEASURES[outcome].decimals + 1  # an established difference may be small
            found.append(f"{MEASURES[outcome].heading} {best.mean():.{digits}f} against {last.mean():.{digits}f}")
    return found
