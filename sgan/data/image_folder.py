"""Image folders: a class is a sub-folder, whose images are brought to one size and one number of channels."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from sgan.checks import ConfigError

SPLITS = ("train", "test")
IGNORED = ("thumbs.db", "desktop.ini")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
"""Pillow's modes of 8 bits a channel."""
KEPT_FOR_TESTING = 5
"""One image in so many is kept for testing where the folder has no test images of its own."""
Parts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Training images (n, channels, size, size) uint8 with their labels (n,) int64, and test images with theirs."""


class FolderError(ConfigError):
    """A folder that is no set of classes, or a file in it that is no image; the message names it."""


def class_names(root: Path) -> tuple[str, ...]:
    """Names of a folder's classes, sorted.

    Raises FolderError where there are fewer than two, where training and test images have other ones, or where images
    lie beside the class folders.
    """
    parts = _parts(root)
    names = [tuple(sorted(path.name for path in part.iterdir() if path.is_dir() and _counts(path))) for part in parts]
    if len(parts) == 2 and names[0] != names[1]:
        odd = sorted(set(names[0]) ^ set(names[1]))
        raise FolderError(f"{root}: train and test must hold the same class folders, but only one has {', '.join(odd)}")
    for part in parts:
        loose = sorted(path for path in part.iterdir() if path.is_file() and _is_image_name(path))
        if loose:
            raise FolderError(f"{loose[0]} lies beside the class folders; move it into the folder of its class")
    if len(names[0]) < 2:
        raise FolderError(
            f"{parts[0]} must hold at least two sub-folders, one a class, with the class's images in it; it holds "
            f"{', '.join(names[0]) or 'none'}"
        )
    return names[0]


def read(root: Path, size: int, channels: int) -> Parts:
    """All images of a folder.

    Each image is turned upright (EXIF), cut to a square around its middle and resized with antialiasing; palettes and
    CMYK become grey or RGB, transparency becomes white.
    Raises FolderError with the name of the first file that cannot be used, and how many more there are.
    """
    names = class_names(root)
    parts = []
    for part in _parts(root):
        files = [(path, label) for label, name in enumerate(names) for path in _files(part / name)]
        # Shuffled once: the first so many images stand for all in some scores, and must not be of one class.
        files = [files[index] for index in torch.randperm(len(files), generator=torch.Generator().manual_seed(0))]
        labels = np.array([label for _, label in files])
        parts.append((_decode([path for path, _ in files], size, channels), labels))
    if len(parts) == 2:
        return (*parts[0], *parts[1])
    images, labels = parts[0]
    test, generator = np.zeros(len(labels), bool), torch.Generator().manual_seed(0)
    for label in range(len(names)):
        members = (labels == label).nonzero()[0]
        order = members[torch.randperm(len(members), generator=generator).numpy()]
        if len(members) > 1:
            test[order[: max(1, len(members) // KEPT_FOR_TESTING)]] = True
    return images[~test], labels[~test], images[test], labels[test]


def _parts(root: Path) -> tuple[Path, ...]:
    """The folders that hold class folders: train and test where the folder has both, else itself."""
    parts = tuple(root / name for name in SPLITS)
    return parts if all(part.is_dir() for part in parts) else (root,)


def _counts(path: Path) -> bool:
    return not path.name.startswith(".") and path.name.lower() not in IGNORED


def _is_image_name(path: Path) -> bool:
    return _counts(path) and path.suffix.lower() in Image.registered_extensions()


def _files(folder: Path) -> list[Path]:
    """A class's files, sorted; FolderError where there are none."""
    inside = [path for path in folder.rglob("*") if all(map(_counts, _below(path, folder)))]
    files = sorted(path for path in inside if path.is_file())
    if not files:
        raise FolderError(f"the class folder {folder} holds no images; delete it or fill it")
    return files


def _below(path: Path, folder: Path) -> Iterator[Path]:
    while path != folder:
        yield path
        path = path.parent


def _decode(files: list[Path], size: int, channels: int) -> np.ndarray:
    images = np.empty((len(files), channels, size, size), np.uint8)

    def place(index: int) -> str:
        try:
            images[index] = _image(files[index], size, channels)
        except FolderError as error:
            return f"{files[index]} {error}"
        except Exception as error:  # Pillow's readers raise whatever their format's code does
            return f"{files[index]} cannot be read as an image ({(str(error) or repr(error)).splitlines()[0]})"
        return ""

    faults = [fault for fault in map(place, range(len(files))) if fault]
    if faults:
        more = f"; so are {len(faults) - 1} more files" if len(faults) > 1 else ""
        raise FolderError(f"{faults[0]}; delete it or move it out of the class folders{more}")
    return images


def _image(path: Path, size: int, channels: int) -> np.ndarray:
    """One image, (channels, size, size) uint8; whatever is wrong with it is raised."""
    with Image.open(path) as image:
        if getattr(image, "n_frames", 1) > 1:
            raise FolderError(f"is an animation of {getattr(image, 'n_frames', 0)} frames, not an image")
        if image.mode not in MODES:
            raise FolderError(f"has pixels of mode {image.mode}; only images of 8 bits a channel can be used")
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            colours = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
        side = min(upright.size)
        left, top = (upright.width - side) // 2, (upright.height - side) // 2
        square = upright.convert("L" if channels == 1 else "RGB").crop((left, top, left + side, top + side))
        square = square.resize((size, size), Image.Resampling.LANCZOS)
        return np.asarray(square).reshape(size, size, channels).transpose(2, 0, 1)
