"""Datasets as uint8 tensors, and the order in which training sees them.

Shapes: images (n, channels, size, size) uint8; labels (n,) int64.
"""

import functools
import hashlib
import socket
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgan import folder
from sgan.checks import ConfigError
from sgan.shapes import Dataset

DIGITS_TEST = 450
"""Digits kept for testing; the other 1,347 train."""
DOWNLOAD_PATIENCE = 20.0
"""Seconds of silence after which a download has failed."""


class DataError(ConfigError):
    """A dataset that is not there, or a file of it that is torn; the message names the file and what to do."""


@dataclass(frozen=True)
class Data:
    """One dataset in memory.

    Attributes:
        images, labels: the training set, (n, channels, size, size) uint8 and (n,) int64.
        test_images, test_labels: the test set.
        digest: content key of all four.
    """

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    digest: str

    def to(self, device: str) -> "Data":
        """The same data on another device."""
        tensors = (self.images, self.labels, self.test_images, self.test_labels)
        return Data(*(tensor.to(device) for tensor in tensors), digest=self.digest)


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:16]


def _digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's 1,797 real 8x8 digits (UCI optdigits, 17 grey levels), split once at random."""
    sklearn = find_spec("sklearn")  # its file is read without it: its import takes a second, in every process
    if sklearn is None or sklearn.origin is None:
        raise DataError("the digits come with scikit-learn, which is not installed; run make .venv/made")
    rows = np.loadtxt(Path(sklearn.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    pixels = torch.from_numpy(np.rint(rows[:, :-1] * 255 / 16).astype(np.uint8)).reshape(-1, 1, 8, 8)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    pixels, classes = pixels[order], torch.from_numpy(rows[:, -1].astype(np.int64))[order]
    return pixels[DIGITS_TEST:], classes[DIGITS_TEST:], pixels[:DIGITS_TEST], classes[:DIGITS_TEST]


def _check_idx(path: Path, dimensions: int) -> None:
    """Require an IDX file (LeCun's format: magic number, sizes, bytes) to have the length that its header gives."""
    with open(path, "rb") as file:
        header = file.read(4 + 4 * dimensions)
    if header[:4] != bytes((0, 0, 8, dimensions)) or len(header) != 4 + 4 * dimensions:
        raise DataError(f"{path} is not an IDX file of bytes with {dimensions} dimensions; delete it and get it again")
    sizes = np.frombuffer(header[4:], ">u4").astype(np.int64)
    expected = len(header) + int(sizes.prod())
    if path.stat().st_size != expected:
        raise DataError(
            f"{path} is torn: its header asks for {expected} bytes and it has {path.stat().st_size}; "
            "delete it and get it again"
        )


def _mnist(root: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from torchvision.datasets import MNIST

    raw = root / "MNIST" / "raw"
    for part in ("train", "t10k"):
        for kind, dimensions in (("images-idx3", 3), ("labels-idx1", 1)):
            path = raw / f"{part}-{kind}-ubyte"
            if path.exists():
                _check_idx(path, dimensions)
    train, test = (_torchvision(MNIST, root, train=part) for part in (True, False))
    tensors = (train.data[:, None], train.targets, test.data[:, None], test.targets)
    for images, labels in (tensors[:2], tensors[2:]):
        if len(images) != len(labels) or images.shape[1:] != (1, 28, 28) or int(labels.max()) > 9:
            raise DataError(
                f"the files in {raw} do not belong together: {tuple(images.shape)} images, {len(labels)} labels up to "
                f"{int(labels.max())}; delete them and get them again"
            )
    return tensors


def _cifar10(root: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from torchvision.datasets import CIFAR10

    parts = []
    for part in (True, False):
        rows = _torchvision(CIFAR10, root, train=part)
        parts += [torch.from_numpy(rows.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(rows.targets)]
    return tuple(parts)  # pyright: ignore[reportReturnType]


def _svhn(root: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from torchvision.datasets import SVHN

    parts = []
    for part in ("train", "test"):
        rows = _torchvision(SVHN, root, split=part)
        parts += [torch.from_numpy(rows.data), torch.from_numpy(rows.labels.astype(np.int64))]
    return tuple(parts)  # pyright: ignore[reportReturnType]


def _torchvision(kind: type, root: Path, **part: Any):
    """A torchvision dataset, or the named part of it, from `root`, downloaded into it where it is absent and a network
    is there."""
    patience = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(DOWNLOAD_PATIENCE)  # torchvision would wait for ever for a server that says nothing
        try:
            return kind(root, **part)
        except RuntimeError:  # torchvision's word for "not found or corrupted": fetch what is missing
            return kind(root, **part, download=True)
    except Exception as error:  # whatever a reader or a download raises, the user needs the same three things
        raise DataError(
            f"{kind.__name__} cannot be read from {root} nor downloaded into it "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}); "
            f"get its files on a machine with a network (torchvision.datasets.{kind.__name__}(root, download=True)), "
            "copy the folder here and name it with --data, or run --dataset digits, which needs no files"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)


@functools.lru_cache(maxsize=1)
def load(dataset: Dataset, root: Path) -> Data:
    """Read a dataset; the last one is kept, since a command may choose it twice.

    Args:
        dataset: a row of presets.DATASETS, or presets.folder_row.
        root: folder with the dataset's files; digits are embedded and do not look at it.
    Raises:
        DataError: files are absent and cannot be downloaded, or torn.
    """
    readers = {
        "digits": _digits,
        "mnist": lambda: _mnist(root),
        "svhn": lambda: _svhn(root),
        "cifar10": lambda: _cifar10(root),
        "folder": lambda: folder.read(root, dataset.size, dataset.channels),
    }
    tensors = readers[dataset.name]()
    return Data(*tensors, digest=_digest(*tensors))


def epoch_order(images: int, seed: int, epoch: int) -> Tensor:
    """The order, (images,), of one epoch: a pure function of seed and epoch, so that a resumed run goes on in it."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(images, generator=generator)


class Batches:
    """Indices (batch,) of step k's batch: epochs in random order, the last incomplete batch of each left out. On a GPU
    an epoch's order is sent there at once: a copy a step would have the GPU wait for Python, and Python for the GPU."""

    def __init__(self, images: int, batch: int, seed: int, device: torch.device | str = "cpu"):
        if batch > images:
            raise ConfigError(f"batch must be <= the {images} training images, but got {batch}")
        self.images, self.batch, self.seed, self.device = images, batch, seed, device
        self.per_epoch = images // batch
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __getitem__(self, step: int) -> Tensor:
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self.images, self.seed, epoch).to(self.device)
        return self._order[place * self.batch : (place + 1) * self.batch]


def pixel_mean(images: Tensor, subtract: bool) -> Tensor:
    """What `to_input` subtracts, (1, channels, size, size): the mean training image in [0, 1], or zeros."""
    if not subtract:
        return torch.zeros(1, *images.shape[1:], device=images.device)
    total = torch.zeros(images.shape[1:], dtype=torch.float64, device=images.device)
    for part in images.split(4096):
        total += part.double().sum(0)
    return (total / (255 * len(images))).float()[None]


def to_input(images: Tensor, mean: Tensor) -> Tensor:
    """uint8 images as the networks see them: [0, 1] minus the mean image."""
    return images.float() / 255 - mean


def to_pixels(inputs: Tensor, mean: Tensor) -> Tensor:
    """The inverse of `to_input`: uint8, rounded and clipped."""
    return ((inputs + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def random_flips(images: Tensor) -> Tensor:
    """Each image mirrored left to right with probability one half."""
    flip = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(flip, images.flip(-1), images)


def turned(images: Tensor, quarters: Tensor) -> Tensor:
    """Each image (n, channels, size, size) turned by its number (n,) of right angles, 0 to 3."""
    result = images.clone()
    for quarter in range(1, 4):
        chosen = quarters == quarter
        result[chosen] = images[chosen].rot90(quarter, (-2, -1))
    return result


def random_shift(images: Tensor, pixels: int) -> Tensor:
    """The batch moved by up to `pixels` in each direction, zeros moving in."""
    if pixels == 0:
        return images
    down, right = (int(offset) for offset in torch.randint(-pixels, pixels + 1, (2,)))
    return torch.nn.functional.pad(images, (right, -right, down, -down))


def image_shape(dataset: Dataset) -> tuple[int, int, int]:
    """(channels, height, width) of a dataset's images."""
    return dataset.channels, dataset.size, dataset.size
