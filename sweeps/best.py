"""The best configs that MLflow knows, over all sweeps and searches, with the command that runs each again.

python sweeps/best.py STORE_OR_ADDRESS [--help]
"""

import shlex
import statistics
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from sgan.checks import ConfigError, require
from sgan.store.s3 import open_store
from sweeps.planning import manifest
from sweeps.planning.options import status

if TYPE_CHECKING:
    from mlflow.entities import Run

By = Literal["inception_score", "fid", "diversity", "best_inception_score", "best_fid"]
LESS_IS_BETTER = ("fid", "best_fid")
SHOWN = ("inception_score", "fid", "diversity")
EXPLORED = "explore"
"""The phase whose seed chose the config: its scores overstate the truth."""


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
    by: By = "inception_score"
    """What is best."""
    min_seeds: int = 1
    """Only configs with so many finished seeds."""
    explored: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also those that a search explored on one seed, marked so: that seed chose them, and their scores say too much."""
    top: int = 10
    """So many of each list."""

    def __post_init__(self):
        for name, value in (("--min-seeds", self.min_seeds), ("--top", self.top)):
            require(value >= 1, f"{name} must be at least 1, but got {value}")

    @property
    def uri(self) -> str:
        """The tracking URI; ConfigError where the store has none."""
        if "://" in self.where:
            return self.where
        database = Path(self.where).absolute() / "mlflow.db"
        require(
            database.exists(),
            f"{self.where} holds no mlflow.db; name an output store (--store of a sweep) or the address of an MLflow "
            "server, such as http://127.0.0.1:5000",
        )
        return f"sqlite:///{database}"


@dataclass
class Group:
    """The finished seeds of one config, scored in one way.

    Attributes:
        explored: they are of a search's first phase.
        rows: seed -> its scores, its alarm, and the options that run it again.
    """

    dataset: str
    recipe: str
    variant: str
    split: str
    weights: str
    explored: bool
    fingerprint: str
    rows: dict[int, tuple[dict[str, float], str, str]] = field(default_factory=dict)

    def values(self, score: str) -> list[float]:
        """A score of every seed that has it."""
        return [scores[score] for scores, _, _ in self.rows.values() if score in scores]

    def mean(self, score: str) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.values(score))

    @property
    def commands(self) -> list[str]:
        """The commands that run all seeds again, one for each row of successive seeds."""
        seeds, found = sorted(self.rows), []
        for index, seed in enumerate(seeds):
            if index and seed == seeds[index - 1] + 1:
                continue
            count = next(n for n in range(1, len(seeds) + 1) if seed + n not in self.rows)
            found.append(f"python sweeps/ablation.py {_with(self.rows[seed][2], seeds=count, first_seed=seed)}")
        return found


def _with(options: str, **changes: int) -> str:
    """Options with the values of some replaced."""
    words = shlex.split(options)
    for name, value in changes.items():
        words[words.index(f"--{name.replace('_', '-')}") + 1] = str(value)
    return shlex.join(words)


def _option(options: str, name: str) -> str:
    """The first value of an option."""
    words = shlex.split(options)
    return words[words.index(name) + 1] if name in words else ""


def groups(runs: "Iterable[Run]") -> list[Group]:
    """Finished trials' runs by config, by phase and by how they were scored; a seed that several sweeps have, once."""
    found: dict[tuple[str, ...], Group] = {}
    for run in runs:
        tags, params = run.data.tags, run.data.params
        explored = tags["phase"] == EXPLORED
        group = found.setdefault(
            (tags["config_key"], str(explored), tags["fingerprint"]),
            Group(
                tags["dataset"],
                tags["recipe"],
                _option(tags["rerun"], "--variants") or tags["variant"],
                tags["cuts"].replace(",", "+"),
                " : ".join(
                    f"{float(params[f'variant.weights.{name}']):.3g}"
                    for name in ("adversarial", "conditional", "entropy")
                ),
                explored,
                tags["fingerprint"],
            ),
        )
        group.rows[int(tags["seed"])] = dict(run.data.metrics), tags.get("alarm", "none"), tags["rerun"]
    return list(found.values())


def finished_runs(uri: str) -> "Iterator[Run]":
    """The runs of all finished trials; LookupError where MLflow has none."""
    from sweeps.mlflow_view import connection

    client = connection.connect(uri)
    experiment = client.get_experiment_by_name(connection.EXPERIMENT)
    if experiment is None:
        raise LookupError(f"MLflow at {uri} has no experiment {connection.EXPERIMENT!r}: no sweep was sent there")
    page = None
    while page is None or page.token:
        token = page.token if page else None
        query = "tags.outcome = 'done' and tags.`mlflow.parentRunId` != ''"
        page = client.search_runs([experiment.experiment_id], query, max_results=1000, page_token=token)
        yield from (run for run in page if connection.TRIAL in run.data.tags)


def _checked(runs: "Iterable[Run]", where: str) -> "Iterator[Run]":
    """The runs, with the scores that they have in the store, where one is named and knows them."""
    from sweeps.mlflow_view import connection, verify

    store = None if "://" in where else open_store(where)
    sweeps = [manifest.read(store, key) for key in manifest.keys(store)] if store else []
    trials = {trial["run"]: trial for sweep in sweeps for trial in sweep["trials"]}
    for run in runs:
        trial = trials.get(run.data.tags[connection.TRIAL])
        if store and trial:
            verify.check_scores(store, trial, run)
        yield run


def kept(group: Group, filters: Filters) -> bool:
    """Whether a config is asked for."""
    asked = {name: getattr(filters, name) for name in ("dataset", "recipe", "variant", "split")}
    return (
        all(value is None or getattr(group, name) == value for name, value in asked.items())
        and (filters.explored or not group.explored)
        and len(group.values(filters.by)) >= filters.min_seeds
    )


def listing(found: Iterable[Group], filters: Filters) -> str:
    """A table for each dataset and way of scoring, the best config first, with the commands below it."""
    from sweeps.report import aligned
    from sweeps.reporting.results import SCORES

    lists: dict[tuple[str, str], list[Group]] = {}
    for group in found:
        if kept(group, filters):
            lists.setdefault((group.dataset, group.fingerprint), []).append(group)
    if not lists:
        explored = "" if filters.explored else ", or name --explored"
        return f"No finished config is like that; leave a filter out{explored}."
    shown = tuple(dict.fromkeys((filters.by, *SHOWN)))
    parts = []
    for (dataset, _), members in sorted(lists.items()):
        members.sort(key=lambda one: one.mean(filters.by) * (1 if filters.by in LESS_IS_BETTER else -1))
        rows = [["", "Variant", "Split", "Weights", *(SCORES[score][0] for score in shown), "n", "Recipe", "Note"]]
        for rank, one in enumerate(members[: filters.top], 1):
            cells = [_cell(one.values(score), SCORES[score][1]) for score in shown]
            rows.append([str(rank), one.variant, one.split, one.weights, *cells, str(len(one.rows)), one.recipe])
            rows[-1].append(_note(one))
        commands = [
            f"{rank}  {command}" for rank, one in enumerate(members[: filters.top], 1) for command in one.commands
        ]
        parts.append("\n".join([f"{dataset}, by {SCORES[filters.by][0]}", "", aligned(rows), "", *commands]))
    if len(parts) > len({dataset for dataset, _ in lists}):
        parts.append("Lists of one dataset were scored in different ways; their numbers cannot be compared.")
    return "\n\n".join(parts)


def _note(group: Group) -> str:
    """What to know about a config's scores."""
    alarms = [alarm for _, (_, alarm, _) in sorted(group.rows.items()) if alarm != "none"]
    notes = ["explored, not confirmed"] * group.explored
    notes += [f"alarm in {len(alarms)}: {alarms[0]}"] if alarms else []
    return "; ".join(notes)


def _cell(values: list[float], digits: int) -> str:
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def main(filters: Filters) -> int:
    """Print the lists.

    Raises:
        ConfigError: a bad filter, no store, or MLflow does not answer.
    """
    uri = filters.uri
    from sweeps.mlflow_view import connection

    try:
        with connection.reading(uri):
            print(listing(groups(_checked(finished_runs(uri), filters.where)), filters))
    except LookupError as error:
        raise ConfigError(str(error)) from error
    return 0


if __name__ == "__main__":
    sys.exit(status(lambda: main(tyro.cli(Filters, prog="python sweeps/best.py"))))
