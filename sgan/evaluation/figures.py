"""The paper's figures of a finished stack (section 4, and its appendix of samples): what a row holds fixed and what
varies along it. Each is a function of the weights alone, since all noise comes from one seed.

Legend: K classes, R rows (at most 10), images uint8 (n, channels, size, size) in row order.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sgan.config import IMAGE
from sgan.data.batches import Data, to_pixels
from sgan.models.encoder import Encoder
from sgan.models.stack import Level, descend, draw, label_condition, sampling, unfolded

SEED = 7
COLUMNS, MOST_ROWS = 10, 10
TRIPLES = 3
"""Samples a row of the figure of neighbours, each followed by its two neighbours."""
PART = 2000
"""Training images, or features of them, that distances are computed to at once."""


@dataclass(frozen=True)
class Figure:
    """Images (n, channels, size, size) uint8, `columns` a row."""

    images: Tensor
    columns: int = COLUMNS


class Painter:
    """Draws figures of a stack whose lowest level makes images.

    Args:
        levels: from the image up; chained generators are taken apart.
        statistics: batch normalisation when sampling, "running" or "batch".
        classes: K.
        device: where the levels are.
    """

    def __init__(self, levels: list[Level], statistics: str, classes: int, device: torch.device | str):
        self.levels, self.statistics, self.classes, self.device = unfolded(levels), statistics, classes, device
        self.top, self.rows = self.levels[-1], min(classes, MOST_ROWS)
        self.generator = torch.Generator().manual_seed(SEED)

    def figures(self) -> dict[str, Figure]:
        """All figures that this stack has, by name, but those that show training images."""
        painted: dict[str, Callable[[], Figure]] = {
            "classes": self.classes_figure,
            "interpolation_noise": self.interpolation_noise,
        }
        if self.top.labels or len(self.levels) > 1:  # else there is no condition to hold
            painted["fixed_condition"] = self.fixed_condition
        if len(self.levels) > 1:
            painted["fixed_noise"] = self.fixed_noise
        if self.top.labels:
            painted["interpolation_labels"] = self.interpolation_labels
        if self.top.codes:
            painted |= {"codes": self.codes, "continuous_code": self.continuous_code}
        return {name: paint() for name, paint in painted.items()}

    def classes_figure(self) -> Figure:
        """A row of samples a class; of a stack without labels, samples."""
        return self._paint(self._labels(), self._noise(self.rows * COLUMNS))

    def fixed_condition(self) -> Figure:
        """A row has one condition of the image level, such as one generated fc3 feature of the row's class, and z0
        varies: the paper's panel (c), and of a stack without entropy loss its panel (d)."""
        noise = self._noise(self.rows * COLUMNS)
        above = [z[::COLUMNS].repeat_interleave(COLUMNS, 0) for z in noise[1:]]
        return self._paint(self._labels(), [noise[0], *above])

    def fixed_noise(self) -> Figure:
        """A row has one z0, and the noise of all levels above the image's varies."""
        noise = self._noise(self.rows * COLUMNS)
        return self._paint(self._labels(), [noise[0][::COLUMNS].repeat_interleave(COLUMNS, 0), *noise[1:]])

    def interpolation_noise(self) -> Figure:
        """A row goes from one z of all levels to another in a straight line; a categorical code stays."""
        first, last = (self._repeated(self._noise(self.rows)) for _ in range(2))
        along = torch.linspace(0, 1, COLUMNS, device=self.device).repeat(self.rows)[:, None]
        noise = [(1 - along) * start + along * end for start, end in zip(first, last, strict=True)]
        if self.top.codes:
            place = self._code()
            noise[-1][:, place] = first[-1][:, place]
        return self._paint(self._labels(), noise)

    def interpolation_labels(self) -> Figure:
        """A row has one z of all levels, and its label goes from class k to class k + 1 in a straight line."""
        along = torch.linspace(0, 1, COLUMNS, device=self.device).repeat(self.rows)[:, None]
        labels = self._labels()
        start, end = (F.one_hot((labels + shift) % self.classes, self.classes).float() for shift in (0, 1))
        return self._paint((1 - along) * start + along * end, self._repeated(self._noise(self.rows)))

    def codes(self) -> Figure:
        """A row a value of the categorical code, all else varies."""
        return self._paint(self._labels(), self._with_code(self._noise(self.rows * COLUMNS)))

    def continuous_code(self) -> Figure:
        """A row a value of the categorical code; the first continuous code goes from 0 to 1, all else is fixed."""
        (z,) = self._with_code(self._repeated(self._noise(self.rows)))
        z[:, self._code().stop] = torch.linspace(0, 1, COLUMNS, device=self.device).repeat(self.rows)
        return self._paint(self._labels(), [z])

    def neighbours(self, images: Tensor, classifier: Encoder, features: Tensor) -> Figure:
        """Triples of a sample, the training image nearest to it in pixels, and the one nearest in a classifier's fc3
        features, by Euclidean distance.

        Args:
            images: the training images, uint8 (n, channels, size, size).
            features: what the classifier makes of them, (n, F).
        """
        count = self.rows * TRIPLES
        labels = torch.arange(self.rows, device=self.device).repeat_interleave(TRIPLES)
        made = self._paint(labels, self._noise(count)).images
        alike = images[nearest(made, images)]
        akin = images[nearest(classifier.features(made, ("fc3",))["fc3"], features)]
        return Figure(torch.stack([made, alike, akin], 1).flatten(0, 1), 3 * TRIPLES)

    def _labels(self) -> Tensor:
        """The row's class, for every cell."""
        return torch.arange(self.rows, device=self.device).repeat_interleave(COLUMNS)

    def _noise(self, count: int) -> list[Tensor]:
        """z of every level; each figure begins with the same draws."""
        return [draw(level, count, self.device, self.generator) for level in self.levels]

    @staticmethod
    def _repeated(noise: list[Tensor]) -> list[Tensor]:
        return [z.repeat_interleave(COLUMNS, 0) for z in noise]

    def _code(self) -> slice:
        """Where the categorical code lies in z."""
        assert self.top.codes
        first = self.top.generator.noise - self.top.codes.size
        return slice(first, first + self.top.codes.categorical)

    def _with_code(self, noise: list[Tensor]) -> list[Tensor]:
        """The same noise with the row's value of the categorical code."""
        (z,), place = noise, self._code()
        z[:, place] = F.one_hot(self._labels(), place.stop - place.start).to(z)
        return [z]

    def _paint(self, condition: Tensor, noise: list[Tensor]) -> Figure:
        """Images for labels (n,) or mixtures of labels (n, K)."""
        if condition.dim() == 1:
            condition = label_condition(self.top, condition, self.classes)
        with sampling(self.levels, self.statistics):
            image = descend(self.levels, condition, noise)[IMAGE]
        self.generator.manual_seed(SEED)  # for the next figure
        return Figure(to_pixels(image, self.levels[0].generator.mean))


def nearest(samples: Tensor, candidates: Tensor) -> Tensor:
    """Index (n,) of the candidate nearest to each sample; both are images or features, of the same shape each."""
    seen, best = samples.float().flatten(1), None
    place = torch.zeros(len(samples), dtype=torch.long, device=samples.device)
    for first in range(0, len(candidates), PART):
        part = candidates[first : first + PART].to(samples.device).float().flatten(1)
        distances, index = torch.cdist(seen, part).min(1)
        closer = torch.ones_like(index, dtype=torch.bool) if best is None else distances < best
        place = torch.where(closer, index + first, place)
        best = distances if best is None else torch.where(closer, distances, best)
    return place


def real(data: Data, classes: int) -> Figure:
    """Training images, a row a class; a class with fewer than ten repeats them."""
    rows = []
    for label in range(min(classes, MOST_ROWS)):
        members = (data.labels == label).nonzero().flatten()
        if len(members):
            rows.append(data.images[members[torch.arange(COLUMNS, device=members.device) % len(members)]])
    return Figure(torch.cat(rows))


def draw_all(
    levels: list[Level], statistics: str, data: Data, scorer: Encoder, features: Tensor, classes: int
) -> dict[str, Figure]:
    """Every figure that a stack has: Painter's, its nearest training images, and real images.

    Args:
        features: what the scorer makes of the training images, (n, F).
    """
    painter = Painter(levels, statistics, classes, data.images.device)
    return {
        **painter.figures(),
        "neighbours": painter.neighbours(data.images, scorer, features),
        "real": real(data, classes),
    }
