"""The result of a search: best.yaml."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from sweeps.optimization.objective import DONE, Outcome
from sweeps.optimization.phases import SearchRun
from sweeps.optimization.searcher import Row, Searcher
from sweeps.planning import config_file
from sweeps.planning.trials import Trial

CONFIRMED = ("inception_score", "fid", "diversity")
"""The scores that best.yaml holds, one for each seed."""


def write_best(run: SearchRun, searcher: Searcher, confirmed: Sequence[tuple[Trial, Row]]) -> tuple[Path, str] | None:
    """Write best.yaml; returns its path and its config in words, or None where no config has ended on all of its seeds,
    or all went wrong.

    A seed that diverged or collapsed counts with the floor in the choice of the best.
    """
    configs: dict[str, list[tuple[Trial, Row, Outcome | None]]] = {}
    for one, row in confirmed:
        configs.setdefault(one.variant, []).append((one, row, run.outcome(row)))
    sign, whole = -1 if run.objective.direction == "maximize" else 1, []
    for seeds in configs.values():
        outcomes = [outcome for *_, outcome in seeds if outcome]
        if len(outcomes) == len(seeds) and any(outcome.tag == DONE for outcome in outcomes):
            whole.append((sign * statistics.fmean(outcome.value for outcome in outcomes), seeds))
    if not whole:
        return None
    _, winner = min(whole, key=lambda each: each[0])
    one, row, _ = winner[0]
    wrong = {one.seed: outcome.tag for one, _, outcome in winner if outcome and outcome.tag != DONE}
    facts = [run.store.facts(one.plan.name)["scores"] for one, *_ in winner if run.store.has(one.plan.name)]
    scores = {name: [each[name] for each in facts if each.get(name) is not None] for name in CONFIRMED}
    provenance = {
        "study": run.name,
        "sweep": run.key,
        "trial": row["number"],
        "commit": run.head["commit"],
        "command": run.head["command"],
        "objective": run.options.objective,
        "explored": {"configs": searcher.ended, "seed": run.options.seed},
        "confirmed": {"seeds": [one.seed for one, *_ in winner], "went_wrong": wrong, **scores},
    }
    options = run.ablation(row["params"])
    path = config_file.write(run.store, run.options.variant, options, one.config, provenance)
    return path, row["title"]
