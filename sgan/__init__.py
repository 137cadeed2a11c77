"""Stacked GANs (Huang et al., CVPR 2017): the model and its training.

`sgan.load(path).sample(labels, seed)` samples from a trained stack.
"""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    """`load`, imported with torch only where it is used, so that a command's --help is fast."""
    if name == "load":
        return importlib.import_module("sgan.models.export").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
