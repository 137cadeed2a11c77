"""The cost of a stage: FLOPs of its training steps, and a rough cost in a common unit with the seconds per unit. Also
the check that its networks fit together.

The FLOPs of convolutions and linear layers count, forward and backward, two for a multiply-accumulate. The count leaves
out element-wise operations, Adam, evaluations, and the features of real images, which are mostly computed once.
"""

import functools
import itertools
import statistics
import time
from collections.abc import Iterable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sgan.checks import ConfigError
from sgan.config import IMAGE, LABEL, Config
from sgan.data.batches import Data
from sgan.models.encoder import Encoder, tap_shapes
from sgan.stages.graph import ClassifierStage, JointStage, JudgeStage, LevelStage, ScoreStage, Stage, name, plan
from sgan.stages.kinds.level import build
from sgan.store.local import Store
from sgan.training.steps import GanTask

STEPS, IMAGES = 40, 1000  # Steps and, about, images with which a unit's seconds are measured
BATCH = 2  # The smallest batch that batch normalisation takes


def cost(stage: Stage) -> float:
    """Rough cost of a stage; the unit is one training image of an image level."""
    match stage:
        case ClassifierStage():
            return 0.15 * stage.recipe.images
        case LevelStage():
            return stage.images * (1.0 if stage.low == IMAGE else 0.25)
        case JointStage():
            return 1.2 * stage.images
        case ScoreStage():
            return (2.0 if stage.network else 0.3) * stage.samples
        case JudgeStage():
            return stage.recipe.images if stage.recipe else 50_000


def recorded_rate(store: Store, stages: Iterable[Stage]) -> float | None:
    """Return the mean seconds per unit of cost over these stages, where the store has them done; None without any."""
    found = [(stage, store.facts(name(stage))) for stage in set(stages) if store.has(name(stage))]
    done = [(facts["seconds"], cost(stage)) for stage, facts in found if facts["status"] == "done"]
    return sum(seconds for seconds, _ in done) / sum(units for _, units in done) if done else None


def seconds_per_unit(config: Config, data: Data, device: str) -> float:
    """Measure the seconds per unit of cost in this process by a few steps of the image level. `data`: on the device."""
    level = plan(config).score.levels[0]
    recipe, few = level.recipe, slice(max(IMAGES, level.recipe.batch))
    some = Data(data.images[few], data.labels[few], data.test_images[few], data.test_labels[few], data.digest)
    encoder = Encoder(config.dataset, 1.0).to(device).requires_grad_(False)
    networks = build((level,), recipe, some, device, encoder)
    task, times = GanTask(networks, some, recipe, level.weights, 0), [time.perf_counter()]
    for step in range(STEPS):
        next(iter(task.step(step).values())).item()  # waits for the GPU
        times.append(time.perf_counter())
    seconds = [after - before for before, after in itertools.pairwise(times)]
    # The lower quartile of the second half: it excludes a GPU's slow first steps and stalled steps.
    return statistics.quantiles(seconds[STEPS // 2 :], n=4)[0] / recipe.batch


@functools.cache
def step_flops(stage: LevelStage | JointStage) -> tuple[float, float]:
    """Return the FLOPs per image of a discriminator step and of a generator step.

    Where the first generator step reuses the discriminator step's batch, its generation counts only in the former."""
    stages, feedback = (stage.levels, stage.feedback) if isinstance(stage, JointStage) else ((stage,), 1.0)
    dataset, weights, recipe, top = stages[0].dataset, stages[0].weights, stage.recipe, stages[-1]
    with torch.device("meta"):
        sizes = tap_shapes(dataset)
        real = [torch.empty(BATCH, *sizes[level.low]) for level in stages]
        empty = torch.empty(BATCH, dataset.channels, dataset.size, dataset.size)
        networks = build(stages, recipe, Data(empty, empty, empty, empty, ""), "meta")
        levels, judges = networks.levels, networks.discriminators
        encoder = Encoder(dataset, 1.0).requires_grad_(False)
        ends = (dataset.classes * top.labels,) if top.high == LABEL else sizes[top.high]
        fakes = [torch.empty(BATCH, *ends)]  # at the end, the condition of the top level
        with FlopCounterMode(display=False) as generation:
            for level in reversed(levels):
                condition = fakes[0] if feedback > 0 else fakes[0].detach()
                fakes.insert(0, level.generator(condition, torch.empty(BATCH, level.generator.noise)))
        with FlopCounterMode(display=False) as discriminating:
            terms = []
            for judge, image, fake in zip(judges, real, fakes[:-1], strict=True):
                logits, recovered = judge(fake.detach())
                terms += [judge(image)[0], logits, *([recovered] if weights.entropy > 0 else [])]
            of_judges = list(nn.ModuleList(judges).parameters())
            torch.stack([term.sum() for term in terms]).sum().backward(inputs=of_judges)
        with FlopCounterMode(display=False) as generating:
            terms = []
            for level, judge, fake in zip(levels, judges, fakes[:-1], strict=True):
                if weights.conditional > 0 and (level.high != LABEL or level.labels):
                    terms.append(encoder(fake, level.low, level.high))
                if weights.adversarial > 0 or weights.entropy > 0:
                    parts = zip((weights.adversarial, weights.entropy), judge(fake), strict=True)
                    terms += [part for weight, part in parts if weight > 0]
            of_generators = list(nn.ModuleList(level.generator for level in levels).parameters())
            torch.stack([term.sum() for term in terms]).sum().backward(inputs=of_generators)
    counters = (generation, discriminating, generating)
    forward, judged, trained = (counter.get_total_flops() / BATCH for counter in counters)
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
    """Return a stage's discriminator steps, and its generator steps by the median of the recipe's rule."""
    steps = max(1, stage.images // stage.recipe.batch)
    return steps, steps * statistics.median(count for _, count in stage.recipe.generator_steps)


def flops(stage: LevelStage | JointStage, steps: float, generator_steps: float) -> float:
    """Return the FLOPs of these numbers of discriminator steps and generator steps."""
    of_discriminator, of_generator = step_flops(stage)
    return stage.recipe.batch * (steps * of_discriminator + generator_steps * of_generator)
