"""Sample images from a trained stack into a PNG file.

python -m sgan.sample RUN_OR_PATH [--class 3] [--n 64] [--out grid.png] [--help]
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import PositiveInt
from tyro.conf import Positional

import sgan
from sgan.checks import ConfigError, checked, require
from sgan.command_line import run
from sgan.store.s3 import find_store


@dataclass(frozen=True)
class Options:
    """Sample images from a trained stack."""

    source: Annotated[Positional[str], tyro.conf.arg(metavar="RUN_OR_PATH")]
    """Id of an MLflow run, name of a finished score stage (score-0123456789abcdef), or the folder of a model."""
    classes: Annotated[tuple[int, ...], tyro.conf.arg(name="class")] = ()
    """Classes to sample, in turn; by default all classes."""
    n: int = 64
    """Number of images."""
    out: Path = Path("samples.png")
    """The PNG file to write."""
    seed: int = 0
    """Seed of the noise."""
    which: str = "last"
    """Weights: last, at the end of training, or best, at the best score while training."""
    columns: int = 8
    """Number of images per row."""
    store: str = "runs"
    """Output store (a folder, or s3://bucket/folder) with the run or stage."""


def locate(source: str, address: str) -> Path:
    """Return the folder of a model from its path, a run's id or a stage's name; ConfigError where there is none."""
    if Path(source).is_dir():
        return Path(source)
    store = find_store(address)
    name = (store.shown(source) or source) if store and "/" not in source else ""
    if store is None or not name or not store.has(name):
        raise ConfigError(
            f"{source!r} is no folder, and no run or stage in the store {address}. Name another store with --store, or "
            "get the model from its MLflow server (mlflow artifacts download --run-id RUN --artifact-path model "
            "--dst-path DIR) and name DIR/model"
        )
    return store.stage(name)


def main(options: Options) -> None:
    """Write the file. ConfigError where the model or an option is not usable."""
    checked(PositiveInt, options.n, "--n")
    checked(PositiveInt, options.columns, "--columns")
    require(0 <= options.seed < 2**63, f"--seed must be from 0 to 2^63 - 1, but got {options.seed}")
    require(options.out.suffix.lower() == ".png", f"--out must be a .png file, but got {options.out}")
    model = sgan.load(locate(options.source, options.store), which=options.which)
    classes = options.classes or range(model.classes)
    labels = [classes[number % len(classes)] for number in range(options.n)]
    from sgan.evaluation import grid  # imported late, as torch is, so that --help is fast

    grid.save(model.sample(labels, options.seed), options.out, options.columns)
    print(f"{options.n} images in {options.out}")


if __name__ == "__main__":
    run(main, Options, "python -m sgan.sample")
