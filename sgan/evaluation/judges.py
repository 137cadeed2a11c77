"""Judges: the feature spaces in which images are scored, one per row of the table JUDGES.

Legend: n images, m training images, F features, K classes. Images are uint8 (n, channels, size, size).
"""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from sgan.data.batches import Data
from sgan.evaluation import dinov2, inception
from sgan.evaluation import scores as metrics
from sgan.evaluation.scores import Features, join

SMALL, WIDTHS = 16, (16, 32)
"""Images below SMALL pixels get a judge of the first width at full resolution, others the second width at half."""
GROUPS = 8
PART = 100  # Images per forward pass, as in the encoder
COMPONENTS, COMPONENT_IMAGES = 64, 10_000
"""Principal components of the pixels, and training images from which they are computed; both at most."""
SIDE = 32  # The components of more pixels than 32 x 32 take too long
NEAR = 0.05  # A sample is a copy where it is as near to a training image as this share of the judge's own test images
PIXELS, HELD_OUT, INCEPTION, DINOV2 = "pixels", "held-out", "inception", "dinov2"
Describe = Callable[[Tensor], Features]  # From uint8 images to features and logits on the CPU


class Row(NamedTuple):
    """A judge. `network`, `resize`: its network and its resize of images, in words. `given`: the module of a network
    whose weights are a file. `kid`: the number of KID's subsets, and the images in each."""

    network: str
    resize: str = "none"
    given: ModuleType | None = None
    kid: tuple[int, int] = (1, metrics.SUBSET)


JUDGES = {
    PIXELS: Row("principal components of the pixels"),
    HELD_OUT: Row("held-out judge"),
    INCEPTION: Row(inception.NETWORK, inception.RESIZE, inception, metrics.KID),
    DINOV2: Row(dinov2.NETWORK, dinov2.RESIZE, dinov2, metrics.KID),
}


def parts(data: Data) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Split the test set into two pairs of images and labels. The first pair, every second image of each class, trains
    the held-out judge. The second pair holds the held-out images, which only scores use."""
    chosen = torch.zeros(len(data.test_labels), dtype=torch.bool, device=data.test_labels.device)
    for label in data.test_labels.unique():
        chosen[(data.test_labels == label).nonzero().flatten()[::2]] = True
    return tuple((data.test_images[each], data.test_labels[each]) for each in (chosen, ~chosen))  # pyright: ignore[reportReturnType]


class _Block(nn.Module):
    """A residual block: group normalisation and SiLU before each convolution (He et al. 2016, Wu and He 2018)."""

    def __init__(self, maps: int, made: int, stride: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, each) for each in (maps, made))
        first = nn.Conv2d(maps, made, 3, stride, 1, bias=False)
        self.convs = nn.ModuleList([first, nn.Conv2d(made, made, 3, 1, 1, bias=False)])
        self.skip = nn.Conv2d(maps, made, 1, stride, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        made = h
        for norm, conv in zip(self.norms, self.convs, strict=True):
            made = conv(functional.silu(norm(made)))
        return self.skip(h) + made


class HeldOut(nn.Module):
    """The default judge: a small residual network. It shares no architecture with any encoder, and no images, since
    `parts` of the test set train it.

    Its features are the last maps' means, and the first block's maps pooled to 2 x 2. Without the latter, noise in the
    pixels would hardly change the features, since a classifier learns to ignore it."""

    def __init__(self, channels: int, size: int, classes: int):
        super().__init__()
        width = WIDTHS[size >= SMALL]
        self.stem = nn.Conv2d(channels, width, 3, 1 + (size >= SMALL), 1, bias=False)
        self.blocks = nn.ModuleList([_Block(width, width, 1), _Block(width, 2 * width, 2)])
        self.blocks += [_Block(2 * width, 2 * width, 1)]
        self.norm, self.last = nn.GroupNorm(GROUPS, 2 * width), nn.Linear(2 * width, classes)

    def forward(self, inputs: Tensor) -> Features:
        """Features (n, 6 x width) and logits (n, K) of images in [0, 1]."""
        first = h = self.blocks[0](self.stem(inputs))
        for block in self.blocks[1:]:
            h = block(h)
        means = functional.silu(self.norm(h)).mean((2, 3))
        middle = functional.adaptive_avg_pool2d(first, 2).flatten(1)
        return Features(torch.cat([means, middle], 1), self.last(means))

    @torch.no_grad()
    def describe(self, images: Tensor) -> Features:
        """Features and logits, on the CPU, of uint8 images."""
        device = self.last.weight.device
        return join(self(part.to(device).float() / 255) for part in images.split(PART))


def _points(images: Tensor) -> Tensor:
    """The pixels (n, ...) of images in [0, 1], on the CPU; those of images larger than SIDE are averaged down to it."""
    values = images.cpu().float() / 255
    return (functional.adaptive_avg_pool2d(values, SIDE) if images.shape[-1] > SIDE else values).flatten(1)


def components(images: Tensor) -> dict[str, Tensor]:
    """The mean (pixels,) of training images and their first principal components (pixels, at most COMPONENTS)."""
    points = _points(images[:COMPONENT_IMAGES]).double()
    mean = points.mean(0)
    _, vectors = torch.linalg.eigh((points - mean).T @ (points - mean))
    return {"mean": mean.float(), "axes": vectors.flip(1)[:, :COMPONENTS].float().contiguous()}


def by_components(axes: Mapping[str, Tensor]) -> Describe:
    """Return the judge `pixels` as a function: images -> principal components. With 64 pixels, all distances stay."""

    def describe(images: Tensor) -> Features:
        found = [(_points(part) - axes["mean"]) @ axes["axes"] for part in images.split(metrics.SUBSET)]
        return Features(torch.cat(found), torch.empty(len(images), 0))

    return describe


class Judge:
    """A feature space with the features of the real images.

    Args:
        name: the judge's key in JUDGES.
        describe: function from images to features and logits.
        real, labels: features and labels of the training images.
        held, held_labels: the same for held-out images, on which no network is trained."""

    def __init__(
        self, name: str, describe: Describe, real: Features, labels: Tensor, held: Features, held_labels: Tensor
    ):
        self.describe, self.real, self.held, self.held_labels = describe, real, held, held_labels
        self.kid, self.classes = JUDGES[name].kid, name == HELD_OUT
        some = metrics.subset(len(labels))
        self.labels, self.neighbourhoods = labels[some], metrics.Neighbourhoods(real.features[some])
        self.statistics = metrics.statistics(real.features)

    def scores(self, found: Features, labels: Tensor | None, repeats: Tensor | None = None) -> dict[str, float]:
        """Return all measures of sgan.evaluation.measures that one space gives.

        Args:
            found: features and logits of the images in this space.
            labels: the labels requested for them, (n,), if any.
            repeats: indices that repeat the images as a larger set. Only FID and the Inception score use it, since
                distances between images do not matter there."""
        part = metrics.subset(len(found.features))
        points = found.features[part]
        whole = found.features if repeats is None else found.features[repeats]
        values = {
            "fid": metrics.frechet_distance(whole, self.statistics),
            "kid": metrics.kernel_distance(found.features, self.real.features, *self.kid)["kid"],
            **self.neighbourhoods.scores(points),
        }
        if labels is not None and len(self.held_labels):
            guesses = labels[part][metrics.distances(self.held.features, points).argmin(1)]
            values["train_on_generated"] = (guesses == self.held_labels).float().mean().item()
        if found.logits.shape[1]:
            values |= metrics.inception_scores(found.logits if repeats is None else found.logits[repeats])
        if self.classes:
            values |= metrics.class_scores(found, self.real)
            values |= {} if labels is None else {"judge_accuracy": metrics.accuracy(found.logits, labels)}
        return values

    def class_coverage(self, features: Tensor) -> list[float | None]:
        """Return the coverage of the training images of each class, 0 to K-1; None where the subset has none."""
        hit = metrics.distances(self.neighbourhoods.real, features).amin(1) < self.neighbourhoods.far
        classes = [hit[self.labels == label].float() for label in range(self.real.logits.shape[1])]
        return [each.mean().item() if len(each) else None for each in classes]


class Judges:
    """The judges of one dataset, by their keys in JUDGES: `held-out`, `pixels`, and a given network.

    Args:
        described: name of each judge with a network -> its function, and its features of training and held-out images.
        axes: mean and principal components of `pixels`; if empty, that judge is left out.
    Attributes:
        near: distance in `pixels` to the nearest training image up to which a sample counts as a copy."""

    def __init__(
        self, data: Data, described: Mapping[str, tuple[Describe, Features, Features]], axes: Mapping[str, Tensor]
    ):
        (own, _), (held, held_labels) = parts(data)
        see = by_components(axes)
        seen = {PIXELS: (see, see(data.images), see(held))} if axes else {}
        self.rows = {
            name: Judge(name, describe, real, data.labels.cpu(), known, held_labels.cpu())
            for name, (describe, real, known) in (seen | dict(described)).items()
        }
        if axes:
            self.near = metrics.nearest(see(own).features, self.rows[PIXELS].real.features)[0].quantile(NEAR).item()

    def scores(self, images: Tensor, labels: Tensor | None, repeats: Tensor | None = None) -> dict[str, float]:
        """Return scores of images; arguments as in `Judge.scores`. Plain names are of the leading judge (a given
        network if there is one), "pixels/..." of `pixels`. `held-out` always gives the scores that need classes."""
        values: dict[str, float] = {}
        for name, judge in self.rows.items():
            found = judge.describe(images)
            prefix = f"{name}/" if name == PIXELS else ""
            values |= {f"{prefix}{key}": each for key, each in judge.scores(found, labels, repeats).items()}
            if name == PIXELS:
                points = found.features[metrics.subset(len(images))]
                distances, _ = metrics.nearest(points, judge.real.features)
                values["copied"] = (distances <= self.near).float().mean().item()
        return values
