"""The record of a stage: its metric points, in its folder beside its grids."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgan.store.files import read_lines, sealed, unreadable, write_text
from sgan.store.local import GRIDS

RECORD_FILE = "record.jsonl"


class Record:
    """The record of one stage: metric points as JSON lines in the stage's folder. `text`: the record so far, of the
    checkpoint that the stage goes on from; points that were added after it are made again."""

    def __init__(self, folder: Path, text: str = ""):
        self.path, self.text = folder / RECORD_FILE, text
        self.points = read_lines(text, self.path)
        write_text(self.path, text)

    def add(self, images: int, metrics: Mapping[str, float], judge: str = "") -> None:
        """Append one point: metric name -> value, after `images` training images, and the name of the stage that has
        scored there."""
        point = {"images": images, "time": time.time(), "metrics": dict(metrics)} | ({"judge": judge} if judge else {})
        line = json.dumps(sealed(point)) + "\n"
        with open(self.path, "a") as file:
            file.write(line)
        self.text += line
        self.points.append(point)


def grid_file(folder: Path, images: int) -> Path:
    """Path of the grid drawn after `images` images were seen, in a stage's folder."""
    return folder / GRIDS / f"{images:09d}.png"


def read_record(folder: Path) -> list[dict[str, Any]]:
    """The points of a stage's record; a last line that is still being written is left for the next reading.

    Raises StoreError where a line is not what was written."""
    path = folder / RECORD_FILE
    try:
        text = path.read_text() if path.exists() else ""
    except (UnicodeDecodeError, OSError) as error:
        raise unreadable(path, error, "delete its folder, and it is made again") from error
    return read_lines(text, path)
