"""Cost of a stage, and how many seconds a unit of it takes here."""

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace

from sgan.config import IMAGE, Config
from sgan.data.batches import Data
from sgan.stages.graph import ClassifierStage, InceptionStage, JointStage, LevelStage, ScoreStage, Stage, name, plan
from sgan.stages.run import Context, run_trial
from sgan.store.local import Store

STEPS, IMAGES = 24, 1000
"""The probe trains so many steps of each kind, on at most so many images."""


def cost(stage: Stage) -> float:
    """Rough cost of a stage; the unit is one training image of an image level."""
    match stage:
        case ClassifierStage():
            return 0.15 * stage.recipe.images
        case LevelStage():
            return stage.images * (1.0 if stage.low == IMAGE else 0.25)
        case JointStage():
            return 1.2 * stage.images
        case ScoreStage():
            return (2.0 if stage.inception else 0.1) * stage.samples
        case InceptionStage():
            return 50_000


def recorded_rate(store: Store, stages: Iterable[Stage]) -> float | None:
    """Mean seconds of one unit of cost, over those of these stages that the store has; None where it has none."""
    seconds = units = 0.0
    for stage in set(stages):
        if store.has(name(stage)):
            facts = store.facts(name(stage))
            if facts["status"] == "done":
                seconds, units = seconds + facts["seconds"], units + cost(stage)
    return seconds / units if units else None


def seconds_per_unit(config: Config, data: Data, device: str) -> float:
    """Seconds of one unit of cost in this process, by a few steps of a classifier and of the image level.

    Args:
        data: the dataset, or a part of it, on the device.
    """
    recipe, shares = config.recipe, {"classifier": 0.0, "gan": 0.0}
    for _, stage in plan(config).stages:
        shares["classifier" if isinstance(stage, ClassifierStage) else "gan"] += cost(stage)
    few = Data(*(part[:IMAGES] for part in (data.images, data.labels, data.test_images, data.test_labels)), data.digest)
    gan, encoder, scorer = (
        replace(part, batch=min(part.batch, len(few.images))) for part in (recipe.gan, recipe.encoder, recipe.scorer)
    )
    small = replace(
        recipe,
        gan=gan,
        encoder=replace(encoder, images=STEPS * encoder.batch),
        scorer=replace(scorer, images=STEPS * scorer.batch),
        image_level=STEPS * gan.batch,
        feature_level=gan.batch,
        evaluations=1,
    )
    trial, times = plan(replace(config, recipe=small, inception="")), dict[str, list[tuple[float, int]]]()
    with tempfile.TemporaryDirectory() as folder:
        events = run_trial(trial, Context(Store(folder), few, device, ""))
        for event in events:
            if event.progress:
                times.setdefault(event.label, []).append((time.perf_counter(), event.progress.images))
            if event.label == "level0" and len(times["level0"]) == STEPS - 1:
                events.close()
    return sum(
        shares[kind] * _seconds_per_image(times[label]) / unit
        for kind, label, unit in (("classifier", "scorer", 0.15), ("gan", "level0", 1.0))
    ) / sum(shares.values())


def _seconds_per_image(times: list[tuple[float, int]]) -> float:
    """Median over the steps of the second half: a GPU's first ones are no measure."""
    half = times[len(times) // 2 - 1 :]
    return statistics.median((b[0] - a[0]) / (b[1] - a[1]) for a, b in itertools.pairwise(half))
