"""Image grids as PNG files, and the real images that are nearest to samples."""

from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import save_image

LEGIBLE = 32
"""Small images are enlarged, pixel by pixel, to about this size."""
PART = 2000
"""Candidates that distances are computed to at once."""


def save(images: Tensor, path: Path, columns: int) -> None:
    """Write uint8 images (n, channels, size, size) row by row, `columns` a row, as a PNG file, whole or not at all."""
    scale = max(1, LEGIBLE // images.shape[-1])
    enlarged = images.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    save_image(enlarged.cpu().float() / 255, temporary, format="png", nrow=columns, padding=2, pad_value=0.5)
    temporary.replace(path)


def nearest(samples: Tensor, candidates: Tensor) -> Tensor:
    """Index (n,) of the candidate that is nearest to each sample by Euclidean distance.

    Args:
        samples, candidates: (n, ...) and (m, ...), images or features.
    """
    points = samples.float().flatten(1)
    distances = [torch.cdist(points, part.to(points).flatten(1)) for part in candidates.split(PART)]
    return torch.cat(distances, 1).argmin(1)
