"""What a search leaves: its manifest, best.yaml, the account of time and cost."""

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from sgan.checks import as_json
from sgan.presets import REAL_DATA_PAPER
from sgan.stages.graph import name
from sgan.store.files import sha256
from sweeps.optimization.objective import FLOOR, outcome, variant
from sweeps.optimization.space import SPLITS
from sweeps.optimization.study import SECONDS, costs, finished, order
from sweeps.planning import config_file as tuned
from sweeps.planning import manifest
from sweeps.planning.ablation_options import Sweep
from sweeps.planning.manifest import command
from sweeps.planning.trials import Trial, clock

if TYPE_CHECKING:
    from sweeps.optimization.phases import Plan, Running

BEST = "best.yaml"
CONFIRMED = ("inception_score", "fid", "diversity")
"""The scores whose means best.yaml tells."""


def plots_folder(running: "Running") -> Path:
    """Where a search's plots lie in the store."""
    return manifest.folder(running.store, running.key) / "plots"


def trial_row(running: "Running", one: Trial, phase: str, number: int, params: Mapping[str, Any]) -> dict[str, Any]:
    """A trial of the study's config of this number in the search's record."""
    title = f"{number}: {running.space.title(dict(params))}"
    return manifest.trial_row(one, phase, rerun(running, params, one.seed), number, title)


def record(running: "Running", study: optuna.Study, confirm: Sequence[Trial] = ()) -> None:
    """Write the search's record as it stands."""
    search, explored = running.search, running.complete(study)
    numbers = {variant(each.number): each for each in explored}
    rows = [trial_row(running, running.explored(each), "explore", each.number, each.params) for each in explored]
    rows += [
        trial_row(running, one, "confirm", numbers[one.variant].number, numbers[one.variant].params) for one in confirm
    ]
    folder = plots_folder(running)
    names = ("variant", "objective", "sampler", "seed", "adversarial", "conditional", "entropy", "zeros")
    names += ("vary", "budget", "width", "override")
    settings = {
        "dataset": running.basis.dataset.name,
        "recipe": running.basis.recipe.name,
        "study": running.name,
        "splits": " ".join(running.space.splits),
        **{each: getattr(search, each) for each in names},
    }
    manifest.write(
        running.store,
        {
            "key": running.key,
            "title": running.title,
            "command": command("search.py"),
            "commit": running.commit,
            "machine": running.machine,
            "started": time.time(),
            "settings": as_json(settings),
            "judges": [name(each) for each in running.objective.trial(running.space.known_good(), 0).plan.judges],
            "paper_real": REAL_DATA_PAPER,
            "search": None,
            "default": "",
            "explored": len(explored),
            # Their digests, so that tracking sees that they have changed.
            "plotted": {file.name: sha256(file)[:16] for file in sorted(folder.glob("*.png"))},
            "trials": rows,
        },
    )


def options(running: "Running", params: Mapping[str, Any]) -> dict[str, Any]:
    """A config as options of sweeps/ablation.py."""
    weights = running.space.loss_weights(dict(params))
    varied = [f"{one.field}={params[one.field]!r}" for one in running.space.varied]
    return tuned.options_of(
        running.search,
        running.basis,
        cuts=SPLITS[params["split"]],
        weights=dataclasses.astuple(weights),
        override=[*running.search.override, *varied],
    )


def rerun(running: "Running", params: Mapping[str, Any], seed: int) -> str:
    """The options of sweeps/ablation.py that run a config again."""
    values: dict[str, Any] = {
        each: tuple(value) if isinstance(value, list) else value for each, value in options(running, params).items()
    }
    values |= {"variants": (running.search.variant,), "seeds": 1, "first_seed": seed, "data": running.search.data}
    return tuned.words(Sweep(**values))


@dataclass(frozen=True)
class Best:
    """What best.yaml holds: the config's name, and its seeds that diverged or collapsed, with how."""

    path: Path
    config: str
    wrong: dict[int, str]


def write_best(running: "Running", study: optuna.Study, confirm: Sequence[Trial]) -> Best | None:
    """Write best.yaml; None where no config was confirmed.

    A seed that diverged or collapsed counts with the floor in the choice of the best.
    """
    scores, told = tuple(running.directions), {}
    for one in confirm:
        told.setdefault(one.variant, []).append((one, outcome(one, running.store, scores)))
    # One that a machine failed is not whole: the same command tries it again.
    whole = {config: ended for config, ended in told.items() if all(found for _, found in ended)}
    if not whole:
        return None
    floor = [FLOOR[score] for score in scores]
    rows = []
    for ended in whole.values():
        values = [list(found.values) or floor for _, found in ended]
        means = [statistics.fmean(column) for column in zip(*values, strict=True)]
        rows.append(costs(study.directions, means))
    winner = list(whole)[order(rows)[0]]
    confirmed = [one for one, _ in whole[winner]]
    best = next(each for each in running.complete(study) if variant(each.number) == winner)
    facts = [running.store.facts(one.plan.name)["scores"] for one in confirmed if running.store.has(one.plan.name)]
    wrong = {one.seed: found.tag for one, found in whole[winner] if found and not found.values}
    summary: dict[str, Any] = {"seeds": [one.seed for one in confirmed], "went_wrong": wrong}
    for score in CONFIRMED:
        values = [found[score] for found in facts if found.get(score) is not None]
        spread = statistics.stdev(values) if len(values) > 1 else None
        summary[score] = {"mean": statistics.fmean(values) if values else None, "std": spread, "n": len(values)}
    provenance = {
        "study": running.name,
        "trial": best.number,
        "commit": running.commit,
        "command": command("search.py"),
        "objective": running.search.objective,
        "explored": {"configs": len(finished(study)), "seed": running.search.seed},
        "confirmed": summary,
    }
    path, override = running.store.root / BEST, tuple(running.search.override)
    found = tuned.Tuned(
        running.search.variant, options(running, best.params), override, confirmed[0].config, provenance
    )
    found.write(path)
    running.store.save(path)
    return Best(path, winner, wrong)


def account(running: "Running", study: optuna.Study, confirm: Sequence[Trial], plan: "Plan") -> str:
    """Predicted against actual time and cost of this command, and what sharing stages saved in all."""
    store, took = running.store, study.user_attrs[SECONDS]
    stages = [
        name(stage) for one in [*map(running.explored, finished(study)), *confirm] for _, stage in one.plan.stages
    ]
    seconds = {each: store.facts(each).get("seconds", 0.0) for each in set(stages) if store.has(each)}
    alone, shared = sum(seconds.get(each, 0.0) for each in stages), sum(seconds.values())
    spent = took - running.before - (plan.made - running.began)
    estimate = plan.estimate
    lines = [
        f"Predicted {clock(estimate.median)} ({clock(estimate.low)} to {clock(estimate.high)}), took {clock(spent)}"
        + (f"; {clock(took)} with the commands before." if running.before else "."),
        f"Stages took {clock(shared)}; sharing them between trials saved {clock(alone - shared)}.",
    ]
    if running.search.gpu_hour_price:
        price = running.search.gpu_hour_price * running.units / 3600
        lines.append(f"Predicted cost {estimate.median * price:.2f}, actual {spent * price:.2f}.")
    return "\n".join(lines)
