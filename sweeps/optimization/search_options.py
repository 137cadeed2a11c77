"""The options of a search and of its space: weights of losses, the split of the stack, fields of the recipe."""

import json
import re
from dataclasses import dataclass
from itertools import combinations
from operator import attrgetter
from typing import Annotated, Literal

from optuna.distributions import FloatDistribution, IntDistribution
from pydantic import AfterValidator, Field, PositiveFloat

from sgan.checks import ConfigError, one_of, require, validated, with_fields
from sgan.config import INNER_TAPS, Recipe
from sgan.presets import VARIANTS
from sweeps.planning.options import Options, choice, flag

WEIGHTS = ("adversarial", "conditional", "entropy")
NONE, ALL = "none", "all"
SPLITS = {
    "+".join(taps) or NONE: taps for size in range(len(INNER_TAPS) + 1) for taps in combinations(INNER_TAPS, size)
}
"""Every valid subset of taps (layers at which the stack can be cut), from the image up, by name."""


def splits_of(variant: str) -> tuple[str, ...]:
    """Names of the splits that a variant can have."""
    row = VARIANTS[variant].variant
    if not (row.cuts or row.through):
        return (NONE,)
    # A chain has at least two generators; without labels, only the features above condition a level.
    return tuple(name for name in SPLITS if name != NONE or (row.labels and not row.through))


def parse_varied(text: str, recipe: Recipe) -> tuple[str, FloatDistribution | IntDistribution]:
    """The dotted name and the range of FIELD=LOW:HIGH or FIELD=LOW:HIGH:log. ConfigError if it is no numeric field of
    the recipe, or the recipe is not valid at an end of the range."""
    parts = re.fullmatch(r"([^=]*)=([^:]*):([^:]*)(:log)?", text)
    if parts is None:
        raise ConfigError(f"--vary takes FIELD=LOW:HIGH or FIELD=LOW:HIGH:log, but got {text!r}")
    field, *ends, log = parts.groups()
    scoring = field == "samples" or field.startswith("judge.")
    require(not scoring, f"--vary {text}: all configs of a search are scored in one way; set {field} with --override")
    try:
        low, high = map(json.loads, ends)
        require(not {type(low), type(high)} & {bool, str}, f"--vary {text}: both ends must be numbers")
        for end in (low, high):
            recipe = with_fields(recipe, {field: end}, "--vary")
        whole = isinstance(attrgetter(field)(recipe), int)
        return field, (IntDistribution if whole else FloatDistribution)(low, high, log=bool(log))
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:  # of JSON and Optuna
        raise ConfigError(f"--vary {text}: {error}") from error


def _rising(ends: tuple[float, float]) -> tuple[float, float]:
    require(ends[0] <= ends[1], f"the upper end must be at least the lower one, but got {ends[0]:g} {ends[1]:g}")
    return ends


Range = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_rising)]


@dataclass(frozen=True)
class Space:
    """The space to search."""

    variant: Annotated[str, *choice(*VARIANTS)] = "sgan"
    """The variant whose config is searched."""
    splits: Annotated[tuple[str, ...], Field(min_length=1)] = (ALL,)
    """Splits to choose from, such as none, fc3 or pool1+fc3; all: every subset of the taps."""
    adversarial: Range = (0.1, 10.0)
    """Range of the adversarial loss's weight, sampled on a log scale; the same number twice fixes it."""
    conditional: Range = (0.1, 10.0)
    """Range of the conditional loss's weight."""
    entropy: Range = (1.0, 100.0)
    """Range of the entropy loss's weight."""
    zeros: tuple[Annotated[str, one_of(*WEIGHTS)], ...] = ("conditional", "entropy")
    """Weights that may also be zero, at most one of them in a config."""
    vary: tuple[str, ...] = ()
    """Numeric fields of the recipe to search too: FIELD=LOW:HIGH, or FIELD=LOW:HIGH:log."""


@dataclass(frozen=True)
class Budgets:
    """The objective, and the number of trials."""

    objective: Literal["fid", "inception-score"] = "fid"
    """The score to optimise: lowest FID, which leads the tables, or highest Inception score, as in the paper."""
    trials: Annotated[int, Field(ge=3)] = 20
    """About the number of all trials: 70 % explore, the rest confirm the best configs, beside them the default one."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 200)] = 1000
    """The seed for exploring; the next seeds confirm. Another seed is another search."""


@validated(flag)
class Search(Space, Budgets, Options):
    """Search loss weights and stack splits: explore many configs at one seed, then confirm the best on fresh seeds.

    It writes best.yaml into the store, which sweeps/ablation.py --config runs. The same command goes on where it was;
    with more --trials it extends a finished search.

    Examples:

        python sweeps/search.py --dry-run
        python sweeps/search.py --trials 40 --objective inception-score
        python sweeps/search.py --splits fc3 pool1+fc3 --vary gan.image_noise=0:0.5
    """

    def __post_init__(self):
        super().__post_init__()
        possible = splits_of(self.variant)
        for split in self.chosen_splits:
            wanted = f"{self.variant} cannot be split at {split!r}: choose --splits from {', '.join(possible)}"
            require(split in possible, wanted)
        fields = [parse_varied(text, self.some_recipe())[0] for text in self.vary]
        require(len(set(fields)) == len(fields), f"--vary must name a field once, but got {' '.join(fields)}")

    @property
    def chosen_splits(self) -> tuple[str, ...]:
        """The names of the chosen splits, each once; `all` stands for every split of the variant."""
        return splits_of(self.variant) if self.splits == (ALL,) else tuple(dict.fromkeys(self.splits))
