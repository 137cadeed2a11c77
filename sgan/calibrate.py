"""Score sets of images with known faults, and print the table of docs/metrics.md.

python -m sgan.calibrate [--dataset digits] [--draws 10] [--help]
"""

import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from rich.console import Console
from rich.progress import track
from torch import Tensor

from sgan.checks import one_of, validated
from sgan.command_line import run
from sgan.data.batches import Data
from sgan.data.datasets import read
from sgan.evaluation.alarms import COLLAPSED, COPIED, alarms
from sgan.evaluation.judges import Judges, parts
from sgan.evaluation.measures import MEASURES
from sgan.presets import DATASETS, RECIPES, TRAINING_IMAGES
from sgan.shapes import Dataset
from sgan.stages.context import Context
from sgan.stages.graph import judge_stage
from sgan.stages.kinds.judge import load
from sgan.stages.run import run_stage
from sgan.store.local import Store

PROTOTYPES = (1, 2, 3, 5, 20, 100)
NOISE = (0.05, 0.1, 0.2, 0.4)
KEPT = 0.8  # Share of the held-out images in a draw
ALARMS = {"collapse": COLLAPSED, "copies": COPIED}


@validated()
class Options:
    """Score sets of images with known faults, and print a table."""

    dataset: Annotated[str, one_of(*DATASETS)] = "digits"
    """The real images: digits, mnist, svhn or cifar10."""
    data: Path = Path("data")
    """Folder with the dataset's files, as torchvision lays them out."""
    draws: Annotated[int, Field(ge=1, le=1000)] = 10
    """Number of sets of each kind. The table shows their mean scores."""
    samples: Annotated[int, Field(ge=100, le=10**6)] = 2000
    """Number of images per set."""


def sets(data: Data, draw: int, count: int) -> dict[str, tuple[Tensor, Tensor, Tensor | None]]:
    """Return sets of `count` images by title, each as the arguments of `Judges.scores`. Faulty sets repeat a few images
    of each class (prototypes), lack a class, or have noise (std on [0, 1]). The last two sets are real images."""
    generator = torch.Generator().manual_seed(draw)
    held, held_labels = parts(data)[1]
    classes = int(data.labels.max()) + 1

    def some(size: int, most: int) -> Tensor:
        return torch.randperm(size, generator=generator)[:most]

    def drawn(size: int) -> Tensor:
        return torch.randint(size, (count,), generator=generator)

    found = {}
    wanted = torch.arange(count) % classes
    for number in PROTOTYPES:
        members = [(data.labels == label).nonzero().flatten() for label in range(classes)]
        chosen = [each[some(len(each), number)] for each in members]
        index = torch.tensor([int(chosen[k][i // classes % len(chosen[k])]) for i, k in enumerate(wanted.tolist())])
        found[f"{number} prototype{'s' * (number > 1)} a class"] = data.images[index], wanted, None
    keep = (held_labels != draw % classes).nonzero().flatten()
    found["without one class"] = held[keep], held_labels[keep], drawn(len(keep))
    for strength in NOISE:
        index = drawn(len(held))
        noise = strength * 255 * torch.randn(count, *held.shape[1:], generator=generator)
        noisy = (held[index] + noise).round().clamp(0, 255).to(torch.uint8)
        found[f"noise of {strength}"] = noisy, held_labels[index], None
    keep = some(len(held), round(KEPT * len(held)))
    found["held-out"] = held[keep], held_labels[keep], drawn(len(keep))
    keep = some(len(data.images), count)
    found["training"] = data.images[keep], data.labels[keep], drawn(len(keep))
    return found


def trained(dataset: Dataset, data: Data) -> Judges:
    """Train and return the judges that need no weights file, as the dataset's trials do."""
    recipe = RECIPES["laptop"](dataset, TRAINING_IMAGES[dataset.name])
    stage = judge_stage(dataset, data.digest, recipe)
    with tempfile.TemporaryDirectory() as folder:
        context = Context(Store(folder), data, "cpu", "")
        for _ in run_stage(stage, None, context):
            pass
        return load(stage, None, context)


def main(options: Options) -> None:
    """Print the table."""
    dataset = DATASETS[options.dataset]
    data = read(dataset, options.data)
    made, values, fired = trained(dataset, data), defaultdict(list), defaultdict(int)
    for draw in track(range(options.draws), "scoring", console=Console(stderr=True)):
        for title, sample in sets(data, draw, options.samples).items():
            found = made.scores(*sample)
            values[title].append(found)
            for word, name in ALARMS.items():
                fired[title, word] += bool(alarms({name: found[name]}))
    names = [name for name in MEASURES if name in next(iter(values.values()))[0]]
    rows = [["Set", *(MEASURES[name].heading for name in names), *(f"Alarm: {word}" for word in ALARMS)]]
    rows.append(["---"] * len(rows[0]))
    for title, scores in values.items():
        means = [f"{statistics.fmean(each[name] for each in scores):.{MEASURES[name].decimals}f}" for name in names]
        rows.append([title, *means, *(f"{fired[title, word]} of {len(scores)}" for word in ALARMS)])
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))


if __name__ == "__main__":
    run(main, Options, "python -m sgan.calibrate")
