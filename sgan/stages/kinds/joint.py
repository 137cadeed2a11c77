"""Trains all levels together, each on the output of the one above (paper, section 3.2: joint training)."""

from pathlib import Path

from torch import nn

from sgan.models.tensors import load_modules
from sgan.stages.context import MODEL_FILE, Context, Evaluator, Running
from sgan.stages.graph import JointStage
from sgan.stages.kinds import classifier
from sgan.stages.kinds.level import START_FILE, new_task, train
from sgan.training.checkpoint import load_optimisers


def run(stage: JointStage, context: Context, folder: Path, evaluator: Evaluator | None) -> Running:
    """Train the stack from new weights or from its levels' weights; with the levels' Adam states, unless fresh_adam."""
    first = stage.levels[0]
    file = START_FILE if first.joint_start < 1 else MODEL_FILE
    task = new_task(stage, context.data, context.device, classifier.load(first.encoder, context))
    trained = () if stage.scratch else zip(task.stack, task.discriminators, stage.levels, strict=True)
    for generator, discriminator, before in trained:
        modules = {"generator": nn.ModuleList([generator]), "discriminator": nn.ModuleList([discriminator])}
        tensors = context.tensors(before, file)
        load_modules(modules, tensors)
        if not stage.fresh_adam:
            load_optimisers(task, modules, tensors)
    yield from train(task, stage, folder, evaluator)
