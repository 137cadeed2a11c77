"""The processor of this machine."""

import platform
from pathlib import Path


def processor() -> str:
    """The CPU's model, as /proc/cpuinfo has it (proc_cpuinfo(5))."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return fields.get("model name") or platform.machine()
