"""This process, and the machine that it runs on."""

import atexit
import contextlib
import functools
import gc
import os
import platform
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""Linux's names of the instructions for bfloat16: of x86, and of ARM."""


@functools.cache
def _facts() -> dict[str, str]:
    """What Linux says of the CPU (proc_cpuinfo(5)); empty elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def processor() -> str:
    """The CPU's model."""
    return _facts().get("model name") or platform.machine()


def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16, as far as the system says; without them it is many times slower
    than float32."""
    facts = _facts()
    return not facts or bool(BFLOAT16 & set(f"{facts.get('flags', '')} {facts.get('Features', '')}".split()))


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Python's cyclic garbage collector waits meanwhile: what large packages make while they are imported stays, and
    looking through it again and again takes a fifth of the time (docs/scale.md)."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def end(status: int) -> NoReturn:
    """End this process as `sys.exit` does, threads and what is registered for the end first, but leave its memory to
    the system: to take down what torch, Ray and MLflow have made takes Python and their libraries a second, and now and
    then six (docs/scale.md)."""
    # What Python itself calls at the end.
    for finish in (threading._shutdown, atexit._run_exitfuncs):  # pyright: ignore[reportAttributeAccessIssue]
        with contextlib.suppress(KeyboardInterrupt):  # it ends already
            finish()
    with contextlib.suppress(OSError):  # nobody reads any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
