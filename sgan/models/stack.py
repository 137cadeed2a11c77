"""A stack: the generators of levels from the image (level 0) up to the label, and sampling from it top down.

Legend: B batch, n samples, Z noise size, K classes.
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sgan.config import IMAGE
from sgan.data.batches import to_pixels
from sgan.models.generator import Chain, Generator

SAMPLING_BATCH = 500
Stack = Sequence[Generator | Chain]  # From the image up


def unfolded(stack: Stack) -> list[Generator]:
    """Return the same stack with every chained generator split into its parts."""
    return [part for each in stack for part in (each.parts if isinstance(each, Chain) else [each])]


def draw(
    generator: Generator | Chain, count: int, device: torch.device | str, numbers: torch.Generator | None = None
) -> Tensor:
    """Draw z (count, Z) of a generator: U(0, 1) (released code), with a one-hot categorical code where its level has
    codes. The numbers come from `numbers` (on the CPU) where it is given, else from the device's own generator."""
    codes, place = generator.level.codes, numbers.device if numbers else device
    z = torch.rand(count, generator.noise, generator=numbers, device=place)
    if codes:
        first, values = generator.noise - codes.size, codes.categorical
        chosen = (z[:, first] * values).long().clamp(max=values - 1)  # in float32, a product with z < 1 may be `values`
        z = torch.cat([z[:, :first], F.one_hot(chosen, values).to(z), z[:, first + values :]], 1)
    return z.to(device)


def label_condition(top: Generator | Chain, labels: Tensor) -> Tensor:
    """The top generator's condition for labels (B,): one-hot (B, K), or (B, 0) where it uses no labels."""
    if top.level.labels:
        return F.one_hot(labels, top.classes).float()
    return torch.zeros(len(labels), 0, device=labels.device)


def descend(stack: Stack, condition: Tensor, noise: list[Tensor]) -> Tensor:
    """Run all generators top down, each on the output of the one above (paper, "Sampling"). Return what the lowest one
    makes, (B, ...): uint8 images, or features.

    Args:
        condition: condition of the top generator, (B, ...).
        noise: z of every generator, (B, Z_i), in the order of `stack`, from the image up."""
    for generator, z in zip(reversed(stack), reversed(noise), strict=True):
        condition = generator(condition, z)
    return to_pixels(condition, stack[0].mean) if stack[0].level.low == IMAGE else condition


def samplers(stack: Stack, statistics: str) -> Stack:
    """Return a copy of a stack that samples: no gradients, and batch normalisation by its running averages ("running")
    or by the batch's own statistics ("batch"). The stack itself stays as it is."""
    return [copy.deepcopy(each).train(statistics == "batch").requires_grad_(False) for each in stack]


def sample(stack: Stack, conditions: Tensor, statistics: str, seed: int) -> Tensor:
    """Return samples (n, ...) for conditions (n, ...) of the top generator, as `descend`; they are made in parts of
    about equal size. Noise is a function of `seed` alone."""
    numbers, stack, made = torch.Generator().manual_seed(seed), samplers(stack, statistics), []
    for part in conditions.tensor_split(math.ceil(len(conditions) / SAMPLING_BATCH)):
        noise = [draw(each, len(part), conditions.device, numbers) for each in stack]
        made.append(descend(stack, part, noise))
    return torch.cat(made)


def balanced_labels(count: int, classes: int) -> Tensor:
    """Labels 0, 1, ..., K-1, 0, 1, ... (count,): equally many of every class, or nearly."""
    return torch.arange(count) % classes
