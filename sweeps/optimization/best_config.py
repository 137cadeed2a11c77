"""The results of a search: best.yaml, and the account of time and cost."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.optimization.objective import DONE
from sweeps.optimization.phases import Plan, SearchRun
from sweeps.optimization.searcher import Row, Searcher
from sweeps.optimization.study import order
from sweeps.planning import manifest
from sweeps.planning.config_file import BEST, BestConfig
from sweeps.planning.trials import Trial, clock

CONFIRMED = ("inception_score", "fid", "diversity")
"""The scores whose means best.yaml holds."""


@dataclass(frozen=True)
class Best:
    """What best.yaml holds: the config in words, whether it has no cuts, and its seeds that diverged or collapsed, with
    how."""

    path: Path
    title: str
    single: bool
    wrong: dict[int, str]


def write_best(run: SearchRun, searcher: Searcher, confirmed: Sequence[tuple[Trial, Row]]) -> Best | None:
    """Write best.yaml; None where no config has ended on all of its seeds, or all went wrong.

    A seed that diverged or collapsed counts with the floor in the choice of the best.
    """
    configs: dict[str, list[Any]] = {}
    for one, row in confirmed:
        configs.setdefault(one.variant, []).append((one, row, run.outcome(row)))
    whole = {config: ended for config, ended in configs.items() if all(outcome for *_, outcome in ended)}
    whole = {each: ended for each, ended in whole.items() if any(outcome.tag == DONE for *_, outcome in ended)}
    if not whole:
        return None
    values = [[outcome.values for *_, outcome in ended] for ended in whole.values()]
    means = [[statistics.fmean(column) for column in zip(*rows, strict=True)] for rows in values]
    winner = list(whole)[order(searcher.study.directions, means)[0]]
    trials, (row, *_) = [one for one, *_ in whole[winner]], [row for _, row, _ in whole[winner]]
    wrong = {one.seed: outcome.tag for one, _, outcome in whole[winner] if outcome.tag != DONE}
    facts = [run.store.facts(one.plan.name)["scores"] for one in trials if run.store.has(one.plan.name)]
    summary: dict[str, Any] = {"seeds": [one.seed for one in trials], "went_wrong": wrong}
    for score in CONFIRMED:
        found = [scores[score] for scores in facts if scores.get(score) is not None]
        spread = statistics.stdev(found) if len(found) > 1 else None
        summary[score] = {"mean": statistics.fmean(found) if found else None, "std": spread, "n": len(found)}
    provenance = {
        "study": run.name,
        "sweep": run.key,
        "trial": row["number"],
        "commit": run.head["commit"],
        "command": run.head["command"],
        "objective": run.options.objective,
        "explored": {"configs": searcher.ended, "seed": run.options.seed},
        "confirmed": summary,
    }
    path = run.store.root / BEST
    options = run.ablation_options(row["params"])
    BestConfig(run.options.variant, options, trials[0].config, provenance).write(path)
    run.store.save(path)
    return Best(path, row["title"], run.space.kind(row["params"]) != run.options.variant, wrong)


def account(run: SearchRun, made: Plan, seconds: float) -> str:
    """Predicted against actual time and cost of this command, which took so many seconds after its plan; and what
    sharing stages between trials saved in all."""
    rows = manifest.read(run.store, run.key)["trials"]
    names = [stage["name"] for row in rows for stage in row["stages"]]
    took = {each: run.store.facts(each).get("seconds", 0.0) for each in set(names) if run.store.has(each)}
    alone, shared, estimate = sum(took.get(each, 0.0) for each in names), sum(took.values()), made.estimate
    lines = [
        f"Predicted {clock(estimate.median)} ({clock(estimate.low)} to {clock(estimate.high)}), took {clock(seconds)}"
        + (f"; {clock(run.spent())} with the commands before." if run.before else "."),
        f"Stages took {clock(shared)}; sharing them between trials saved {clock(alone - shared)}.",
    ]
    if run.options.gpu_hour_price:
        price = run.options.gpu_hour_price * run.units / 3600
        lines.append(f"Predicted cost {estimate.median * price:.2f}, actual {seconds * price:.2f}.")
    return "\n".join(lines)
