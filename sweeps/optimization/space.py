"""What a search may choose: the stack's split, the loss weights, and any numeric field of the recipe.

A split is one categorical over the subsets of taps, since lambdas that are shared by all splits are learned faster than
lambdas of each. Weights are on a log scale; that a loss is left out (weight 0) is a choice of the categorical `losses`.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from sgan.checks import ConfigError, with_fields
from sgan.config import INNER_TAPS, Config, Recipe, Weights
from sgan.presets import VARIANTS, configure
from sweeps.planning.options import DEFAULT_CUTS

WEIGHTS = ("adversarial", "conditional", "entropy")
SHORT = {"adversarial": "adv", "conditional": "cond", "entropy": "ent"}
NONE, ALL = "none", "all"
SPLITS = {
    "+".join(taps) or NONE: taps for size in range(len(INNER_TAPS) + 1) for taps in combinations(INNER_TAPS, size)
}
"""Every valid subset of taps, from the image up, by name."""


def splits_of(variant: str) -> tuple[str, ...]:
    """Names of the splits that a variant can have."""
    row = VARIANTS[variant].variant
    if not (row.cuts or row.through):
        return (NONE,)
    # A chain of generators has at least two; without labels only the features above give a level its condition.
    return tuple(name for name in SPLITS if name != NONE or (row.labels and not row.through))


Varied = tuple[str, FloatDistribution | IntDistribution]
"""A numeric field of the recipe, by its dotted name, and its range."""


def parse_varied(text: str, recipe: Recipe) -> Varied:
    """A field to vary from FIELD=LOW:HIGH or FIELD=LOW:HIGH:log; ConfigError where it is no numeric field of the
    recipe, or the recipe is not valid at an end."""
    parts = re.fullmatch(r"([^=]*)=([^:]*):([^:]*)(:log)?", text)
    if parts is None:
        raise ConfigError(f"--vary takes FIELD=LOW:HIGH or FIELD=LOW:HIGH:log, but got {text!r}")
    field, *ends, log = parts.groups()
    try:
        low, high = map(json.loads, ends)
        for end in (low, high):
            recipe = with_fields(recipe, {field: end}, "--vary")
        whole = isinstance(functools.reduce(getattr, field.split("."), recipe), int)
        return field, (IntDistribution if whole else FloatDistribution)(low, high, log=bool(log))
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:  # of JSON and Optuna
        raise ConfigError(f"--vary {text}: {error}") from error


@dataclass(frozen=True)
class Space:
    """The search space of one variant; its parts are checked as options (`search_options.Search`).

    Attributes:
        variant: row of VARIANTS.
        template: a config of it; all that the search does not choose is as in this one.
        recipe: the recipe before a variant's own needs.
        splits: names of SPLITS.
        ranges: low and high of each weight, in the order of WEIGHTS.
        zeros: weights that may be zero, at most one of them in a config.
        varied: fields of the recipe.
    """

    variant: str
    template: Config
    recipe: Recipe
    splits: tuple[str, ...]
    ranges: tuple[tuple[float, float], ...]
    zeros: tuple[str, ...]
    varied: tuple[Varied, ...]

    @property
    def weights(self) -> tuple[str, ...]:
        """The weights that the variant has."""
        row = VARIANTS[self.variant].variant.weights
        return tuple(name for name in WEIGHTS if getattr(row, name) > 0)

    @property
    def losses(self) -> dict[str, tuple[str, ...]]:
        """The choices of which losses there are: name -> weights that are not zero."""
        present = self.weights
        dropped = [(), *((name,) for name in self.zeros if name in present and len(present) > 1)]
        kept = [tuple(name for name in present if name not in out) for out in dropped]
        return {"+".join(SHORT[name] for name in names): names for names in kept}

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Name -> Optuna's distribution; every config has all of them."""
        found: dict[str, BaseDistribution] = {
            "split": CategoricalDistribution(self.splits),
            "losses": CategoricalDistribution(tuple(self.losses)),
        }
        for name, (low, high) in zip(WEIGHTS, self.ranges, strict=True):
            if name in self.weights:
                found[name] = FloatDistribution(low, high, log=True)
        return found | dict(self.varied)

    def known_good(self) -> dict[str, Any]:
        """The paper's point, or the point of this space nearest to it."""
        row, default = VARIANTS[self.variant].variant, "+".join(DEFAULT_CUTS)
        params: dict[str, Any] = {
            "split": default if default in self.splits else self.splits[0],
            "losses": next(iter(self.losses)),
        }
        for name, (low, high) in zip(WEIGHTS, self.ranges, strict=True):
            if name in self.weights:
                params[name] = min(max(getattr(row.weights, name), low), high)
        for field, distribution in self.varied:
            value = functools.reduce(getattr, field.split("."), self.recipe)
            params[field] = min(max(value, distribution.low), distribution.high)  # pyright: ignore[reportArgumentType]
        return params

    def loss_weights(self, params: dict[str, Any]) -> Weights:
        """The weights that params mean."""
        kept = self.losses[params["losses"]]
        return Weights(**{name: params[name] if name in kept else 0.0 for name in WEIGHTS})

    def config(self, params: dict[str, Any], seed: int) -> Config:
        """The config that params mean."""
        recipe = with_fields(self.recipe, {field: params[field] for field, _ in self.varied}, "--vary")
        weights, same = self.loss_weights(params), self.template
        row = VARIANTS[self.variant].variant
        cuts = SPLITS[params["split"]]
        config = configure(same.dataset, same.data, recipe, row, seed, weights, cuts)
        return dataclasses.replace(config, inception=same.inception)

    def kind(self, params: Mapping[str, Any]) -> str:
        """The variant that a config is: a stack without cuts is a DCGAN with these losses."""
        single = bool(VARIANTS[self.variant].variant.cuts) and params["split"] == NONE
        return f"dcgan-{params['losses'].replace('+', '-')}" if single else self.variant

    def fields(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """What params choose, as plain JSON by the dotted names of a row's changes."""
        weights = {f"weights.{name}": value for name, value in vars(self.loss_weights(dict(params))).items()}
        cuts = "through" if VARIANTS[self.variant].variant.through else "cuts"
        varied = {field: params[field] for field, _ in self.varied}
        return {cuts: list(SPLITS[params["split"]]), **weights, **varied}

    def title(self, params: dict[str, Any]) -> str:
        """A config in words; without cuts it is no stack."""
        weights = self.loss_weights(params)
        told = " : ".join(f"{getattr(weights, name):.3g}" for name in WEIGHTS)
        more = "".join(f", {field} {params[field]:.3g}" for field, _ in self.varied)
        return f"{'DCGAN' if params['split'] == NONE else params['split']}, {told}{more}"
