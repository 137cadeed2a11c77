"""The options of a search."""

import functools
import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from sgan.checks import require, validated
from sgan.command_line import Group
from sgan.presets import VARIANTS
from sweeps.optimization.budget import Limits
from sweeps.optimization.space import ALL, check, parse_varied, splits_of
from sweeps.planning.options import Options, choice, flag, valid

DEFAULT_TRIALS = 20


@dataclass(frozen=True)
class Space(Group):
    """What may be chosen."""

    variant: Annotated[str, *choice(*VARIANTS)] = "sgan"
    """The variant whose config is searched."""
    splits: tuple[str, ...] = (ALL,)
    """Splits to choose from, such as none, fc3 or pool1+fc3; all: every subset of the taps."""
    adversarial: tuple[float, float] = (0.1, 10.0)
    """Range of the adversarial loss's weight, sampled on a log scale; twice the same number pins it."""
    conditional: tuple[float, float] = (0.1, 10.0)
    """Range of the conditional loss's weight."""
    entropy: tuple[float, float] = (1.0, 100.0)
    """Range of the entropy loss's weight."""
    zeros: tuple[str, ...] = ("conditional", "entropy")
    """Weights that may be zero as well, at most one of them in a config."""
    vary: tuple[str, ...] = ()
    """Numeric fields of the recipe to search too: FIELD=LOW:HIGH, or FIELD=LOW:HIGH:log."""


@dataclass(frozen=True)
class Budgets(Group):
    """What is best, and how much may be tried."""

    objective: Literal["inception-score", "fid", "pareto"] = "inception-score"
    """What is best; pareto: Inception score, FID and diversity (up to that of real data) at once."""
    sampler: Literal["tpe", "gp", "random"] = "tpe"
    """Optuna's sampler."""
    trials: Annotated[int, Field(ge=3)] | None = None
    """Trials in all: about 70 % explore, the rest confirm. Without this, --hours and --max-cost: 20."""
    hours: PositiveFloat | None = None
    """About so many hours of wall time in all, of which the last trial may take a little more."""
    max_cost: PositiveFloat | None = None
    """About this cost in all; needs --gpu-hour-price."""
    gpu_hour_price: PositiveFloat | None = None
    """Price of an hour of one GPU, or of one node where there is no GPU."""
    top: PositiveInt | None = None
    """How many of the best configs are confirmed, beside the default one; without it as many as the budget carries, at
    most 5."""
    confirm_seeds: Annotated[int, Field(ge=2, le=100)] | None = None
    """On how many fresh seeds each; without it 2 to 5, by the budget."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 200)] = 1000
    """The seed that explores; the next ones confirm. Another one is another search."""


@validated(flag)
class Search(Space, Budgets, Options):
    """Search loss weights and stack splits: explore many configs at one seed, then confirm the best on fresh seeds.

    It ends in best.yaml in the store, which sweeps/ablation.py --config runs. The same command goes on where it was;
    with more --trials or --hours a finished search is extended.

    Examples:

        python sweeps/search.py --dry-run
        python sweeps/search.py --trials 40 --objective fid
        python sweeps/search.py --hours 8 --splits fc3 pool1+fc3 --vary gan.image_noise=0:0.5
    """

    def __post_init__(self):
        super().__post_init__()
        require(
            self.max_cost is None or self.gpu_hour_price is not None,
            f"--max-cost {self.max_cost} needs --gpu-hour-price, the price of an hour of one GPU",
        )
        check(self.variant, self.chosen_splits, self.ranges, self.zeros)
        for text in self.vary:
            valid(functools.partial(parse_varied, text, recipe) for recipe in self.recipes())

    @property
    def chosen_splits(self) -> tuple[str, ...]:
        """The splits by name, also where all are chosen."""
        return splits_of(self.variant) if self.splits == (ALL,) else self.splits

    @property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """The range of each weight."""
        return self.adversarial, self.conditional, self.entropy

    def limits(self, units: int) -> Limits:
        """What the search may use where so many GPUs, or nodes without one, are paid for."""
        seconds = math.inf if self.hours is None else self.hours * 3600
        if self.max_cost is not None and self.gpu_hour_price is not None:
            seconds = min(seconds, self.max_cost / (self.gpu_hour_price * units) * 3600)
        trials = self.trials or (DEFAULT_TRIALS if math.isinf(seconds) else math.inf)
        return Limits(trials, seconds)
