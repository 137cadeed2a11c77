"""How a training step grows: with the batch, for a level alone; and with the number of levels, in their joint stage.

    python benchmarks/growth.py [--dataset digits] [--batches 25 50 100 200 400] [--precision float32 bfloat16]
        [--threads 1] [--device cpu] [--rounds 3] [--json FILE] [--plot FILE]

A step is that of benchmarks/training_step.py: recipe `paper` at the released widths, random images. All of them take
turns; the table has medians. On a GPU, larger batches show how much of its peak one process can reach.
"""

import argparse
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from training_step import TURN, new_task, peak, timed

from sgan.presets import DATASETS
from sgan.training.cuda_graphs import EAGER

LEVEL = "fc3-image"
STACKS = ("label-image", "label-fc3-image", "label-fc3-pool1-image", "label-fc3-pool2-pool1-image")
"""One to four levels."""
BATCH = 100


def measure(
    name: str, asked: list[tuple[str, int, str]], device: str, rounds: int
) -> dict[tuple[str, int, str], tuple[float, float]]:
    """(stack, batch, precision) -> median seconds of a step, and its FLOP."""
    steps, flops = {}, {}
    for each in asked:
        stack, batch, precision = each
        task, numbers = new_task(name, stack, device, precision, batch=batch), itertools.count()
        steps[each] = lambda task=task, numbers=numbers: task.step(next(numbers))
        with FlopCounterMode(display=False) as counter:
            steps[each]()
        flops[each] = counter.get_total_flops()
        timed(steps[each], device, EAGER + 1 if device != "cpu" else 1)
    times = {each: max(1, round(TURN / timed(step, device))) for each, step in steps.items()}
    turns = [{each: timed(step, device, times[each]) for each, step in steps.items()} for _ in range(rounds)]
    return {each: (statistics.median(turn[each] for turn in turns), flops[each]) for each in asked}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot milliseconds a step over the batch and over the number of levels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, places = pyplot.subplots(1, 2, figsize=(8.0, 3.2), layout="constrained")
    for place, kind in zip(places, ("batch", "levels"), strict=True):
        for precision in dict.fromkeys(row["precision"] for row in rows):
            points = [
                (row[kind], 1000 * row["value"]) for row in rows if row.get(kind) and row["precision"] == precision
            ]
            place.plot(*zip(*points, strict=True), marker="o", label=precision)
        place.set(xlabel=kind, ylabel="ms a step", ylim=0)
        place.legend()
    places[1].set_xticks(range(1, len(STACKS) + 1))
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits", choices=list(DATASETS))
    parser.add_argument("--batches", type=int, nargs="+", default=[25, 50, 100, 200, 400])
    parser.add_argument("--precision", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    shapes = [(LEVEL, batch) for batch in asked.batches] + [(stack, BATCH) for stack in STACKS]
    wanted = [(*shape, precision) for precision in asked.precision for shape in shapes]
    found = measure(asked.dataset, wanted, asked.device, asked.rounds)
    peaks = {precision: peak(getattr(torch, precision), asked.device) for precision in asked.precision}
    rows = []
    print(f"{'stack':28} {'batch':>5} {'precision':9} {'ms':>8} {'us an image':>11} {'of peak':>7}")
    for (stack, batch, precision), (seconds, flops) in found.items():
        of_peak = flops / seconds / peaks[precision]
        image = 1e6 * seconds / batch
        print(f"{stack:28} {batch:5} {precision:9} {1000 * seconds:8.2f} {image:11.1f} {of_peak:7.0%}", flush=True)
        grows = {"batch": batch} if stack == LEVEL else {"levels": stack.count("-")}
        measured = f"{asked.dataset} {stack}, batch {batch}, {precision}: step"
        rows.append({"benchmark": "growth", "measure": measured, "value": seconds, "unit": "s"})
        rows[-1] |= {"precision": precision, **grows}
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1))
    if asked.plot:
        draw(rows, asked.plot)


if __name__ == "__main__":
    main()
