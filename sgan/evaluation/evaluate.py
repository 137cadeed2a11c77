"""Scores and grids of a stack: while it trains, and at the end."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sgan.config import IMAGE, LABEL
from sgan.data.batches import Data, to_pixels
from sgan.evaluation import grid
from sgan.evaluation import scores as metrics
from sgan.evaluation.inception import Inception
from sgan.models.encoder import PART, Encoder
from sgan.models.stack import Level, balanced_labels, label_condition, sample
from sgan.store.record import grid_file

GRID_SEED = 7
"""Grids use the same noise at every evaluation, so that they can be leafed through like a film."""
GRID_COLUMNS = 10
REAL_SAMPLES = 10_000
"""Training images that stand for all in the score of a level that makes features."""
EVALUATION_SAMPLES = 2000
"""Samples of a score while training; a final score has the recipe's number."""


@dataclass(frozen=True)
class InceptionJudge:
    """Scores images by the Inception network against what it says of the real ones.

    Attributes:
        real: of the real images.
        statistics: `metrics.statistics` of their features.
    """

    network: Inception
    real: metrics.Features
    statistics: dict

    def score(self, images: Tensor) -> dict[str, float]:
        """`metrics.network_scores` of uint8 images (n, channels, size, size)."""
        return metrics.network_scores(self.network.describe(images), self.real, self.statistics)


class Evaluation:
    """Samples levels and judges the samples.

    Args:
        levels: neighbours, from the lower up; where the top one is given features, those of real training images.
        statistics: batch normalisation when sampling, "running" or "batch".
        data: the dataset.
        encoder: the trial's encoder; None where the stack uses no labels.
        scorer: the classifier that judges images.
        reference: what the scorer says of the training images.
    """

    def __init__(
        self,
        levels: list[Level],
        statistics: str,
        data: Data,
        encoder: Encoder | None,
        scorer: Encoder,
        reference: metrics.Reference,
    ):
        self.levels, self.statistics, self.data = levels, statistics, data
        self.encoder, self.scorer, self.reference = encoder, scorer, reference
        self.top, self.low = levels[-1], levels[0].low
        self.classes = scorer.classes
        self.real = metrics.statistics(self._real_fc3()) if self.low != IMAGE else {}

    def __call__(self, images: int, folder: Path) -> dict[str, float]:
        """Scores for the record, and a grid in `folder`, after `images` training images."""
        self.draw(grid_file(folder, images))
        return self.score(EVALUATION_SAMPLES, GRID_SEED)

    def score(self, samples: int, seed: int, judge: InceptionJudge | None = None) -> dict[str, float]:
        """Scores of `samples` samples, as many of each class. `accuracy` is the share in which the encoder sees the
        label asked for. Of a level that makes features, `feature_fid` is the Frechet distance of what the encoder makes
        of them at fc3 to its features of real images. A judge's scores replace the classifier's."""
        labels = balanced_labels(samples, self.classes)
        made = self.made(labels, seed)
        if self.low == IMAGE:
            found = metrics.classify(self.scorer, made)
            values = metrics.scores(found, self.reference, labels if self.top.labels else None)
            values |= judge.score(made) if judge else {}
            seen = metrics.classify(self.encoder, made) if self.encoder and self.top.labels else None
        else:
            seen = self._seen(made)
            values = {"feature_fid": metrics.frechet_distance(seen.features, self.real)}
        if seen and self.top.labels:
            values["accuracy"] = metrics.accuracy(seen.logits, labels)
        return values

    def draw(self, path: Path) -> None:
        """A grid with a row of samples a class; for features, the training images that lie nearest to them."""
        made = self.made(torch.arange(self.classes).repeat_interleave(GRID_COLUMNS), GRID_SEED)
        if self.low != IMAGE:
            some = self.data.images[:EVALUATION_SAMPLES]
            made = some[grid.nearest(made, self._features(some, self.low))]
        grid.save(made, path, GRID_COLUMNS)

    def made(self, labels: Tensor, seed: int) -> Tensor:
        """What the lowest level makes for these labels (n,): uint8 images, or features."""
        parts = (made[self.low] for made in sample(self.levels, self._conditions(labels), self.statistics, seed))
        if self.low != IMAGE:
            return torch.cat(list(parts))
        return torch.cat([to_pixels(part, self.levels[0].generator.mean) for part in parts])

    def _conditions(self, labels: Tensor) -> Tensor:
        """What the top level is given: the labels, or real features of training images that have them."""
        if self.top.high == LABEL:
            return label_condition(self.top, labels.to(self.data.images.device), self.classes)
        chosen = torch.zeros_like(labels)
        known = self.data.labels.cpu()
        for label in labels.unique():
            members, places = (known == label).nonzero().flatten(), (labels == label).nonzero().flatten()
            chosen[places] = members[torch.arange(len(places)) % len(members)]
        return self._features(self.data.images[chosen.to(self.data.images.device)], self.top.high)

    def _features(self, images: Tensor, tap: str) -> Tensor:
        """The encoder's features of uint8 images at a tap."""
        assert self.encoder is not None
        return self.encoder.features(images, (tap,))[tap]

    @torch.no_grad()
    def _seen(self, features: Tensor) -> metrics.Features:
        """What the encoder makes of features at this stack's lowest tap: its own at fc3, and its logits."""
        assert self.encoder is not None
        taps = [self.encoder.taps(part, self.low) for part in features.split(PART)]
        return metrics.Features(
            torch.cat([part["fc3"].cpu() for part in taps]), torch.cat([part["fc4"].cpu() for part in taps])
        )

    def _real_fc3(self) -> Tensor:
        return self._features(self.data.images[:REAL_SAMPLES], "fc3").cpu()
