"""Trains the encoder of one seed."""

import math
from pathlib import Path

import torch

from sgan.data.batches import pixel_mean, turned
from sgan.models.encoder import Encoder
from sgan.models.tensors import load_modules, module_tensors, write_tensors
from sgan.stages.context import MODEL_FILE, Context, Evaluator, Running
from sgan.stages.graph import ClassifierStage
from sgan.training.loop import Diverged, loop, marks
from sgan.training.steps import FORMAT, VARIANCE_IMAGES, ClassifierTask, role_seed

CLASSIFIER_EVALUATIONS = 4  # Evaluations while a classifier trains, besides the one before the first step


def _build(stage: ClassifierStage) -> Encoder:
    return Encoder(stage.dataset, stage.recipe.init_std, 4 if stage.recipe.objective == "rotation" else None)


def load(stage: ClassifierStage | None, context: Context) -> Encoder | None:
    """Return the trained classifier, frozen; None where `stage` is None."""
    if stage is None:
        return None
    encoder = _build(stage).to(context.device)
    load_modules({"encoder": encoder}, context.tensors(stage))
    return encoder.eval().requires_grad_(False).to(memory_format=FORMAT)


def run(stage: ClassifierStage, context: Context, folder: Path, evaluator: Evaluator | None) -> Running:
    """Train the encoder and write its weights."""
    seed, data = role_seed(stage.seed, stage.kind), context.data
    torch.manual_seed(seed)
    encoder = _build(stage).to(context.device).to(memory_format=FORMAT)
    encoder.mean.copy_(pixel_mean(data.images, stage.recipe.pixel_mean))
    task = ClassifierTask(encoder, data, stage.recipe, seed)

    images, labels = data.test_images, data.test_labels
    if stage.recipe.objective == "rotation":
        labels = torch.arange(len(images), device=images.device) % 4
        images = turned(images, labels)

    def evaluate(_: int) -> dict[str, float]:
        predicted = encoder.features(images, ("fc4",))["fc4"].argmax(1)
        return {"test_accuracy": (predicted == labels).float().mean().item()}

    steps = max(1, stage.recipe.images // stage.recipe.batch)
    yield from loop(task, steps, stage.recipe.batch, folder, evaluate, marks(steps, CLASSIFIER_EVALUATIONS))
    if stage.recipe.feature_variance:
        variance = encoder.features(data.images[:VARIANCE_IMAGES], ("fc3",))["fc3"].var(0).mean().item()
        if not variance:
            raise Diverged("fc3 is the same for all images")
        factor = math.sqrt(stage.recipe.feature_variance / variance)
        with torch.no_grad():  # ReLU keeps the factor, so the logits stay
            for parameter in encoder.layers["fc3"].parameters():
                parameter.mul_(factor)
            encoder.layers["fc4"].get_parameter("weight").div_(factor)
    write_tensors(folder / MODEL_FILE, module_tensors(task.modules))
