"""The best configs of many sweeps: the runs of finished trials -> a table for each dataset and way of scoring."""

import pandas as pd

from sgan.evaluation.measures import measure
from sweeps.reporting.results import SCORES
from sweeps.reporting.tables import aligned, spread

COLUMNS = ("inception_score", "fid", "diversity")
WEIGHTS = ("adversarial", "conditional", "entropy")
CONFIG = ["config_key", "explored"]
"""What the seeds of one row have in common. Explored seeds stand apart: they chose the config."""


def rows_of(runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each seed of a config, by phase and way of scoring; a seed that several sweeps have counts once.

    Args:
        runs: as `mlflow.search_runs` returns the runs of finished trials.
    """
    rows = runs.rename(columns=lambda name: name.removeprefix("metrics.").removeprefix("tags."))
    rows = rows.reindex(columns=list(dict.fromkeys([*rows.columns, *SCORES])))  # no run may have some score
    weights = rows[[f"params.variant.weights.{name}" for name in WEIGHTS]].astype(float)
    rows["weights"] = [" : ".join(f"{value:.3g}" for value in row) for row in weights.to_numpy()]
    rows["variant"], rows["split"] = rows["base_variant"], rows["cuts"].str.replace(",", "+")
    rows["seed"], rows["explored"] = rows["seed"].astype(int), rows["phase"] == "explore"
    return rows.drop_duplicates([*CONFIG, "fingerprint", "seed"])


def listing(rows: pd.DataFrame, by: str, min_seeds: int, top: int, more: str = "") -> str:
    """The tables, the best config first, each with the commands that run its configs again; "" without a config.

    Args:
        rows: as `rows_of` makes them.
        by: the score by which configs are ordered.
        min_seeds: the number of seeds that a config must have that score of.
        top: the number of configs in each table.
        more: options that every command ends with.
    """
    columns, tables, datasets = list(dict.fromkeys((by, *COLUMNS))), [], []
    for _, members in rows.sort_values("seed").groupby(["dataset", "fingerprint"]):
        configs = members.groupby(CONFIG)
        statistics = pd.DataFrame(configs[columns].agg(["mean", "std", "count"])).to_dict("index")
        seeds_of = {config: seeds.to_dict("records") for config, seeds in configs}
        best = [config for config, each in statistics.items() if each[by, "count"] >= min_seeds]
        best.sort(key=lambda config: statistics[config][by, "mean"], reverse=measure(by).better == "higher")
        lines = [
            ["", "Variant", "Split", "Weights", *(SCORES[name].heading for name in columns), "n", "Recipe", "Note"]
        ]
        commands = []
        for rank, config in enumerate(best[:top], 1):
            seeds, cells = seeds_of[config], [spread(statistics[config], score) for score in columns]
            one = seeds[0]
            alarms = [row["alarm"] for row in seeds if row["alarm"] != "none"]
            notes = ["explored, not confirmed"] * one["explored"]
            notes += [f"alarm in {len(alarms)}: {alarm}" for alarm in alarms[:1]]
            lines.append([str(rank), one["variant"], one["split"], one["weights"], *cells, str(len(seeds))])
            lines[-1] += [one["recipe"], "; ".join(notes)]
            span = f"--seeds {seeds[-1]['seed'] - one['seed'] + 1} --first-seed {one['seed']}"
            commands.append(f"{rank}  python sweeps/ablation.py {one['rerun']} {span}{more}")
        if commands:
            datasets.append(members["dataset"].iloc[0])
            tables.append("\n".join([f"{datasets[-1]}, by {SCORES[by].heading}", "", aligned(lines), "", *commands]))
    if len(datasets) > len(set(datasets)):
        tables.append("Lists of one dataset were scored in different ways; their numbers cannot be compared.")
    return "\n\n".join(tables)
