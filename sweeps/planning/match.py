"""Equal compute: every row's GAN training as long as that of the largest row."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from sgan.config import IMAGE, Config
from sgan.stages.cost import flops, planned_steps
from sgan.stages.graph import JointStage, LevelStage, plan

Match = Literal["none", "images", "flops"]
LENGTHS = ("image_level", "feature_level", "joint_images")


def size(config: Config, match: Match) -> float:
    """Images that the generator of images is updated on, or FLOPs of both kinds of steps, through all stages.

    Generator steps are planned by the middle of the recipe's rule; where it lets them vary, training decides.
    """
    stages = [stage for _, stage in plan(config).stages if isinstance(stage, LevelStage | JointStage)]
    if match == "flops":
        return sum(flops(stage, *planned_steps(stage)) for stage in stages)
    makers = [stage for stage in stages if isinstance(stage, JointStage) or stage.low == IMAGE]
    return sum(stage.recipe.batch * planned_steps(stage)[1] for stage in makers)


def factors(configs: Mapping[str, Config], match: Match) -> dict[str, float]:
    """Name -> how many times longer it trains to be as large as the largest; all 1 without a match."""
    sizes = {name: 1.0 if match == "none" else size(config, match) for name, config in configs.items()}
    return {name: max(sizes.values()) / each for name, each in sizes.items()}


def lengthened(config: Config, match: Match, factor: float) -> Config:
    """A config that trains so many times longer; by images, only in the stages that make some."""
    if factor == 1:
        return config
    longer = config.recipe.budget(factor)
    if match == "images":
        longer = replace(longer, feature_level=config.recipe.feature_level)
    return replace(config, recipe=longer)
