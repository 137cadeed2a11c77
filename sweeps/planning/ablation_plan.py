"""What an ablation's options mean: dataset, recipe and trials, and what is recorded of them."""

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from sgan.checks import as_json, content_key
from sgan.presets import REAL_DATA_PAPER, VARIANTS
from sgan.stages.graph import code_version, name
from sgan.store.local import Store
from sweeps.planning import config_file as tuned
from sweeps.planning import manifest
from sweeps.planning.ablation_options import Sweep
from sweeps.planning.manifest import command
from sweeps.planning.options import DEFAULT_CUTS, Basis, prepare
from sweeps.planning.trials import Trial, trial


@dataclass(frozen=True)
class Resolved:
    """A sweep with everything chosen.

    Attributes:
        key: content key of all that its trials share; the same sweep with other variants or seeds has the same.
        title: heading of its table.
        search: the search that chose its options, None where none did.
        default_key, default_command: key and command of the sweep that differs from this one only by what that search
            chose; "" without a search.
    """

    sweep: Sweep
    basis: Basis
    trials: tuple[Trial, ...]
    key: str
    title: str
    search: dict[str, Any] | None
    default_key: str
    default_command: str


def resolve(sweep: Sweep, gpus: int) -> Resolved:
    """Choose dataset and recipe, read the data, and plan every trial.

    Raises:
        ConfigError: data are absent or torn, a value does not fit the dataset or the recipe, or the file of --config
            means another config here than where it was written.
    """
    basis = prepare(sweep, gpus)
    search, default_key, default_command = None, "", ""
    if sweep.config:
        found = tuned.read(sweep.config)
        if found.matches(sweep):
            found.check(basis)
            search, default = found.provenance, found.default(sweep)
            default_key = _key(default, prepare(default, gpus))
            default_command = f"python sweeps/ablation.py {tuned.words(default)}"
    weights = sweep.loss_weights
    trials = tuple(
        trial(variant, seed, basis.config(VARIANTS[variant].variant, seed, weights, sweep.cuts))
        for seed in sweep.seed_range
        for variant in dict.fromkeys(sweep.variants)
    )
    extras = [
        f"cuts {' '.join(sweep.cuts) or 'none'}" if sweep.cuts != DEFAULT_CUTS else "",
        f"weights {' '.join(f'{value:.3g}' for value in sweep.weights)}" if sweep.weights else "",
        f"tuned by search {search['study']}" if search else "",
    ]
    title = ", ".join([basis.what, *basis.notes, *filter(None, extras)])
    return Resolved(sweep, basis, trials, _key(sweep, basis), title, search, default_key, default_command)


def _key(sweep: Sweep, basis: Basis) -> str:
    return content_key([*basis.shared, as_json(sweep.loss_weights), list(sweep.cuts), code_version()])


def record(resolved: Resolved, store: Store, machine: str, commit: str) -> None:
    """Write the sweep's record; trials of earlier commands of the same sweep stay."""
    sweep, rank = resolved.sweep, list(VARIANTS)
    settings = {name: getattr(sweep, name) for name in ("cuts", "weights", "budget", "width", "override")}
    manifest.write(
        store,
        {
            "key": resolved.key,
            "title": resolved.title,
            "command": command("ablation.py"),
            "commit": commit,
            "machine": machine,
            "started": time.time(),
            "settings": {"dataset": resolved.basis.dataset.name, "recipe": resolved.basis.recipe.name}
            | as_json(settings),
            "judges": [name(stage) for stage in resolved.trials[0].plan.judges],
            "paper_real": REAL_DATA_PAPER,
            "search": resolved.search,
            "default": resolved.default_key,
            "default_command": resolved.default_command,
            "trials": [
                manifest.trial_row(
                    trial,
                    "ablation",
                    rerun(sweep, trial),
                    rank.index(trial.variant),
                    VARIANTS[trial.variant].title,
                    VARIANTS[trial.variant].paper,
                )
                for trial in resolved.trials
            ],
        },
    )


def rerun(sweep: Sweep, trial: Trial) -> str:
    """The options that run one trial of a sweep again."""
    return tuned.words(dataclasses.replace(sweep, variants=(trial.variant,), seeds=1, first_seed=trial.seed))
