"""Seconds that a unit of cost takes on this machine, measured before anything is trained."""

import itertools
import statistics
import tempfile
import time
from collections.abc import Generator
from dataclasses import replace

from sgan.config import Config
from sgan.data.batches import Data
from sgan.stages.cost import JUDGE, cost
from sgan.stages.graph import JudgeStage, plan
from sgan.stages.run import Context, run_trial
from sgan.store.local import Store

STEPS, IMAGES = 40, 1000
"""The probe trains so many steps of each kind, on about so many images."""


def seconds_per_unit(config: Config, data: Data, device: str) -> float:
    """Seconds of one unit of cost in this process, by a few steps of a classifier and of the image level.

    Args:
        data: the dataset, or a part of it, on the device.
    """
    recipe = config.recipe
    few = max(IMAGES, *(part.batch for part in (recipe.gan, recipe.encoder, recipe.judge)))
    parts = (data.images, data.labels, data.test_images, data.test_labels)
    small = replace(
        recipe,
        encoder=replace(recipe.encoder, images=STEPS * recipe.encoder.batch),
        judge=replace(recipe.judge, images=STEPS * recipe.judge.batch),
        image_level=STEPS * recipe.gan.batch,
        feature_level=recipe.gan.batch,
        joint_start=1.0,
        evaluations=1,
    )
    times: dict[str, list[tuple[float, int]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        context = Context(Store(folder), Data(*(part[:few] for part in parts), digest=data.digest), device, "")
        events = run_trial(plan(replace(config, recipe=small, inception="")), context)
        assert isinstance(events, Generator)  # which can be closed
        for event in events:
            if event.progress:
                times.setdefault(event.label, []).append((time.perf_counter(), event.progress.images))
            if event.label == "level0" and len(times["level0"]) == STEPS - 1:
                events.close()
    rates = {True: _seconds_per_image(times["judge"]) / JUDGE, False: _seconds_per_image(times["level0"])}
    costs = [(cost(stage), rates[isinstance(stage, JudgeStage)]) for _, stage in plan(config).stages]
    return sum(units * rate for units, rate in costs) / sum(units for units, _ in costs)


def _seconds_per_image(times: list[tuple[float, int]]) -> float:
    """Lower quartile over the steps of the second half: a GPU's first ones are no measure, nor are those of a stall."""
    half = times[len(times) // 2 - 1 :]
    rates = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in itertools.pairwise(half) if b[1] > a[1]]
    return statistics.quantiles(rates, n=4)[0]
