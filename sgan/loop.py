"""The one loop that trains a classifier or a stack: checkpoints, record, scores while training, the best point.

Progress is counted in steps of one batch; everything random in step k is a function of (seed, k), so a run that goes on
from a checkpoint is the same run.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from sgan.store import Record, read_record, read_tensors, write_tensors

CHECKPOINT_FILE = "checkpoint.safetensors"
START_FILE, BEST_FILE = "joint-start.safetensors", "best.safetensors"
POINTS, LONGEST = 40, 250
"""A loss curve has about so many points, and one at least every so many steps: checkpoints are taken there."""
LOWER_IS_BETTER = ("fid", "feature_fid")


class Diverged(Exception):
    """A loss became NaN or infinite; the message names the step, the term and the value."""


class Task(Protocol):
    """What the loop trains."""

    modules: dict[str, nn.Module]
    optimisers: dict[str, torch.optim.Optimizer]

    def step(self, step: int) -> dict[str, Tensor]:
        """One step; returns its losses as scalars."""
        ...


@dataclass(frozen=True)
class Progress:
    """Where a stage stands: images seen, images in all."""

    images: int
    total: int


def loop(
    task: Task,
    steps: int,
    batch: int,
    folder: Path,
    evaluate: Callable[[int], dict[str, float]],
    evaluations: int,
    snapshot: int | None = None,
    best_by: str = "",
    checkpoint_seconds: float = 20.0,
) -> Iterator[Progress]:
    """Train to `steps`, from the checkpoint in `folder` where there is one; yields progress at every point of the
    record, so that the caller can stop, report or go on.

    Args:
        task: what is trained.
        batch: images a step.
        folder: the stage's work folder: checkpoint and record.
        evaluate: called with the images seen, before the first step and `evaluations` times at even distances, the last
            at the end; returns scores for the record.
        snapshot: the state after this step is kept as well, Adam's included, in START_FILE.
        best_by: the weights at the evaluation with the best of this score are kept in BEST_FILE.
        checkpoint_seconds: seconds between two checkpoints.
    Raises:
        Diverged: a loss is not finite; the last checkpoint stays.
    """
    done = _restore(task, folder)
    record = Record(folder, done * batch if done else -1)
    if done == 0:
        record.add(0, _finite(evaluate(0)))
    every, marks = (
        min(max(1, steps // POINTS), LONGEST),
        {round(steps * part / evaluations) for part in range(1, evaluations + 1)},
    )
    marks |= {snapshot} if snapshot else set()
    window: list[dict[str, Tensor]] = []
    saved = time.monotonic()
    yield Progress(done * batch, steps * batch)
    for step in range(done, steps):
        window.append(task.step(step))
        number = step + 1
        if number % every and number not in marks:
            continue
        means = _means(window, number)
        if number in marks:
            means |= _finite(evaluate(number * batch))
        if number in marks and _beaten(best_by, means, folder):
            write_tensors(folder / BEST_FILE, module_tensors(task.modules), {"images": str(number * batch)})
        record.add(number * batch, means)
        window = []
        if number == snapshot:
            write_tensors(folder / START_FILE, task_tensors(task))
        if number < steps and time.monotonic() - saved > checkpoint_seconds:
            _checkpoint(task, folder, number)
            saved = time.monotonic()
        yield Progress(number * batch, steps * batch)
    for name, tensor in module_tensors(task.modules).items():  # the losses are of the weights before the last step
        if not tensor.isfinite().all():
            raise Diverged(f"{name} has values that are not finite after the last step, {steps}")


def _finite(scores: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if math.isfinite(value)}


def _beaten(score: str, metrics: dict[str, float], folder: Path) -> bool:
    """Whether this score is better than that of every evaluation after the first step in the record."""
    value, sign = metrics.get(score, math.nan), -1 if score in LOWER_IS_BETTER else 1
    earlier = [line["metrics"].get(score, math.nan) for line in read_record(folder) if line["images"] > 0]
    return math.isfinite(value) and all(sign * value > sign * other for other in earlier if math.isfinite(other))


def _means(window: list[dict[str, Tensor]], last: int) -> dict[str, float]:
    """Mean of each loss over the steps that end with number `last`; Diverged where one is not finite."""
    means = {name: torch.stack([losses[name] for losses in window]).mean().item() for name in window[0]}
    for name, mean in means.items():
        if not math.isfinite(mean):
            values = [losses[name].item() for losses in window]
            place = next((place for place, value in enumerate(values) if not math.isfinite(value)), len(values) - 1)
            raise Diverged(f"{name} is {values[place]} in step {last - len(values) + place + 1}")
    return means


def module_tensors(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Parameters and buffers of all modules under "module/name"."""
    return {f"{key}/{name}": tensor for key, module in modules.items() for name, tensor in module.state_dict().items()}


def load_modules(modules: dict[str, nn.Module], tensors: dict[str, Tensor]) -> None:
    """Give modules the tensors that `module_tensors` took."""
    for key, module in modules.items():
        prefix = f"{key}/"
        module.load_state_dict({name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)})


def task_tensors(task: Task) -> dict[str, Tensor]:
    """All that a task needs to go on: its modules as in `module_tensors`, and "optimiser/module/parameter/field"."""
    tensors = module_tensors(task.modules)
    for key, optimiser in task.optimisers.items():
        for index, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{key}/{index}/{name}": torch.as_tensor(value) for name, value in state.items()}
    return tensors


def load_optimisers(task: Task, tensors: dict[str, Tensor], first: dict[str, int] | None = None) -> None:
    """Give a task's optimisers the states that `task_tensors` took, by default of all their parameters.

    Args:
        first: name of an optimiser -> index of the parameter from which on the states are meant, for a task that
            continues several others; states it has already stay.
    """
    for key, optimiser in task.optimisers.items():
        state: dict[int, dict[str, Tensor]] = dict(optimiser.state_dict()["state"])
        for name, tensor in tensors.items():
            if name.startswith(f"optimiser/{key}/"):
                index, field = name.split("/")[2:]
                place = int(index) + (first[key] if first else 0)
                state[place] = {**state.get(place, {}), field: tensor}
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
        for parameter, values in optimiser.state.items():
            for field, value in values.items():
                if value.shape == parameter.shape:  # a fused Adam walks both through memory in one order
                    values[field] = in_layout_of(parameter, value)


def _checkpoint(task: Task, folder: Path, step: int) -> None:
    write_tensors(folder / CHECKPOINT_FILE, task_tensors(task), {"step": str(step)})


def _restore(task: Task, folder: Path) -> int:
    """Load the checkpoint, if there is one; returns the steps done."""
    if not (folder / CHECKPOINT_FILE).exists():
        return 0
    tensors, note = read_tensors(folder / CHECKPOINT_FILE)
    load_modules(task.modules, tensors)
    load_optimisers(task, tensors)
    return int(note["step"])


def in_layout_of(parameter: Tensor, value: Tensor) -> Tensor:
    """The same values with the parameter's strides."""
    return value if value.stride() == parameter.stride() else torch.empty_like(parameter).copy_(value)
