"""A stack of levels, from the image (level 0) up to the label, and sampling from it top down."""

from collections.abc import Iterator
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


def descend(levels: list[Level], condition: Tensor, noise: list[Tensor] | None = None) -> dict[str, Tensor]:
    """All levels from the top down: each is given what the one above made (paper, "Sampling").

    Args:
        levels: from the image up.
        condition: what the top level is given.
        noise: z of every level, (B, Z_i), from the image up; drawn from U(0, 1) where absent.
    Returns:
        tap -> what its level made, the image under "image".
    """
    made = {}
    for index in reversed(range(len(levels))):
        generator = levels[index].generator
        z = noise[index] if noise else torch.rand(len(condition), generator.noise, device=condition.device)
        condition = generator(condition, z)
        made[levels[index].low] = condition
    return made


class sampling:
    """Context in which generators sample: no gradient, and batch normalisation with its running averages
    ("running") or with the batch's own statistics ("batch", which leaves the averages as they were)."""

    def __init__(self, levels: list[Level], statistics: str):
        self.generators = [level.generator for level in levels]
        self.batch = statistics == "batch"

    def __enter__(self):
        self.grad = torch.no_grad()
        self.grad.__enter__()
        self.training = [generator.training for generator in self.generators]
        self.buffers = [
            {name: buffer.clone() for name, buffer in generator.named_buffers()} if self.batch else {}
            for generator in self.generators
        ]
        for generator in self.generators:
            generator.train(self.batch)

    def __exit__(self, *error):
        for generator, training, buffers in zip(self.generators, self.training, self.buffers, strict=True):
            generator.train(training)
            for name, buffer in generator.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])
        self.grad.__exit__(*error)


def sample(
    levels: list[Level], conditions: Tensor, statistics: str, seed: int, batch: int = SAMPLING_BATCH
) -> Iterator[dict[str, Tensor]]:
    """Samples for a tensor of top-level conditions (n, ...), batch by batch: tap -> what its level made.

    The noise is a function of `seed` alone.
    """
    generator = torch.Generator().manual_seed(seed)
    device = conditions.device
    with sampling(levels, statistics):
        for part in conditions.split(batch):
            noise = [torch.rand(len(part), level.generator.noise, generator=generator).to(device) for level in levels]
            yield descend(levels, part, noise)


def balanced_labels(count: int, classes: int) -> Tensor:
    """Labels 0, 1, ..., K-1, 0, 1, ... (count,): every class alike often."""
    return torch.arange(count) % classes
