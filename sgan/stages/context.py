"""The context in which every stage runs."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sgan.data.batches import Data
from sgan.models.encoder import Encoder
from sgan.models.stack import Stack
from sgan.models.tensors import read_tensors
from sgan.stages.graph import name
from sgan.store.local import Store
from sgan.training.loop import Progress

MODEL_FILE, REFERENCE_FILE = "model.safetensors", "reference.safetensors"
"""Files of a finished stage: its weights, and a judge's features and logits of the real images."""
Running = Generator[Progress, None, dict[str, Any] | None]
"""A running stage: it yields its progress, and may return entries for its stage.json."""
Evaluator = Callable[[Stack, Encoder | None], tuple[str, Callable[[int], dict[str, float]]]]
"""Function from a stack and its encoder to the name of the stage that scores them while they train, and a function
from images seen to scores. It is an argument, so that levels do not depend on its code."""


@dataclass(frozen=True)
class Context:
    """Where stages run: the store, the dataset on `device` (torch's name of it), and the commit, which is recorded."""

    store: Store
    data: Data = field(compare=False)
    device: str
    commit: str = field(compare=False)

    def tensors(self, stage: Any, file: str = MODEL_FILE) -> dict[str, Tensor]:
        """Tensors of a finished stage; StoreError where they are missing or damaged."""
        return read_tensors(self.store.file(name(stage), file))

    def facts(self, stage: Any) -> dict[str, Any]:
        """The stage.json of a finished stage."""
        return self.store.facts(name(stage))
