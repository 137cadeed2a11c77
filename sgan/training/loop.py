"""The one loop that trains a classifier or a stack: record, evaluations and checkpoints.

Progress is counted in steps of one batch; everything random in step k is a function of (seed, k), so a run that goes on
from a checkpoint is the same run.
"""

import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sgan.store.record import Record
from sgan.training.checkpoint import (
    Checkpoint,
    Checkpoints,
    Task,
    check,
    load_modules,
    load_optimisers,
    module_tensors,
    new_files,
    task_tensors,
)

POINTS, LONGEST = 40, 250
"""A loss curve has about so many points, and one at least every so many steps."""
SILENCE = 1.0
"""Longest time in seconds between two yields, unless a step takes longer."""


class Diverged(Exception):
    """A loss became NaN or infinite; the message names the step, the term and the value."""


@dataclass(frozen=True)
class Progress:
    """Progress of a stage.

    Attributes:
        images, total: training images seen, and in all.
        before: seconds of training before the checkpoint from which this process goes on.
        metrics: the newest point of the record, name -> value; empty where there is none.
    """

    images: int
    total: int
    before: float = field(default=0.0, compare=False)
    metrics: dict[str, float] = field(default_factory=dict, compare=False)


def marks(steps: int, count: int) -> set[int]:
    """Steps at `count` even distances, the last at the end."""
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
    record and at least once in SILENCE; closed there, it leaves a checkpoint.

    Args:
        batch: images a step.
        folder: the stage's work folder, with checkpoints and record.
        evaluate: called with the images seen, before the first step and after those in `evaluations`; returns scores
            for the record. Files that it writes into `folder` are part of the checkpoints.
        judge: noted with the scores.
    Raises:
        Diverged: a loss is not finite; the last checkpoint stays.
        StoreError: somebody has changed a file in `folder` while the stage trained.
    """
    began = heard = time.monotonic()
    checkpoints = Checkpoints(folder)
    start = checkpoints.load()
    window = _restore(task, start.tensors)
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
        checkpoints.save(Checkpoint(number, seconds, record.text, files, task_tensors(task) | _window_tensors(window)))
        saved = number

    if not record.points:
        record.add(0, evaluation(), judge)
    try:
        yield progress()
        while number < steps:
            window.append(task.step(number))
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
    for name, tensor in module_tensors(task.modules).items():  # the losses are of the weights before the last step
        if not tensor.isfinite().all():
            raise Diverged(f"{name} has values that are not finite after the last step, {steps}")
    record.write()
    check(folder, files)


def _means(window: list[dict[str, Tensor]], last: int) -> dict[str, float]:
    """Mean of each loss over the steps that end with number `last`; Diverged where one is not finite."""
    # Losses from a checkpoint are on the CPU.
    values = {name: [losses[name].to(window[-1][name].device) for losses in window] for name in window[0]}
    means = {name: torch.stack(each).mean().item() for name, each in values.items()}
    for name, mean in means.items():
        if not math.isfinite(mean):
            losses = [value.item() for value in values[name]]
            place = next((place for place, value in enumerate(losses) if not math.isfinite(value)), len(losses) - 1)
            raise Diverged(f"{name} is {losses[place]} in step {last - len(losses) + place + 1}")
    return means


def _window_tensors(window: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The losses since the last point of the record as "window/name", (steps,)."""
    names = window[0] if window else ()
    return {f"window/{name}": torch.stack([losses[name] for losses in window]) for name in names}


def _restore(task: Task, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Load a checkpoint's tensors, if there are any; returns the losses since the last point of the record."""
    if tensors:
        load_modules(task.modules, tensors)
        load_optimisers(task, tensors)
    losses = {name.removeprefix("window/"): each for name, each in tensors.items() if name.startswith("window/")}
    count = len(next(iter(losses.values()))) if losses else 0
    return [{name: each[place] for name, each in losses.items()} for place in range(count)]
