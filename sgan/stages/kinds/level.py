"""Trains one level of a stack on real features (paper, section 3.2: each generator is trained independently)."""

from collections.abc import Iterator
from pathlib import Path

import torch

from sgan.data.batches import Data
from sgan.models.discriminator import Discriminator
from sgan.models.encoder import Encoder
from sgan.models.generator import new_generator
from sgan.models.tensors import module_tensors, write_tensors
from sgan.stages.context import MODEL_FILE, Context, Evaluator, Running
from sgan.stages.graph import GanStage, LevelStage
from sgan.stages.kinds import classifier
from sgan.training.checkpoint import task_tensors
from sgan.training.loop import Progress, loop, marks
from sgan.training.steps import FORMAT, GanTask, role_seed

START_FILE = "joint-start.safetensors"  # The state from which the joint stage starts, where it is not the last one
WEIGHTS = "weights"  # Folder of the generators' weights at each evaluation but the last, <images>.safetensors


def new_task(stage: GanStage, data: Data, device: str, encoder: Encoder | None) -> GanTask:
    """Return the task of a stage with fresh networks, each level's initialised from its seed."""
    networks, recipe, first = [], stage.recipe, stage.levels[0]
    for each in stage.levels:
        torch.manual_seed(role_seed(each.seed, each.level.low))
        generator = new_generator(each.dataset, recipe, each.level).to(device)
        discriminator = Discriminator(each.dataset, recipe, each.level).to(device)
        networks.append((generator.to(memory_format=FORMAT), discriminator.to(memory_format=FORMAT)))
    seed = role_seed(first.seed, first.level.low if stage is first else stage.kind)
    return GanTask(networks, encoder, data, recipe, first.weights, seed, stage.feedback)


def run(stage: LevelStage, context: Context, folder: Path, evaluator: Evaluator | None) -> Running:
    """Train the level."""
    task = new_task(stage, context.data, context.device, classifier.load(stage.encoder, context))
    yield from train(task, stage, folder, evaluator)


def train(task: GanTask, stage: GanStage, folder: Path, evaluator: Evaluator | None) -> Iterator[Progress]:
    """Train a level or a stack. Write its weights, with Adam's states where the joint stage continues these, and the
    generators' weights at each evaluation but the last; where `joint_start` asks for it, also the state on the way."""
    batch = stage.recipe.batch
    steps = stage.images // batch
    start = max(1, round(steps * stage.joint_start)) if stage.joint_start < 1 else 0
    judge, score = evaluator(task.stack, task.encoder) if evaluator else ("", lambda images: {})

    def write(file: str) -> None:
        write_tensors(folder / file, task_tensors(task) if stage.keep_adam else module_tensors(task.modules))

    def evaluate(images: int) -> dict[str, float]:
        if images // batch in evaluations and images < steps * batch:
            kept = module_tensors({"generator": task.generator})
            write_tensors(folder / WEIGHTS / f"{images:09d}.safetensors", kept)
        if start and images == start * batch:
            write(START_FILE)
        return score(images)

    evaluations = marks(steps, stage.evaluations)  # the joint stage's start is no further candidate for the best one
    yield from loop(task, steps, batch, folder, evaluate, evaluations | ({start} if start else set()), judge)
    write(MODEL_FILE)
