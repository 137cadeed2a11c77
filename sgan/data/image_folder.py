"""Read image folders: each sub-folder is a class. All images get the same size and number of channels."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import center_crop, pil_to_tensor

from sgan.checks import ConfigError, require

TRAIN, TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation", "dev")
"""Folder names of the training and test parts, in lower case; the first name that exists counts."""
SYSTEMS = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "$recycle.bin", "system volume information")
SYSTEMS += ("lost+found", "@eadir", "#recycle", "temporary items", "network trash folder")
"""Names of files and folders that operating systems and file servers leave, in lower case."""
STORE = ("stages", "claims")  # Sub-folders by which an output store is recognised
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
"""Pillow's modes with 8 bits per channel. Pillow also opens 16-bit colours in these modes; DEEP detects that."""
DEEP = re.compile(";16[BLN]")
KEPT_FOR_TESTING = 5  # One image in five is kept for testing where the folder has no test images of its own
FEW = 10  # Names shown in a message, at most
LeftOut = defaultdict[str, list[str]]
"""Reason why files and folders are not used -> their names."""
Parts = tuple[Tensor, Tensor, Tensor, Tensor]
"""Training images (n, channels, size, size) uint8 with their labels (n,) int64, and test images with theirs."""


def in_words(left_out: LeftOut) -> str:
    """Return the reasons with the number of files and folders and the first names of each."""
    return "; ".join(f"{len(names):,} {why} ({_few(names)})" for why, names in left_out.items() if names) or "none"


def _few(names: list[str]) -> str:
    return ", ".join([*names[:FEW], *([f"and {len(names) - FEW:,} more"] if len(names) > FEW else [])])


def image_files(folder: Path, left_out: LeftOut) -> list[Path]:
    """Return all files below a folder, sorted; `left_out` collects the others. ConfigError for an unreadable folder."""
    files = []
    for path in _inside(folder, left_out):
        if path.is_file():
            files.append(path)
        elif path.is_symlink():  # it may lead to a parent folder, and so to an endless search
            left_out["links to folders"].append(path.name)
        else:
            files += image_files(path, left_out)
    return files


def _inside(folder: Path, left_out: LeftOut) -> list[Path]:
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"the image folder {folder} cannot be read ({error.strerror})") from error
    found = []
    for path in paths:
        if path.name.startswith(".") or path.name.lower() in SYSTEMS:
            left_out["hidden or left by a system"].append(path.name)
        elif all((path / name).is_dir() for name in STORE):
            left_out["output stores"].append(path.name)
        elif path.is_file() or path.is_dir():
            found.append(path)
        else:
            left_out["links to nothing, pipes or sockets"].append(path.name)
    return found


def read_image(path: Path, channels: int) -> Image.Image:
    """Read an image of any size, upright (EXIF), in grey (1 channel) or RGB (3), and white where it is transparent.
    Of a phone's photo with several pictures (MPO), the first counts. ConfigError where the file is no image, is an
    animation, or has more than 8 bits per channel."""
    try:
        with Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":
                raise ValueError(f"an animation of {frames} frames")
            if image.mode not in MODES or DEEP.search(str(image.tile)):
                raise ValueError(f"pixels of mode {image.mode}, not of 8 bits per channel")
            upright = ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow's readers raise many kinds of errors
        raise ConfigError(f"{path} cannot be read as an image ({error!r:.200}); convert it or move it away") from error
    if upright.has_transparency_data:
        colours = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    return upright.convert("L" if channels == 1 else "RGB")


def class_names(root: Path) -> tuple[str, ...]:
    """Return the sorted class names of a folder. ConfigError where its sub-folders cannot be classes."""
    return _classes(root, LeftOut(list))[1]


def describe(root: Path) -> str:
    """Describe a folder in words: its images, its classes, and the skipped files with the reasons."""
    left_out = LeftOut(list)
    parts, names = _classes(root, left_out)
    files = [file for part in parts for name in names for file in image_files(part / name, left_out)]
    return f"{len(files):,} images of {len(names)} classes ({_few(list(names))}); left out: {in_words(left_out)}"


def read(root: Path, size: int, channels: int) -> Parts:
    """Read all images of a folder with `read_image`, crop each to its central square, and resize it with antialiasing.
    ConfigError as for `read_image`, and where a class has no images."""
    folders, names = _classes(root, LeftOut(list))
    parts = []
    for part in folders:
        files = [(path, label) for label, name in enumerate(names) for path in image_files(part / name, LeftOut(list))]
        for label in set(range(len(names))) - {label for _, label in files}:
            raise ConfigError(f"the class folder {part / names[label]} holds no images; delete it or fill it")
        # Shuffled once: some scores use only the first images, which must not all be of one class.
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
        require(bool(test.any()), f"no class of {root} has two images, so none is kept for testing; add images")
        parts = [images[~test], labels[~test], images[test], labels[test]]
    return tuple(parts)  # pyright: ignore[reportReturnType]


def _classes(root: Path, left_out: LeftOut) -> tuple[list[Path], tuple[str, ...]]:
    """Return the folders that hold class folders (train and test if both exist, else the root), and the class names."""
    inside = _inside(root, left_out)
    folders = [path for path in inside if path.is_dir()]
    split = [[path for name in names for path in folders if path.name.lower() == name] for names in (TRAIN, TEST)]
    parts = [found[0] for found in split] if all(split) else [root]
    if all(split):
        left_out["beside train and test"] += [path.name for path in inside if path not in parts]
    elif folders and len(folders) == sum(map(len, split)):
        held = f"{root} holds only one part of a train/test split, {', '.join(path.name for path in folders)}"
        raise ConfigError(f"{held}; it needs both a train and a test folder, or class folders only")
    classes = []
    for part in parts:
        inside = inside if part == root else _inside(part, left_out)
        files = [path for path in inside if path.is_file()]
        for path in files:
            image = path.suffix.lower() in Image.registered_extensions()
            require(not image, f"{path} lies beside the class folders; move it into the folder of its class")
        left_out["beside the class folders"] += [path.name for path in files]
        classes.append(tuple(path.name for path in inside if path.is_dir()))
    odd, held = ", ".join(sorted(set(classes[0]) ^ set(classes[-1]))), ", ".join(classes[0]) or "none"
    require(not odd, f"{root}: train and test must hold the same class folders, but only one has {odd}")
    several = f"{parts[0]} must hold at least two sub-folders, one per class, with images; it holds {held}"
    require(len(classes[0]) > 1, several)
    return parts, classes[0]
