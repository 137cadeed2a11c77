"""What a config costs and whether its networks fit together, before anything is trained."""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from sgan import metrics
from sgan.checks import ConfigError
from sgan.config import LABEL, Config
from sgan.data import Data, pixel_mean
from sgan.encoder import Encoder
from sgan.evaluation import EVALUATION_SAMPLES, Evaluation
from sgan.networks import Discriminator, new_generator, tap_shapes
from sgan.run import build
from sgan.stages import ClassifierStage, InceptionStage, JointStage, LevelStage, ScoreStage, Stage, name, plan
from sgan.train import ClassifierTask, GanTask

STEPS = 3
"""Steps that are measured, after one that is not."""


def check_networks(config: Config) -> None:
    """Build every network of a config on the meta device, and pass shapes through each.

    Raises:
        ConfigError: they do not fit together; the message names the level.
    """
    for stage in _levels(config):
        try:
            with torch.device("meta"):
                ends = (stage.low, stage.high, stage.labels, stage.through, stage.codes)
                generator = new_generator(stage.dataset, stage.recipe, *ends)
                judge = Discriminator(stage.dataset, stage.recipe, stage.low, stage.through, stage.codes)
                given = (stage.dataset.classes * stage.labels,)
                given = given if stage.high == LABEL else tap_shapes(stage.dataset)[stage.high]
                judge(generator(torch.empty(2, *given), torch.empty(2, generator.noise)))
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"the networks of the level from {stage.high} to {stage.low} do not fit {stage.dataset.name} images of "
                f"{stage.dataset.size} pixels ({str(error).splitlines()[0]}); choose another split or width"
            ) from error


def _levels(config: Config) -> list[LevelStage]:
    return [stage for _, stage in plan(config).stages if isinstance(stage, LevelStage)]


def stage_seconds(configs: list[Config], data: Data, device: str) -> dict[str, float]:
    """Seconds that each stage of these configs would take here (name -> seconds), with untrained networks: from a few
    measured steps on `data`, of which few images are enough, and one evaluation of each kind. A joint stage's step is
    taken as the sum of its levels' steps."""
    steps: dict[str, float] = {}
    evaluations: dict[bool, float] = {}
    found: dict[str, float] = {}
    for config in configs:
        for _, stage in plan(config).stages:
            if name(stage) not in found:
                found[name(stage)] = _seconds(stage, data, device, steps, evaluations)
    return found


def _seconds(stage: Stage, data: Data, device: str, steps: dict[str, float], evaluations: dict[bool, float]) -> float:
    match stage:
        case ClassifierStage():
            encoder = Encoder(stage.dataset, stage.recipe.init_std, 4 if stage.recipe.objective == "rotation" else None)
            recipe = dataclasses.replace(stage.recipe, batch=min(stage.recipe.batch, len(data.images)))
            task = ClassifierTask(encoder.to(device), data, recipe, 0)
            return _timed(task.step, device) * stage.recipe.images / stage.recipe.batch
        case LevelStage():
            steps[name(stage)] = _level_step(stage, data, device, evaluations)
            scored = stage.evaluations.count + 1
            return steps[name(stage)] * stage.images / stage.recipe.batch + scored * evaluations[stage.low == "image"]
        case JointStage():
            step = sum(steps[name(level)] for level in stage.levels)
            return step * stage.images / stage.recipe.batch + (stage.evaluations.count + 1) * evaluations[True]
        case ScoreStage():
            return 2 * evaluations[True] * max(1.0, stage.samples / EVALUATION_SAMPLES)
        case InceptionStage():
            return 0.0


def _level_step(stage: LevelStage, data: Data, device: str, evaluations: dict[bool, float]) -> float:
    levels, discriminators = build((stage,), stage.recipe, data, device)
    encoder = Encoder(stage.dataset, 0.05).to(device).eval().requires_grad_(False) if stage.encoder else None
    mean = pixel_mean(data.images, stage.recipe.pixel_mean)
    recipe = dataclasses.replace(stage.recipe, batch=min(stage.recipe.batch, len(data.images)))
    classes = stage.dataset.classes
    task = GanTask(levels, discriminators, encoder, data, recipe, stage.weights, 0, mean, classes, 1.0)
    step = _timed(task.step, device)
    if (stage.low == "image") not in evaluations:
        scorer = Encoder(stage.evaluations.scorer.dataset, 0.05).to(device).eval().requires_grad_(False)
        reference = metrics.Reference(metrics.classify(scorer, data.images))
        evaluation = Evaluation(levels, stage.evaluations.sampling, data, encoder, scorer, reference)
        with tempfile.TemporaryDirectory() as folder:
            evaluations[stage.low == "image"] = _timed(lambda images: evaluation(images, Path(folder)), device, 1)
    return step


def _timed(call: Callable[[int], object], device: str, times: int = STEPS) -> float:
    """Median seconds of a call, after one that is not counted."""
    found = []
    for index in range(times + 1):
        began = time.perf_counter()
        call(index)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])
