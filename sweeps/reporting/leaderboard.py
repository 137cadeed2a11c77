"""The best configs of all sweeps in a store: a table for each dataset and way of scoring."""

import json
import shlex
import statistics

import pandas as pd

from sgan.addresses import masked
from sgan.evaluation.measures import measure
from sgan.store.local import Store
from sweeps.planning import manifest
from sweeps.planning.trials import alarm_of, scores_of, state_of
from sweeps.reporting.results import SCORES
from sweeps.reporting.tables import aligned, spread

COLUMNS = ("inception_score", "fid", "diversity")
TOP = 10
"""Configs of a table."""


def finished(store: Store) -> pd.DataFrame:
    """All finished seeds but those that chose their config: SCORES, and "dataset", "fingerprint" (how it was scored),
    "config", "seed", "sweep", and "row" (in the sweep's record). A seed that several sweeps have counts once.

    Raises:
        StoreError: a record in the store is damaged.
    """
    rows = []
    for key in manifest.keys(store):
        for row in manifest.read(store, key)["trials"]:
            state = state_of(store, row)
            if row["phase"] != "explore" and state.outcome == "done":
                about = {"dataset": row["config"]["dataset"]["name"], "config": row["config_key"], "seed": row["seed"]}
                about |= {"fingerprint": json.dumps(state.facts[-1]["fingerprint"], sort_keys=True)}
                rows.append({**scores_of(state), **about, "sweep": key, "row": row})
    columns = [*SCORES, "dataset", "fingerprint", "config", "seed", "sweep", "row"]
    found = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(SCORES, float))
    return found.drop_duplicates(["fingerprint", "config", "seed"]).sort_values("seed", kind="stable")


def ranked(store: Store, by: str) -> list[list[pd.DataFrame]]:
    """For each dataset and way of scoring the best TOP configs by the mean of a score, each as the rows of its
    seeds."""
    lists, sign = [], -1 if measure(by).better == "higher" else 1
    for _, group in finished(store).dropna(subset=[by]).groupby(["dataset", "fingerprint"]):
        configs = [seeds for _, seeds in group.groupby("config")]
        lists.append(sorted(configs, key=lambda seeds: sign * statistics.fmean(seeds[by]))[:TOP])
    return lists


def listing(store: Store, lists: list[list[pd.DataFrame]], by: str) -> str:
    """The lists as tables, each with the commands that run its configs again; numbers go on from one to the next."""
    columns, tables, number = list(dict.fromkeys((by, *COLUMNS))), [], 0
    for configs in lists:
        lines = [
            ["", "Variant", "Split", "Weights", *(SCORES[name].heading for name in columns), "n", "Recipe", "Note"]
        ]
        commands = []
        for seeds in configs:
            number += 1
            rows = list(seeds["row"])
            config, first, last = rows[0]["config"], rows[0]["seed"], rows[-1]["seed"]
            table = pd.DataFrame(seeds.groupby("config")[columns].agg(["mean", "std"]))
            (numbers,) = table.to_dict("index").values()
            alarms = list(filter(None, (alarm_of(store, row, state_of(store, row)) for row in rows)))
            weights = " : ".join(f"{value:.3g}" for value in config["variant"]["weights"].values())
            lines.append([str(number), rows[0]["base_variant"], rows[0]["cuts"].replace(",", "+"), weights])
            lines[-1] += [*(spread(numbers, score) for score in columns), str(len(rows)), config["recipe"]["name"]]
            lines[-1] += [f"alarm in {len(alarms)}: {alarms[0]}" if alarms else ""]
            span = f"--seeds {last - first + 1} --first-seed {first} --store {shlex.quote(masked(store.address))}"
            commands.append(f"{number}  python sweeps/ablation.py {rows[0]['rerun']} {span}")
        title = f"{configs[0]['dataset'].iloc[0]}, by {SCORES[by].heading}"
        tables.append("\n".join([title, "", aligned(lines), "", *commands]))
    if len(lists) > len({configs[0]["dataset"].iloc[0] for configs in lists}):
        tables.append("Lists of one dataset were scored in different ways; their numbers cannot be compared.")
    return "\n\n".join(tables)
