"""The processor of this machine."""

import platform
from pathlib import Path

BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""Linux's names of the instructions for bfloat16: of x86, and of ARM."""


def _facts() -> dict[str, str]:
    """Fields of /proc/cpuinfo (proc_cpuinfo(5)); empty where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def processor() -> str:
    """The CPU's model."""
    return _facts().get("model name") or platform.machine()


def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16; true where the system does not tell.

    Without them bfloat16 is many times slower than float32.
    """
    facts = _facts()
    return not facts or bool(BFLOAT16 & set(f"{facts.get('flags', '')} {facts.get('Features', '')}".split()))
