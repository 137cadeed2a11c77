"""The one loop that trains a classifier or a stack: record, evaluations and checkpoints.

Progress is counted in steps of one batch. Everything random in step k depends on (seed, k) alone, so a run that
continues from a checkpoint gives the same result.
"""

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sgan.models.tensors import load_modules, module_tensors
from sgan.store.files import Record, write_text
from sgan.training import checkpoint
from sgan.training.checkpoint import Checkpoint, Task, check, new_files, task_tensors

POINTS, LONGEST = 40, 250  # A loss curve has about POINTS points, and at least one every LONGEST steps
SILENCE = 1.0  # Longest time in seconds between two yields, unless a step takes longer


class Diverged(Exception):
    """A loss became NaN or infinite; the message names the step, the term and the value."""


@dataclass(frozen=True)
class Progress:
    """Training images seen and in `total`; seconds of training `before` the checkpoint from which this process
    continues; and the `metrics` of the record's newest point, name -> value, empty where there is none."""

    images: int
    total: int
    before: float = field(default=0.0, compare=False)
    metrics: dict[str, float] = field(default_factory=dict, compare=False)


def marks(steps: int, count: int) -> set[int]:
    """Return `count` evenly spaced steps, the last of them at the end."""
    return {round(steps * part / count) for part in range(1, count + 1)}


def loop(
    task: Task,
    steps: int,
    batch: int,
    folder: Path,
    evaluate: Callable[[int], dict[str, float]],
    evaluations: Collection[int],
    judge: str = "",
) -> Iterator[Progress]:
    """Train to `steps`, from the newest whole checkpoint in `folder` where there is one. Yields at every point of the
    record and at least every SILENCE seconds. Closing the generator at a yield leaves a checkpoint.

    Args:
        batch: images a step.
        folder: the stage's work folder, with checkpoints and record.
        evaluate: called with the images seen, before the first step and after those in `evaluations`; returns scores
            for the record. Files that it writes into `folder` are part of the checkpoints.
        judge: name of the judge's stage, recorded with the scores.
    Raises:
        Diverged: a loss is not finite; the last checkpoint stays.
        StoreError: somebody has changed a file in `folder` while the stage trained."""
    began = heard = time.monotonic()
    checkpoints = checkpoint.Checkpoints(folder)
    start = checkpoints.load()
    window = defaultdict[str, list[Tensor]](list)  # losses since the record's last point
    if start.tensors:
        load_modules(task.modules, start.tensors)
        checkpoint.load_optimisers(task, task.modules, start.tensors)
        window |= {name[7:]: list(losses) for name, losses in start.tensors.items() if name.startswith("window/")}
    record, files = Record(folder, start.record), dict(start.files)
    number = saved = start.step
    every = min(max(1, steps // POINTS), LONGEST)

    def evaluation() -> dict[str, float]:
        scores = evaluate(number * batch)
        files.update(new_files(folder, files))
        return {name: value for name, value in scores.items() if math.isfinite(value)}

    def progress() -> Progress:
        return Progress(number * batch, steps * batch, start.seconds, record.points[-1]["metrics"])

    def save() -> None:
        nonlocal saved
        seconds = start.seconds + time.monotonic() - began
        tensors = task_tensors(task) | {f"window/{name}": losses for name, losses in _stacked(window).items()}
        checkpoints.save(Checkpoint(number, seconds, record.text, files, tensors))
        saved = number

    if not record.points:
        record.add(0, evaluation(), judge)
    try:
        yield progress()
        while number < steps:
            for name, loss in task.step(number).items():
                window[name].append(loss)
            number += 1
            point = number % every == 0 or number in evaluations
            if point:
                metrics = _means(window, number)
                scores = evaluation() if number in evaluations else {}
                record.add(number * batch, metrics | scores, judge if scores else "")
                window.clear()
            if number < steps and checkpoints.due():
                save()
            if point or time.monotonic() - heard > SILENCE:
                heard = time.monotonic()
                yield progress()
    except GeneratorExit:
        if saved < number < steps:
            with contextlib.suppress(OSError):  # a full disk does not keep a stage from stopping
                save()
        raise
    for name, tensor in module_tensors(task.modules).items():  # no loss shows the weights after the last step
        if not tensor.isfinite().all():
            raise Diverged(f"{name} has values that are not finite after the last step, {steps}")
    write_text(record.path, record.text)  # repairs a file that was damaged meanwhile
    check(folder, files)


def _stacked(window: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
    """The values (n,) of each loss. Those from a checkpoint are on the CPU, later ones on the device."""
    return {name: torch.stack([loss.to(losses[-1].device) for loss in losses]) for name, losses in window.items()}


def _means(window: Mapping[str, list[Tensor]], last: int) -> dict[str, float]:
    """Mean of each loss over the steps that end with number `last`; Diverged where one is not finite."""
    stacked = _stacked(window)
    means = {name: losses.mean().item() for name, losses in stacked.items()}
    for name, mean in means.items():
        if not math.isfinite(mean):
            losses = stacked[name].tolist()
            place = next((place for place, value in enumerate(losses) if not math.isfinite(value)), len(losses) - 1)
            raise Diverged(f"{name} is {losses[place]} in step {last - len(losses) + place + 1}")
    return means
