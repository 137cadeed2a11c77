"""The plan of an ablation: its trials, and its record in the store."""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgan.addresses import masked
from sgan.checks import ConfigError, as_json, content_key, difference, require
from sgan.config import IMAGE, STAGE_IMAGES, Config
from sgan.presets import REAL_DATA_PAPER, VARIANTS, Row
from sgan.stages.cost import check_networks, flops, planned_steps
from sgan.stages.graph import JointStage, LevelStage, code_version, name, plan
from sgan.store.local import Store
from sweeps.planning import config_file, manifest
from sweeps.planning.basis import Basis, check_batch, prepare
from sweeps.planning.options import DEFAULT_CUTS, Sweep
from sweeps.planning.trials import Trial, ended, missing, trial, trial_row


@dataclass(frozen=True)
class Ablation:
    """An ablation with all options resolved: its `rows` by name; the factor by which each trains `longer` for --match;
    the `key` of all that its trials share, so that more seeds or variants extend the same sweep; and the provenance of
    the `search` whose config file it runs, None without one."""

    options: Sweep
    basis: Basis
    rows: dict[str, Row]
    longer: dict[str, float]
    trials: tuple[Trial, ...]
    key: str
    title: str
    search: dict[str, Any] | None = None


def plan_ablation(options: Sweep, gpus: int) -> Ablation:
    """Choose dataset and recipe for this number of GPUs, read the data, and plan every trial. ConfigError as in
    `prepare`, and if the file of --config gives another config here than on the machine of the search."""
    basis, search = prepare(options, gpus), None
    best = config_file.read(options.config) if options.config else None
    if best and all(getattr(options, name) == getattr(best.options, name) for name in config_file.CHOSEN):
        row = VARIANTS[best.variant].variant
        made = basis.config(row, best.config.seed, options.loss_weights, options.cuts)
        if found := difference(as_json(best.config), as_json(made)):
            field, there, here = found
            raise ConfigError(
                f"{options.config} means another config here: {field} is {there} in the file and {here} here; use the "
                f"data and the commit ({best.provenance.get('commit')}) of the search, or give its options by hand"
            )
        search = best.provenance
    rows = options.all_rows
    first = {each: _config(basis, options, row, options.first_seed) for each, row in rows.items()}
    match = options.match
    sizes = {each: size(config, match) for each, config in first.items()}
    longer = {each: max(sizes.values()) / own for each, own in sizes.items()}
    trials = tuple(
        trial(each, seed, lengthened(dataclasses.replace(config, seed=seed), match, longer[each]))
        for seed in options.seed_range
        for each, config in first.items()
    )
    _check(rows, trials[: len(rows)], basis)
    notes = [f"cuts {' '.join(options.cuts) or 'none'}"] if options.cuts != DEFAULT_CUTS else []
    notes += [f"weights {' '.join(f'{value:.3g}' for value in options.weights)}"] if options.weights else []
    notes += [f"tuned by search {search['study']}"] if search and search["study"] else []
    notes += [f"equal {'FLOPs' if match == 'flops' else 'generator images'}"] if match != "none" else []
    largest = [match, max(sizes.values())] if match != "none" else []
    key = content_key([*basis.shared, options.loss_weights, options.cuts, code_version(), *largest])
    title = ", ".join([basis.what, *basis.notes, *notes])
    return Ablation(options, basis, rows, longer, trials, key, title, search)


def _config(basis: Basis, options: Sweep, row: Row, seed: int) -> Config:
    start = row if row.built_in else VARIANTS[row.base]
    config = basis.config(start.variant, seed, options.loss_weights, options.cuts)
    return config if row.built_in else row.config(config, basis.recipe)


def _check(rows: Mapping[str, Row], trials: Sequence[Trial], basis: Basis) -> None:
    """Raise ConfigError for rows that cannot be trained, or whose scores could not stand in one table."""
    check_networks(each.config for each in trials)
    for each in trials:
        row = f"row {rows[each.variant].title}"
        same = each.plan.judges == trials[0].plan.judges
        require(same, f"{row} changes the scoring (judge, samples), but a table has one judge; use --override")
        check_batch(each.config.recipe, len(basis.data.images), f"{row}: ")


def check_record(ablation: Ablation, store: Store) -> None:
    """Raise ConfigError where the record of the same sweep has another row of the same name."""
    for before in manifest.read(store, ablation.key)["variants"] if ablation.key in manifest.keys(store) else ():
        row, there = ablation.rows.get(before["name"]), (before["base"], before["changes"])
        told = f"row {before['name']} has other changes than in the record of this sweep, {there[0]} with {there[1]}"
        require(row is None or (row.base, row.changes) == there, f"{told}; give it another name")


def record(ablation: Ablation, origin: Mapping[str, str]) -> dict[str, Any]:
    """The sweep's record, for `manifest.write`. `origin`: command, commit and machine."""
    options, basis, ranks = ablation.options, ablation.basis, [*VARIANTS, *ablation.rows]
    settings = {name: getattr(options, name) for name in ("cuts", "weights", "budget", "width", "match", "override")}
    rows = []
    for each in ablation.trials:
        row, rank = ablation.rows[each.variant], ranks.index(each.variant)
        lengths = {name: getattr(each.config.recipe, name) for name in STAGE_IMAGES if options.match != "none"}
        override = (*options.override, *(f"{name}={images}" for name, images in lengths.items()))
        alone: dict[str, Any] = {"variants": (each.variant,), "row": (), "override": override}
        if not row.built_in:
            own = {name: lengths.get(name, value) for name, value in row.changes.items()}
            fields = {"base": row.base, "title": row.title, **own}
            told = [f"{field}={item if isinstance(item, str) else json.dumps(item)}" for field, item in fields.items()]
            alone |= {"variants": (), "row": ((each.variant, *told),)}
        again = dataclasses.replace(options, rows=(), match="none", **basis.chosen, **alone)
        rows.append(trial_row(each, "ablation", again, rank, row))
    head = {
        "key": ablation.key,
        "title": ablation.title,
        **origin,
        "started": time.time(),
        "settings": as_json({"dataset": basis.dataset.name, "recipe": basis.recipe.name} | settings),
        "judges": [name(stage) for stage in ablation.trials[0].plan.judges],
        "paper_real": REAL_DATA_PAPER,
        "search": ablation.search,
    }
    return head | {"trials": rows}


def summary(ablation: Ablation, store: Store, slots: int, where: str) -> str:
    """The plan of the work in lines of text; `where` names the machines."""
    trials, stages = ablation.trials, sum(len(one.plan.stages) for one in ablation.trials)
    todo = [one for one in trials if not ended(one, store)]
    left = len(missing(todo, store))
    variants, seeds = len(ablation.rows), ablation.options.seeds
    own = len({each for one in trials for each in one.plan.names})
    changes = "".join(f"  row     {name}: {row.told}\n" for name, row in ablation.rows.items() if not row.built_in)
    if ablation.options.match != "none":
        factors = ", ".join(f"{name} x {factor:.3g}" for name, factor in ablation.longer.items())
        changes += f"  match   by {ablation.options.match}: {factors}\n"
    return (
        f"{ablation.title}\n  why     {ablation.basis.why}\n"
        f"  trials  {len(trials)}: {variants} variant{'s' * (variants != 1)} x {seeds} seed{'s' * (seeds != 1)}; "
        f"{len(trials) - len(todo)} finished, {len(todo)} to run\n{changes}"
        f"  stages  {own}: {own - left} finished, {left} to run; {stages - own} more are shared between trials\n"
        f"  slots   {slots} stages at a time on {where}\n  store   {masked(ablation.options.store)}"
    )


def size(config: Config, match: str) -> float:
    """The training work of all stages: images that the image generator is updated on, or FLOPs of both kinds of steps;
    1 without a match. Generator steps are an estimate, the middle of the recipe's rule; training decides."""
    if match == "none":
        return 1.0
    stages = [stage for _, stage in plan(config).stages if isinstance(stage, LevelStage | JointStage)]
    if match == "flops":
        return sum(flops(stage, *planned_steps(stage)) for stage in stages)
    makers = [stage for stage in stages if isinstance(stage, JointStage) or stage.low == IMAGE]
    return sum(stage.recipe.batch * planned_steps(stage)[1] for stage in makers)


def lengthened(config: Config, match: str, factor: float) -> Config:
    """A config that trains `factor` times longer; with match "images" only in the stages that make images."""
    if factor == 1:
        return config
    longer = config.recipe.budget(factor)
    if match == "images":
        longer = dataclasses.replace(longer, feature_level=config.recipe.feature_level)
    return dataclasses.replace(config, recipe=longer)
