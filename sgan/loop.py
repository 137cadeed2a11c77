"""The one loop that trains a classifier or a stack: checkpoints, record, scores while training, the best point.

Progress is counted in steps of one batch; everything random in step k is a function of (seed, k), so a run that goes on
from a checkpoint is the same run.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from sgan.checkpoint import CHECKPOINTS, SECONDS, Checkpoints
from sgan.files import StoreError, inside, read_tensors, remove, sha256, write_tensors
from sgan.record import Record
from sgan.store import GRIDS

START_FILE, BEST_FILE = "joint-start.safetensors", "best.safetensors"
POINTS, LONGEST = 40, 250
"""A loss curve has about so many points, and one at least every so many steps."""
SILENCE = 1.0
"""The caller hears of a stage at least every so many seconds, or every step."""
WORK = (CHECKPOINTS,)
"""What only a stage in progress needs."""
LOWER_IS_BETTER = ("fid", "feature_fid")


class Diverged(Exception):
    """A loss became NaN or infinite; the message names the step, the term and the value."""


class Spoiled(StoreError):
    """What a stage in progress has put aside was changed by somebody else; begun again, the stage is made anew."""


class Task(Protocol):
    """What the loop trains."""

    modules: dict[str, nn.Module]
    optimisers: dict[str, torch.optim.Optimizer]

    def step(self, step: int) -> dict[str, Tensor]:
        """One step; returns its losses as scalars."""
        ...


@dataclass(frozen=True)
class Progress:
    """Where a stage stands: images seen, images in all, and the seconds that it had trained up to the checkpoint from
    which it goes on."""

    images: int
    total: int
    before: float = field(default=0.0, compare=False)


def loop(
    task: Task,
    steps: int,
    batch: int,
    folder: Path,
    evaluate: Callable[[int], dict[str, float]],
    evaluations: int,
    snapshot: int | None = None,
    best_by: str = "",
    checkpoint_seconds: float = SECONDS,
) -> Iterator[Progress]:
    """Train to `steps`, from the last whole checkpoint in `folder` where there is one; yields progress at every point
    of the record and at least once in SILENCE, so that the caller can stop, report or go on. Closed there, it leaves a
    checkpoint.

    Args:
        task: what is trained.
        batch: images a step.
        folder: the stage's work folder: checkpoints and record.
        evaluate: called with the images seen, before the first step and `evaluations` times at even distances, the last
            at the end; returns scores for the record.
        snapshot: the state after this step is kept as well, Adam's included, in START_FILE.
        best_by: the weights at the evaluation with the best of this score are kept in BEST_FILE.
        checkpoint_seconds: seconds between two checkpoints, at least.
    Raises:
        Diverged: a loss is not finite; the last checkpoint stays.
        Spoiled: what the stage has put aside was changed by somebody else.
    """
    began = time.monotonic()
    checkpoints = Checkpoints(folder, checkpoint_seconds)
    state = _restore(task, folder, checkpoints)
    record = Record(folder, state.record)
    if not record.points:
        record.add(0, _finite(evaluate(0)))
    aside = _aside(folder, state.step * batch) | state.aside
    every = min(max(1, steps // POINTS), LONGEST)
    marks = {round(steps * part / evaluations) for part in range(1, evaluations + 1)}
    marks |= {snapshot} if snapshot else set()
    window, number, saved, heard = state.window, state.step, state.step, began

    def save() -> None:
        nonlocal saved
        seconds = state.seconds + time.monotonic() - began
        note = {"record": record.text, "seconds": repr(seconds), "aside": json.dumps(aside)}
        checkpoints.save(number, lambda: task_tensors(task) | _window_tensors(window), note)
        saved = number

    try:
        yield Progress(number * batch, steps * batch, state.seconds)
        for step in range(number, steps):
            window.append(task.step(step))
            number = step + 1
            point = number % every == 0 or number in marks
            if point:
                means = _means(window, number)
                if number in marks:
                    means |= _finite(evaluate(number * batch))
                if number in marks and _beaten(best_by, means, record):
                    about = {"images": str(number * batch), "stage": folder.name}
                    write_tensors(folder / BEST_FILE, module_tensors(task.modules), about)
                record.add(number * batch, means)
                window.clear()
                if number == snapshot:
                    write_tensors(folder / START_FILE, task_tensors(task))
                aside = _aside(folder, number * batch) | aside
            if number < steps and checkpoints.due():
                save()
            if point or time.monotonic() - heard > SILENCE:
                heard = time.monotonic()
                yield Progress(number * batch, steps * batch, state.seconds)
    except GeneratorExit:
        if saved < number < steps:
            with contextlib.suppress(OSError):  # who stops does not care for a full disk
                save()
        raise
    for name, tensor in module_tensors(task.modules).items():  # the losses are of the weights before the last step
        if not tensor.isfinite().all():
            raise Diverged(f"{name} has values that are not finite after the last step, {steps}")
    record.write()
    if not _is_whole(folder, aside):
        raise Spoiled(f"a file in {folder} is not as it was written; the same command makes the stage anew")


def _finite(scores: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if math.isfinite(value)}


def _beaten(score: str, metrics: dict[str, float], record: Record) -> bool:
    """Whether this score is better than that of every evaluation after the first step in the record."""
    value, sign = metrics.get(score, math.nan), -1 if score in LOWER_IS_BETTER else 1
    earlier = [point["metrics"].get(score, math.nan) for point in record.points if point["images"] > 0]
    return math.isfinite(value) and all(sign * value > sign * other for other in earlier if math.isfinite(other))


def _means(window: list[dict[str, Tensor]], last: int) -> dict[str, float]:
    """Mean of each loss over the steps that end with number `last`; Diverged where one is not finite."""
    # Losses that a checkpoint kept are on the CPU.
    values = {name: [losses[name].to(window[-1][name].device) for losses in window] for name in window[0]}
    means = {name: torch.stack(each).mean().item() for name, each in values.items()}
    for name, mean in means.items():
        if not math.isfinite(mean):
            found = [value.item() for value in values[name]]
            place = next((place for place, value in enumerate(found) if not math.isfinite(value)), len(found) - 1)
            raise Diverged(f"{name} is {found[place]} in step {last - len(found) + place + 1}")
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
                # A fused Adam walks both through memory in one order; a CUDA graph counts steps on the GPU alone.
                same = value.shape == parameter.shape
                values[field] = in_layout_of(parameter, value) if same else value.to(parameter.device)


def _window_tensors(window: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The losses since the last point of the record as "window/name", (steps,)."""
    names = window[0] if window else ()
    return {f"window/{name}": torch.stack([losses[name] for losses in window]) for name in names}


@dataclass
class _State:
    """Where a stage goes on: steps done, seconds they took, the record's text, the losses since its last point, and
    what `_aside` found."""

    step: int
    seconds: float
    record: str
    window: list[dict[str, Tensor]]
    aside: dict[str, str]


def _restore(task: Task, folder: Path, checkpoints: Checkpoints) -> _State:
    """Load the last whole checkpoint whose companions are whole too; where there is none, the stage begins anew."""
    for tensors, note in checkpoints.load():
        aside = json.loads(note["aside"])
        if not _is_whole(folder, aside):
            continue
        load_modules(task.modules, tensors)
        load_optimisers(task, tensors)
        losses = {name.removeprefix("window/"): each for name, each in tensors.items() if name.startswith("window/")}
        count = len(next(iter(losses.values()))) if losses else 0
        window = [{name: each[place] for name, each in losses.items()} for place in range(count)]
        return _State(int(note["step"]), float(note["seconds"]), note["record"], window, aside)
    for path in (*(folder / GRIDS).glob("*"), *(path for path in folder.iterdir() if path.name != GRIDS)):
        remove(path)
    return _State(0, 0.0, "", [], {})


def _aside(folder: Path, images: int) -> dict[str, str]:
    """What a stage that has seen so many images has put aside, and will not make again: file -> SHA-256. That of the
    best weights is inside them, since better ones may come after the checkpoint."""
    grids = [path for path in sorted((folder / GRIDS).glob("[0-9]*.png")) if int(path.stem) <= images]
    files = [*grids, folder / START_FILE]
    found = {path.relative_to(folder).as_posix(): sha256(path) for path in files if path.exists()}
    return found | ({BEST_FILE: ""} if (folder / BEST_FILE).exists() else {})


def _is_whole(folder: Path, aside: dict[str, str]) -> bool:
    """Whether all that was put aside is there as it was written."""
    try:
        if BEST_FILE in aside and read_tensors(folder / BEST_FILE)[1].get("stage") != folder.name:
            return False
        return all(
            sha256(inside(folder, file, f"a checkpoint of {folder.name}")) == digest
            for file, digest in aside.items()
            if file != BEST_FILE
        )
    except (OSError, StoreError):
        return False


def in_layout_of(parameter: Tensor, value: Tensor) -> Tensor:
    """The same values with the parameter's strides."""
    return value if value.stride() == parameter.stride() else torch.empty_like(parameter).copy_(value)
