"""Trains one level of a stack on real features (paper, section 3.2: each generator is trained independently)."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sgan.config import IMAGE, Codes, GanRecipe, Weights
from sgan.data.batches import Data, pixel_mean
from sgan.models.encoder import Encoder
from sgan.models.networks import Discriminator, new_generator
from sgan.models.stack import Level
from sgan.shapes import Dataset
from sgan.stages.context import MODEL_FILE, Context, Evaluator
from sgan.stages.kinds import classifier
from sgan.stages.kinds.classifier import ClassifierStage
from sgan.store.files import write_tensors
from sgan.training.checkpoint import module_tensors, task_tensors
from sgan.training.loop import Progress, loop, marks
from sgan.training.steps import FORMAT, GanTask, role_seed

START_FILE = "joint-start.safetensors"
"""The state with which the joint stage goes on, where it is not the last one."""
WEIGHTS = "weights"
"""Folder of the generators' weights at each evaluation but the last, <images>.safetensors."""


@dataclass(frozen=True)
class LevelStage:
    """Trains the level between taps `low` and `high` on real features; fields as in Recipe and Variant.

    Attributes:
        joint_start: share of the training after which the state is kept for the joint stage; 1: the last one serves.
        keep_adam: the state for the joint stage includes Adam's.
        encoder: None where neither a tap nor a loss needs it.
    """

    dataset: Dataset
    data: str
    low: str
    high: str
    labels: bool
    through: tuple[str, ...]
    codes: Codes | None
    recipe: GanRecipe
    weights: Weights
    images: int
    joint_start: float
    keep_adam: bool
    evaluations: int
    sampling: str
    seed: int
    encoder: ClassifierStage | None

    kind = "level"

    @property
    def parents(self) -> tuple[ClassifierStage, ...]:
        return (self.encoder,) if self.encoder else ()


def build(
    stages: Sequence[LevelStage], recipe: GanRecipe, data: Data, device: str
) -> tuple[list[Level], list[Discriminator]]:
    """Fresh levels with their discriminators, each initialised from its stage's seed."""
    levels, discriminators = [], []
    for stage in stages:
        torch.manual_seed(role_seed(stage.seed, stage.low))
        ends = (stage.low, stage.high, stage.labels, stage.through, stage.codes)
        generator = new_generator(stage.dataset, recipe, *ends).to(device)
        if stage.low == IMAGE:
            generator.mean.copy_(pixel_mean(data.images, recipe.pixel_mean))
        discriminator = Discriminator(stage.dataset, recipe, stage.low, stage.through, stage.codes).to(device)
        generator = generator.to(memory_format=FORMAT)
        levels.append(Level(stage.low, stage.high, generator, stage.labels, stage.codes, stage.through))
        discriminators.append(discriminator.to(memory_format=FORMAT))
    return levels, discriminators


def generators(levels: Sequence[Level]) -> dict[str, nn.Module]:
    """The generators of levels under the name by which GanTask has them."""
    return {"generator": nn.ModuleList(level.generator for level in levels)}


def load_encoder(stage: LevelStage, context: Context) -> Encoder | None:
    """The encoder of a level; None where it has none."""
    return classifier.load(stage.encoder, context) if stage.encoder else None


def run(
    stage: LevelStage, context: Context, folder: Path, evaluator: Evaluator | None
) -> Generator[Progress, None, dict[str, Any]]:
    """Train the level; its weights and, in the middle, the state for the joint stage are kept."""
    recipe, data = stage.recipe, context.data
    levels, discriminators = build((stage,), recipe, data, context.device)
    encoder, mean = load_encoder(stage, context), pixel_mean(data.images, recipe.pixel_mean)
    seed, classes = role_seed(stage.seed, stage.low), stage.dataset.classes
    task = GanTask(levels, discriminators, encoder, data, recipe, stage.weights, seed, mean, classes)
    steps = max(1, stage.images // recipe.batch)
    start = max(1, round(steps * stage.joint_start)) if stage.joint_start < 1 else 0
    yield from train(task, stage, folder, evaluator, start)
    write_tensors(folder / MODEL_FILE, task_tensors(task) if stage.keep_adam else module_tensors(task.modules))
    return {}


def train(task: GanTask, stage: Any, folder: Path, evaluator: Evaluator | None, start: int = 0) -> Iterator[Progress]:
    """Train a level or a stack, and keep the generators' weights at each evaluation but the last.

    Args:
        stage: LevelStage or JointStage.
        start: the step after which the state for the joint stage is kept; 0: it is not.
    """
    steps, batch = max(1, stage.images // stage.recipe.batch), stage.recipe.batch
    score = evaluator.prepare(task.levels, task.encoder, folder) if evaluator else lambda images: {}

    def evaluate(images: int) -> dict[str, float]:
        if 0 < images < steps * batch:
            kept = module_tensors(generators(task.levels))
            write_tensors(folder / WEIGHTS / f"{images:09d}.safetensors", kept)
        if start and images == start * batch:
            write_tensors(folder / START_FILE, task_tensors(task))
        return score(images)

    evaluations = marks(steps, stage.evaluations) | ({start} if start else set())
    yield from loop(task, steps, batch, folder, evaluate, evaluations, evaluator.judge if evaluator else "")
