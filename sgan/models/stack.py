"""A stack of levels, from the image (level 0) up to the label, and sampling from it top down.

Legend: B batch, n samples, Z noise size, K classes.
"""

import copy
import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from sgan.config import IMAGE, Codes
from sgan.data.batches import to_pixels
from sgan.models.generator import Chain, Generator

SAMPLING_BATCH = 500


@dataclass
class Level:
    """Level i: its generator makes tap `low` from tap `high`, and passes through the taps `through`, the lowest first.
    With `labels` False, a top level has no condition. With `codes`, the last numbers of z are InfoGAN's codes."""

    low: str
    high: str
    generator: Generator | Chain
    labels: bool = True
    codes: Codes | None = None
    through: tuple[str, ...] = ()


def unfolded(levels: list[Level]) -> list[Level]:
    """Return the same stack with every chained generator split into levels of its own."""
    plain = []
    for level in levels:
        bounds = (level.low, *level.through, level.high)
        parts = level.generator.parts if isinstance(level.generator, Chain) else [level.generator]
        plain += [
            Level(*ends, part, level.labels, level.codes) for ends, part in zip(pairwise(bounds), parts, strict=True)
        ]
    return plain


def draw(level: Level, count: int, device: torch.device | str, generator: torch.Generator | None = None) -> Tensor:
    """Draw z (count, Z) of a level: U(0, 1) (released code), with a one-hot categorical code where the level has codes.
    The numbers come from `generator` (on the CPU) where it is given, else from the device's own generator."""
    place = generator.device if generator else device
    z = torch.rand(count, level.generator.noise, generator=generator, device=place)
    if level.codes:
        first = level.generator.noise - level.codes.size
        values = level.codes.categorical
        chosen = (z[:, first] * values).long().clamp(max=values - 1)  # in float32, a product with z < 1 may be `values`
        z = torch.cat([z[:, :first], F.one_hot(chosen, values).to(z), z[:, first + values :]], 1)
    return z.to(device)


def label_condition(level: Level, labels: Tensor, classes: int) -> Tensor:
    """The top generator's condition for labels (B,): one-hot (B, K), or (B, 0) where it uses no labels."""
    return F.one_hot(labels, classes).float() if level.labels else torch.zeros(len(labels), 0, device=labels.device)


def descend(levels: list[Level], condition: Tensor, noise: list[Tensor]) -> Tensor:
    """Run all levels top down, each on the output of the one above (paper, "Sampling"). Return what the lowest one
    makes, (B, ...): uint8 images, or features.

    Args:
        condition: condition of the top level, (B, ...).
        noise: z of every level, (B, Z_i), in the order of `levels`, from the image up."""
    for level, z in zip(reversed(levels), reversed(noise), strict=True):
        condition = level.generator(condition, z)
    return to_pixels(condition, levels[0].generator.mean) if levels[0].low == IMAGE else condition


def samplers(levels: list[Level], statistics: str) -> list[Level]:
    """Return a copy of levels that samples: no gradients, and batch normalisation by its running averages ("running")
    or by the batch's own statistics ("batch"). The levels themselves stay as they are."""
    copies = copy.deepcopy(levels)
    for level in copies:
        level.generator.train(statistics == "batch").requires_grad_(False)
    return copies


def sample(levels: list[Level], conditions: Tensor, statistics: str, seed: int) -> Tensor:
    """Return samples (n, ...) for top-level conditions (n, ...), as `descend`; they are made in parts of about equal
    size. Noise is a function of `seed` alone."""
    generator, levels, made = torch.Generator().manual_seed(seed), samplers(levels, statistics), []
    for part in conditions.tensor_split(math.ceil(len(conditions) / SAMPLING_BATCH)):
        noise = [draw(level, len(part), conditions.device, generator) for level in levels]
        made.append(descend(levels, part, noise))
    return torch.cat(made)


def balanced_labels(count: int, classes: int) -> Tensor:
    """Labels 0, 1, ..., K-1, 0, 1, ... (count,): equally many of every class, or nearly."""
    return torch.arange(count) % classes
