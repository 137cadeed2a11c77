"""Image grids as PNG files."""

from pathlib import Path

import torch
from torch import Tensor

LEGIBLE = 32
"""Small images are enlarged, pixel by pixel, to about this size."""


def save(images: Tensor, path: Path, columns: int) -> None:
    """Draw uint8 images (n, channels, size, size) row by row, `columns` a row, into a PNG file."""
    from torchvision.utils import make_grid, save_image  # a second, for torch's compiler, which who draws nothing saves

    scale = max(1, LEGIBLE // images.shape[-1])
    enlarged = images.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    save_image(make_grid(enlarged.cpu().float() / 255, nrow=columns, padding=2, pad_value=0.5), temporary, format="png")
    temporary.replace(path)


def nearest(features: Tensor, candidates: Tensor, images: Tensor) -> Tensor:
    """For generated features (n, ...), the images whose real features (m, ...) lie nearest: what a level that makes no
    images has learned, drawn."""
    distances = torch.cdist(features.flatten(1), candidates.flatten(1))
    return images[distances.argmin(1)]
