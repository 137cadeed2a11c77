"""What to say where a trial ran out of memory: what would fit."""

import math
import os
import re
import resource

import ray
import torch

from sgan.stages.graph import InceptionStage, ScoreStage, Stage

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


def advice(stage: Stage, needed: int, there: int, sharing: int) -> str:
    """One line: the stage that lacked memory, how much it needs, and what would fit.

    Args:
        needed: bytes that the stage had at most and the allocation that failed asked for.
        there: bytes of the GPU, or of the machine.
        sharing: stages that share it.
    """
    said = f"out of memory in {stage.kind}: it needs at least {needed / GIB:.1f} GiB of {there / GIB:.1f} GiB"
    said += f", which {sharing} share" if sharing > 1 else ""
    fit = min(sharing - 1, would_fit(max(needed, 1), there))
    if fit >= 1:
        return f"{said}; {fit} at a time would fit: --trials-per-gpu {fit}, or --slots on a CPU"
    if isinstance(stage, (ScoreStage, InceptionStage)):
        return f"{said}; it needs a machine with more memory, or a smaller --override samples"
    part, batch = "gan" if stage.kind == "level" else stage.kind, stage.recipe.batch
    smaller = max(2, 2 ** int(math.log2(max(2, min(batch / 2, batch * SAFE * there / max(needed, 1))))))
    both = f" joint.batch={smaller}" if part == "gan" else ""
    return f"{said}; a batch of {smaller} may fit: --override {part}.batch={smaller}{both}, which is another config"


def lack(error: BaseException, stage: Stage) -> str:
    """`advice` on this process, where an allocation has just failed."""
    if isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available():
        share = ray.get_runtime_context().get_assigned_resources().get("GPU", 1.0)
        needed = peak()[0] + asked_for(error)
        return advice(stage, needed, torch.cuda.mem_get_info()[1], max(1, round(1 / share)))
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    slots = int(ray.cluster_resources().get("CPU", 1)) if ray.is_initialized() else 1
    return advice(stage, min(most, there) + asked_for(error), there, slots)
