"""Stacked GANs (Huang et al., CVPR 2017): the model and its training.

`sgan.load(path).sample(labels, seed)` samples from a trained stack.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgan.models.export import load as load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`load`, imported with torch only when it is asked for."""
    if name == "load":
        from sgan.models.export import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
