"""How long a training step takes beside that of a plain loop, of the kind that tutorials teach.

    python benchmarks/training_step.py [--datasets digits mnist cifar10] [--levels fc3-image label-fc3]
        [--threads 1] [--device cpu] [--rounds 7] [--json FILE]

A step is one discriminator and one generator step of a level of the recipe `paper` at the released widths: batch 100,
all three losses, random images, and all that brings the data. Every version has the same networks, losses and Adam, and
runs in a process of its own, started as the product starts its workers (the plain loop: as Python starts). They take
turns, so that all meet the same noise of the machine; the table has medians. FLOP are those that a version needs, of
its products and convolutions alone, and the peak is that of a product of 2,048 x 2,048 matrices in its precision (of
8,192 x 8,192 on a GPU). On a GPU there are also the versions without CUDA graphs, "launched" kernel by kernel; on a CPU
without instructions for bfloat16 there is no such version, since its products take a hundred times as long.
"""

import argparse
import copy
import dataclasses
import itertools
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import ToTensor

from sgan.config import IMAGE, LABEL, Level, Weights
from sgan.data.batches import Data
from sgan.models.discriminator import Discriminator
from sgan.models.encoder import Encoder
from sgan.models.generator import Generator
from sgan.models.stack import label_condition
from sgan.presets import DATASETS, RECIPES, TRAINING_IMAGES
from sgan.training.cuda_graphs import EAGER
from sgan.training.losses import adversarial, conditional, discriminator, entropy
from sgan.training.steps import FORMAT, GanTask

IMAGES = 2000
"""Random images, of which an epoch is made."""
VERSIONS = ("plain", "float32", "bfloat16")
LAUNCHED = " launched"
"""Of a version on a GPU without CUDA graphs."""
LEVELS = ("fc3-image", "label-fc3")
SIDE, GPU_SIDE = 2048, 8192
M = TypeVar("M", bound=nn.Module)
TURN = 0.3
"""Seconds that a version runs in its turn, at least."""


class Pictures(Dataset):
    """Images as tutorials have them: one by one, as PIL images, through a transform."""

    def __init__(self, data: Data):
        self.arrays, self.labels = data.images.permute(0, 2, 3, 1).cpu().numpy(), data.labels.tolist()
        self.transform = ToTensor()

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        array = self.arrays[index]
        image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
        return self.transform(image), self.labels[index]


def _plain(module: M) -> M:
    """A copy in PyTorch's own memory format."""
    return copy.deepcopy(module).to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]


class Plain:
    """The plain loop: eager, float32, each image through PIL, real features anew for each batch, the generated batch
    made anew for each of the two steps, and gradients into D in the generator's step, where nobody needs them."""

    def __init__(self, task: GanTask):
        self.top, self.weights = task.stack[0], task.weights
        self.device = task.data.images.device
        self.loader = DataLoader(Pictures(task.data), task.recipe.batch, shuffle=True, drop_last=True)
        self.batches = self._epochs()
        assert task.encoder is not None
        self.generator = _plain(task.stack[0])
        self.discriminator, self.encoder = _plain(task.discriminators[0]), _plain(task.encoder)
        recipe = task.recipe.adam
        settings = {"lr": recipe.learning_rate, "betas": (recipe.beta1, recipe.beta2), "eps": recipe.eps}
        self.of_generator = torch.optim.Adam(self.generator.parameters(), **settings)
        self.of_discriminator = torch.optim.Adam(self.discriminator.parameters(), **settings)

    def _epochs(self) -> Iterator[list[Tensor]]:
        while True:
            yield from self.loader

    def __call__(self) -> None:
        images, labels = (each.to(self.device) for each in next(self.batches))
        low, high, weights = self.top.level.low, self.top.level.high, self.weights
        with torch.no_grad():
            taps = self.encoder.taps(images)
        real = images if low == IMAGE else taps[low]
        condition = label_condition(self.top, labels) if high == LABEL else taps[high]
        target = labels if high == LABEL else condition
        z = torch.rand(len(images), self.generator.noise, device=self.device)

        self.of_discriminator.zero_grad()
        fake = self.generator(condition, z).detach()
        real_logits, _ = self.discriminator(real)
        fake_logits, recovered = self.discriminator(fake)
        loss = discriminator(real_logits, fake_logits) + weights.entropy * entropy(recovered, z)
        loss.backward()
        self.of_discriminator.step()

        self.of_generator.zero_grad()
        fake = self.generator(condition, z)
        logits, recovered = self.discriminator(fake)
        loss = weights.adversarial * adversarial(logits, "non-saturating") + weights.entropy * entropy(recovered, z)
        loss = loss + weights.conditional * conditional(self.encoder(fake, low, high), target)
        loss.backward()
        self.of_generator.step()


def new_task(name: str, stack: str, device: str, precision: str, seed: int = 0, batch: int = 100) -> GanTask:
    """A level of a dataset's recipe `paper`, as "fc3-image", or several in their joint stage, as "label-fc3-image"; on
    random images (the same for every seed)."""
    dataset = DATASETS[name]
    layout: dict[str, Any] = {"device": device, "memory_format": FORMAT}
    recipe = RECIPES["paper"](dataset, TRAINING_IMAGES[name]).gan
    recipe = dataclasses.replace(recipe, precision=precision, batch=batch)
    torch.manual_seed(0)
    images = torch.randint(256, (IMAGES, dataset.channels, dataset.size, dataset.size), dtype=torch.uint8)
    labels = torch.randint(dataset.classes, (IMAGES,))
    data = Data(images, labels, images[:1], labels[:1], "").to(device)
    torch.manual_seed(seed)
    encoder = Encoder(dataset, 0.05).to(**layout).eval().requires_grad_(False)
    levels = [Level(*ends) for ends in itertools.pairwise(reversed(stack.split("-")))]
    generators = [Generator(dataset, recipe, level).to(**layout) for level in levels]
    judges = [Discriminator(dataset, recipe, level).to(**layout) for level in levels]
    return GanTask(list(zip(generators, judges, strict=True)), encoder, data, recipe, Weights(), seed)


def new_step(version: str, name: str, level: str, device: str) -> Callable[[], object]:
    """A call that does one step of a version."""
    if version == "plain":
        return Plain(new_task(name, level, device, "float32"))
    task, numbers = new_task(name, level, device, version.removesuffix(LAUNCHED)), itertools.count()
    if version.endswith(LAUNCHED):
        task.phases.wanted = False
    return lambda: task.step(next(numbers))


def timed(call: Callable[[], object], device: str, times: int = 1) -> float:
    """Mean seconds of several calls."""
    began = time.perf_counter()
    for _ in range(times):
        call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


def peak(dtype: torch.dtype, device: str) -> float:
    """FLOP/s of a product of two matrices, the best of ten."""
    side = SIDE if device == "cpu" else GPU_SIDE
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / min(timed(lambda: a @ b, device) for _ in range(10))


def serve(pipe: Connection, version: str, threads: int, device: str) -> None:
    """A version's process: prepares each (dataset, level) that it is sent and answers its FLOP a step, answers "go"
    with the seconds of a step, and "peak" with FLOP/s."""
    torch.set_num_threads(threads)
    step, times = new_step(version, "digits", LEVELS[0], device), 1
    while (asked := pipe.recv()) is not None:
        if asked == "go":
            pipe.send(timed(step, device, times))
        elif asked == "peak":
            pipe.send(peak(torch.bfloat16 if "bfloat16" in version else torch.float32, device))
        else:
            name, level = asked
            step = new_step(version, name, level, device)
            with FlopCounterMode(display=False) as counter:
                step()
            timed(step, device, EAGER + 1)
            times = max(1, round(TURN / timed(step, device)))
            pipe.send(counter.get_total_flops())


@contextmanager
def processes(versions: tuple[str, ...], threads: int, device: str) -> Iterator[dict[str, Connection]]:
    """A process for each version, and the pipe to it."""
    context, pipes, started = multiprocessing.get_context("spawn"), {}, []
    for version in versions:
        pipes[version], theirs = context.Pipe()
        started.append(context.Process(target=serve, args=(theirs, version, threads, device), daemon=True))
        started[-1].start()
    yield pipes
    for pipe in pipes.values():
        pipe.send(None)
    for process in started:
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=["digits", "mnist", "cifar10"], choices=list(DATASETS))
    parser.add_argument("--levels", nargs="+", default=list(LEVELS), choices=LEVELS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()

    rows = []
    on_gpu = asked.device.startswith("cuda")
    versions = (*VERSIONS, *(f"{v}{LAUNCHED}" for v in VERSIONS[1:] if on_gpu))
    with processes(versions, asked.threads, asked.device) as pipes:

        def ask(version: str, what: object) -> float:
            pipes[version].send(what)
            return pipes[version].recv()

        peaks = {version: ask(version, "peak") for version in versions}
        print(f"{'dataset':8} {'level':10} {'version':17} {'ms':>8} {'GFLOP':>7} {'of peak':>7} {'faster':>7}")
        for name, level in itertools.product(asked.datasets, asked.levels):
            flops = {version: ask(version, (name, level)) for version in versions}
            turns = [{version: ask(version, "go") for version in versions} for _ in range(asked.rounds)]
            seconds = {version: statistics.median(turn[version] for turn in turns) for version in versions}
            for version in versions:
                faster = seconds["plain"] / seconds[version]
                share = flops[version] / seconds[version] / peaks[version]
                print(
                    f"{name:8} {level:10} {version:17} {1000 * seconds[version]:8.2f} {flops[version] / 1e9:7.2f} "
                    f"{share:7.0%} {faster:6.2f}x",
                    flush=True,
                )
                what = f"{name} {level} {version}"
                rows += [
                    {"benchmark": "training_step", "measure": f"{what}: step", "value": seconds[version], "unit": "s"},
                    {"benchmark": "training_step", "measure": f"{what}: faster", "value": faster, "unit": "x"},
                ]
    said = ", ".join(f"{version} {peak / 1e9:.0f} GFLOP/s" for version, peak in peaks.items())
    print(f"peak of a product of matrices on {asked.threads} thread(s): {said}")
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
