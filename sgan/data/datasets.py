"""Datasets, read from their files once, where a command plans."""

import contextlib
import functools
import hashlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.datasets
from sklearn.datasets import load_digits
from torch import Tensor

from sgan.data import image_folder
from sgan.data.batches import Data
from sgan.data.image_folder import DataError, Parts
from sgan.shapes import Dataset

DIGITS_TEST = 450
"""Digits kept for testing; the other 1,347 train."""
DOWNLOAD_PATIENCE = 20.0
"""Seconds of silence after which a download has failed."""


@contextlib.contextmanager
def download_patience() -> Iterator[None]:
    """Inside, a download from a silent server fails after DOWNLOAD_PATIENCE; by default it would wait for ever."""
    default = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(default)


def _digest(tensors: tuple[Tensor, ...]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()[:16]


def _digits() -> Parts:
    """scikit-learn's 1,797 real 8x8 digits (UCI optdigits, 17 grey levels), split once at random."""
    found: Any = load_digits()
    order = torch.randperm(len(found.data), generator=torch.Generator().manual_seed(0))
    images = (torch.from_numpy(found.data)[order] * 255 / 16).round().byte().reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(found.target).long()[order]
    return images[DIGITS_TEST:], labels[DIGITS_TEST:], images[:DIGITS_TEST], labels[:DIGITS_TEST]


def _check_idx(path: Path, dimensions: int) -> None:
    """Require an IDX file (LeCun's format: magic number, sizes, bytes) to have the length that its header gives."""
    with open(path, "rb") as file:
        header = file.read(4 + 4 * dimensions)
    if header[:4] != bytes((0, 0, 8, dimensions)) or len(header) != 4 + 4 * dimensions:
        raise DataError(f"{path} is not an IDX file of bytes with {dimensions} dimensions; delete it and get it again")
    expected = len(header) + int(np.frombuffer(header[4:], ">u4").prod(dtype=np.int64))
    if path.stat().st_size != expected:
        raise DataError(
            f"{path} is torn: its header asks for {expected} bytes and it has {path.stat().st_size}; "
            "delete it and get it again"
        )


def _mnist(root: Path) -> Parts:
    raw = root / "MNIST" / "raw"
    for part in ("train", "t10k"):
        for kind, dimensions in (("images-idx3", 3), ("labels-idx1", 1)):
            path = raw / f"{part}-{kind}-ubyte"
            if path.exists():
                _check_idx(path, dimensions)
    parts = _torchvision("MNIST", root)
    for images, labels in (parts[:2], parts[2:]):
        if len(images) != len(labels) or images.shape[1:] != (1, 28, 28) or int(labels.max()) > 9:
            raise DataError(
                f"the files in {raw} do not belong together: {tuple(images.shape)} images, {len(labels)} labels up to "
                f"{int(labels.max())}; delete them and get them again"
            )
    return parts


def _torchvision(name: str, root: Path) -> Parts:
    """A torchvision dataset from `root`; absent files are downloaded into it."""
    kind, parts = getattr(torchvision.datasets, name), []
    for split in ("train", "test"):
        options = {"split": split} if name == "SVHN" else {"train": split == "train"}
        try:
            with download_patience():
                try:
                    rows = kind(root, **options)
                except RuntimeError:  # torchvision's error for "not found or corrupted"
                    rows = kind(root, **options, download=True)
        except Exception as error:  # a reader or a download raises almost anything; the advice is the same
            raise DataError(
                f"{name} cannot be read from {root} nor downloaded into it ({error!r:.200}); "
                f"get its files on a machine with a network (torchvision.datasets.{name}(root, download=True)), "
                "copy the folder here and name it with --data, or run --dataset digits, which needs no files"
            ) from error
        images = torch.as_tensor(rows.data)
        images = {"MNIST": images[:, None], "CIFAR10": images.movedim(-1, 1)}.get(name, images)
        parts += [images, torch.as_tensor(rows.labels if name == "SVHN" else rows.targets).long()]
    return tuple(parts)  # pyright: ignore[reportReturnType]


@functools.lru_cache(maxsize=1)
def read(dataset: Dataset, root: Path) -> Data:
    """Read a dataset; the last one is kept, since a command may choose it twice.

    Args:
        dataset: a row of presets.DATASETS, or presets.folder_row.
        root: folder with the dataset's files; digits are embedded and do not use it.
    Raises:
        DataError: files are absent and cannot be downloaded, or damaged.
    """
    readers: dict[str, Callable[[], Parts]] = {
        "folder": lambda: image_folder.read(root, dataset.size, dataset.channels),
        "digits": _digits,
        "mnist": lambda: _mnist(root),
        "cifar10": lambda: _torchvision("CIFAR10", root),
        "svhn": lambda: _torchvision("SVHN", root),
    }
    images, labels, test_images, test_labels = parts = tuple(part.contiguous() for part in readers[dataset.name]())
    return Data(images, labels, test_images, test_labels, _digest(parts))
