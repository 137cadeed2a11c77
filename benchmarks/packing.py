"""Whether many small trials train faster as one vectorised process: K trials of one shape, their weights stacked and
their layers mapped over the stack (torch.func), against the loop that the product runs, one trial after the other.

    python benchmarks/packing.py [--levels fc3-image label-fc3] [--counts 4 8 16] [--threads 1] [--device cpu]
        [--rounds 5] [--json FILE]

Trials are levels of the digits' recipe `paper`, batch 64, with other seeds and other loss weights. The table has
milliseconds a trial's step, medians over turns. Both run on the same cores, and processes side by side have cores of
their own, so the loop's figure is also that of parallel processes. `differ` is the distance between the weights of
both after three steps, over the distance that they moved.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from training_step import LEVELS, new_task, timed

from sgan.config import LABEL
from sgan.loop import in_layout_of
from sgan.losses import adversarial, conditional, discriminator, entropy
from sgan.optim import adam
from sgan.stack import draw
from sgan.train import GanTask, seed_step

BATCH = 64
STEPS = 3


def new_tasks(level: str, count: int, device: str) -> list[GanTask]:
    """Tasks that differ in seed, initial weights and loss weights."""
    tasks = []
    for seed in range(count):
        task = new_task("digits", level, device, "float32", seed=seed, batch=BATCH)
        weights = dataclasses.replace(task.weights, conditional=1.0 + seed, entropy=10.0 / (1 + seed))
        task.weights = weights
        tasks.append(task)
    return tasks


class Loop:
    """One step of each task in turn."""

    def __init__(self, tasks: list[GanTask]):
        self.tasks = tasks

    def step(self, step: int) -> None:
        for task in self.tasks:
            task.step(step)


class Stacked:
    """One step of all tasks: the same losses, mapped over stacked weights; their sum has each trial's own gradients."""

    def __init__(self, tasks: list[GanTask]):
        self.tasks, self.level, self.recipe = tasks, tasks[0].levels[0], tasks[0].recipe
        groups = {
            "generator": [task.levels[0].generator for task in tasks],
            "discriminator": [task.discriminators[0] for task in tasks],
            "encoder": [task.encoder for task in tasks],
        }
        self.modules = {name: group[0] for name, group in groups.items()}
        self.states = {name: stack_module_state(group) for name, group in groups.items()}  # pyright: ignore[reportArgumentType]
        self.optimisers = {
            name: adam(_holder(self.states[name][0]), self.recipe.adam) for name in ("generator", "discriminator")
        }
        device = tasks[0].mean.device
        self.weights = {
            name: torch.tensor([getattr(task.weights, name) for task in tasks], device=device)
            for name in ("adversarial", "conditional", "entropy")
        }

    def call(self, name: str, *inputs: object) -> tuple[Tensor, ...] | Tensor:
        """A module of all trials: inputs (K, B, ...), but for text."""

        def one(parameters: dict, buffers: dict, *tensors: Tensor):
            texts = tuple(value for value in inputs if isinstance(value, str))
            return functional_call(self.modules[name], (parameters, buffers), (*tensors, *texts))

        tensors = tuple(value for value in inputs if isinstance(value, Tensor))
        return vmap(one, randomness="different")(*self.states[name], *tensors)

    def update(self, name: str, losses: Tensor) -> None:
        parameters = list(self.states[name][0].values())
        for parameter, gradient in zip(parameters, torch.autograd.grad(losses.sum(), parameters), strict=True):
            parameter.grad = in_layout_of(parameter, gradient)
        self.optimisers[name].step()

    def step(self, step: int) -> Tensor:
        """The generators' losses (K,)."""
        low, high = self.level.low, self.level.high
        drawn = []
        for task in self.tasks:
            seed_step(task.data.images.device, task.seed, step)
            real = task.real(task.batches[step])
            condition = task.condition(real)
            z = draw(self.level, len(condition), condition.device)
            drawn.append((real.taps[low], condition, real.labels if high == LABEL else condition, z))
        real, condition, target, z = (torch.stack(each) for each in zip(*drawn, strict=True))
        fake = self.call("generator", condition, z)
        assert isinstance(fake, Tensor)
        logits, _ = self.call("discriminator", real)
        made, recovered = self.call("discriminator", fake.detach())
        losses = vmap(discriminator)(logits, made) + self.weights["entropy"] * vmap(entropy)(recovered, z)
        self.update("discriminator", losses)

        logits, recovered = self.call("discriminator", fake)
        seen = self.call("encoder", fake, low, high)
        assert isinstance(seen, Tensor)
        losses = self.weights["adversarial"] * vmap(lambda each: adversarial(each, self.recipe.adversarial))(logits)
        losses = losses + self.weights["entropy"] * vmap(entropy)(recovered, z)
        losses = losses + self.weights["conditional"] * vmap(conditional)(seen, target)
        self.update("generator", losses)
        return losses.detach()


def _holder(tensors: dict[str, Tensor]) -> nn.Module:
    """A module whose parameters are these."""
    holder = nn.Module()
    for index, name in enumerate(tensors):
        tensors[name] = nn.Parameter(tensors[name].detach())
        holder.register_parameter(str(index), tensors[name])  # pyright: ignore[reportArgumentType]
    return holder


def difference(level: str, count: int, device: str) -> float:
    """The distance between the generators' weights after a few stacked steps and after the loop's, over the distance
    that training moved them."""
    begun, loop, stacked = (new_tasks(level, count, device) for _ in range(3))
    together = Stacked(stacked)
    for step in range(STEPS):
        for task in loop:
            task.step(step)
        together.step(step)
    apart, moved = torch.zeros(()), torch.zeros(())
    for trial, (start, end) in enumerate(zip(begun, loop, strict=True)):
        before = dict(start.levels[0].generator.named_parameters())
        for name, parameter in end.levels[0].generator.named_parameters():
            apart += (together.states["generator"][0][name][trial] - parameter).square().sum().item()
            moved += (before[name] - parameter).square().sum().item()
    return (apart / moved).sqrt().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", nargs="+", default=list(LEVELS), choices=LEVELS)
    parser.add_argument("--counts", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = []
    print(f"{'level':10} {'K':>3} {'loop':>8} {'stacked':>8} {'faster':>7} {'differ':>8}   (ms a trial's step)")
    for level, count in itertools.product(asked.levels, asked.counts):
        tasks, stacked_tasks = (new_tasks(level, count, asked.device) for _ in range(2))
        versions = {"loop": Loop(tasks), "stacked": Stacked(stacked_tasks)}
        numbers = itertools.count()

        def turn(version: Loop | Stacked, numbers: Iterator[int] = numbers) -> float:
            return timed(lambda: version.step(next(numbers)), asked.device, 3)

        for version in versions.values():
            turn(version)
        turns = [{name: turn(version) for name, version in versions.items()} for _ in range(asked.rounds)]
        each = {name: statistics.median(found[name] for found in turns) / count for name in versions}
        faster, differ = each["loop"] / each["stacked"], difference(level, min(count, 4), asked.device)
        print(
            f"{level:10} {count:3} {1000 * each['loop']:8.2f} {1000 * each['stacked']:8.2f} "
            f"{faster:6.2f}x {differ:8.1e}",
            flush=True,
        )
        rows.append({"benchmark": "packing", "measure": f"{level}, K = {count}", "value": faster, "unit": "x"})
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
