"""Whether many small trials train faster as one vectorised process: K trials of one shape, their weights stacked and
their layers mapped over the stack (torch.func), against the loop that the product runs, one trial after the other, and
on a GPU also against K processes that share it.

    python benchmarks/packing.py [--dataset digits] [--batch 64] [--precision float32] [--levels fc3-image label-fc3]
        [--counts 4 8 16] [--ways loop stacked processes] [--threads 1] [--device cpu] [--rounds 5] [--json FILE]

Trials are levels of the dataset's recipe `paper`, with other seeds and other loss weights. The table has milliseconds a
trial's step, medians over turns. On a CPU loop and stack run on the same cores, and processes side by side have cores
of their own, so the loop's figure is also that of parallel processes. On a GPU a stacked step is a CUDA graph as a
trial's own step is, and processes really run side by side: in turns, or at the same time where CUDA's MPS is on.
`differ` is the distance between the weights of loop and stack after three steps, over the distance that they moved; `of
peak` the FLOP of all over those of a product of matrices in the precision.
"""

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import statistics
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.utils.flop_counter import FlopCounterMode
from training_step import LEVELS, TURN, new_task, peak, timed

from sgan.config import LABEL
from sgan.models.stack import draw, label_condition
from sgan.presets import DATASETS
from sgan.training.cuda_graphs import EAGER, Phases
from sgan.training.losses import adversarial, conditional, discriminator, entropy
from sgan.training.optimizers import adam, in_layout_of
from sgan.training.steps import GanTask, step_seed

STEPS = 3
WAYS = ["loop", "stacked", "processes"]


@dataclass(frozen=True)
class Kind:
    """What a trial trains, and where."""

    dataset: str
    level: str
    batch: int
    precision: str
    device: str

    def task(self, seed: int) -> GanTask:
        """Tasks differ in seed, initial weights and loss weights."""
        task = new_task(self.dataset, self.level, self.device, self.precision, seed=seed, batch=self.batch)
        task.weights = dataclasses.replace(task.weights, conditional=1.0 + seed, entropy=10.0 / (1 + seed))
        return task

    def tasks(self, count: int) -> list[GanTask]:
        return [self.task(seed) for seed in range(count)]


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
            "generator": [task.stack[0] for task in tasks],
            "discriminator": [task.discriminators[0] for task in tasks],
            "encoder": [task.encoder for task in tasks],
        }
        if tasks[0].mean.is_cuda:  # whose batch normalisation cannot be mapped in another format
            for module in itertools.chain(*groups.values()):
                module.to(memory_format=torch.contiguous_format)
        self.modules = {name: group[0] for name, group in groups.items()}
        self.states = {name: stack_module_state(group) for name, group in groups.items()}  # pyright: ignore[reportArgumentType]
        self.optimisers = {
            name: adam(_holder(self.states[name][0]), self.recipe.adam) for name in ("generator", "discriminator")
        }
        device = tasks[0].mean.device
        self.batch: list[Tensor] = []
        self.phases = Phases(device)
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

    def step(self, step: int) -> dict[str, Tensor]:
        """One step of all; returns the sum of the generators' losses."""
        low, high = self.level.low, self.level.high
        drawn = []
        for task in self.tasks:
            torch.manual_seed(step_seed(task.seed, step))
            real = task.real(task.batches[step])
            condition = real[high] if high != LABEL else label_condition(task.stack[0], real[LABEL])
            z = draw(task.stack[0], len(condition), condition.device)
            drawn.append((real[low], condition, real[high], z))
        batch = [torch.stack(each) for each in zip(*drawn, strict=True)]
        if not self.batch:
            self.batch = batch
        for place, new in zip(self.batch, batch, strict=True):
            place.copy_(new)
        return self.phases("step", self._update_all)

    def _update_all(self) -> dict[str, Tensor]:
        low, high = self.level.low, self.level.high
        real, condition, target, z = self.batch
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
        return {"losses": losses.detach().sum()}


def serve(pipe: Connection, kind: Kind, seed: int) -> None:
    """A process with one trial: says when it is ready, and then does its steps."""
    task, numbers = kind.task(seed), itertools.count()
    timed(lambda: task.step(next(numbers)), kind.device, EAGER + 2)
    while True:
        pipe.send("ready")
        if not (times := pipe.recv()):
            return
        timed(lambda: task.step(next(numbers)), kind.device, times)


def shared(kind: Kind, count: int, rounds: int) -> float:
    """Seconds of a step of so many processes, each with a trial, that share the GPU, over their number."""
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe() for _ in range(count)]
    processes = [
        context.Process(target=serve, args=(theirs, kind, n), daemon=True) for n, (_, theirs) in enumerate(ends)
    ]
    for process, (_, theirs) in zip(processes, ends, strict=True):
        process.start()
        theirs.close()  # or nobody would hear that the process has died

    def turn(times: int) -> float:
        began = time.perf_counter()
        for ours, _ in ends:
            ours.send(times)
        for ours, _ in ends:
            ours.recv()
        return (time.perf_counter() - began) / times / count

    for ours, _ in ends:
        ours.recv()
    times = max(1, round(TURN / turn(3) / count))
    took = statistics.median(turn(times) for _ in range(rounds))
    for process, (ours, _) in zip(processes, ends, strict=True):
        ours.send(0)
        process.join()
    return took


def _holder(tensors: dict[str, Tensor]) -> nn.Module:
    """A module whose parameters are these."""
    holder = nn.Module()
    for index, name in enumerate(tensors):
        tensors[name] = nn.Parameter(tensors[name].detach())
        holder.register_parameter(str(index), tensors[name])  # pyright: ignore[reportArgumentType]
    return holder


def difference(kind: Kind, count: int) -> float:
    """The distance between the generators' weights after a few stacked steps and after the loop's, over the distance
    that training moved them."""
    begun, loop, stacked = (kind.tasks(count) for _ in range(3))
    together = Stacked(stacked)
    for step in range(STEPS):
        for task in loop:
            task.step(step)
        together.step(step)
    apart, moved = torch.zeros(()), torch.zeros(())
    for trial, (start, end) in enumerate(zip(begun, loop, strict=True)):
        before = dict(start.stack[0].named_parameters())
        for name, parameter in end.stack[0].named_parameters():
            apart += (together.states["generator"][0][name][trial] - parameter).square().sum().item()
            moved += (before[name] - parameter).square().sum().item()
    return (apart / moved).sqrt().item()


def together(kind: Kind, count: int, ways: list[str], rounds: int) -> dict[str, float]:
    """Seconds of a trial's step in one process, by way."""
    versions: dict[str, Loop | Stacked] = {}
    for way in ways:
        if way != "processes":
            versions[way] = {"loop": Loop, "stacked": Stacked}[way](kind.tasks(count))
    numbers = itertools.count()

    def turn(version: Loop | Stacked, times: int) -> float:
        return timed(lambda: version.step(next(numbers)), kind.device, times)

    for version in versions.values():
        turn(version, EAGER + 2)
    times = {way: max(1, round(TURN / turn(version, 1))) for way, version in versions.items()}
    turns = [{way: turn(version, times[way]) for way, version in versions.items()} for _ in range(rounds)]
    return {way: statistics.median(found[way] for found in turns) / count for way in versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits", choices=list(DATASETS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--levels", nargs="+", default=list(LEVELS), choices=LEVELS)
    parser.add_argument("--counts", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--ways", nargs="+", choices=WAYS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    on_gpu = asked.device.startswith("cuda")
    ways = asked.ways or (WAYS if on_gpu else WAYS[:2])
    if "stacked" in ways and asked.precision != "float32":
        parser.error("batch normalisation cannot be mapped under autocast: --ways loop processes, or float32")
    most = peak(getattr(torch, asked.precision), asked.device)
    rows = []
    print(f"{'level':10} {'K':>3} {'way':9} {'ms a trial':>10} {'faster':>7} {'of peak':>7} {'differ':>8}")
    for level, count in itertools.product(asked.levels, asked.counts):
        kind = Kind(asked.dataset, level, asked.batch, asked.precision, asked.device)
        task = kind.task(0)
        with FlopCounterMode(display=False) as counter:
            task.step(0)
        seconds = together(kind, count, ways, asked.rounds)
        if "processes" in ways:
            seconds["processes"] = shared(kind, count, asked.rounds)
        for way, took in seconds.items():
            faster = f"{seconds['loop'] / took:6.2f}x" if "loop" in seconds else ""
            differ = f"{difference(kind, min(count, 4)):8.1e}" if way == "stacked" else ""
            of_peak = counter.get_total_flops() / took / most
            print(f"{level:10} {count:3} {way:9} {1000 * took:10.3f} {faster:>7} {of_peak:7.1%} {differ}", flush=True)
            measure = f"{asked.dataset} {level}, K = {count}, {way}: a trial's step"
            rows.append({"benchmark": "packing", "measure": measure, "value": took, "unit": "s"})
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
