"""Score a stack and draw its image grids, while it trains and at the end."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sgan.config import IMAGE, LABEL
from sgan.data.batches import Data
from sgan.evaluation import grid
from sgan.evaluation import scores as metrics
from sgan.evaluation.judges import Judges
from sgan.models.encoder import Encoder
from sgan.models.stack import Stack, balanced_labels, label_condition, sample
from sgan.store.local import grid_file

GRID_SEED = 2**31 + 7
"""Seed of the noise in evaluations and in the choice of the best weights. It is fixed, so that grids can be compared.
No trial has it, since final scores must use other noise (torch uses 32 bits of a seed)."""
GRID_COLUMNS = 10
REAL_SAMPLES = 10_000  # Training images that represent all of them in the score of a level that makes features
EVALUATION_SAMPLES = 1000  # Samples in a score while training; a final score uses the recipe's number


@dataclass
class Evaluation:
    """Samples from a stack and scores the samples.

    Args:
        stack: generators of neighbouring levels, the lowest first. Where the top one needs features, it gets those of
            training images.
        statistics: batch normalisation when sampling: "running" averages or "batch" statistics.
        data: the dataset.
        encoder: the trial's encoder; None where the trial has none.
        judges: the feature spaces in which images are scored."""

    stack: Stack
    statistics: str
    data: Data
    encoder: Encoder | None
    judges: Judges

    def __post_init__(self) -> None:
        self.top, self.low, self.classes = self.stack[-1].level, self.stack[0].level.low, self.stack[0].classes
        if self.low != IMAGE:
            self.real = metrics.statistics(self._features(self.data.images[:REAL_SAMPLES], "fc3").cpu())

    def __call__(self, images: int, folder: Path) -> dict[str, float]:
        """Return the scores after `images` training images, and write a grid into `folder` with a row of samples per
        class. For a level that makes features, the grid shows the training images nearest to its samples."""
        made = self.made(torch.arange(self.classes).repeat_interleave(GRID_COLUMNS), GRID_SEED)
        if self.low != IMAGE:
            some = self.data.images[:EVALUATION_SAMPLES]
            made = some[metrics.nearest(made, self._features(some, self.low))[1]]
        words = grid.Words(rows=[str(label) for label in range(self.classes) if self.top.conditioned])
        grid.save(made, grid_file(folder, images), GRID_COLUMNS, words)
        return self.score(EVALUATION_SAMPLES, GRID_SEED)

    def score(self, samples: int, seed: int) -> dict[str, float]:
        """Return the scores of `samples` samples, equally many of each class.

        `accuracy` is the share of samples that the encoder assigns to the requested label. For a level that makes
        features, `feature_fid` is the Frechet distance between the encoder's fc3 of samples and of real images."""
        labels = balanced_labels(samples, self.classes)
        made = self.made(labels, seed)
        encoder = self.encoder if self.top.labels or self.low != IMAGE else None
        taps = encoder.features(made, ("fc3", "fc4"), self.low) if encoder else {}
        if self.low == IMAGE:
            values = self.judges.scores(made, labels if self.top.labels else None)
        else:
            values = {"feature_fid": metrics.frechet_distance(taps["fc3"].cpu(), self.real)}
        if taps and self.top.labels:
            values["accuracy"] = metrics.accuracy(taps["fc4"], labels)
        return values

    def made(self, labels: Tensor, seed: int) -> Tensor:
        """Return the lowest level's output for these labels (n,): uint8 images, or features."""
        device = self.data.images.device
        if self.top.high == LABEL:
            conditions = label_condition(self.stack[-1], labels.to(device))
        else:  # the conditions are features of training images with these labels
            chosen, known = torch.zeros_like(labels), self.data.labels.cpu()
            for label in labels.unique():
                members, places = (known == label).nonzero().flatten(), (labels == label).nonzero().flatten()
                chosen[places] = members[torch.arange(len(places)) % len(members)]
            conditions = self._features(self.data.images[chosen.to(device)], self.top.high)
        return sample(self.stack, conditions, self.statistics, seed)

    def _features(self, images: Tensor, tap: str) -> Tensor:
        """The encoder's features of uint8 images at a tap."""
        assert self.encoder is not None
        return self.encoder.features(images, (tap,))[tap]
