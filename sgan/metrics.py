"""Exact Inception score, FID, KID, precision and recall of any folder of images or dataset.

python -m sgan.metrics DIR_OR_DATASET [--against DIR_OR_DATASET] [--help]
"""

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor
from tyro.conf import Positional

from sgan.checks import content_key, require
from sgan.command_line import run
from sgan.data.datasets import read
from sgan.data.image_folder import LeftOut, image_files, in_words, read_image
from sgan.evaluation import inception
from sgan.evaluation.scores import SPLITS, Features, fingerprint, inception_scores, join, network_scores, subset
from sgan.presets import DATASETS
from sgan.store.files import sha256, write_json

Part = Literal["train", "test"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
See = Callable[[Tensor], Features]  # From uint8 images to a network's features and logits


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Options of a comparison of images with real ones."""

    against: str | None = None
    """The real images for FID, KID, precision and recall: a folder or a dataset."""
    against_part: Part = "test"
    """The part of the dataset --against to compare with."""
    data: Path = Path("data")
    """Folder with the datasets' files, as torchvision lays them out."""
    judge_weights: Path | None = None
    """Weights file of the network; without it, torch-fidelity's is downloaded."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the scores and their fingerprint to this file."""


@dataclass(frozen=True)
class Options(Scoring):
    """Score a folder of images or a dataset as the paper and torch-fidelity do.

    By default, a dataset's training images are scored and compared with its test images. For CIFAR-10, the paper's
    Inception score of real data is 11.24. A folder is compared with the images of --against. Its images are read as for
    training, but keep their own sizes."""

    source: Annotated[Positional[str], tyro.conf.arg(metavar="DIR_OR_DATASET")]
    """A folder that holds only images and folders of images, or one of digits, mnist, svhn, cifar10."""
    part: Part = "train"
    """The part of the dataset to score."""
    samples: int | None = None
    """Score only this number of images: the first ones of a dataset, or always the same random ones of a folder."""


@dataclass(frozen=True)
class Source:
    """Images to score: their origin and digest in words, and a tensor of them or their files, in order."""

    name: str
    images: Tensor | list[Path]


def batches(images: Iterable[Tensor | Path]) -> Iterator[Tensor]:
    """Yield uint8 batches (n, channels, height, width) of images or image files; each batch has images of one size."""
    tensors = (each if isinstance(each, Tensor) else pil_to_tensor(read_image(each, 3)) for each in images)
    for _, neighbours in itertools.groupby(tensors, key=lambda image: image.shape):
        while batch := list(itertools.islice(neighbours, inception.BATCH)):
            yield torch.stack(batch)


def find(name: str, part: Part, data: Path, samples: int | None) -> Source:
    """Return a folder's images, sorted by path, or a dataset's, at most `samples` of them; ConfigError where one is
    damaged or too few exist."""
    if name in DATASETS:
        dataset = read(DATASETS[name], data)
        images = (dataset.images if part == "train" else dataset.test_images)[:samples]
        words, content = f"{name}, {len(images):,} {part} images", [dataset.digest, part, len(images)]
    else:
        folder, left_out = Path(name), LeftOut(list)
        require(folder.is_dir(), f"{name!r} is neither a folder nor one of the datasets {', '.join(DATASETS)}")
        paths = image_files(folder, left_out)
        images = [paths[index] for index in sorted(subset(len(paths), samples or len(paths)).tolist())]
        for path in images:
            read_image(path, 3)
        words, content = f"folder {folder.resolve().name}, {len(images):,} images", [sha256(path) for path in images]
        if any(left_out.values()):
            print(f"{name}: left out: {in_words(left_out)}", file=sys.stderr)
    require(
        len(images) >= max(SPLITS, samples or 0),
        f"{name} holds {len(images)} images; an Inception score of {SPLITS} splits needs at least {SPLITS}, and "
        "--samples needs the number that it names; add images, or lower --samples",
    )
    return Source(f"{words} ({content_key(content)})", images)


def describe(source: Source, see: See) -> Features:
    """Return the network's features and logits of a source. ConfigError where all of its images look the same to the
    network, since their scores mean nothing."""
    images = track(source.images, source.name, console=Console(stderr=True))
    found = join([see(batch) for batch in batches(images)])
    varied = bool(found.features.std(0).max() > 1e-5 * found.features.abs().max())
    require(varied, f"the images of {source.name} are all the same to the network, so there is nothing to score")
    return found


def report(source: Source, real: Source | None, judge: tuple[str, str, str], see: See, more: dict, file: Path | None):
    """Score images, print the scores and their fingerprint, and write them to a JSON file.

    Args:
        judge: the network that gives the features, the SHA-256 of its weights, and its resize, in words.
        more: further scores to print and write."""
    found = describe(source, see)
    scores = network_scores(found, describe(real, see)) if real else inception_scores(found.logits)
    known = fingerprint(*judge, len(source.images), real.name if real else "none")
    print(source.name, *(f"  {name:<28}{score:.4f}" for name, score in (scores | more).items()), sep="\n")
    print(*(f"  {name:<28}{value}" for name, value in known.items()), sep="\n")
    if file:
        write_json(file, {"source": source.name, "scores": scores | more, "fingerprint": known})


def main(options: Options) -> None:
    """Print the scores and their fingerprint. ConfigError where a source or an option is not usable."""
    enough = options.samples is None or options.samples >= SPLITS
    require(enough, f"--samples must be at least {SPLITS}, but got {options.samples}")
    source = find(options.source, options.part, options.data, options.samples)
    against = options.against or (options.source if options.source in DATASETS else None)
    itself = against == options.source and (against not in DATASETS or options.part == options.against_part)
    require(not itself, f"{against} would be compared with itself; give another --part, --against or --against-part")
    real = find(against, options.against_part, options.data, None) if against else None
    network = inception.load(inception.find_weights(options.judge_weights), DEVICE)
    report(source, real, (inception.NETWORK, network.weights, inception.RESIZE), network.describe, {}, options.json)


if __name__ == "__main__":
    run(main, Options, "python -m sgan.metrics")
