"""Image folders: a class is a sub-folder, whose images are brought to one size and one number of channels."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import center_crop, pil_to_tensor

from sgan.checks import ConfigError

SPLITS = ("train", "test")
IGNORED = ("thumbs.db", "desktop.ini")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
"""Pillow's modes of 8 bits a channel."""
KEPT_FOR_TESTING = 5
"""One image in five is kept for testing where the folder has no test images of its own."""
Parts = tuple[Tensor, Tensor, Tensor, Tensor]
"""Training images (n, channels, size, size) uint8 with their labels (n,) int64, and test images with theirs."""


class DataError(ConfigError):
    """A dataset or image folder that is not there, or a file of it that is damaged; the message says what to do."""


def image_files(folder: Path) -> list[Path]:
    """All files in a folder and below, sorted, but hidden ones and those that file browsers leave."""
    paths = (path for path in folder.rglob("*") if all(map(_counts, path.relative_to(folder).parts)))
    return sorted(path for path in paths if path.is_file())


def read_image(path: Path, channels: int) -> Image.Image:
    """An image of any size, upright (EXIF), grey (1 channel) or RGB (3), and white where it is transparent. DataError
    where the file is no image, an animation, or has more than 8 bits a channel."""
    try:
        with Image.open(path) as image:
            if (frames := getattr(image, "n_frames", 1)) > 1:
                raise ValueError(f"an animation of {frames} frames")
            if image.mode not in MODES:
                raise ValueError(f"pixels of mode {image.mode}, not of 8 bits a channel")
            upright = ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow's readers raise whatever their format's code does
        raise DataError(f"{path} cannot be read as an image ({error!r:.200}); convert it or move it away") from error
    if upright.has_transparency_data:
        colours = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    return upright.convert("L" if channels == 1 else "RGB")


def class_names(root: Path) -> tuple[str, ...]:
    """Names of a folder's classes, sorted. DataError where there are fewer than two, not the same in train and test, or
    images beside the class folders."""
    parts = _parts(root)
    names = []
    for part in parts:
        inside = sorted(path for path in part.iterdir() if _counts(path.name))
        for path in inside:
            if path.is_file() and path.suffix.lower() in Image.registered_extensions():
                raise DataError(f"{path} lies beside the class folders; move it into the folder of its class")
        names.append(tuple(path.name for path in inside if path.is_dir()))
    odd = sorted(set(names[0]) ^ set(names[-1]))
    if odd:
        raise DataError(f"{root}: train and test must hold the same class folders, but only one has {', '.join(odd)}")
    if len(names[0]) < 2:
        held = ", ".join(names[0]) or "none"
        raise DataError(f"{parts[0]} must hold at least two sub-folders, one a class, of images; it holds {held}")
    return names[0]


def read(root: Path, size: int, channels: int) -> Parts:
    """All images of a folder: each as `read_image` gives it, cut to a square around its middle, and resized with
    antialiasing. DataError as in class_names and read_image, and where a class has no images."""
    names, parts = class_names(root), []
    for part in _parts(root):
        files = [(path, label) for label, name in enumerate(names) for path in image_files(part / name)]
        for label in set(range(len(names))) - {label for _, label in files}:
            raise DataError(f"the class folder {part / names[label]} holds no images; delete it or fill it")
        # Shuffled once: in some scores the first images stand for all, and must not be of one class.
        files = [files[index] for index in torch.randperm(len(files), generator=torch.Generator().manual_seed(0))]
        labels = torch.tensor([label for _, label in files])
        images = torch.empty(len(files), channels, size, size, dtype=torch.uint8)
        for index, (path, _) in enumerate(files):
            image: Any = read_image(path, channels)
            square: Any = center_crop(image, min(image.size))
            images[index] = pil_to_tensor(square.resize((size, size), Image.Resampling.LANCZOS))
        parts += [images, labels]
    if len(parts) == 2:
        images, labels = parts
        test = torch.zeros(len(labels), dtype=torch.bool)
        for label in range(len(names)):
            test[(labels == label).nonzero().flatten()[1::KEPT_FOR_TESTING]] = True
        parts = [images[~test], labels[~test], images[test], labels[test]]
    return tuple(parts)  # pyright: ignore[reportReturnType]


def _parts(root: Path) -> tuple[Path, ...]:
    """The folders that hold class folders: train and test where the folder has both, else itself."""
    parts = tuple(root / name for name in SPLITS)
    return parts if all(part.is_dir() for part in parts) else (root,)


def _counts(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in IGNORED
