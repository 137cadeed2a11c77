"""Checkpoints of a stage in progress: the last two are kept, each is known to be whole or is not used, and taking them
costs no more than its share of the time."""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from sgan.store.files import StoreError, read_tensors, remove, write_tensors

CHECKPOINTS = "checkpoints"
KEPT = 2
SECONDS = 20.0
"""Between two checkpoints, at least."""
SPARSE = 50
"""The next checkpoint is no sooner than so many times what the last one took: all of them cost less than 2 %."""


class Checkpoints:
    """The checkpoints in a stage's work folder.

    Args:
        seconds: between two of them, at least.
    """

    def __init__(self, folder: Path, seconds: float = SECONDS):
        self.folder, self.stage, self.seconds = folder / CHECKPOINTS, folder.name, seconds
        self.last, self.cost = time.monotonic(), 0.0

    def due(self) -> bool:
        """Whether it is time for one."""
        return time.monotonic() - self.last > max(self.seconds, SPARSE * self.cost)

    def save(self, step: int, tensors: Callable[[], Mapping[str, Tensor]], note: Mapping[str, str]) -> None:
        """Keep the state after a step, unless a value in it is not finite: then the one before stays the last."""
        began = time.monotonic()
        state = {name: tensor.detach().cpu() for name, tensor in tensors().items()}
        if all(tensor.isfinite().all() for tensor in state.values()):
            said = {**note, "step": str(step), "stage": self.stage}
            write_tensors(self.folder / f"{step:09d}.safetensors", state, said)
            for path in self._files()[KEPT:]:
                path.unlink()
        self.last = time.monotonic()
        self.cost = self.last - began

    def load(self) -> Iterator[tuple[dict[str, Tensor], dict[str, str]]]:
        """Tensors and note of each whole one, the latest first. Those that are damaged, or another stage's, are
        deleted."""
        for path in self._files():
            try:
                tensors, note = read_tensors(path)
                whole = note.get("stage") == self.stage
            except StoreError:
                whole = False
            if whole:
                yield tensors, note
            else:
                remove(path)

    def _files(self) -> list[Path]:
        """The latest first."""
        return sorted(self.folder.glob("[0-9]*.safetensors"), reverse=True)
