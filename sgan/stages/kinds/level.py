"""Trains one level of a stack on real features (paper, section 3.2: each generator is trained independently)."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sgan.config import IMAGE, GanRecipe
from sgan.data.batches import Data, pixel_mean
from sgan.models.discriminator import Discriminator
from sgan.models.encoder import Encoder
from sgan.models.generator import new_generator
from sgan.models.stack import Level
from sgan.models.tensors import module_tensors, write_tensors
from sgan.stages.context import MODEL_FILE, Context, Evaluator, Running
from sgan.stages.graph import JointStage, LevelStage
from sgan.stages.kinds import classifier
from sgan.training.checkpoint import task_tensors
from sgan.training.loop import Progress, loop, marks
from sgan.training.steps import FORMAT, GanTask, Networks, role_seed

START_FILE = "joint-start.safetensors"  # The state from which the joint stage starts, where it is not the last one
WEIGHTS = "weights"  # Folder of the generators' weights at each evaluation but the last, <images>.safetensors


def build(
    stages: Sequence[LevelStage], recipe: GanRecipe, data: Data, device: str, encoder: Encoder | None = None
) -> Networks:
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
    return Networks(levels, discriminators, encoder, stages[0].dataset.classes)


def generators(levels: Sequence[Level]) -> dict[str, nn.Module]:
    """Return the generators of levels under the name that GanTask gives them."""
    return {"generator": nn.ModuleList(level.generator for level in levels)}


def run(stage: LevelStage, context: Context, folder: Path, evaluator: Evaluator | None) -> Running:
    """Train the level, and write its weights and, where `joint_start` asks for it, the state for the joint stage."""
    recipe, data = stage.recipe, context.data
    networks = build((stage,), recipe, data, context.device, classifier.load(stage.encoder, context))
    task = GanTask(networks, data, recipe, stage.weights, role_seed(stage.seed, stage.low))
    steps = max(1, stage.images // recipe.batch)
    start = max(1, round(steps * stage.joint_start)) if stage.joint_start < 1 else 0
    yield from train(task, stage, folder, evaluator, start)
    write_tensors(folder / MODEL_FILE, _kept(task, stage))
    return {}


def train(
    task: GanTask, stage: LevelStage | JointStage, folder: Path, evaluator: Evaluator | None, start: int = 0
) -> Iterator[Progress]:
    """Train a level or a stack, and keep the generators' weights at each evaluation but the last. `start`: the step
    after which the state for the joint stage is kept; 0: it is not."""
    steps, batch = max(1, stage.images // stage.recipe.batch), stage.recipe.batch
    judge, score = evaluator(task.levels, task.encoder) if evaluator else ("", lambda images: {})

    def evaluate(images: int) -> dict[str, float]:
        if 0 < images < steps * batch:
            kept = module_tensors(generators(task.levels))
            write_tensors(folder / WEIGHTS / f"{images:09d}.safetensors", kept)
        if start and images == start * batch:
            write_tensors(folder / START_FILE, _kept(task, stage))
        return score(images)

    evaluations = marks(steps, stage.evaluations) | ({start} if start else set())
    yield from loop(task, steps, batch, folder, evaluate, evaluations, judge)


def _kept(task: GanTask, stage: LevelStage | JointStage) -> dict[str, Tensor]:
    """The weights, with Adam's states where the joint stage continues these."""
    keep_adam = isinstance(stage, LevelStage) and stage.keep_adam
    return task_tensors(task) if keep_adam else module_tensors(task.modules)
