"""The memory of a stage's process, and what to say where it ran out."""

import os
import resource

import torch

from sgan.stages.graph import Stage

GIB = 2**30
CONTEXT = GIB // 2  # Bytes of CUDA's own context in each process


def cap(share: float) -> None:
    """Let this process have its share of the GPU's memory and no more: Ray only counts shares, so one trial could take
    what its neighbours need."""
    if 0 < share < 1:
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction(max(0.01, share - CONTEXT / total))


def is_lack(error: BaseException) -> bool:
    """Whether an error means that memory ran out: torch's allocators of GPUs and CPUs, or Python's."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)


def lack(error: BaseException, stage: Stage) -> str:
    """One line about the stage that lacked memory in this process, and what to do."""
    if isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_initialized():
        used, there = torch.cuda.max_memory_reserved() + CONTEXT, torch.cuda.mem_get_info()[1]
    else:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (
        f"out of memory in {stage.kind}, which needs more than {used / GIB:.1f} GiB of {there / GIB:.1f} GiB: run "
        "fewer at a time (--trials-per-gpu, or --slots on a CPU), or change the config with --override: a smaller "
        "gan.batch, joint.batch or samples"
    )
