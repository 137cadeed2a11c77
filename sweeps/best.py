"""Prints the best configs of a store, over all its sweeps and searches, with the command that runs each again.

python sweeps/best.py STORE [--promote N] [--help]
"""

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from sgan.checks import ConfigError, from_json, require
from sgan.command_line import parse, status
from sgan.config import Config, Weights
from sgan.evaluation.measures import LEADING, measure
from sgan.presets import VARIANTS
from sgan.store.local import Store
from sweeps.planning import manifest
from sweeps.planning.config_file import BEST, BestConfig, ChosenOptions
from sweeps.planning.options import Sweep


@dataclass(frozen=True)
class Filters:
    """List the best configs, each over its seeds: mean ± standard deviation (n).

    A score counts where it was computed on a seed that did not choose the config: those of ablations, and of a search's
    second phase.
    """

    store: tyro.conf.Positional[str]
    """An output store."""
    dataset: str | None = None
    """Only this dataset."""
    recipe: str | None = None
    """Only this recipe."""
    variant: str | None = None
    """Only configs of this variant, such as sgan."""
    split: str | None = None
    """Only stacks cut here, such as pool1+fc3; none: no stack."""
    by: Literal["fid", "recall", "inception_score", "kid", "diversity"] = LEADING
    """The score that orders the configs."""
    min_seeds: int = 1
    """Only configs with at least this number of finished seeds."""
    explored: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also those that a search explored on one seed, marked so: that seed chose them, and their scores say too much."""
    top: int = 10
    """The number of configs in each list."""
    promote: int | None = None
    """Choose the config with this number in the list: it is written to best.yaml in the store, and the model of its
    best seed is registered in MLflow with the alias best."""
    mlflow: str | None = None
    """With --promote, the address of an MLflow server. Without it, $MLFLOW_TRACKING_URI or an SQLite file in the
    store."""

    def __post_init__(self):
        for name, value in (("--min-seeds", self.min_seeds), ("--top", self.top), ("--promote", self.promote)):
            require(value is None or value >= 1, f"{name} must be at least 1, but got {value}")


def main(filters: Filters) -> int:
    """Print the lists, and promote a config of them; returns 1 where MLflow could not be told.

    Raises:
        ConfigError: there is no store or sweep, something in it is damaged, or the list has no config of that number.
    """
    store, _ = manifest.find(filters.store)
    from sweeps.reporting import leaderboard  # it imports pandas, which takes a second

    wanted = {name: getattr(filters, name) for name in ("dataset", "recipe", "variant", "split")}
    wanted |= {"explored": None if filters.explored else False}
    given = [f"--{name}" for name, value in wanted.items() if value]
    seeds = [
        seed
        for seed in leaderboard.seeds_of(store)
        if all(value is None or seed[name] == value for name, value in wanted.items())
    ]
    lists = leaderboard.ranked(seeds, filters.by, filters.min_seeds)
    if filters.promote:
        shown = [config for _, configs in lists for config in configs[: filters.top]]
        require(
            filters.promote <= len(shown),
            f"--promote {filters.promote} is no config of the list, which has {len(shown)}; see it without --promote",
        )
        return promote(store, shown[filters.promote - 1], filters)
    advice = f"leave out {', '.join(given)}" if given else "finish a sweep, or lower --min-seeds"
    nothing = f"No finished config matches; {advice}{'' if filters.explored else ', or add --explored'}."
    print(leaderboard.listing(store, lists, filters.by, filters.top) or nothing)
    return 0


def promote(store: Store, seeds: list[dict[str, Any]], filters: Filters) -> int:
    """Write best.yaml for a config, and have MLflow register the model of its best seed.

    Args:
        seeds: as `leaderboard.seeds_of` makes them.
    """
    from sweeps.mlflow_view.connection import address_of, default_uri, pages  # MLflow takes seconds to import
    from sweeps.mlflow_view.sync import attempt

    sign = -1 if measure(filters.by).better == "higher" else 1
    best = min(seeds, key=lambda each: sign * each[filters.by])
    trial, config = best["row"], from_json(Config, best["row"]["config"])
    require(
        trial["base_variant"] in VARIANTS,
        f"{trial['title']} is a row of your own, which {BEST} cannot hold; its command in the list runs it again",
    )
    try:
        options = tyro.cli(Sweep, args=shlex.split(trial["rerun"]))
    except (SystemExit, ConfigError) as error:
        raise ConfigError(f"the options {trial['rerun']} of the recorded trial are not known here") from error
    own, usual = dataclasses.astuple(config.variant.weights), dataclasses.astuple(Weights())
    # A variant without a loss keeps 0 there, so that the usual weights stand for it too.
    weights = options.weights or (usual if all(a in (0, b) for a, b in zip(own, usual, strict=True)) else own)
    chosen = ChosenOptions(
        config.dataset.name,
        options.image_size,
        options.channels,
        config.recipe.name,
        options.cuts,
        weights,
        options.override,
        options.budget,
        options.width,
        "inception" if config.inception else "held-out",
    )
    record = manifest.read(store, best["sweep"])
    provenance = {
        "study": best["sweep"],
        "sweep": best["sweep"],
        "run": trial["run"],
        "commit": record["commit"],
        "command": record["command"],
        "seeds": [each["seed"] for each in seeds],
        filters.by: [each[filters.by] for each in seeds],
    }
    BestConfig(trial["base_variant"], chosen, config, provenance).write(store.root / BEST)
    store.save(store.root / BEST)
    print(f"{trial['title']}, seed {trial['seed']} of {len(seeds)}: {store.root / BEST}. The six variants with it:")
    print(f"  python sweeps/ablation.py --config {shlex.quote(str(store.root / BEST))}")
    uri = address_of(filters.mlflow) or default_uri(store)
    trouble = attempt(store, [best["sweep"]], uri)
    print(trouble or f"Its model is registered in MLflow with the alias best: {pages(uri, best['sweep'])}")
    return 1 if trouble else 0


if __name__ == "__main__":
    sys.exit(status(lambda: main(parse(lambda: tyro.cli(Filters, prog="python sweeps/best.py")))))
