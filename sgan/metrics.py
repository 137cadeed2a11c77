"""Exact Inception score, FID, KID, precision and recall of any folder of images or dataset.

python -m sgan.metrics DIR_OR_DATASET [--against DIR_OR_DATASET] [--help]
"""

import dataclasses
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor
from tyro.conf import Positional

from sgan.checks import ConfigError, content_key, require
from sgan.data.datasets import DataError, read
from sgan.evaluation import inception
from sgan.evaluation.scores import SPLITS, Features, Fingerprint, inception_score, network_scores
from sgan.presets import DATASETS
from sgan.stages.graph import code_version
from sgan.store.files import StoreError, read_tensors, write_json, write_tensors

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
PROGRESS_SECONDS = 5.0
Part = Literal["train", "test"]


@dataclass(frozen=True)
class Options:
    """Score a folder of images or a dataset as the paper and torch-fidelity do.

    Of a dataset the training images are scored, and compared with its test images: for CIFAR-10, 11.24 is the paper's
    Inception score of real data. A folder is compared with what --against names; images keep their own sizes.
    """

    source: Positional[str]
    """A folder with images in it and below, or one of digits, mnist, svhn, cifar10."""
    against: str | None = None
    """What FID, KID, precision and recall compare with: a folder or a dataset."""
    part: Part = "train"
    """Which images of a dataset are scored."""
    against_part: Part = "test"
    """Which images of a dataset are compared with."""
    data: Path = Path("data")
    """Folder with the datasets' files, as torchvision lays them out."""
    inception_weights: Path | None = None
    """Weights file of the network; without it, torch-fidelity's is downloaded."""
    samples: int | None = None
    """Only the first so many images."""
    device: str = "auto"
    """auto, cpu or cuda."""
    cache: Path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sgan"
    """Where the network's features of real images are kept."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the scores and what they were computed with to this file."""


@dataclass(frozen=True)
class Source:
    """Images to be looked at: where they come from in words, how many, their digest, and themselves in order, each
    tensor uint8 (n, channels, height, width) with images of one size."""

    name: str
    count: int
    digest: str
    files: tuple[Path, ...] = ()
    images: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor]:
        if self.images is not None:
            yield from self.images.split(inception.BATCH)
            return
        batch: list[Tensor] = []
        for path in self.files:
            image = _read(path)
            if batch and (len(batch) == inception.BATCH or image.shape != batch[0].shape):
                yield torch.stack(batch)
                batch = []
            batch.append(image)
        yield torch.stack(batch)


def _read(path: Path) -> Tensor:
    """An image file as uint8 RGB (3, height, width); DataError with its name where it is broken."""
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except Exception as error:  # Pillow's readers raise whatever their format's code does
        raise DataError(f"{path} cannot be read as an image ({error}); delete it or get it again") from error


def find(name: str, part: Part, data: Path, samples: int | None) -> Source:
    """A folder's images, sorted by path, or a dataset's; DataError where there are none or one of them is broken."""
    if name in DATASETS:
        found = read(DATASETS[name], data).tensors()
        images = (found.images if part == "train" else found.test_images)[:samples]
        digest = content_key([found.digest, part, len(images)])
        return Source(f"{name}, {len(images):,} {part} images", len(images), digest, images=images)
    folder = Path(name)
    require(folder.is_dir(), f"{name!r} is neither a folder nor one of the datasets {', '.join(DATASETS)}")
    files = sorted(path.resolve() for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)[:samples]
    require(len(files) > 0, f"{name} holds no images ({' '.join(SUFFIXES)})")
    digest = hashlib.sha256()
    for path in files:
        _read(path)
        digest.update(path.read_bytes())
    words = f"folder {folder.resolve().name}, {len(files):,} images"
    return Source(words, len(files), digest.hexdigest()[:16], files=tuple(files))


def describe(source: Source, network: inception.Inception, cache: Path) -> Features:
    """What the network says of a source, from the cache where it has been asked before."""
    file = cache / f"inception-{content_key([network.weights, source.digest, code_version()])}.safetensors"
    try:
        if file.exists():
            tensors = read_tensors(file)[0]
            return Features(tensors["features"], tensors["logits"])
    except (StoreError, KeyError):
        pass  # torn: made again
    began, said, parts, done = time.monotonic(), 0.0, [], 0
    for images in source:
        parts.append(network.describe(images))
        done += len(images)
        spent = time.monotonic() - began
        if spent - said > PROGRESS_SECONDS:
            said = spent
            left = spent / done * (source.count - done)
            print(f"{source.name}: {done:,} of {source.count:,}, {left:.0f} s left", file=sys.stderr, flush=True)
    found = Features(torch.cat([part.features for part in parts]), torch.cat([part.logits for part in parts]))
    cache.mkdir(parents=True, exist_ok=True)
    write_tensors(file, {"features": found.features, "logits": found.logits})
    return found


def main(options: Options) -> int:
    """Print the scores and what they were computed with; returns 0.

    Raises:
        ConfigError: a source, the weights or an option is not usable.
    """
    require(options.samples is None or options.samples >= SPLITS, f"--samples must be at least {SPLITS}")
    require(
        options.device in ("auto", "cpu", "cuda"), f"--device must be auto, cpu or cuda, but got {options.device!r}"
    )
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    require(device == "cpu" or torch.cuda.is_available(), "--device cuda, but torch finds no GPU")
    source = find(options.source, options.part, options.data, options.samples)
    require(source.count >= SPLITS, f"an Inception score of {SPLITS} splits needs as many images, not {source.count}")
    against = options.against or (options.source if options.source in DATASETS else None)
    real = find(against, options.against_part, options.data, None) if against else None
    require(real is None or real.count >= SPLITS, f"--against needs at least {SPLITS} images")
    network = inception.load(inception.find_weights(options.inception_weights), device)

    found = describe(source, network, options.cache)
    if real:
        values = network_scores(found, describe(real, network, options.cache))
    else:
        score, split_std = inception_score(found.logits)
        values = {"inception_score": score, "inception_score_split_std": split_std}
    reference = f"{real.name} ({real.digest})" if real else "none"
    fingerprint = Fingerprint(inception.NETWORK, network.weights, inception.RESIZE, source.count, reference)
    _print(source, values, fingerprint)
    if options.json:
        write_json(
            options.json, {"source": source.name, "scores": values, "fingerprint": dataclasses.asdict(fingerprint)}
        )
    return 0


def _print(source: Source, values: dict[str, float], fingerprint: Fingerprint) -> None:
    print(source.name)
    spread = {"inception_score": "inception_score_split_std", "kid": "kid_std"}
    titles = {"inception_score": "Inception score", "fid": "FID", "kid": "KID"}
    for name, value in values.items():
        if name not in spread.values():
            more = f" ± {values[spread[name]]:.4f}" if name in spread else ""
            print(f"  {titles.get(name, name.capitalize()):<16}{value:.4f}{more}")
    for name, value in dataclasses.asdict(fingerprint).items():
        print(f"  {name:<16}{value}")


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Options, prog="python -m sgan.metrics")))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
