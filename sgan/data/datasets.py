"""Read datasets from their files; a command does so once, when it plans its trials."""

import functools
import hashlib
from pathlib import Path
from typing import Any

import torch
import torchvision.datasets
from sklearn.datasets import load_digits

from sgan.checks import ConfigError, require
from sgan.data import image_folder
from sgan.data.batches import Data
from sgan.data.image_folder import Parts
from sgan.shapes import Dataset

DIGITS_TEST = 450  # Digits kept for testing; the other 1,347 train
PLACES = {"MNIST": "MNIST/raw", "CIFAR10": "cifar-10-batches-py", "SVHN": ""}
"""Dataset -> sub-folder in which torchvision looks for its files."""


def _digits() -> Parts:
    """scikit-learn's 1,797 real 8x8 digits (UCI optdigits, 17 grey levels), split once at random."""
    found: Any = load_digits()
    order = torch.randperm(len(found.data), generator=torch.Generator().manual_seed(0))
    images = (torch.from_numpy(found.data)[order] * 255 / 16).round().byte().reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(found.target).long()[order]
    return images[DIGITS_TEST:], labels[DIGITS_TEST:], images[:DIGITS_TEST], labels[:DIGITS_TEST]


def _torchvision(name: str, root: Path) -> Parts:
    """Read a torchvision dataset from `root`, or from the folder of its files. Missing files are downloaded."""
    kind, parts, place = getattr(torchvision.datasets, name), [], Path(PLACES[name])
    root = next((up for up in (root, *root.absolute().parents[: len(place.parts)]) if (up / place).is_dir()), root)
    for split in ("train", "test"):
        options = {"split": split} if name == "SVHN" else {"train": split == "train"}
        try:
            rows = kind(root, **options, download=True)  # only missing or incomplete files
            images = torch.as_tensor(rows.data)
            labels = torch.as_tensor(rows.labels if name == "SVHN" else rows.targets).long()
            size = (28, 28) if name == "MNIST" else images.shape[1:]
            if len(images) != len(labels) or int(labels.max()) > 9 or images.shape[1:] != size:
                raise ValueError(f"{tuple(images.shape)} images, {len(labels)} labels up to {int(labels.max())}")
        except Exception as error:  # readers and downloads raise many kinds of errors; the advice is the same
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(
                f"{name} cannot be read from {root / place} or downloaded ({reason[:300]}). Delete damaged files; or "
                f"get all on a machine with a network (torchvision.datasets.{name}(root, download=True)), copy the "
                "folder here and name it with --data. Or use --dataset digits, which needs no files"
            ) from error
        parts += [{"MNIST": images[:, None], "CIFAR10": images.movedim(-1, 1)}.get(name, images), labels]
    return tuple(parts)  # pyright: ignore[reportReturnType]


@functools.lru_cache(maxsize=1)
def read(dataset: Dataset, root: Path) -> Data:
    """Read a dataset from a folder (digits come with scikit-learn). The last dataset stays in memory for a second call.
    ConfigError where files are damaged, or missing and not downloadable, or all training images are the same."""
    match dataset.name:
        case "folder":
            read_parts = image_folder.read(root, dataset.size, dataset.channels)
        case "digits":
            read_parts = _digits()
        case name:
            read_parts = _torchvision(name.upper(), root)
    images, *others = parts = [part.contiguous() for part in read_parts]
    same = f"the {len(images)} training images of {dataset.name} in {root} are all the same; use other images"
    require(not bool((images.amax(0) == images.amin(0)).all()), same)
    digest = hashlib.sha256()
    for tensor in parts:
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.numpy().data)
    return Data(images, *others, digest=digest.hexdigest()[:16])
