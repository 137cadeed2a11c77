"""An ablation: its options, and the trials that they mean."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgan.checks import as_json, content_key, require
from sgan.config import Variant, Weights
from sgan.presets import REAL_DATA_PAPER, VARIANTS
from sweeps import tuned
from sweeps.manifest import command, trial_row, write_manifest
from sweeps.options import DEFAULT_CUTS, Basis, Options, prepare

if TYPE_CHECKING:
    from sgan.store import Store
    from sweeps.trials import Trial


@dataclass(frozen=True)
class Sweep(Options):
    """Train and score the ablation of Stacked GANs: variants x seeds, in parallel, each stage once.

    With no options it runs the largest job that the hardware carries: the paper's CIFAR-10 job where Ray has GPUs,
    otherwise the digits that come with scikit-learn. The same command again trains nothing; more seeds or variants
    train only what is new.
    """

    variants: tuple[str, ...] = tuple(name for name, row in VARIANTS.items() if row.default)
    """Rows of the ablation; beside the paper's six there are sgan-no-entropy, full-gan, sgan-unsupervised and
    infogan."""
    seeds: int = 3
    """Number of training seeds a variant."""
    first_seed: int = 0
    """The first of those seeds."""
    cuts: tuple[str, ...] = DEFAULT_CUTS
    """Where the stacked variants are cut, from the image up: any of conv1 pool1 conv2 pool2 fc3. N cuts make N + 1
    levels."""
    weights: tuple[float, float, float] | None = None
    """Weights of the adversarial, conditional and entropy loss; a variant without one of them keeps 0 there. Without
    this option they are the paper's 1 1 10, and 1 0 1 for infogan."""
    config: Path | None = None
    """The best.yaml of a search: what it says of the options stands, where the command line says nothing else."""

    def __post_init__(self):
        require(len(self.variants) > 0, f"--variants needs at least one of {', '.join(VARIANTS)}")
        for variant in self.variants:
            require(
                variant in VARIANTS,
                f"unknown variant {variant!r} in --variants; choose from {', '.join(VARIANTS)}",
            )
        require(self.seeds >= 1, f"--seeds must be at least 1, but got {self.seeds}")
        require(0 <= self.first_seed <= 2**31 - 2 - self.seeds, f"--first-seed must be >= 0, but got {self.first_seed}")
        Variant(self.cuts, self.loss_weights or Weights(), joint=False)  # validates both
        super().__post_init__()

    @property
    def loss_weights(self) -> Weights | None:
        """The weights asked for, if any."""
        return Weights(*self.weights) if self.weights else None

    @property
    def seed_range(self) -> range:
        """The training seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)


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
    trials: "tuple[Trial, ...]"
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
    from sweeps.trials import trial

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
    from sgan.stages import code_version

    return content_key([*basis.shared, as_json(sweep.loss_weights), list(sweep.cuts), code_version()])


def record(resolved: Resolved, store: "Store", machine: str, commit: str) -> None:
    """Tell tracking and report what the sweep consists of; trials of earlier commands of the same sweep stay."""
    sweep = resolved.sweep
    settings = {name: getattr(sweep, name) for name in ("cuts", "weights", "budget", "width", "override")}
    write_manifest(
        store,
        key=resolved.key,
        title=resolved.title,
        command=command("ablation.py"),
        commit=commit,
        machine=machine,
        settings={"dataset": resolved.basis.dataset.name, "recipe": resolved.basis.recipe.name} | as_json(settings),
        judges=resolved.trials[0].plan.judges,
        variants=[{"name": name, "title": row.title, "paper": row.paper} for name, row in VARIANTS.items()],
        trials=[trial_row(trial, "ablation", rerun(sweep, trial)) for trial in resolved.trials],
        more={
            "paper_real": REAL_DATA_PAPER,
            "search": resolved.search,
            "default": resolved.default_key,
            "default_command": resolved.default_command,
        },
    )


def rerun(sweep: Sweep, trial: "Trial") -> str:
    """The options that run one trial of a sweep again."""
    return tuned.words(dataclasses.replace(sweep, variants=(trial.variant,), seeds=1, first_seed=trial.seed))
