"""Makes a judge: trains the held-out one or loads a given network, computes real images' features, and scores them."""

import functools
from collections.abc import Generator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from sgan.config import JudgeRecipe
from sgan.evaluation import scores as metrics
from sgan.evaluation.judges import HELD_OUT, JUDGES, Describe, HeldOut, Judges, parts
from sgan.evaluation.judges import components as principal
from sgan.models.tensors import load_modules, module_tensors, write_tensors
from sgan.stages.context import MODEL_FILE, REFERENCE_FILE, Context, Evaluator, Running
from sgan.stages.graph import JudgeStage
from sgan.store.files import sha256
from sgan.training.loop import Progress, loop, marks

EVALUATIONS = 4  # Evaluations while the judge trains, besides the one before the first step
SEED = 2**31 - 1  # No trial has this seed
DEGREES, STRETCH, SHIFT = 15.0, 0.15, 0.125
"""Largest augmentation of the judge's images: rotation in degrees, stretch per axis, shift as a share of the size."""
PART = 256  # Real images between two reports of progress


def warped(images: Tensor, flips: bool, generator: torch.Generator) -> Tensor:
    """Rotate, stretch and shift each image (n, channels, size, size) at random, and, with `flips`, mirror it."""

    def between(*shape: int) -> Tensor:
        return 2 * torch.rand(*shape, generator=generator) - 1

    count = len(images)
    angle = between(count).mul(DEGREES).deg2rad()
    wide, high = 1 + STRETCH * between(count), 1 + STRETCH * between(count)
    wide = wide * between(count).sign() if flips else wide
    turn = torch.stack([angle.cos() * wide, -angle.sin(), angle.sin() * wide, angle.cos() * high], 1).reshape(-1, 2, 2)
    where = torch.cat([turn, 2 * SHIFT * between(count, 2, 1)], 2).to(images.device)
    grid = functional.affine_grid(where, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


class JudgeTask:
    """Trains the held-out judge with cross-entropy, Adam and a learning rate that falls to 0."""

    def __init__(self, network: HeldOut, images: Tensor, labels: Tensor, recipe: JudgeRecipe):
        self.network, self.images, self.labels, self.recipe = network, images, labels, recipe
        self.steps = max(1, recipe.images // recipe.batch)
        self.modules: dict[str, torch.nn.Module] = {"judge": network}
        self.optimisers: dict[str, torch.optim.Optimizer] = {"judge": torch.optim.Adam(network.parameters())}

    def step(self, step: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(SEED + step)
        chosen = torch.randint(len(self.images), (self.recipe.batch,), generator=generator).to(self.images.device)
        images = warped(self.images[chosen].float() / 255, self.recipe.flips, generator)
        loss = functional.cross_entropy(self.network(images).logits, self.labels[chosen])
        optimiser = self.optimisers["judge"]
        optimiser.param_groups[0]["lr"] = self.recipe.learning_rate * (1 - step / self.steps)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return {"class_loss": loss.detach()}


def _train(stage: JudgeStage, context: Context, folder: Path) -> Generator[Progress, None, HeldOut]:
    assert stage.recipe is not None
    (images, labels), (held, held_labels) = parts(context.data)
    torch.manual_seed(SEED)
    network = HeldOut(*stage.shape, stage.classes).to(context.device).to(memory_format=torch.channels_last)
    task = JudgeTask(network, images, labels, stage.recipe)

    def evaluate(_: int) -> dict[str, float]:
        return {"test_accuracy": metrics.accuracy(network.describe(held).logits, held_labels.cpu())}

    evaluations = marks(task.steps, EVALUATIONS)
    yield from loop(task, task.steps, stage.recipe.batch, folder, evaluate, evaluations)
    write_tensors(folder / MODEL_FILE, module_tensors(task.modules))
    return network


def drawn(count: int, total: int) -> Tensor:
    """Return `total` indices of `count` images in random order, each as often as any other, or once more."""
    generator, rounds = torch.Generator().manual_seed(SEED), -(-total // count)
    return torch.cat([torch.randperm(count, generator=generator) for _ in range(rounds)])[:total]


def run(stage: JudgeStage, context: Context, folder: Path, evaluator: Evaluator | None) -> Running:
    """Make the judge, write its features and logits of the real images, and score these images."""
    data = context.data
    held, held_labels = parts(data)[1]
    if stage.judge == HELD_OUT:
        describe, axes = (yield from _train(stage, context, folder)).describe, principal(data.images)
    else:
        describe, axes = _given(stage, context), {}
    total, seen = stage.samples, list[metrics.Features]()
    for part in data.images.split(PART):
        yield Progress(0, total)
        seen.append(describe(part))
    real, known = metrics.join(seen), describe(held)
    tensors = {"features": real.features, "logits": real.logits}
    tensors |= {"held_features": known.features, "held_logits": known.logits} | axes
    write_tensors(folder / REFERENCE_FILE, tensors)
    made = Judges(data, {stage.judge: (lambda images: known if images is held else real, real, known)}, axes)
    scores: dict[str, float] = {"held_out_images": len(held)}
    for prefix, images, labels in (("train/", data.images, data.labels), ("", held, held_labels)):
        if len(images) >= metrics.SPLITS:
            found = made.scores(images, labels.cpu(), drawn(len(images), total))
            # The accuracy train_on_generated is measured on the held-out images, so it cannot score them.
            left_out = () if prefix else ("train_on_generated",)
            scores |= {f"{prefix}{name}": each for name, each in found.items() if not name.endswith(left_out)}
    yield Progress(total, total)
    weights = stage.weights or sha256(folder / MODEL_FILE)
    row, reference = JUDGES[stage.judge], f"{stage.dataset}, training images ({stage.data})"
    judged = metrics.fingerprint(row.network, weights, row.resize, total, reference)
    return {"scores": scores, "fingerprint": {"scores": judged} | ({} if stage.weights else {"classes": judged})}


def _given(stage: JudgeStage, context: Context) -> Describe:
    given = JUDGES[stage.judge].given
    assert given is not None
    return given.load(context.store.weights(stage.weights), context.device).describe


def _sees(stage: JudgeStage, context: Context) -> tuple[Describe, metrics.Features, metrics.Features]:
    if stage.judge == HELD_OUT:
        network = HeldOut(*stage.shape, stage.classes).to(context.device)
        load_modules({"judge": network}, context.tensors(stage))
        describe = network.to(memory_format=torch.channels_last).eval().describe
    else:
        describe = _given(stage, context)
    tensors = context.tensors(stage, REFERENCE_FILE)
    real, held = (metrics.Features(tensors[f"{which}features"], tensors[f"{which}logits"]) for which in ("", "held_"))
    return describe, real, held


@functools.lru_cache(maxsize=2)
def load(stage: JudgeStage, network: JudgeStage | None, context: Context) -> Judges:
    """Return the judges of finished stages, and `pixels`, which needs no training. Cached: every score needs them."""
    tensors = context.tensors(stage, REFERENCE_FILE)
    axes = {name: tensors[name] for name in ("mean", "axes")}
    return Judges(context.data, {each.judge: _sees(each, context) for each in (stage, network) if each}, axes)
