"""The best configs of all sweeps in a store: a table for each dataset and way of scoring."""

import itertools
import shlex
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import pandas as pd

from sgan.addresses import masked
from sgan.checks import ConfigError, from_json
from sgan.command_line import python
from sgan.config import Config
from sgan.evaluation.measures import MEASURES
from sgan.store.local import Store
from sweeps.planning import manifest
from sweeps.planning.trials import config_key
from sweeps.reporting.results import SCORES, table
from sweeps.reporting.tables import SHORT, aligned, spread

COLUMNS = ("inception_score", "fid", "diversity")
TOP = 10  # Configs of a table
LIST = ["dataset", "fingerprint"]


def ranked(store: Store, by: str) -> list[pd.DataFrame]:
    """The best TOP configs by the mean of a score, for each dataset and way of scoring, one list after the other. Each
    config is a table of its finished seeds except those that chose it. Columns are those of `results.table`, and
    "dataset", "config", "sweep", "row" (in the sweep's record), and "diverged", the number of the config's seeds that
    diverged. A seed that several sweeps have counts once.
    StoreError if a record in the store is damaged."""
    rows = [(key, row) for key in manifest.keys(store) for row in manifest.read(store, key)["trials"]]
    rows = [(key, row) for key, row in rows if row["phase"] != "explore"]
    about = {"sweep": [key for key, _ in rows], "row": [row for _, row in rows]}
    about |= {"dataset": [row["config"]["dataset"]["name"] for _, row in rows]}
    about |= {"config": [row["config_key"] for _, row in rows]}
    found = table(store, about["row"]).assign(**about)
    diverged = found[found["outcome"] == "diverged"].groupby("config")["seed"].nunique()
    found = found.dropna(subset=[by]).assign(diverged=lambda rows: rows["config"].map(diverged).fillna(0))
    found = found.drop_duplicates(["fingerprint", "config", "seed"]).sort_values("seed", kind="stable")
    best, sign = [], 1 if MEASURES[by].better == "lower" else -1
    for _, group in found.groupby(LIST):
        configs = [seeds for _, seeds in group.groupby("config")]
        best += sorted(configs, key=lambda seeds: sign * statistics.fmean(seeds[by]))[:TOP]
    return best


def listing(store: Store, best: Sequence[pd.DataFrame], by: str) -> str:
    """The configs of `ranked` as tables; below each one notes on its configs, and the commands that run them again."""
    columns, tables = list(dict.fromkeys((by, *COLUMNS))), {}
    for (dataset, scored), configs in itertools.groupby(enumerate(best, 1), lambda each: tuple(each[1][LIST].iloc[0])):
        headings = ["", "Variant", "Split", "Weights", *(SHORT.get(name, SCORES[name].heading) for name in columns)]
        lines, below = [[*headings, "n"]], list[str]()
        for number, seeds in configs:
            rows, alarms = list(seeds["row"]), list(filter(None, seeds["alarm"]))
            config, rerun = rows[0]["config"], rows[0]["rerun"]
            (numbers,) = pd.DataFrame(seeds.groupby("config")[columns].agg(["mean", "std"])).to_dict("index").values()
            weights = " : ".join(f"{value:.3g}" for value in config["variant"]["weights"].values())
            cells = [str(number), rows[0]["base_variant"], rows[0]["cuts"].replace(",", "+"), weights]
            lines.append([*cells, *(spread(numbers, score) for score in columns), str(len(rows))])
            told = [f"{seeds['diverged'].iloc[0]:.0f} more diverged"] * bool(seeds["diverged"].iloc[0])
            told += [f"alarm in {len(alarms)}: {each}" for each in alarms[:1]]
            told += [] if _is_current(rows[0]) else ["trained by other code: its command trains it anew"]
            below += [f"{number}  {'; '.join(told)}"] if told else []
            # The seeds of an ablation and of a search lie a thousand apart: a command for each span.
            for _, span in itertools.groupby(enumerate(seeds["seed"]), lambda each: each[1] - each[0]):
                (_, first), *more = span
                words = f"--seeds {len(more) + 1} --first-seed {first} --store {shlex.quote(masked(store.address))}"
                below.append(f"{number}  {python('sweeps/ablation.py')} {rerun} {words}")
        title = f"{dataset}, by {SCORES[by].heading}"
        tables[dataset, scored] = "\n".join([title, "", aligned(lines), "", *below])
    notes = ["Lists of one dataset were scored in different ways; their numbers cannot be compared."]
    return "\n\n".join([*tables.values(), *notes * (len(tables) > len({dataset for dataset, _ in tables}))])


def _is_current(row: Mapping[str, Any]) -> bool:
    """Whether this checkout's code would train the stages of this trial's record."""
    with suppress(ConfigError):
        return config_key(from_json(Config, row["config"])) == row["config_key"]
    return False
