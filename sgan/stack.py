"""A stack of levels, from the image (level 0) up to the label, and sampling from it top down."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sgan.networks import Generator

SAMPLING_BATCH = 500


@dataclass
class Level:
    """Level i: its generator makes tap `low` from tap `high`; `labels` False leaves the condition of the top out."""

    low: str
    high: str
    generator: Generator
    labels: bool = True


def label_condition(level: Level, labels: Tensor, classes: int) -> Tensor:
    """What the top generator is given for labels (B,): one-hot (B, K), or (B, 0) where it uses no labels."""
    return F.one_hot(labels, classes).float() if level.labels else torch.zeros(len(labels), 0, device=labels.device)


def descend(levels: list[Level], condition: Tensor, noise: list[Tensor]) -> dict[str, Tensor]:
    """All levels from the top down: each is given what the one above made (paper, "Sampling").

    Args:
        levels: from the image up.
        condition: what the top level is given.
        noise: z of every level, (B, Z_i), from the image up.
    Returns:
        tap -> what its level made, the image under "image".
    """
    made = {}
    for index in reversed(range(len(levels))):
        condition = levels[index].generator(condition, noise[index])
        made[levels[index].low] = condition
    return made


@contextmanager
def sampling(levels: list[Level], statistics: str) -> Iterator[None]:
    """Generators sample inside: no gradient, and batch normalisation with its running averages ("running") or with the
    batch's own statistics ("batch", which leaves the averages as they were)."""
    generators = [level.generator for level in levels]
    training = [generator.training for generator in generators]
    kept = [[buffer.clone() for buffer in generator.buffers()] for generator in generators]
    for generator in generators:
        generator.train(statistics == "batch")
    try:
        with torch.no_grad():
            yield
    finally:
        for generator, mode, buffers in zip(generators, training, kept, strict=True):
            generator.train(mode)
            for buffer, value in zip(generator.buffers(), buffers, strict=True):
                buffer.copy_(value)


def sample(levels: list[Level], conditions: Tensor, statistics: str, seed: int) -> Iterator[dict[str, Tensor]]:
    """Samples for a tensor of top-level conditions (n, ...), in parts of about equal size: tap -> what its level made.

    The noise is a function of `seed` alone.
    """
    generator = torch.Generator().manual_seed(seed)
    with sampling(levels, statistics):
        for part in conditions.tensor_split(math.ceil(len(conditions) / SAMPLING_BATCH)):
            noise = [
                torch.rand(len(part), level.generator.noise, generator=generator).to(conditions.device)
                for level in levels
            ]
            yield descend(levels, part, noise)


def balanced_labels(count: int, classes: int) -> Tensor:
    """Labels 0, 1, ..., K-1, 0, 1, ... (count,): every class alike often."""
    return torch.arange(count) % classes
