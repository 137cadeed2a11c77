"""Prints the best configs of a store, over all its sweeps and searches, with the command that runs each again.

python sweeps/best.py STORE [--promote N] [--help]
"""

import shlex
import sys
from typing import Annotated, Any, Literal

import tyro

from sgan.checks import ConfigError, from_json, require
from sgan.command_line import StoreAddress, later, parse, status
from sgan.config import Config
from sgan.evaluation.measures import LEADING, MEASURES
from sgan.store.local import Store
from sweeps.planning import config_file, manifest
from sweeps.planning.options import Sweep


def main(
    store: StoreAddress,
    by: Literal["fid", "recall", "inception_score", "kid", "diversity"] = LEADING,
    promote: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    mlflow: str | None = None,
) -> int:
    """List the best configs, each over its seeds: mean ± standard deviation (n).

    Only scores on seeds that did not choose the config count: those of ablations, and those of a search's second phase.

    Args:
        store: An output store.
        by: The score that orders the configs.
        promote: Choose the config with this number in the list: write it to best.yaml in the store, and register the
            model of its best seed in MLflow with the alias best.
        mlflow: With --promote, the address of an MLflow server. By default $MLFLOW_TRACKING_URI, or else an SQLite file
            in the store.
    """
    opened, _ = manifest.find(store)
    from sweeps.reporting import leaderboard  # it imports pandas, which takes a second

    best = leaderboard.ranked(opened, by)
    if promote is None:
        none = f"No config has finished with the score {by}; finish a sweep, or name another --by."
        print(leaderboard.listing(opened, best, by) or none)
        return 0
    known = f"--promote {promote} is no config of the list, which has {len(best)}; leave it out to see them"
    require(1 <= promote <= len(best), known)
    seeds = best[promote - 1].to_dict("records")
    return choose(opened, seeds, by, mlflow)


def choose(store: Store, seeds: list[dict[str, Any]], by: str, mlflow: str | None) -> int:
    """Write best.yaml for a config, and register the model of its best seed in MLflow. `seeds`: the config's rows from
    `leaderboard.ranked`. Returns the exit status: 1 if MLflow did not get everything, otherwise 0."""
    from sweeps.mlflow_view.connection import address_of, default_uri, pages  # MLflow takes seconds to import
    from sweeps.mlflow_view.sync import attempt

    best = (min if MEASURES[by].better == "lower" else max)(seeds, key=lambda seed: seed[by])
    trial, key = best["row"], best["sweep"]
    record = manifest.read(store, key)
    try:
        options = parse(lambda: tyro.cli(Sweep, args=shlex.split(trial["rerun"])))
        config = from_json(Config, trial["config"])
    except ConfigError as error:
        raise ConfigError(
            f"{trial['title']}, recorded by commit {record['commit']}, cannot be read here ({error}); run its command "
            "in the list again, where its files are and with code that reads it, and promote the result"
        ) from error
    custom = f"{trial['title']} is a custom row, which {config_file.BEST} cannot hold"
    require(bool(options.variants), f"{custom}; its command in the list runs it again")
    study = key if trial["phase"] == "confirm" else ""
    provenance = {"study": study, "sweep": key, "run": trial["run"], "commit": record["commit"]}
    provenance |= {"command": record["command"], "seeds": [seed["seed"] for seed in seeds]}
    provenance |= {by: [seed[by] for seed in seeds]}
    path = config_file.write(store, options.variants[0], options, config, provenance)
    print(f"{trial['title']} (best of {len(seeds)} seeds: {trial['seed']}) is in {path}. The six variants with it:")
    print(f"  {config_file.command(path, store, options)}")
    uri = address_of(mlflow) or default_uri(store)
    trouble = attempt(store, [key], uri)
    print(trouble or f"Its model is registered in MLflow with the alias best: {pages(uri, key)}")
    return 1 if trouble else 0


if __name__ == "__main__":
    sys.exit(status(lambda: parse(lambda: tyro.cli(later(main), prog="python sweeps/best.py"))()))
