"""Whether the networks of configs fit together, before anything is trained."""

from collections.abc import Iterable

import torch

from sgan.checks import ConfigError
from sgan.config import LABEL, Config
from sgan.models.discriminator import Discriminator
from sgan.models.encoder import tap_shapes
from sgan.models.generator import new_generator
from sgan.stages.graph import plan


def check_networks(configs: Iterable[Config]) -> None:
    """Build every level's networks on the meta device, and pass shapes through them.

    Raises:
        ConfigError: they do not fit together; the message names the level.
    """
    stages = [stage for config in configs for stage in plan(config).score.levels]
    different = {(s.dataset, s.recipe, s.low, s.high, s.labels, s.through, s.codes): s for s in stages}
    for stage in different.values():
        try:
            with torch.device("meta"):
                ends = (stage.low, stage.high, stage.labels, stage.through, stage.codes)
                generator = new_generator(stage.dataset, stage.recipe, *ends)
                judge = Discriminator(stage.dataset, stage.recipe, stage.low, stage.through, stage.codes)
                given = (stage.dataset.classes * stage.labels,)
                given = given if stage.high == LABEL else tap_shapes(stage.dataset)[stage.high]
                judge(generator(torch.empty(2, *given), torch.empty(2, generator.noise)))
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"the networks of the level from {stage.high} to {stage.low} do not fit {stage.dataset.name} images of "
                f"{stage.dataset.size} pixels ({str(error).splitlines()[0]}); choose another split or width"
            ) from error
