"""Prints the best configs that MLflow has, over all sweeps and searches, with the command that runs each again.

python sweeps/best.py STORE_OR_ADDRESS [--help]
"""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sgan.checks import ConfigError, require
from sweeps.planning.options import status


@dataclass(frozen=True)
class Filters:
    """List the best configs, each over its seeds: mean ± standard deviation (n).

    A score counts where it was computed on a seed that did not choose the config: those of ablations, and of a search's
    second phase.
    """

    where: Annotated[str, tyro.conf.Positional]
    """An output store, or the address of an MLflow server."""
    dataset: str | None = None
    """Only this dataset."""
    recipe: str | None = None
    """Only this recipe."""
    variant: str | None = None
    """Only configs of this variant, such as sgan."""
    split: str | None = None
    """Only stacks cut here, such as pool1+fc3; none: no stack."""
    by: Literal["inception_score", "fid", "diversity", "best_inception_score", "best_fid"] = "inception_score"
    """The score that orders the configs."""
    min_seeds: int = 1
    """Only configs with at least this number of finished seeds."""
    explored: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also those that a search explored on one seed, marked so: that seed chose them, and their scores say too much."""
    top: int = 10
    """The number of configs in each list."""

    def __post_init__(self):
        for name, value in (("--min-seeds", self.min_seeds), ("--top", self.top)):
            require(value >= 1, f"{name} must be at least 1, but got {value}")


def main(filters: Filters) -> int:
    """Print the lists.

    Raises:
        ConfigError: there is no database, MLflow has no finished trial, or it does not answer.
    """
    where, more = filters.where, ""
    root = Path(where).absolute()
    if "://" not in where:
        require(
            (root / "mlflow.db").exists(),
            f"{where} holds no mlflow.db; name an output store (--store of a sweep) or the address of an MLflow "
            "server, such as http://127.0.0.1:5000",
        )
        more = "" if where == (os.environ.get("SGAN_STORE") or "runs") else f" --store {shlex.quote(where)}"
    import mlflow  # it takes seconds, as do pandas and the client

    from sweeps.mlflow_view.connection import ERRORS, EXPERIMENT, database_uri, error_line
    from sweeps.mlflow_view.runs import TRIAL
    from sweeps.reporting import leaderboard

    uri = where if "://" in where else database_uri(root)
    try:
        mlflow.set_tracking_uri(uri)
        query = f"tags.outcome = 'done' and tags.`{TRIAL}` != ''"
        runs = mlflow.search_runs(experiment_names=[EXPERIMENT], filter_string=query)
    except ERRORS as error:
        raise ConfigError(f"MLflow at {uri} cannot be read ({error_line(error)})") from error
    require(not runs.empty, f"MLflow at {uri} has no finished trial in its experiment {EXPERIMENT!r}")
    rows = leaderboard.rows_of(runs)
    wanted = {name: getattr(filters, name) for name in ("dataset", "recipe", "variant", "split")}
    wanted |= {"explored": None if filters.explored else False}
    for column, value in wanted.items():
        rows = rows if value is None else rows.query(f"{column} == @value")
    tables = leaderboard.listing(rows, filters.by, filters.min_seeds, filters.top, more)
    print(
        tables or f"No finished config matches; leave a filter out{'' if filters.explored else ', or add --explored'}."
    )
    return 0


if __name__ == "__main__":
    sys.exit(status(lambda: main(tyro.cli(Filters, prog="python sweeps/best.py"))))
