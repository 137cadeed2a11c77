"""Cost of a stage, and the seconds that a unit of it took."""

from collections.abc import Iterable

from sgan.config import IMAGE
from sgan.stages.graph import ClassifierStage, JointStage, JudgeStage, LevelStage, ScoreStage, Stage, name
from sgan.store.local import Store

CLASSIFIER, JUDGE = 0.15, 1.0
"""Cost of a training image of an encoder, and of the held-out judge."""


def cost(stage: Stage) -> float:
    """Rough cost of a stage; the unit is one training image of an image level."""
    match stage:
        case ClassifierStage():
            return CLASSIFIER * stage.recipe.images
        case LevelStage():
            return stage.images * (1.0 if stage.low == IMAGE else 0.25)
        case JointStage():
            return 1.2 * stage.images
        case ScoreStage():
            return (2.0 if stage.network else 0.3) * stage.samples
        case JudgeStage():
            return JUDGE * stage.recipe.images if stage.recipe else 50_000


def recorded_rate(store: Store, stages: Iterable[Stage]) -> float | None:
    """Mean seconds of one unit of cost, over those of these stages that the store has; None where it has none."""
    seconds = units = 0.0
    for stage in set(stages):
        if store.has(name(stage)):
            facts = store.facts(name(stage))
            if facts["status"] == "done":
                seconds, units = seconds + facts["seconds"], units + cost(stage)
    return seconds / units if units else None
