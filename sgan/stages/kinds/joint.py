"""Trains all levels together, each on the output of the one above (paper, section 3.2: joint training)."""

from pathlib import Path

from torch import nn

from sgan.models.tensors import load_modules, module_tensors, write_tensors
from sgan.stages.context import MODEL_FILE, Context, Evaluator, Running
from sgan.stages.graph import JointStage
from sgan.stages.kinds import classifier
from sgan.stages.kinds.level import START_FILE, build, generators, train
from sgan.training.checkpoint import load_optimisers
from sgan.training.steps import GanTask, role_seed


def run(stage: JointStage, context: Context, folder: Path, evaluator: Evaluator | None) -> Running:
    """Train the stack from new weights or from its levels' weights; with the levels' Adam states, unless fresh_adam."""
    first, recipe, data = stage.levels[0], stage.recipe, context.data
    file = START_FILE if first.joint_start < 1 else MODEL_FILE
    networks = build(stage.levels, recipe, data, context.device, classifier.load(first.encoder, context))
    task = GanTask(networks, data, recipe, first.weights, role_seed(first.seed, "joint"), stage.feedback)
    trained = () if stage.scratch else zip(networks.levels, networks.discriminators, stage.levels, strict=True)
    for level, discriminator, before in trained:
        modules, tensors = generators([level]), context.tensors(before, file)
        modules["discriminator"] = nn.ModuleList([discriminator])
        load_modules(modules, tensors)
        if not stage.fresh_adam:
            load_optimisers(task, modules, tensors)
    yield from train(task, stage, folder, evaluator)
    write_tensors(folder / MODEL_FILE, module_tensors(task.modules))
    return {}
