"""An ablation with everything chosen: its trials, and its record in the store."""

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from sgan.checks import as_json, content_key
from sgan.presets import REAL_DATA_PAPER, VARIANTS
from sgan.stages.graph import code_version, name
from sgan.store.local import Store
from sweeps.planning import config_file, manifest
from sweeps.planning.basis import Basis, prepare
from sweeps.planning.options import DEFAULT_CUTS, Sweep
from sweeps.planning.trials import Trial, ended, missing, trial


@dataclass(frozen=True)
class Ablation:
    """An ablation with everything chosen.

    Attributes:
        key: content key of all that its trials share, so that more seeds or variants extend the same sweep.
        title: heading of its table.
        search: the provenance of its config file, None without one.
        default_key, default_command: the same sweep without the choices of that search; "" without one.
    """

    options: Sweep
    basis: Basis
    trials: tuple[Trial, ...]
    key: str
    title: str
    search: dict[str, Any] | None = None
    default_key: str = ""
    default_command: str = ""


def plan_ablation(options: Sweep, gpus: int) -> Ablation:
    """Choose dataset and recipe for this number of GPUs, read the data, and plan every trial.

    Raises:
        ConfigError: data are absent or torn, a value does not fit the dataset or the recipe, or the file of --config
            means another config here than on the machine of the search.
    """
    basis, search, default_key, default_command = prepare(options, gpus), None, "", ""
    best = config_file.read(options.config) if options.config else None
    if best and best.matches(options):
        row = VARIANTS[best.variant].variant
        best.check(basis.config(row, best.config.seed, options.loss_weights, options.cuts), options.config)
        default = dataclasses.replace(
            options, config=None, cuts=DEFAULT_CUTS, weights=None, override=best.base_override
        )
        search, default_key = best.provenance, _key(default, prepare(default, gpus))
        seeds = f"--seeds {options.seeds} --first-seed {options.first_seed}"
        default_command = f"python sweeps/ablation.py {config_file.words(default)} {seeds}"
    trials = tuple(
        trial(variant, seed, basis.config(VARIANTS[variant].variant, seed, options.loss_weights, options.cuts))
        for seed in options.seed_range
        for variant in dict.fromkeys(options.variants)
    )
    notes = [f"cuts {' '.join(options.cuts) or 'none'}"] if options.cuts != DEFAULT_CUTS else []
    notes += [f"weights {' '.join(f'{value:.3g}' for value in options.weights)}"] if options.weights else []
    notes += [f"tuned by search {search['study']}"] if search else []
    title = ", ".join([basis.what, *basis.notes, *notes])
    return Ablation(options, basis, trials, _key(options, basis), title, search, default_key, default_command)


def _key(options: Sweep, basis: Basis) -> str:
    return content_key([*basis.shared, options.loss_weights, options.cuts, code_version()])


def record(ablation: Ablation, store: Store, machine: str, commit: str) -> None:
    """Write the sweep's record; trials of earlier commands of the same sweep stay."""
    options, basis, rank = ablation.options, ablation.basis, list(VARIANTS)
    settings = {name: getattr(options, name) for name in ("cuts", "weights", "budget", "width", "override")}
    rows = []
    for each in ablation.trials:
        alone = dataclasses.replace(options, variants=(each.variant,))
        row, place = VARIANTS[each.variant], rank.index(each.variant)
        rows.append(manifest.trial_row(each, "ablation", config_file.words(alone), place, row.title, row.paper))
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
        "default": ablation.default_key,
        "default_command": ablation.default_command,
    }
    manifest.write(store, head | {"trials": rows})


def summary(ablation: Ablation, store: Store | None, address: str, slots: int, where: str) -> str:
    """The work ahead, in lines. The store is None where there is none yet; `where` names the machines."""
    trials, stages = ablation.trials, sum(len(one.plan.stages) for one in ablation.trials)
    todo = [one for one in trials if store is None or not ended(one, store)]
    left = len(missing(todo, store)) if store else len({each for one in todo for each in one.plan.names})
    variants, seeds = len(dict.fromkeys(ablation.options.variants)), ablation.options.seeds
    own = len({each for one in trials for each in one.plan.names})
    return (
        f"{ablation.title}\n  why     {ablation.basis.why}\n"
        f"  trials  {len(trials)}: {variants} variants x {seeds} seeds; {len(trials) - len(todo)} finished, "
        f"{len(todo)} to run\n"
        f"  stages  {own}: {own - left} finished, {left} to run; {stages - own} more are shared between trials\n"
        f"  slots   {slots} trials at a time on {where}\n  store   {address}"
    )
