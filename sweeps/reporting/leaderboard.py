"""The best configs of all sweeps in a store: a table for each dataset and way of scoring."""

import json
import math
import shlex
import statistics
from collections.abc import Sequence
from typing import Any

from sgan.addresses import masked
from sgan.evaluation.measures import measure
from sgan.store.local import Store
from sweeps.planning import manifest
from sweeps.planning.state import alarm_of, scores_of, state_of
from sweeps.reporting.results import SCORES
from sweeps.reporting.tables import aligned, spread

COLUMNS = ("inception_score", "fid", "diversity")
Seed = dict[str, Any]
"""A finished seed of a config: its scores, what is shown of it, and its "row" in the sweep's record."""
Lists = list[tuple[str, list[list[Seed]]]]
"""For each way of scoring the dataset and the configs, the best first, each with its seeds in order."""


def seeds_of(store: Store) -> list[Seed]:
    """All finished seeds; one that several sweeps have counts once.

    Raises:
        StoreError: a record in the store is damaged.
    """
    found: dict[tuple[Any, ...], Seed] = {}
    for key in manifest.keys(store):
        for row in manifest.read(store, key)["trials"]:
            state, config = state_of(store, row), row["config"]
            if state.outcome == "done":
                about = {
                    "sweep": key,
                    "dataset": config["dataset"]["name"],
                    "recipe": config["recipe"]["name"],
                    "variant": row["base_variant"],
                    "split": row["cuts"].replace(",", "+"),
                    "weights": " : ".join(f"{value:.3g}" for value in config["variant"]["weights"].values()),
                    "seed": row["seed"],
                    "explored": row["phase"] == "explore",  # such a seed chose the config, and stands apart
                    "fingerprint": json.dumps(state.facts[-1]["fingerprint"], sort_keys=True),
                }
                same = (row["config_key"], about["explored"], about["fingerprint"], row["seed"])
                found.setdefault(same, {**scores_of(state), **about, "config": row["config_key"], "row": row})
    return list(found.values())


def ranked(seeds: Sequence[Seed], by: str, min_seeds: int) -> Lists:
    """The configs that have a score on so many seeds, ordered by its mean."""
    groups: dict[tuple[str, str], dict[tuple[str, bool], list[Seed]]] = {}
    for seed in sorted(seeds, key=lambda each: each["seed"]):
        configs = groups.setdefault((seed["dataset"], seed["fingerprint"]), {})
        configs.setdefault((seed["config"], seed["explored"]), []).append(seed)
    sign, lists = -1 if measure(by).better == "higher" else 1, []
    for (dataset, _), configs in sorted(groups.items()):
        scored = [config for config in configs.values() if len(_values(config, by)) >= min_seeds]
        lists.append((dataset, sorted(scored, key=lambda config: sign * statistics.fmean(_values(config, by)))))
    return [each for each in lists if each[1]]


def listing(store: Store, lists: Lists, by: str, top: int) -> str:
    """The lists as tables, each with the commands that run its configs again; numbers go on from one to the next.

    Args:
        by: the score by which configs are ordered.
        top: the number of configs in each table.
    """
    columns, tables, number = list(dict.fromkeys((by, *COLUMNS))), [], 0
    for dataset, configs in lists:
        lines = [
            ["", "Variant", "Split", "Weights", *(SCORES[name].heading for name in columns), "n", "Recipe", "Note"]
        ]
        commands = []
        for seeds in configs[:top]:
            number += 1
            one, rows = seeds[0], [seed["row"] for seed in seeds]
            cells = [spread(_statistics(seeds, score), score) for score in columns]
            alarms = list(filter(None, (alarm_of(store, row, state_of(store, row)) for row in rows)))
            notes = ["explored, not confirmed"] * one["explored"]
            notes += [f"alarm in {len(alarms)}: {alarm}" for alarm in alarms[:1]]
            lines.append([str(number), one["variant"], one["split"], one["weights"], *cells, str(len(seeds))])
            lines[-1] += [one["recipe"], "; ".join(notes)]
            span = f"--seeds {seeds[-1]['seed'] - one['seed'] + 1} --first-seed {one['seed']}"
            address = shlex.quote(masked(store.address))
            commands.append(f"{number}  python sweeps/ablation.py {one['row']['rerun']} {span} --store {address}")
        tables.append("\n".join([f"{dataset}, by {SCORES[by].heading}", "", aligned(lines), "", *commands]))
    if len(lists) > len({dataset for dataset, _ in lists}):
        tables.append("Lists of one dataset were scored in different ways; their numbers cannot be compared.")
    return "\n\n".join(tables)


def _values(seeds: Sequence[Seed], score: str) -> list[float]:
    return [seed[score] for seed in seeds if seed.get(score) is not None]


def _statistics(seeds: Sequence[Seed], score: str) -> dict[tuple[str, str], float]:
    """Mean and standard deviation of a score, NaN where there is none."""
    values = _values(seeds, score)
    mean = statistics.fmean(values) if values else math.nan
    return {(score, "mean"): mean, (score, "std"): statistics.stdev(values) if len(values) > 1 else math.nan}
