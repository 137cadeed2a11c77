"""The options of an ablation."""

from dataclasses import dataclass
from pathlib import Path

from sgan.checks import require
from sgan.config import Variant, Weights
from sgan.presets import VARIANTS
from sweeps.planning.options import DEFAULT_CUTS, Options


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
