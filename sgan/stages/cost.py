"""What a stage costs, from the shapes of its networks' layers: FLOPs, and a rough cost in one unit with the seconds
that it takes; and whether the networks fit.

The FLOPs of convolutions and linear layers count, forward and backward, two for a multiply-accumulate. Left out are
element-wise operations, Adam, evaluations, and the features of real images, which are mostly computed once.
"""

import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sgan.checks import ConfigError
from sgan.config import IMAGE, LABEL, Config
from sgan.data.batches import Data
from sgan.evaluation.judges import HeldOut, parts
from sgan.models.discriminator import Discriminator
from sgan.models.encoder import Encoder, tap_shapes
from sgan.models.generator import new_generator
from sgan.stages.graph import ClassifierStage, JointStage, JudgeStage, LevelStage, ScoreStage, Stage, name, plan
from sgan.stages.kinds.judge import JudgeTask
from sgan.stages.kinds.level import build
from sgan.store.local import Store
from sgan.training.checkpoint import Task
from sgan.training.steps import FORMAT, GanTask, Networks

CLASSIFIER, JUDGE = 0.15, 1.0  # Cost of a training image of an encoder, and of the held-out judge
STEPS, IMAGES = 40, 1000  # A unit's seconds are measured in so many steps, on about so many images
BATCH = 2  # Batch normalisation takes no fewer


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


def seconds_per_unit(config: Config, data: Data, device: str) -> float:
    """Seconds of one unit of cost in this process, by a few steps of the judge and of the image level. `data`: the
    dataset on the device."""
    recipe, trial = config.recipe, plan(config)
    few = max(IMAGES, recipe.gan.batch, recipe.judge.batch)
    tensors = (data.images, data.labels, data.test_images, data.test_labels)
    some, level = Data(*(part[:few] for part in tensors), digest=data.digest), trial.score.levels[0]
    encoder = Encoder(config.dataset, 1.0).to(device).requires_grad_(False) if level.encoder else None
    networks = Networks(*build((level,), recipe.gan, some, device), encoder, config.dataset.classes)
    judge = HeldOut(config.dataset.channels, config.dataset.size, config.dataset.classes).to(device)
    judging = JudgeTask(judge.to(memory_format=FORMAT), *parts(some)[0], recipe.judge)
    rates = {
        True: _seconds_per_step(judging) / recipe.judge.batch / JUDGE,
        False: _seconds_per_step(GanTask(networks, some, recipe.gan, level.weights, 0)) / recipe.gan.batch,
    }
    costs = [(cost(stage), rates[isinstance(stage, JudgeStage)]) for _, stage in trial.stages]
    return sum(units * rate for units, rate in costs) / sum(units for units, _ in costs)


def _seconds_per_step(task: Task) -> float:
    """Lower quartile over the steps of the second half: a GPU's first ones are no measure, nor are those of a stall."""
    times = [time.perf_counter()]
    for step in range(STEPS):
        next(iter(task.step(step).values())).item()  # waits for the GPU
        times.append(time.perf_counter())
    seconds = [after - before for before, after in itertools.pairwise(times)]
    return statistics.quantiles(seconds[STEPS // 2 :], n=4)[0]


def step_flops(stage: LevelStage | JointStage) -> tuple[float, float]:
    """FLOPs an image of a discriminator step and of a generator step, counted once for all seeds.

    A discriminator step whose batch the first generator step goes on with has that step's generation in it, so that
    each generator step counts as one that makes its own."""
    return _step_flops(_alike(stage))


def _alike(stage: Any) -> Any:
    """A stage without what its networks do not depend on."""
    if isinstance(stage, JointStage):
        return dataclasses.replace(stage, images=0, levels=tuple(map(_alike, stage.levels)))
    return dataclasses.replace(stage, images=0, seed=0, encoder=None)


@functools.lru_cache(maxsize=1000)
def _step_flops(stage: LevelStage | JointStage) -> tuple[float, float]:
    levels = stage.levels if isinstance(stage, JointStage) else (stage,)
    feedback = stage.feedback if isinstance(stage, JointStage) else 1.0
    first, weights, recipe = levels[0], levels[0].weights, stage.recipe
    with torch.device("meta"):
        sizes = tap_shapes(first.dataset)
        generators, judges = [], []
        for level in levels:
            ends = (level.low, level.high, level.labels, level.through, level.codes)
            generators.append(new_generator(level.dataset, recipe, *ends))
            judges.append(Discriminator(level.dataset, recipe, level.low, level.through, level.codes))
        encoder = Encoder(first.dataset, 1.0).requires_grad_(False)
        real = [torch.empty(BATCH, *sizes[level.low]) for level in levels]
        top = levels[-1]
        given = torch.empty(BATCH, *((first.dataset.classes * top.labels,) if top.high == LABEL else sizes[top.high]))

        def made() -> list[Tensor]:
            outputs: list[Tensor] = []
            for generator in reversed(generators):
                condition = given if not outputs else outputs[0] if feedback > 0 else outputs[0].detach()
                outputs.insert(0, generator(condition, torch.empty(BATCH, generator.noise)))
            return outputs

        def update(modules: Sequence[nn.Module], terms: list[Tensor]) -> None:
            parameters = [parameter for module in modules for parameter in module.parameters()]
            torch.autograd.grad(torch.stack([term.sum() for term in terms]).sum(), parameters, allow_unused=True)

        with FlopCounterMode(display=False) as generation:
            fakes = made()
        with FlopCounterMode(display=False) as discriminating:
            terms = []
            for judge, image, fake in zip(judges, real, fakes, strict=True):
                logits, recovered = judge(fake.detach())
                terms += [judge(image)[0], logits, *([recovered] if weights.entropy > 0 else [])]
            update(judges, terms)
        with FlopCounterMode(display=False) as generating:
            terms = []
            for level, judge, fake in zip(levels, judges, fakes, strict=True):
                if weights.conditional > 0 and (level.high != LABEL or level.labels):
                    terms.append(encoder(fake, level.low, level.high))
                if weights.adversarial > 0 or weights.entropy > 0:
                    parts = zip((weights.adversarial, weights.entropy), judge(fake), strict=True)
                    terms += [part for weight, part in parts if weight > 0]
            update(generators, terms)
    forward, judged, trained = (
        counter.get_total_flops() / BATCH for counter in (generation, discriminating, generating)
    )
    return judged + (forward if recipe.fresh_noise else 0.0), trained + forward


def check_networks(configs: Iterable[Config]) -> None:
    """Raise ConfigError where the networks of a level do not fit together, before anything is trained."""
    for stage in dict.fromkeys(stage for config in configs for stage in plan(config).score.levels):
        try:
            step_flops(stage)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"the networks of the level from {stage.high} to {stage.low} do not fit {stage.dataset.name} images of "
                f"{stage.dataset.size} pixels ({str(error).splitlines()[0]}); choose another split or width"
            ) from error


def planned_steps(stage: LevelStage | JointStage) -> tuple[int, float]:
    """Discriminator steps of a stage, and generator steps by the middle of the recipe's rule."""
    steps = max(1, stage.images // stage.recipe.batch)
    return steps, steps * statistics.median(count for _, count in stage.recipe.generator_steps)


def flops(stage: LevelStage | JointStage, steps: float, generator_steps: float) -> float:
    """FLOPs of so many steps of both kinds."""
    of_discriminator, of_generator = step_flops(stage)
    return stage.recipe.batch * (steps * of_discriminator + generator_steps * of_generator)
