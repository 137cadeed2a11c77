"""Runs one stage, and publishes it with its time, steps and FLOPs."""

import functools
import os
import platform
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch

from sgan.checks import as_json
from sgan.config import IMAGE
from sgan.evaluation.evaluate import Evaluation
from sgan.models.encoder import Encoder
from sgan.models.stack import Stack
from sgan.stages.context import Context, Running
from sgan.stages.cost import flops
from sgan.stages.graph import GanStage, JudgeStage, Stage, name
from sgan.stages.kinds import classifier, joint, judge, level, score
from sgan.store.files import read_record
from sgan.training.loop import Diverged, Progress

RUN: dict[str, Callable[..., Running]] = {
    "encoder": classifier.run,
    "judge": judge.run,
    "level": level.run,
    "joint": joint.run,
    "score": score.run,
}
"""Kind of a stage -> its run function."""


def run_stage(stage: Stage, scored_by: JudgeStage | None, context: Context) -> Generator[Progress]:
    """Run one stage whose parents are finished, and publish it, with the reason where it diverged. The caller holds its
    claim. The generator yields progress; closing it between two yields leaves a checkpoint.

    Args:
        scored_by: the finished stage that scores levels while they train; None trains them without scores.
    Raises:
        StoreError: something in the store is damaged.
        OSError: the store's disk is full or read-only. A later run continues from the stage's checkpoint."""
    store, stage_name, began = context.store, name(stage), time.monotonic()
    folder = store.begin(stage_name)
    evaluator = None
    if scored_by and isinstance(stage, GanStage):
        evaluator = functools.partial(_evaluator, stage.sampling, scored_by, context, folder)
    running = RUN[stage.kind](stage, context, folder, evaluator)
    facts: dict[str, Any] = {"status": "done", "reason": None}
    progress, before = Progress(0, 0), 0.0
    try:
        while True:
            progress = next(running)
            before = max(before, progress.before)
            store.keep(stage_name)
            if progress.images < progress.total:  # the end is published instead
                yield progress
    except StopIteration as end:
        facts |= end.value or {}
    except Diverged as error:
        facts = {"status": "diverged", "reason": str(error)}
    except GeneratorExit:
        running.close()  # leaves a checkpoint
        store.keep(stage_name, now=True)
        raise
    facts |= {
        "kind": stage.kind,
        "images": progress.images,
        "seconds": before + time.monotonic() - began,
        "commit": context.commit,
        "machine": machine(context.device),
        "torch": torch.__version__,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "fields": as_json(stage),
    }
    if isinstance(stage, GanStage):
        batch, seen, updates = stage.recipe.batch, 0, 0.0
        for point in read_record(folder):  # each has the mean number of generator steps since the one before
            updates += point["metrics"].get("generator_steps", 0.0) * (point["images"] - seen) / batch
            seen = point["images"]
        makes_images = stage.levels[0].level.low == IMAGE
        facts |= {
            "discriminator_steps": progress.images // batch,
            "generator_steps": round(updates),
            "generator_images": batch * round(updates) if makes_images else 0,
            "flops": flops(stage, progress.images // batch, round(updates)),
        }
    store.publish(stage_name, facts)


def _evaluator(
    sampling: str, scored_by: JudgeStage, context: Context, folder: Path, stack: Stack, encoder: Encoder | None
) -> tuple[str, Callable[[int], dict[str, float]]]:
    known = judge.load(scored_by, None, context)
    return name(scored_by), functools.partial(Evaluation(stack, sampling, context.data, encoder, known), folder=folder)


def be_deterministic(wanted: bool) -> None:
    """Make CUDA sum in one order, so that a run repeats bit for bit on the same GPU, but slower. CPUs always do.

    Call it before the first use of the GPU. A training step without a deterministic form raises RuntimeError."""
    if wanted:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read by cuBLAS when it starts
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = False


def processor() -> str:
    """Return the CPU's name with its family and model, which distinguish CPUs of one name, where Linux gives them
    (proc_cpuinfo(5)); else the architecture."""
    path = Path("/proc/cpuinfo")
    pairs = [line.partition(":") for line in path.read_text().splitlines()] if path.exists() else []
    said = {name.strip(): value.strip() for name, _, value in pairs}
    if "model name" not in said:
        return platform.machine()
    return f"{said['model name']} (family {said.get('cpu family', '?')}, model {said.get('model', '?')})"


@functools.cache
def machine(device: str) -> str:
    """Describe the machine for tables: CPU, number of cores, GPU."""
    gpu = torch.cuda.get_device_name() if device.startswith("cuda") and torch.cuda.is_available() else "no GPU"
    return f"{processor()}, {os.cpu_count()} cores, {gpu}"
