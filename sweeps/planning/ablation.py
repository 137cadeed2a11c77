"""An ablation with everything chosen: its trials, and its record in the store."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgan.checks import ConfigError, as_json, content_key, require
from sgan.config import Config
from sgan.presets import REAL_DATA_PAPER, VARIANTS, Row
from sgan.stages.fit import check_networks
from sgan.stages.graph import code_version, name
from sgan.store.local import Store
from sweeps.planning import config_file, manifest
from sweeps.planning.basis import Basis, check_batch, prepare
from sweeps.planning.options import DEFAULT_CUTS, Sweep
from sweeps.planning.rows import as_option
from sweeps.planning.trials import Trial, ended, missing, trial


@dataclass(frozen=True)
class Ablation:
    """An ablation with everything chosen.

    Attributes:
        rows: its rows by name, in order.
        key: content key of all that its trials share, so that more seeds or variants extend the same sweep.
        title: heading of its table.
        search: the provenance of its config file, None without one.
    """

    options: Sweep
    basis: Basis
    rows: dict[str, Row]
    trials: tuple[Trial, ...]
    key: str
    title: str
    search: dict[str, Any] | None = None


def plan_ablation(options: Sweep, gpus: int) -> Ablation:
    """Choose dataset and recipe for this number of GPUs, read the data, and plan every trial.

    Raises:
        ConfigError: data are absent or torn, a value does not fit the dataset or the recipe, or the file of --config
            means another config here than on the machine of the search.
    """
    basis, search = prepare(options, gpus), None
    best = config_file.read(options.config) if options.config else None
    if best and best.matches(options):
        row = VARIANTS[best.variant].variant
        best.check(basis.config(row, best.config.seed, options.loss_weights, options.cuts), options.config)
        search = best.provenance
    rows = options.all_rows
    trials = tuple(
        trial(each, seed, _config(basis, options, row, seed))
        for seed in options.seed_range
        for each, row in rows.items()
    )
    _check(rows, trials[: len(rows)], basis)
    notes = [f"cuts {' '.join(options.cuts) or 'none'}"] if options.cuts != DEFAULT_CUTS else []
    notes += [f"weights {' '.join(f'{value:.3g}' for value in options.weights)}"] if options.weights else []
    notes += [f"tuned by search {search['study']}"] if search else []
    title = ", ".join([basis.what, *basis.notes, *notes])
    return Ablation(options, basis, rows, trials, _key(options, basis), title, search)


def _config(basis: Basis, options: Sweep, row: Row, seed: int) -> Config:
    start = row if row.built_in else VARIANTS[row.base]
    config = basis.config(start.variant, seed, options.loss_weights, options.cuts)
    return config if row.built_in else row.config(config, basis.recipe)


def _check(rows: Mapping[str, Row], trials: Sequence[Trial], basis: Basis) -> None:
    """Raise ConfigError for rows that cannot be trained, or whose scores could not stand in one table."""
    check_networks(each.config for each in trials)
    first = trials[0]
    for each in trials:
        recipe, title = each.config.recipe, rows[each.variant].title
        same = each.plan.judges == first.plan.judges and recipe.samples == first.config.recipe.samples
        require(same, f"row {title} changes what scores (scorer, samples), and a table has one judge; use --override")
        try:
            check_batch(recipe, len(basis.data.images))
        except ConfigError as error:
            raise ConfigError(f"row {title}: {error}") from error


def _key(options: Sweep, basis: Basis) -> str:
    return content_key([*basis.shared, options.loss_weights, options.cuts, code_version()])


def check_record(ablation: Ablation, store: Store) -> None:
    """Raise ConfigError where the record of the same sweep has another row of the same name."""
    there = manifest.read(store, ablation.key)["variants"] if ablation.key in manifest.keys(store) else []
    for before in there:
        row = ablation.rows.get(before["name"])
        require(
            row is None or (row.base, row.changes) == (before["base"], before["changes"]),
            f"row {before['name']} has other changes than in the record of this sweep, {before['base']} with "
            f"{before['changes']}; give it another name",
        )


def record(ablation: Ablation, store: Store, machine: str, commit: str) -> None:
    """Write the sweep's record; trials of earlier commands of the same sweep stay."""
    options, basis, ranks = ablation.options, ablation.basis, [*VARIANTS, *ablation.rows]
    settings = {name: getattr(options, name) for name in ("cuts", "weights", "budget", "width", "override")}
    rows = []
    for each in ablation.trials:
        row, rank = ablation.rows[each.variant], ranks.index(each.variant)
        names = (each.variant,) if row.built_in else ()
        own = () if row.built_in else (as_option(each.variant, row),)
        alone = dataclasses.replace(options, variants=names, rows=(), row=own)
        rows.append(manifest.trial_row(each, "ablation", config_file.words(alone), rank, row))
    head = {
        "key": ablation.key,
        "title": ablation.title,
        "command": manifest.command("ablation.py"),
        "commit": commit,
        "machine": machine,
        "started": time.time(),
        "settings": as_json({"dataset": basis.dataset.name, "recipe": basis.recipe.name} | settings),
        "judges": [name(stage) for stage in ablation.trials[0].plan.judges],
        "paper_real": REAL_DATA_PAPER,
        "search": ablation.search,
    }
    manifest.write(store, head | {"trials": rows})


def summary(ablation: Ablation, store: Store | None, address: str, slots: int, where: str) -> str:
    """The work ahead, in lines. The store is None where there is none yet; `where` names the machines."""
    trials, stages = ablation.trials, sum(len(one.plan.stages) for one in ablation.trials)
    todo = [one for one in trials if store is None or not ended(one, store)]
    left = len(missing(todo, store)) if store else len({each for one in todo for each in one.plan.names})
    variants, seeds = len(ablation.rows), ablation.options.seeds
    own = len({each for one in trials for each in one.plan.names})
    changes = "".join(f"  row     {name}: {row.told}\n" for name, row in ablation.rows.items() if not row.built_in)
    return (
        f"{ablation.title}\n  why     {ablation.basis.why}\n"
        f"  trials  {len(trials)}: {variants} variants x {seeds} seeds; {len(trials) - len(todo)} finished, "
        f"{len(todo)} to run\n{changes}"
        f"  stages  {own}: {own - left} finished, {left} to run; {stages - own} more are shared between trials\n"
        f"  slots   {slots} trials at a time on {where}\n  store   {address}"
    )
