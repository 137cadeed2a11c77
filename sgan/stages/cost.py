"""The cost of a stage: FLOPs of its training steps, and the seconds per unit of its rough cost (`sgan.stages.graph`).
Also the check that its networks fit together.

The FLOPs of convolutions and linear layers count, forward and backward, two for a multiply-accumulate. The count leaves
out element-wise operations, Adam, evaluations, and the features of real images, which are mostly computed once.
"""

import functools
import itertools
import statistics
import time
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from sgan.checks import ConfigError
from sgan.config import Config
from sgan.data.batches import Data
from sgan.models.encoder import Encoder
from sgan.stages.graph import GanStage, Stage, cost, name, plan
from sgan.stages.kinds.level import new_task
from sgan.store.local import Store

STEPS, IMAGES = 40, 1000  # Steps and, about, images with which a unit's seconds are measured
BATCH = 2  # The smallest batch that batch normalisation takes


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
    task, times = new_task(level, some, device, encoder), [time.perf_counter()]
    for step in range(STEPS):
        next(iter(task.step(step).values())).item()  # waits for the GPU
        times.append(time.perf_counter())
    seconds = [after - before for before, after in itertools.pairwise(times)]
    # The lower quartile of the second half: it excludes a GPU's slow first steps and stalled steps.
    return statistics.quantiles(seconds[STEPS // 2 :], n=4)[0] / recipe.batch


@functools.cache
def step_flops(stage: GanStage) -> tuple[float, float]:
    """Return the FLOPs per image of a discriminator step and of a generator step: those of the real steps, on tensors
    without memory.

    Where the first generator step reuses the discriminator step's batch, its generation counts only in the former."""
    recipe, dataset, counts = replace(stage.recipe, batch=BATCH, precision="float32"), stage.levels[0].dataset, []
    with torch.device("meta"):
        images, labels = torch.empty(BATCH, dataset.channels, dataset.size, dataset.size), torch.empty(BATCH).long()
        data, encoder = Data(images, labels, images, labels, ""), Encoder(dataset, 1.0).requires_grad_(False)
        task = new_task(replace(stage, recipe=recipe), data, "meta", encoder)
        # Adam's fused form needs memory. No optimiser's work counts.
        task.optimisers |= {name: torch.optim.SGD(part.parameters()) for name, part in task.modules.items()}
        for phase in (
            task.discriminator_step,
            lambda: task.generate(task.batch[1][-1].condition),
            lambda: task.generator_step(new=True),
        ):
            with FlopCounterMode(display=False) as counter:
                phase()
            counts.append(counter.get_total_flops() / BATCH)
    of_discriminator, generation, of_generator = counts
    return of_discriminator - (0.0 if recipe.fresh_noise else generation), of_generator


def check_networks(configs: Iterable[Config]) -> None:
    """Raise ConfigError where the networks of a level do not fit together, before anything is trained."""
    for stage in dict.fromkeys(stage for config in configs for stage in plan(config).score.levels):
        try:
            step_flops(stage)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"the networks of the level from {stage.level.high} to {stage.level.low} do not fit "
                f"{stage.dataset.name} images of {stage.dataset.size} pixels ({str(error).splitlines()[0]}); "
                "choose another split or width"
            ) from error


def planned_steps(stage: GanStage) -> tuple[int, float]:
    """Return a stage's discriminator steps, and its generator steps by the median of the recipe's rule."""
    steps = stage.images // stage.recipe.batch
    return steps, steps * statistics.median(count for _, count in stage.recipe.generator_steps)


def flops(stage: GanStage, steps: float, generator_steps: float) -> float:
    """Return the FLOPs of these numbers of discriminator steps and generator steps."""
    of_discriminator, of_generator = step_flops(stage)
    return stage.recipe.batch * (steps * of_discriminator + generator_steps * of_generator)
