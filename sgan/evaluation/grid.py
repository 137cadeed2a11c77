"""Write image grids with text around them as PNG files."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from sgan.store.files import atomic_write

SMALL = 48  # Side in pixels, about, to which small images are enlarged
GAP, MARGIN = 4, 12
PAPER, INK, FAINT = 255, "black", "dimgray"
BOX = "images"  # PNG text chunk with left, top, right and bottom of the area of the images, without the text around it


@dataclass(frozen=True)
class Words:
    """The text around a grid; each part may be empty. `title` and `along` (the change along a row) stand above the
    grid, and `caption` (advice to the reader) below it. `columns` and `rows` are headings and row labels. Pillow's own
    font has only Latin letters."""

    title: str = ""
    along: str = ""
    caption: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[str] = ()


NO_WORDS = Words()


def save(images: Tensor, path: Path, columns: int, words: Words = NO_WORDS, side: int = SMALL) -> None:
    """Write uint8 images (n, channels, size, size) as a grid of `columns` per row, as a PNG file, whole or not at all.

    side: side in pixels, about, to which smaller images are enlarged by a whole factor."""
    pixels = images.cpu().permute(0, 2, 3, 1).numpy()
    scale = max(1, round(side / pixels.shape[1]))
    enlarged = pixels.repeat(scale, 1).repeat(scale, 2)
    step, rows = enlarged.shape[1] + GAP, -(-len(images) // columns)
    text, heading = ImageFont.load_default(15), ImageFont.load_default(22)
    left = MARGIN + round(max((text.getlength(row) + 8 for row in words.rows), default=0))
    top = MARGIN + 34 * bool(words.title) + 22 * bool(words.along) + 20 * bool(words.columns)
    right, bottom = left + columns * step - GAP, top + rows * step - GAP
    letter = text.getlength(words.caption) / max(1, len(words.caption))
    caption = textwrap.fill(words.caption, int(0.95 * (right - MARGIN) / letter)) if words.caption else ""
    size = right + MARGIN, bottom + MARGIN + 20 * len(caption.splitlines()) + MARGIN * bool(caption)
    canvas = np.full((size[1], size[0], pixels.shape[3]), PAPER, np.uint8)
    for index, image in enumerate(enlarged):
        row, column = divmod(index, columns)
        canvas[top + row * step :, left + column * step :][: step - GAP, : step - GAP] = image
    picture = Image.fromarray(canvas.squeeze(2) if canvas.shape[2] == 1 else canvas)
    pen = ImageDraw.Draw(picture)
    pen.text((MARGIN, MARGIN), words.title, INK, heading)
    pen.text((left, top - 20 * bool(words.columns) - 22), words.along, FAINT, text)
    for number, column in enumerate(words.columns):
        pen.text((left + number * step + (step - GAP) / 2, top - 12), column, INK, text, "mm")
    for number, row in enumerate(words.rows):
        pen.text((left - 8, top + number * step + (step - GAP) / 2), row, INK, text, "rm")
    pen.multiline_text((MARGIN, bottom + MARGIN), caption, FAINT, text, spacing=4)
    about = PngInfo()
    about.add_text(BOX, f"{left},{top},{right},{bottom}")
    with atomic_write(path) as temporary:
        picture.save(temporary, "png", pnginfo=about)


def unlabelled(path: Path) -> Image.Image:
    """Return the images of a file that `save` wrote, without the text around them. Any other picture stays whole."""
    with Image.open(path) as picture:
        left, top, right, bottom = map(int, picture.info.get(BOX, f"0,0,{picture.width},{picture.height}").split(","))
        return picture.crop((left, top, right, bottom))
