"""The plan of an ablation: its trials, and its record in the store."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgan.checks import ConfigError, as_json, content_key, difference, require
from sgan.config import IMAGE, STAGE_IMAGES, Config
from sgan.presets import VARIANTS, Row
from sgan.stages.cost import check_networks, flops, planned_steps
from sgan.stages.graph import GanStage, code_version, cost, plan
from sgan.store.local import Store
from sweeps.planning import config_file, manifest
from sweeps.planning.basis import Basis, check_batch, prepare
from sweeps.planning.options import DEFAULT_CUTS, Sweep
from sweeps.planning.trials import Trial, ended, missing, trial

SETTINGS = ("cuts", "weights", "budget", "width", "match", "override")
"""Options that the record holds."""


@dataclass(frozen=True)
class Ablation:
    """An ablation with all options resolved: its `rows` by name; the factor by which each trains `longer` for --match;
    and the `key` of all that its trials share, so that more seeds or variants extend the same sweep."""

    options: Sweep
    basis: Basis
    rows: dict[str, Row]
    longer: dict[str, float]
    trials: tuple[Trial, ...]
    key: str
    title: str

    def record(self, origin: Mapping[str, str]) -> dict[str, Any]:
        """The sweep's record, for `manifest.write`. `origin`: command, commit and machine."""
        settings = self.basis.chosen | {each: getattr(self.options, each) for each in SETTINGS}
        head = manifest.head(self.key, self.title, origin, settings, self.trials[0].plan)
        return head | {"trials": [each.record for each in self.trials]}


def plan_ablation(options: Sweep, gpus: int) -> Ablation:
    """Choose dataset and recipe for this number of GPUs, read the data, and plan every trial. ConfigError as in
    `prepare`, and if the file of --config gives another config here than on the machine of the search."""
    basis, notes = prepare(options, gpus), list[str]()
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
        notes += [f"tuned by search {best.provenance['study']}"] if best.provenance["study"] else []
    rows = options.all_rows
    first = {each: _config(basis, options, row, options.first_seed) for each, row in rows.items()}
    match = options.match
    sizes = {each: size(config, match) for each, config in first.items()}
    longer = {each: max(sizes.values()) / own for each, own in sizes.items()}
    longest = {each: lengthened(config, match, longer[each]) for each, config in first.items()}
    entries = {each: _entries(basis, options, rows, each, config) for each, config in longest.items()}
    trials = tuple(
        trial(each, seed, dataclasses.replace(config, seed=seed), **entries[each])
        for seed in options.seed_range
        for each, config in longest.items()
    )
    _check(rows, trials[: len(rows)], basis)
    notes += [f"cuts {' '.join(options.cuts) or 'none'}"] if options.cuts != DEFAULT_CUTS else []
    notes += [f"weights {' '.join(f'{value:.3g}' for value in options.weights)}"] if options.weights else []
    notes += [f"equal {'FLOPs' if match == 'flops' else 'generator images'}"] if match != "none" else []
    largest = [match, max(sizes.values())] if match != "none" else []
    key = content_key([*basis.shared, options.loss_weights, options.cuts, code_version(), *largest])
    title = ", ".join([basis.what, *basis.notes, *notes])
    return Ablation(options, basis, rows, longer, trials, key, title)


def _config(basis: Basis, options: Sweep, row: Row, seed: int) -> Config:
    start = row if row.built_in else VARIANTS[row.base]
    try:
        config = basis.config(start.variant, seed, options.loss_weights, options.cuts)
    except ConfigError as error:
        raise ConfigError(f"row {row.title}: {error}; choose other --weights, or leave it out of --variants") from error
    return config if row.built_in else row.config(config, basis.recipe)


def _entries(basis: Basis, options: Sweep, rows: Mapping[str, Row], name: str, config: Config) -> dict[str, Any]:
    """The entries of a row in the record of each of its trials. `config`: that of one of them."""
    row = rows[name]
    lengths = {each: getattr(config.recipe, each) for each in STAGE_IMAGES if options.match != "none"}
    override = (*options.override, *(f"{each}={images}" for each, images in lengths.items()))
    alone: dict[str, Any] = {"variants": (name,), "row": (), "override": override}
    if not row.built_in:
        own = {field: lengths.get(field, value) for field, value in row.changes.items()}
        fields = {"base": row.base, "title": row.title, **own}
        told = [f"{field}={item if isinstance(item, str) else json.dumps(item)}" for field, item in fields.items()]
        alone |= {"variants": (), "row": ((name, *told),)}
    again = dataclasses.replace(options, rows=(), match="none", **basis.chosen, **alone)
    return {
        **{each: getattr(row, each) for each in manifest.OF_VARIANT},
        "base_variant": name,
        "rank": [*VARIANTS, *rows].index(name),
        "phase": "ablation",
        "rerun": config_file.words(again),
    }


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


def summary(ablation: Ablation, store: Store) -> list[tuple[str, str]]:
    """The plan of the work: pairs of a heading and a line of text."""
    trials, stages = ablation.trials, sum(len(one.plan.stages) for one in ablation.trials)
    todo = [one for one in trials if not ended(one, store)]
    left, own = len(missing(todo, store)), len({each for one in trials for each in one.plan.names})
    variants, seeds, match = len(ablation.rows), ablation.options.seeds, ablation.options.match
    planned = f"{variants} variant{'s' * (variants != 1)} x {seeds} seed{'s' * (seeds != 1)}"
    lines = [("trials", f"{len(trials)}: {planned}; {len(trials) - len(todo)} finished, {len(todo)} to run")]
    lines += [("row", f"{name}: {row.told}") for name, row in ablation.rows.items() if not row.built_in]
    factors = ", ".join(f"{name} x {factor:.3g}" for name, factor in ablation.longer.items())
    lines += [("match", f"by {match}: {factors}")] if match != "none" else []
    shared = f"{stages - own} more are shared between trials"
    return [*lines, ("stages", f"{own}: {own - left} finished, {left} to run; {shared}")]


def seconds_left(ablation: Ablation, store: Store, rate: float, slots: int) -> float:
    """Predict the wall time in seconds of what is left, at `rate` seconds a unit of cost on this number of slots."""
    todo = [one for one in ablation.trials if not ended(one, store)]
    costs = {name: cost(stage) for name, stage in missing(todo, store).items()}
    longest = max((sum(costs.get(each, 0.0) for each in one.plan.names) for one in todo), default=0.0)
    return rate * max(longest, sum(costs.values()) / slots)


def size(config: Config, match: str) -> float:
    """The training work of all stages: images that the image generator is updated on, or FLOPs of both kinds of steps;
    1 without a match. Generator steps are an estimate, the middle of the recipe's rule; training decides."""
    if match == "none":
        return 1.0
    stages = [stage for _, stage in plan(config).stages if isinstance(stage, GanStage)]
    if match == "flops":
        return sum(flops(stage, *planned_steps(stage)) for stage in stages)
    makers = [stage for stage in stages if stage.levels[0].level.low == IMAGE]
    return sum(stage.recipe.batch * planned_steps(stage)[1] for stage in makers)


def lengthened(config: Config, match: str, factor: float) -> Config:
    """A config that trains `factor` times longer; with match "images" only in the stages that make images."""
    if factor == 1:
        return config
    longer = config.recipe.budget(factor)
    if match == "images":
        longer = dataclasses.replace(longer, feature_level=config.recipe.feature_level)
    return dataclasses.replace(config, recipe=longer)
