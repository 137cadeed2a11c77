"""The space of a search, and the config of each of its points.

The split is one categorical over the subsets of taps: weights that all splits share are learned faster than weights of
each split. Weights are on a log scale. The categorical `losses` chooses which loss, if any, has weight 0.
"""

import dataclasses
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from sgan.checks import with_fields
from sgan.config import Config, Weights
from sgan.presets import VARIANTS
from sweeps.optimization.search_options import NONE, SPLITS, WEIGHTS, Search, parse_varied
from sweeps.planning.basis import Basis
from sweeps.planning.options import DEFAULT_CUTS

SHORT = {"adversarial": "adv", "conditional": "cond", "entropy": "ent"}
Params = Mapping[str, Any]


class Space:
    """The search space of one variant: the ranges of its weights and of the `varied` fields of the recipe, these by
    dotted names, the choices of losses (name -> non-zero weights), and Optuna's distribution of each param."""

    def __init__(self, search: Search, basis: Basis):
        self.name, self.variant, self.basis = search.variant, VARIANTS[search.variant].variant, basis
        weights = [name for name in WEIGHTS if getattr(self.variant.weights, name) > 0]
        self.splits, self.varied = search.chosen_splits, dict(parse_varied(text, basis.recipe) for text in search.vary)
        self.ranges = {name: FloatDistribution(*getattr(search, name), log=True) for name in weights} | self.varied
        dropped = ["", *(name for name in search.zeros if name in weights and len(weights) > 1)]
        kept = [[name for name in weights if name != out] for out in dropped]
        self.losses = {"+".join(SHORT[name] for name in names): names for names in kept}
        self.distributions: dict[str, BaseDistribution] = {
            "split": CategoricalDistribution(self.splits),
            "losses": CategoricalDistribution(tuple(self.losses)),
            **self.ranges,
        }

    def known_good(self) -> dict[str, Any]:
        """The params of the paper's config, or the nearest ones in this space; the lowest of a field that is null."""
        default = "+".join(DEFAULT_CUTS)
        split = default if default in self.splits else self.splits[0]
        params: dict[str, Any] = {"split": split, "losses": next(iter(self.losses))}
        for name, ends in self.ranges.items():
            value = attrgetter(name)(self.basis.recipe if name in self.varied else self.variant.weights)
            params[name] = ends.low if value is None else min(max(value, ends.low), ends.high)
        return params

    def loss_weights(self, params: Params) -> Weights:
        kept = self.losses[params["losses"]]
        return Weights(**{name: params[name] if name in kept else 0.0 for name in WEIGHTS})

    def config(self, params: Params, seed: int) -> Config:
        recipe = with_fields(self.basis.recipe, {field: params[field] for field in self.varied}, "--vary")
        basis = dataclasses.replace(self.basis, recipe=recipe)
        return basis.config(self.variant, seed, self.loss_weights(params), SPLITS[params["split"]])

    def kind(self, params: Params) -> str:
        """The name of a config's variant: a stack without cuts is a DCGAN with these losses, where its row of that name
        has labels, too."""
        name = f"dcgan-{params['losses'].replace('+', '-')}"
        single = bool(self.variant.cuts) and params["split"] == NONE
        alike = name not in VARIANTS or VARIANTS[name].variant.labels == self.variant.labels
        return name if single and alike else self.name

    def title(self, params: Params) -> str:
        """A config in words; without cuts it is a DCGAN, not a stack."""
        weights = " : ".join(f"{value:.3g}" for value in vars(self.loss_weights(params)).values())
        more = "".join(f", {field} {params[field]:.3g}" for field in self.varied)
        return f"{'DCGAN' if params['split'] == NONE else params['split']}, {weights}{more}"
