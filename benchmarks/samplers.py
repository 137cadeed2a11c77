"""Does the search's sampler find better configs than random, and does confirming on fresh seeds tell the truth?

python benchmarks/samplers.py [--problems 20] [--evaluations 96] [--json FILE]

A problem has 8 splits x 3 log-lambdas with an optimum that depends on the split, a plateau where a trial collapses, and
noise of the training seed. TPE is that of sweeps/optimization, on the
same problems with the same seeds. Regret: the optimum less the true score of the config that is recommended.
"""

import math
import random
import statistics
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Any

import tyro
from optuna import create_study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import RandomSampler

from sgan.checks import content_key
from sweeps.optimization.study import ask

LAMBDAS = {"adversarial": (0.1, 10.0), "conditional": (0.1, 10.0), "entropy": (1.0, 100.0)}
SPACE: dict[str, BaseDistribution] = {
    "split": CategoricalDistribution([f"split{index}" for index in range(8)]),
    **{name: FloatDistribution(low, high, log=True) for name, (low, high) in LAMBDAS.items()},
}
FLOOR, NOISE, COLLAPSE = 1.0, 0.25, 2.2
"""An Inception score's least value; standard deviation over seeds; distance from a split's optimum, in units of a
lambda's half range, beyond which a trial collapses."""
TOP, SEEDS = 5, 5


@dataclass(frozen=True)
class Problem:
    """A true score over SPACE.

    Attributes:
        heights: split -> its best score.
        optima: split -> where that is, each lambda in [-1, 1] on its log range.
    """

    heights: dict[str, float]
    optima: dict[str, tuple[float, ...]]

    def true(self, params: dict[str, Any]) -> float:
        """The score without noise."""
        place = [2 * math.log(params[name] / low) / math.log(high / low) - 1 for name, (low, high) in LAMBDAS.items()]
        squared = sum((x - y) ** 2 for x, y in zip(place, self.optima[params["split"]], strict=True))
        return FLOOR if squared > COLLAPSE else max(FLOOR, self.heights[params["split"]] - squared)

    def score(self, params: dict[str, Any], noise: random.Random) -> float:
        """What one training seed gives; a collapsed one has no luck."""
        true = self.true(params)
        return FLOOR if true == FLOOR else max(FLOOR, true + noise.gauss(0.0, NOISE))

    @property
    def optimum(self) -> float:
        return max(self.heights.values())


def problem(seed: int) -> Problem:
    """A problem of its own for each seed: heights from 7 to 9, a common optimum that each split shifts."""
    rng = random.Random(seed)
    common = [rng.uniform(-0.6, 0.6) for _ in LAMBDAS]
    names = [f"split{index}" for index in range(8)]
    return Problem(
        {name: rng.uniform(7.0, 9.0) for name in names},
        {name: tuple(max(-1.0, min(1.0, x + rng.gauss(0.0, 0.3))) for x in common) for name in names},
    )


def explore(made: Problem, sampler: str, seed: int, count: int) -> list[tuple[float, dict[str, Any]]]:
    """Scores and configs in the order of their score, best first."""
    noise, taken = random.Random(seed), set[str]()
    study = create_study(direction="maximize", sampler=RandomSampler(seed))
    for _ in range(count):
        tpe = sampler == "tpe"
        trial = ask(study, SPACE, seed, lambda params: content_key(params) not in taken) if tpe else study.ask(SPACE)
        assert trial
        taken.add(content_key(trial.params))
        study.tell(trial, made.score(trial.params, noise))
    return sorted(((trial.value or FLOOR, trial.params) for trial in study.trials), key=lambda pair: -pair[0])


def confirm(made: Problem, found: list[tuple[float, dict[str, Any]]], seed: int) -> tuple[float, dict[str, Any]]:
    """The best mean over fresh seeds among the top configs, and its config."""
    noise = random.Random(seed + 1_000_000)
    means = [(statistics.fmean(made.score(params, noise) for _ in range(SEEDS)), params) for _, params in found[:TOP]]
    return max(means, key=lambda pair: pair[0])


def told(values: list[float]) -> str:
    """Mean ± standard error."""
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values) / math.sqrt(len(values)):.3f}"


def main(
    problems: int = 20,
    evaluations: int = 96,
    samplers: tuple[str, ...] = ("tpe", "random"),
    json: Path | None = None,
) -> None:
    """Compare samplers.

    Args:
        problems: Paired problems, each with a seed of its own.
        evaluations: Trials of a search, those that confirm included.
        samplers: The first is compared with each of the others.
        json: A file for the rows of `make bench`.
    """
    single: dict[str, list[float]] = {}
    confirmed: dict[str, list[float]] = {}
    boast: list[float] = []
    honest: list[float] = []
    for sampler in samplers:
        for seed in range(problems):
            made = problem(seed)
            best = explore(made, sampler, seed, evaluations)[0]
            score, params = confirm(made, explore(made, sampler, seed, evaluations - TOP * SEEDS), seed)
            single.setdefault(sampler, []).append(made.optimum - made.true(best[1]))
            confirmed.setdefault(sampler, []).append(made.optimum - made.true(params))
            if sampler == samplers[0]:
                boast.append(best[0] - made.true(best[1]))
                honest.append(score - made.true(params))
    print(f"{problems} problems, {evaluations} evaluations each; mean regret ± standard error")
    print(f"{'sampler':<10}{'one seed a config':>22}{f'{TOP} confirmed on {SEEDS} seeds':>28}")
    for sampler in samplers:
        print(f"{sampler:<10}{told(single[sampler]):>22}{told(confirmed[sampler]):>28}")
    for other in samplers[1:]:
        for what, regrets in (("one seed a config", single), ("confirmed", confirmed)):
            pairs = list(zip(regrets[samplers[0]], regrets[other], strict=True))
            wins, gain = sum(a < b for a, b in pairs), [b - a for a, b in pairs]
            print(f"{samplers[0]} beats {other} in {wins} of {problems} pairs, by {told(gain)} ({what})")
    print(
        f"{samplers[0]}: the score that is published says too much by {told(boast)} where it is the best single one, "
        f"by {told(honest)} where it is confirmed"
    )
    if json:
        rows = [
            {"benchmark": "samplers", "measure": f"{name}: mean regret", "value": statistics.mean(regrets), "unit": ""}
            for name, regrets in single.items()
        ]
        json.write_text(dumps(rows, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
