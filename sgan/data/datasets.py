"""Datasets as files hold them, read into arrays once, where a command plans."""

import functools
import hashlib
import socket
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits

from sgan.checks import ConfigError
from sgan.data import image_folder as folder
from sgan.data.batches import Data
from sgan.data.image_folder import Parts
from sgan.shapes import Dataset

DIGITS_TEST = 450
"""Digits kept for testing; the other 1,347 train."""
DOWNLOAD_PATIENCE = 20.0
"""Seconds of silence after which a download has failed."""


class DataError(ConfigError):
    """A dataset that is not there, or a file of it that is torn; the message names the file and what to do."""


@dataclass(frozen=True)
class Arrays:
    """One dataset in memory, as numpy arrays; the attributes are those of `sgan.data.batches.Data`."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    digest: str

    def tensors(self) -> Data:
        """The same memory as tensors, which nobody may change: processes share it."""
        arrays = (self.images, self.labels, self.test_images, self.test_labels)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return Data(*map(torch.from_numpy, arrays), digest=self.digest)


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}torch.{array.dtype}".encode())  # as of the tensors: RESULTS.md names digests
        digest.update(array.data)
    return digest.hexdigest()[:16]


def _digits() -> Parts:
    """scikit-learn's 1,797 real 8x8 digits (UCI optdigits, 17 grey levels), split once at random."""
    found: Any = load_digits()
    rows, labels = found.data, found.target
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).numpy()
    pixels = np.rint(rows[order] * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    classes = labels[order].astype(np.int64)
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


def _mnist(root: Path) -> Parts:
    from torchvision.datasets import MNIST

    raw = root / "MNIST" / "raw"
    for part in ("train", "t10k"):
        for kind, dimensions in (("images-idx3", 3), ("labels-idx1", 1)):
            path = raw / f"{part}-{kind}-ubyte"
            if path.exists():
                _check_idx(path, dimensions)
    train, test = (_torchvision(MNIST, root, train=part) for part in (True, False))
    parts = tuple(each.numpy() for each in (train.data[:, None], train.targets, test.data[:, None], test.targets))
    for images, labels in (parts[:2], parts[2:]):
        if len(images) != len(labels) or images.shape[1:] != (1, 28, 28) or int(labels.max()) > 9:
            raise DataError(
                f"the files in {raw} do not belong together: {images.shape} images, {len(labels)} labels up to "
                f"{int(labels.max())}; delete them and get them again"
            )
    return parts


def _cifar10(root: Path) -> Parts:
    from torchvision.datasets import CIFAR10

    parts = []
    for part in (True, False):
        rows = _torchvision(CIFAR10, root, train=part)
        parts += [rows.data.transpose(0, 3, 1, 2), np.array(rows.targets)]
    return tuple(parts)  # pyright: ignore[reportReturnType]


def _svhn(root: Path) -> Parts:
    from torchvision.datasets import SVHN

    parts = []
    for part in ("train", "test"):
        rows = _torchvision(SVHN, root, split=part)
        parts += [rows.data, rows.labels.astype(np.int64)]
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
def read(dataset: Dataset, root: Path) -> Arrays:
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
    parts = tuple(map(np.ascontiguousarray, readers[dataset.name]()))
    return Arrays(*parts, digest=_digest(*parts))
