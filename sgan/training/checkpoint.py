"""Checkpoints of a stage in progress. Each is a folder with all that the stage needs to continue, renamed into place:

checkpoints/<step>/state.safetensors   weights, states of the optimisers, losses since the record's last point
checkpoints/<step>/record.jsonl        the record so far
checkpoints/<step>/checkpoint.json     the SHA-256 of both, and of every other file that the stage has written so far
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from sgan.models.tensors import module_tensors, read_tensors, write_tensors
from sgan.store import files
from sgan.store.files import RECORD_FILE, StoreError, remove, sha256
from sgan.store.local import CHECKPOINTS
from sgan.training.optimizers import in_layout_of

STATE_FILE, HEAD_FILE = "state.safetensors", "checkpoint.json"
KEPT = 2  # Checkpoints kept: the newest ones
SECONDS = 20.0  # Time between two checkpoints, at least
SPARSE = 50
"""The next checkpoint waits for SPARSE times the duration of the last one, so that all cost less than 2 % together."""


class Task(Protocol):
    """A training problem: modules, their optimisers under the same names, and a step."""

    modules: dict[str, nn.Module]
    optimisers: dict[str, torch.optim.Optimizer]

    def step(self, step: int) -> dict[str, Tensor]:
        """One step; returns its losses as scalars."""
        ...


def task_tensors(task: Task) -> dict[str, Tensor]:
    """The state of a task: its modules as in `module_tensors`, its optimisers' under "optimiser/module/index/field"."""
    tensors = module_tensors(task.modules)
    for key, optimiser in task.optimisers.items():
        for index, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{key}/{index}/{name}": torch.as_tensor(value) for name, value in state.items()}
    return tensors


def load_optimisers(task: Task, modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Load optimiser states as from `task_tensors` into a task. `modules`: name of an optimiser -> the module whose
    parameters get them, the task's own or a part of it. The states of other parameters stay."""
    parameters = {key: list(module.parameters()) for key, module in modules.items()}
    for name, tensor in tensors.items():
        if name.startswith("optimiser/"):
            key, index, entry = name.split("/")[1:]
            parameter = parameters[key][int(index)]
            # A fused Adam reads both in the same memory order; a CUDA graph counts steps only on the GPU.
            value = tensor.to(parameter.device)
            value = in_layout_of(parameter, value) if value.shape == parameter.shape else value
            task.optimisers[key].state[parameter][entry] = value


@dataclass(frozen=True)
class Checkpoint:
    """The state of a stage in progress: steps done, seconds of training so far, the text of its record, the other
    files in the work folder (path in it -> SHA-256), and the tensors of the task and of the losses since the
    record's last point, empty before the first step."""

    step: int = 0
    seconds: float = 0.0
    record: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints in a stage's work folder."""

    def __init__(self, work: Path):
        self.work, self.folder = work, work / CHECKPOINTS
        self.last, self.cost = time.monotonic(), 0.0

    def due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() - self.last > max(SECONDS, SPARSE * self.cost)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, unless a value in it is not finite: then the previous one stays the newest.

        Raises OSError where the disk is full or cannot be written."""
        began = time.monotonic()
        if all(tensor.isfinite().all() for tensor in checkpoint.tensors.values()):
            with files.atomic_write(self.folder / f"{checkpoint.step:09d}") as temporary:
                write_tensors(temporary / STATE_FILE, checkpoint.tensors)
                files.write_text(temporary / RECORD_FILE, checkpoint.record)
                head = {"stage": self.work.name, "step": checkpoint.step, "seconds": checkpoint.seconds}
                own = {name: sha256(temporary / name) for name in (STATE_FILE, RECORD_FILE)}
                files.write_json(temporary / HEAD_FILE, {**head, "own": own, "files": dict(checkpoint.files)})
            for old in self._folders()[KEPT:]:
                remove(old)
        self.last = time.monotonic()
        self.cost = self.last - began

    def load(self) -> Checkpoint:
        """The newest whole checkpoint, or an empty one where none is whole. All that is not part of it is removed from
        the work folder: damaged checkpoints, and what was written after it."""
        checkpoint = Checkpoint()
        for folder in self._folders():
            try:
                head = files.read_json(folder / HEAD_FILE, stage=self.work.name)
                check(folder, head["own"])
                check(self.work, head["files"])
                record, tensors = (folder / RECORD_FILE).read_text(), read_tensors(folder / STATE_FILE)
                checkpoint = Checkpoint(head["step"], head["seconds"], record, head["files"], tensors)
                break
            except (OSError, StoreError) as error:  # a part of it is missing, damaged or another stage's
                cause = error.__cause__ if isinstance(error, StoreError) else error
                if isinstance(cause, OSError) and cause.errno not in files.MISSING:
                    raise  # it is not known to be damaged
                remove(folder)
        for path in (*self.work.glob("*/*"), *self.work.glob("*")):
            listed = path.relative_to(self.work).as_posix() in checkpoint.files or path in self._folders()
            if not listed and (path.parent == self.folder or not path.is_dir()):
                remove(path)
        return checkpoint

    def _folders(self) -> list[Path]:
        """The newest first."""
        return sorted(self.folder.glob("[0-9]*"), reverse=True)


def check(folder: Path, digests: Mapping[str, str]) -> None:
    """Raise StoreError, or OSError, unless each file has its SHA-256."""
    for file, digest in digests.items():
        if sha256(files.inside(folder, file)) != digest:
            raise StoreError(f"{folder / file} is not as it was written; the same command makes the stage anew")


def new_files(work: Path, known: Mapping[str, str]) -> dict[str, str]:
    """Return file -> SHA-256 of the files in a work folder, except the record, checkpoints and `known` files."""
    paths = {path.relative_to(work).as_posix(): path for path in (*work.glob("[!.]*"), *work.glob("[!.]*/[!.]*"))}
    new = {file: path for file, path in paths.items() if path.is_file() and file not in (*known, RECORD_FILE)}
    return {file: sha256(path) for file, path in new.items()}
