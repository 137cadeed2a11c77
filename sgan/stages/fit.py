"""Whether the networks of configs fit together, before anything is trained."""

from collections.abc import Iterable

import torch

from sgan.checks import ConfigError
from sgan.config import LABEL, Config
from sgan.models.discriminator import Discriminator
from sgan.models.encoder import tap_shapes
from sgan.models.generator import new_generator
from sgan.stages.graph import LevelStage, plan


def check_networks(configs: Iterable[Config]) -> None:
    """Build every level's networks on the meta device, and pass shapes through them.

    Raises:
        ConfigError: they do not fit together; the message names the level.
    """
    stages = [stage for config in configs for _, stage in plan(config).stages if isinstance(stage, LevelStage)]
    for dataset, recipe, *ends in {(s.dataset, s.recipe, s.low, s.high, s.labels, s.through, s.codes) for s in stages}:
        low, high, labels, through, codes = ends
        try:
            with torch.device("meta"):
                generator = new_generator(dataset, recipe, low, high, labels, through, codes)
                judge = Discriminator(dataset, recipe, low, through, codes)
                given = (dataset.classes * labels,) if high == LABEL else tap_shapes(dataset)[high]
                judge(generator(torch.empty(2, *given), torch.empty(2, generator.noise)))
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"the networks of the level from {high} to {low} do not fit {dataset.name} images of {dataset.size} "
                f"pixels ({str(error).splitlines()[0]}); choose another split or width"
            ) from error
