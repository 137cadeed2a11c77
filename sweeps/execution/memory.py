"""What to say where a trial ran out of memory: what would fit."""

import math
import re

import ray
import torch

from sgan.config import Config

GIB = 2**30
CONTEXT = GIB // 2
SAFE = 0.9
"""Share of what there is that a suggestion plans with."""
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": GIB, "bytes": 1}


def cap(share: float) -> None:
    """Let this process have its share of the GPU's memory and no more: Ray only counts shares, so one trial could take
    what its neighbours need. CUDA's own context, about half a GiB a process, comes out of the share."""
    if 0 < share < 1:
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction(max(0.01, share - CONTEXT / total))


def peak() -> tuple[int, int]:
    """Bytes of the GPU that this process has had at most, its context among them, and how many such trials would fit
    it; zeros where there is no GPU."""
    if not torch.cuda.is_initialized():
        return 0, 0
    needed = torch.cuda.max_memory_reserved() + CONTEXT
    return needed, would_fit(needed, torch.cuda.mem_get_info()[1])


def would_fit(needed: int, there: int) -> int:
    """How many trials with such a peak a GPU of so many bytes carries."""
    return int(SAFE * there / needed)


def is_lack(error: BaseException) -> bool:
    """Whether an error means that memory ran out: torch's allocators of GPUs and CPUs, or Python's."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)


def asked_for(error: BaseException) -> int:
    """Bytes of the allocation that failed, as the error's text has them; 0 where it does not."""
    found = re.search(r"[Tt]ried to allocate ([\d.]+) (B|KiB|MiB|GiB|bytes)", str(error))
    return round(float(found[1]) * _UNITS[found[2]]) if found else 0


def advice(label: str, config: Config, needed: int, there: int, sharing: int) -> str:
    """One line: what lacked memory, how much it needs, and what would fit.

    Args:
        label: the stage.
        needed: bytes that the trial had at most and the allocation that failed asked for.
        there: bytes of the GPU, or of the machine.
        sharing: trials that share it.
    """
    recipe = config.recipe
    parts = {"scorer": recipe.scorer, "encoder": recipe.encoder, "joint": recipe.joint, "level": recipe.gan}
    kind = label.rstrip("0123456789")
    said = f"out of memory in {label}: a trial needs at least {needed / GIB:.1f} GiB of {there / GIB:.1f} GiB"
    said += f", which {sharing} share" if sharing > 1 else ""
    fit = min(sharing - 1, would_fit(max(needed, 1), there))
    if fit >= 1:
        return f"{said}; {fit} at a time would fit: --trials-per-gpu {fit}, or --slots on a CPU"
    if kind not in parts:
        return f"{said}; it needs a machine with more memory, or --override samples={max(100, recipe.samples // 2)}"
    part, batch = "gan" if kind == "level" else kind, parts[kind].batch
    smaller = max(2, 2 ** int(math.log2(max(2, min(batch / 2, batch * SAFE * there / max(needed, 1))))))
    both = f" joint.batch={smaller}" if part == "gan" else ""
    return f"{said}; a batch of {smaller} may fit: --override {part}.batch={smaller}{both}, which is another config"


def lack(error: BaseException, label: str, config: Config) -> str:
    """`advice` on this process, where an allocation has just failed."""
    if isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available():
        share = ray.get_runtime_context().get_assigned_resources().get("GPU", 1.0)
        needed = peak()[0] + asked_for(error)
        return advice(label, config, needed, torch.cuda.mem_get_info()[1], max(1, round(1 / share)))
    with open("/proc/meminfo") as file:
        there = int(file.readline().split()[1]) * 1024
    with open("/proc/self/status") as file:
        most = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    slots = int(ray.cluster_resources().get("CPU", 1)) if ray.is_initialized() else 1
    return advice(label, config, min(most, there) + asked_for(error), there, slots)
