"""The paper's figures of a finished stack (section 4, and its appendix of samples). Each is a function of the weights
alone, since all noise comes from one seed.

Legend: n images, K classes, R rows (at most 10), F features; images uint8 (n, channels, size, size) in row order.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sgan.config import IMAGE
from sgan.data.batches import Data, to_pixels
from sgan.evaluation.grid import nearest
from sgan.models.encoder import Encoder
from sgan.models.stack import Level, descend, draw, label_condition, sampling, unfolded

SEED = 7
COLUMNS, MOST_ROWS = 10, 10
TRIPLES = 3
"""Samples a row of the figure of neighbours, each followed by its two neighbours."""


@dataclass(frozen=True)
class Figure:
    """Images, `columns` a row."""

    images: Tensor
    columns: int = COLUMNS


def draw_all(
    levels: list[Level], statistics: str, data: Data, scorer: Encoder, features: Tensor, classes: int
) -> dict[str, Figure]:
    """Every figure of a stack by name: those of `samples`, its nearest training images, and real images.

    Args:
        levels, statistics: from the image up, and how batch normalisation samples ("running" or "batch").
        features: the scorer's of the training images at fc3, (n, F).
    """
    return {
        **samples(levels, statistics, classes),
        "neighbours": neighbours(levels, statistics, classes, data.images, scorer, features),
        "real": real(data, classes),
    }


def samples(levels: list[Level], statistics: str, classes: int) -> dict[str, Figure]:
    """The figures of samples alone, by name, for a stack as in `draw_all`; chained generators are taken apart.

    classes: a row of samples a class; of a stack without labels, samples.
    interpolation_noise: a row goes from one z of all levels to another in a straight line; a categorical code stays.
    fixed_condition: a row has one condition of the image level, such as one generated fc3 feature of the row's class,
        and z0 varies: the paper's panel (c), and of a stack without entropy loss its panel (d).
    fixed_noise: a row has one z0, and the noise of all levels above the image's varies.
    interpolation_labels: a row has one z of all levels; its label goes from class k to k + 1 in a straight line.
    codes: a row has one value of the categorical code, and all else varies.
    continuous_code: a row has one value of the categorical code; the first continuous code goes from 0 to 1, and all
        else stays.
    """
    levels = unfolded(levels)
    top, device, rows = levels[-1], levels[0].generator.mean.device, min(classes, MOST_ROWS)
    labels = torch.arange(rows, device=device).repeat_interleave(COLUMNS)
    condition = label_condition(top, labels, classes)
    along = torch.linspace(0, 1, COLUMNS, device=device).repeat(rows)[:, None]

    (varied,) = _noise(levels, rows * COLUMNS, 1)
    held = [z[::COLUMNS].repeat_interleave(COLUMNS, 0) for z in varied]
    first, last = ([z.repeat_interleave(COLUMNS, 0) for z in noise] for noise in _noise(levels, rows, 2))
    between = [(1 - along) * start + along * end for start, end in zip(first, last, strict=True)]
    figures = {}
    if top.codes:
        plain = top.generator.noise - top.codes.size
        code = slice(plain, plain + top.codes.categorical)
        between[-1][:, code] = first[-1][:, code]
        coded, moved = varied[-1].clone(), first[-1].clone()
        coded[:, code] = moved[:, code] = F.one_hot(labels, top.codes.categorical).to(coded)
        moved[:, code.stop] = along[:, 0]
        figures = {"codes": (condition, [coded]), "continuous_code": (condition, [moved])}
    figures |= {"classes": (condition, varied), "interpolation_noise": (condition, between)}
    if top.labels or len(levels) > 1:  # else there is no condition to hold
        figures["fixed_condition"] = (condition, [varied[0], *held[1:]])
    if len(levels) > 1:
        figures["fixed_noise"] = (condition, [held[0], *varied[1:]])
    if top.labels:
        following = label_condition(top, (labels + 1) % classes, classes)
        figures["interpolation_labels"] = ((1 - along) * condition + along * following, first)
    return {name: Figure(_images(levels, statistics, *given)) for name, given in figures.items()}


def neighbours(
    levels: list[Level], statistics: str, classes: int, images: Tensor, classifier: Encoder, features: Tensor
) -> Figure:
    """Triples of a sample, the training image nearest to it in pixels, and the one nearest in a classifier's fc3
    features, by Euclidean distance, for a stack as in `draw_all`. `features`: the training images', (n, F)."""
    levels, rows = unfolded(levels), min(classes, MOST_ROWS)
    labels = torch.arange(rows, device=images.device).repeat_interleave(TRIPLES)
    (noise,) = _noise(levels, len(labels), 1)
    made = _images(levels, statistics, label_condition(levels[-1], labels, classes), noise)
    alike = images[nearest(made, images)]
    akin = images[nearest(classifier.features(made, ("fc3",))["fc3"], features)]
    return Figure(torch.stack([made, alike, akin], 1).flatten(0, 1), 3 * TRIPLES)


def real(data: Data, classes: int) -> Figure:
    """Training images, a row a class; a class with fewer than ten repeats them."""
    rows = []
    for label in range(min(classes, MOST_ROWS)):
        members = (data.labels == label).nonzero().flatten()
        if len(members):
            rows.append(data.images[members[torch.arange(COLUMNS, device=members.device) % len(members)]])
    return Figure(torch.cat(rows))


def _noise(levels: list[Level], count: int, draws: int) -> list[list[Tensor]]:
    """Draws of z of every level, (count, Z) each; always the same."""
    generator, device = torch.Generator().manual_seed(SEED), levels[0].generator.mean.device
    return [[draw(level, count, device, generator) for level in levels] for _ in range(draws)]


def _images(levels: list[Level], statistics: str, condition: Tensor, noise: list[Tensor]) -> Tensor:
    """Images for conditions of the top level."""
    with sampling(levels, statistics):
        return to_pixels(descend(levels, condition, noise)[IMAGE], levels[0].generator.mean)
