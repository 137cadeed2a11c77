"""Sample the authors' trained CIFAR-10 generator, score its samples and draw some of them.

python -m sgan.released generator.npz encoder.npz meanimg.npy [--judge-weights FILE] [--help]
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from torch import Tensor
from tyro.conf import Positional

from sgan.checks import require
from sgan.command_line import run
from sgan.evaluation import grid, inception
from sgan.evaluation.scores import Features, accuracy
from sgan.metrics import DEVICE, Scoring, Source, find, report
from sgan.models.export import Model
from sgan.models.released import load_generator, load_mean, load_released
from sgan.models.stack import balanced_labels
from sgan.presets import DATASETS
from sgan.store.files import sha256

COLUMNS = 10  # Images per class in the grid


@dataclass(frozen=True)
class Options(Scoring):
    """Score samples of the authors' trained CIFAR-10 generator, equally many of each class, and draw a row per class.

    The files are cifar/pretrained/generator.npz, cifar/pretrained/encoder.npz and cifar/data/meanimg.npy of
    github.com/xunhuang1995/SGAN. The paper's Inception score is 8.59."""

    generator: Annotated[Positional[Path], tyro.conf.arg(metavar="GENERATOR.npz")]
    """The trained G1 and G0."""
    encoder: Annotated[Positional[Path], tyro.conf.arg(metavar="ENCODER.npz")]
    """The classifier that guided their training. `accuracy` is the share of samples that it assigns to their label."""
    mean: Annotated[Positional[Path], tyro.conf.arg(metavar="MEAN.npy")]
    """The mean training image."""
    judge: Literal["inception", "encoder"] = "inception"
    """The network of the other scores. encoder is that classifier: it needs no other file, but favours the samples."""
    samples: int = 50_000
    """Number of samples."""
    seed: int = 0
    """Seed of the noise."""
    out: Path = Path("released.png")
    """The PNG file to write."""


def main(options: Options) -> None:
    """Print the scores, write the grid. ConfigError where a file or an option is not usable."""
    row = DATASETS["cifar10"]
    least = row.classes * COLUMNS
    require(options.samples >= least, f"--samples must be at least {least}, but got {options.samples}")
    require(0 <= options.seed < 2**63, f"--seed must be from 0 to 2^63 - 1, but got {options.seed}")
    require(options.out.suffix.lower() == ".png", f"--out must be a .png file, but got {options.out}")
    mean = load_mean(options.mean, row)
    stack = load_generator(options.generator, row, mean)
    encoder = load_released(options.encoder, row, mean).to(DEVICE)

    def classified(images: Tensor) -> Features:
        fits = images.shape[1:] == encoder.mean.shape[1:]
        require(fits, f"--judge encoder needs images of 3x32x32, but --against has {tuple(images.shape[1:])}")
        taps = encoder.features(images.to(DEVICE), ("fc3", "fc4"))
        return Features(taps["fc3"].cpu(), taps["fc4"].cpu())

    real = find(options.against, options.against_part, options.data, None) if options.against else None
    if options.judge == "inception":
        network = inception.load(inception.find_weights(options.judge_weights), DEVICE)
        described, judge = network.describe, (inception.NETWORK, network.weights, inception.RESIZE)
    else:
        described, judge = classified, ("the authors' encoder", sha256(options.encoder), "none")

    model = Model([generator.to(DEVICE) for generator in stack], row, "running", {})
    made = model.sample(options.samples, options.seed)
    grid.save(made[:least].unflatten(0, (COLUMNS, row.classes)).transpose(0, 1).flatten(0, 1), options.out, COLUMNS)
    right = accuracy(classified(made).logits, balanced_labels(options.samples, row.classes))
    source = Source(f"{options.generator.name}, {options.samples:,} samples", made)
    report(source, real, judge, described, {"accuracy": right}, options.json)
    print(f"{least} of them in {options.out}")


if __name__ == "__main__":
    run(main, Options, "python -m sgan.released")
