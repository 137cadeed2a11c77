"""Weights and other tensors as safetensors files, and the tensors of modules. Nothing is unpickled."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from sgan.store.files import atomic_write, unreadable


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, whole or not at all; OSError as `write_json`."""
    content = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; StoreError with its name where it cannot be read."""
    try:
        open(path, "rb").close()  # safetensors reports a file without read permission as missing
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise unreadable(path, error) from error


def module_tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Parameters and buffers of all modules, not copies of them, under "module/name"."""
    return {f"{key}/{name}": tensor for key, module in modules.items() for name, tensor in module.state_dict().items()}


def load_modules(modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Load tensors as from `module_tensors` into modules."""
    for key, module in modules.items():
        prefix = f"{key}/"
        module.load_state_dict({name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)})
