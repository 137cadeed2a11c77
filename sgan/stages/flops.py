"""Floating-point operations of GAN training, counted from the shapes of the networks' layers, and whether these fit.

Those of convolutions and linear layers count, forward and backward, two for a multiply-accumulate. Left out are
element-wise operations, Adam, evaluations, and the features of real images, which are mostly computed once.
"""

import functools
import statistics
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sgan.checks import ConfigError
from sgan.config import LABEL, Config
from sgan.models.discriminator import Discriminator
from sgan.models.encoder import Encoder, tap_shapes
from sgan.models.generator import new_generator
from sgan.stages.graph import JointStage, LevelStage, plan

BATCH = 2  # Batch normalisation takes no fewer


@functools.lru_cache(maxsize=1000)
def step_flops(stage: LevelStage | JointStage) -> tuple[float, float]:
    """FLOPs an image of a discriminator step and of a generator step.

    A discriminator step whose batch the first generator step goes on with has that step's generation in it, so that
    each generator step counts as one that makes its own."""
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
    stages = [stage for config in configs for stage in plan(config).score.levels]
    different = {(s.dataset, s.recipe, s.low, s.high, s.labels, s.through, s.codes): s for s in stages}
    for stage in different.values():
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
