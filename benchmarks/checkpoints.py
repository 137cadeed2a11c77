"""What checkpoints cost: the share of training time that they take at the interval that the product uses.

    python benchmarks/checkpoints.py [--seconds 120] [--json FILE]

Trains the image level of the digits and of CIFAR-10's released recipe (random images) for so many seconds each, and
prints for each the size and duration of a checkpoint, how many there were, and their share of the wall time. Also with
a disk that takes SLOW seconds more for each, which makes them fewer.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from sgan.config import IMAGE, LABEL, Level, Weights
from sgan.data.batches import Data
from sgan.models.discriminator import Discriminator
from sgan.models.generator import new_generator
from sgan.presets import DATASETS, RECIPES, TRAINING_IMAGES
from sgan.store import files
from sgan.training import checkpoint
from sgan.training.loop import loop
from sgan.training.steps import GanTask

SLOW = 0.8


def task(name: str) -> GanTask:
    """A DCGAN on random images of a dataset's shape, without the losses that need an encoder."""
    dataset, images = DATASETS[name], 1000
    shape = (images, dataset.channels, dataset.size, dataset.size)
    pixels, labels = torch.randint(256, shape, dtype=torch.uint8), torch.randint(dataset.classes, (images,))
    recipe = RECIPES["released"](dataset, TRAINING_IMAGES[name]).gan
    level = Level(IMAGE, LABEL)
    generator, discriminator = new_generator(dataset, recipe, level), Discriminator(dataset, recipe, level)
    data = Data(pixels, labels, pixels[:10], labels[:10], "")
    return GanTask([(generator, discriminator)], None, data, recipe, Weights(1, 0, 10), 0)


def measure(name: str, seconds: float, slower: float) -> tuple[str, float]:
    """Train for so many seconds; the result in words, and the share of the time that checkpoints took."""
    spent: list[float] = []
    write, plain = files.write_json, checkpoint.Checkpoints

    def slow_write(*arguments) -> None:
        time.sleep(slower)
        write(*arguments)

    class Timed(checkpoint.Checkpoints):
        def save(self, *arguments) -> None:
            super().save(*arguments)
            spent.append(self.cost)

    files.write_json, checkpoint.Checkpoints = slow_write, Timed
    try:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            began, steps, last = time.monotonic(), 0, 0
            trained = task(name)
            for progress in loop(trained, 10**6, trained.recipe.batch, work, lambda images: {}, ()):
                steps, last = progress.images // trained.recipe.batch, time.monotonic()
                if last - began > seconds:
                    break
            size = max((path.stat().st_size for path in work.rglob("*.safetensors")), default=0)
    finally:
        files.write_json, checkpoint.Checkpoints = write, plain
    wall, spent = last - began, spent[: len(spent) - 1]  # the last one is that of stopping
    each = sum(spent) / len(spent) if spent else 0.0
    said = (
        f"{name:<8} {f'(+ {slower:g} s a write)' if slower else '':<18} {steps:>6} steps in {wall:5.0f} s, "
        f"{len(spent)} checkpoints of {size / 1e6:6.1f} MB, {1000 * each:6.1f} ms each: {sum(spent) / wall:6.2%}"
    )
    return said, sum(spent) / wall


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for dataset in ("digits", "cifar10"):
        for slower in (0.0, SLOW):
            said, share = measure(dataset, arguments.seconds, slower)
            print(said, flush=True)
            what = f"{dataset}{f', + {slower:g} s a write' if slower else ''}: share of the time"
            rows.append({"benchmark": "checkpoints", "measure": what, "value": 100 * share, "unit": "%"})
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
