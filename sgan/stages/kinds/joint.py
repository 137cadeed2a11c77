"""Trains all levels together, each on what the one above makes (paper, section 3.2: joint training)."""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sgan.config import GanRecipe
from sgan.data.batches import pixel_mean
from sgan.stages.context import MODEL_FILE, Context, Evaluator
from sgan.stages.kinds.classifier import ClassifierStage
from sgan.stages.kinds.level import START_FILE, LevelStage, build, generators, load_encoder, train
from sgan.store.files import write_tensors
from sgan.training.checkpoint import load_modules, load_optimisers, module_tensors
from sgan.training.loop import Progress
from sgan.training.steps import GanTask, role_seed


@dataclass(frozen=True)
class JointStage:
    """Goes on training all levels together; fields as in Recipe."""

    levels: tuple[LevelStage, ...]
    recipe: GanRecipe
    feedback: float
    fresh_adam: bool
    images: int
    evaluations: int
    sampling: str

    kind = "joint"

    @property
    def parents(self) -> tuple[ClassifierStage | LevelStage, ...]:
        return (*self.levels[0].parents, *self.levels)


def run(
    stage: JointStage, context: Context, folder: Path, evaluator: Evaluator | None
) -> Generator[Progress, None, dict[str, Any]]:
    """Train the stack from its levels' weights, and from their Adam states where the recipe says so."""
    first, recipe, data = stage.levels[0], stage.recipe, context.data
    file = START_FILE if first.joint_start < 1 else MODEL_FILE
    states = [context.tensors(level, file) for level in stage.levels]
    levels, discriminators = build(stage.levels, recipe, data, context.device)
    for level, discriminator, tensors in zip(levels, discriminators, states, strict=True):
        load_modules(generators([level]) | {"discriminator": nn.ModuleList([discriminator])}, tensors)
    encoder, mean = load_encoder(first, context), pixel_mean(data.images, recipe.pixel_mean)
    seed, classes = role_seed(first.seed, "joint"), first.dataset.classes
    task = GanTask(
        levels, discriminators, encoder, data, recipe, first.weights, seed, mean, classes, feedback=stage.feedback
    )
    if not stage.fresh_adam:
        place = dict.fromkeys(task.modules, 0)
        for level, discriminator, tensors in zip(levels, discriminators, states, strict=True):
            load_optimisers(task, tensors, place)
            place["generator"] += len(list(level.generator.parameters()))
            place["discriminator"] += len(list(discriminator.parameters()))
    yield from train(task, stage, folder, evaluator)
    write_tensors(folder / MODEL_FILE, module_tensors(task.modules))
    return {}
