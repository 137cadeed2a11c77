"""A command in this process: a new one takes seconds to import torch."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def ended(file: str, *words: str | int | Path) -> int:
    """The exit status of `python FILE WORDS`, a file of this repository; it prints where this process does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [file, *map(str, words)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / file), run_name="__main__")
    return int(end.value.code or 0)
