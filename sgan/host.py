"""The machine that this process runs on, in words."""

import functools
import platform
from pathlib import Path


@functools.cache
def processor() -> str:
    """The CPU's model."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
