"""A dataset's images as uint8 tensors, their augmentation, and the order in which training sees them."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgan.checks import ConfigError


@dataclass(frozen=True)
class Data:
    """One dataset as tensors: training images (n, channels, size, size) uint8 with labels (n,) int64, the same for the
    test set, and `digest`, a content key of all four."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    digest: str

    def to(self, device: str) -> "Data":
        *tensors, digest = vars(self).values()
        return Data(*(tensor.to(device) for tensor in tensors), digest=digest)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the tensors as NumPy arrays: Ray shares arrays' memory between processes, but copies tensors."""
        *tensors, digest = vars(self).values()
        return _from_arrays, (*(tensor.numpy() for tensor in tensors), digest)


def _from_arrays(*parts: Any) -> Data:
    """Return Data that shares the arrays' memory. Ray makes it read-only, which is safe: nothing changes a dataset."""
    *arrays, digest = parts
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return Data(*map(torch.from_numpy, arrays), digest=digest)


class Batches:
    """`batches[k]` holds the image indices (batch,) of step k. Epochs are shuffled and drop their incomplete batch; the
    order of one depends on seed and epoch alone, so a resumed run keeps it.

    A GPU gets an epoch's order in one copy: with one copy per step, GPU and Python would wait for each other."""

    def __init__(self, images: int, batch: int, seed: int, device: torch.device | str = "cpu"):
        if batch > images:
            raise ConfigError(f"batch must be <= the {images} training images, but got {batch}")
        self.images, self.batch, self.seed, self.device = images, batch, seed, device
        self.per_epoch = images // batch
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __getitem__(self, step: int) -> Tensor:
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
            self._epoch, self._order = epoch, torch.randperm(self.images, generator=generator).to(self.device)
        return self._order[place * self.batch : (place + 1) * self.batch]


def pixel_mean(images: Tensor, subtract: bool) -> Tensor:
    """The image that `to_input` subtracts, (1, channels, size, size): the mean training image in [0, 1], or zeros."""
    if not subtract:
        return torch.zeros(1, *images.shape[1:], device=images.device)
    total = torch.zeros(images.shape[1:], dtype=torch.float64, device=images.device)
    for part in images.split(4096):
        total += part.double().sum(0)
    return (total / (255 * len(images))).float()[None]


def to_input(images: Tensor, mean: Tensor) -> Tensor:
    """Turn uint8 images into the networks' input: values in [0, 1] minus the mean image."""
    return images.float() / 255 - mean


def to_pixels(inputs: Tensor, mean: Tensor) -> Tensor:
    """The inverse of `to_input`: uint8, rounded and clipped."""
    return ((inputs + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def random_flips(images: Tensor) -> Tensor:
    """Mirror each image left to right with probability 1/2."""
    flip = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(flip, images.flip(-1), images)


def turned(images: Tensor, quarters: Tensor) -> Tensor:
    """Rotate each image (n, channels, size, size) by its number (n,) of right angles, 0 to 3."""
    result = images.clone()
    for quarter in range(1, 4):
        chosen = quarters == quarter
        result[chosen] = images[chosen].rot90(quarter, (-2, -1))
    return result
