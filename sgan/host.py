"""The processor of this machine."""

import platform
from pathlib import Path


def processor() -> str:
    """The CPU's model, where Linux tells it (proc_cpuinfo(5)); else its kind."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "") or platform.machine()
