"""Cost of a stage, and the seconds that a unit of it took."""

import itertools
import statistics
import time
from collections.abc import Iterable

from sgan.config import IMAGE, Config
from sgan.data.batches import Data
from sgan.evaluation.judges import HeldOut, parts
from sgan.models.encoder import Encoder
from sgan.stages.graph import ClassifierStage, JointStage, JudgeStage, LevelStage, ScoreStage, Stage, name, plan
from sgan.stages.kinds.judge import JudgeTask
from sgan.stages.kinds.level import build
from sgan.store.local import Store
from sgan.training.checkpoint import Task
from sgan.training.steps import FORMAT, GanTask, Networks

CLASSIFIER, JUDGE = 0.15, 1.0  # Cost of a training image of an encoder, and of the held-out judge
STEPS, IMAGES = 40, 1000  # A unit's seconds are measured in so many steps, on about so many images


def cost(stage: Stage) -> float:
    """Rough cost of a stage; the unit is one training image of an image level."""
    match stage:
        case ClassifierStage():
            return CLASSIFIER * stage.recipe.images
        case LevelStage():
            return stage.images * (1.0 if stage.low == IMAGE else 0.25)
        case JointStage():
            return 1.2 * stage.images
        case ScoreStage():
            return (2.0 if stage.network else 0.3) * stage.samples
        case JudgeStage():
            return JUDGE * stage.recipe.images if stage.recipe else 50_000


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
    """Seconds of one unit of cost in this process, by a few steps of the judge and of the image level. `data`: the
    dataset on the device."""
    recipe, trial = config.recipe, plan(config)
    few = max(IMAGES, recipe.gan.batch, recipe.judge.batch)
    tensors = (data.images, data.labels, data.test_images, data.test_labels)
    some, level = Data(*(part[:few] for part in tensors), digest=data.digest), trial.score.levels[0]
    encoder = Encoder(config.dataset, 1.0).to(device).requires_grad_(False) if level.encoder else None
    networks = Networks(*build((level,), recipe.gan, some, device), encoder, config.dataset.classes)
    judge = HeldOut(config.dataset.channels, config.dataset.size, config.dataset.classes).to(device)
    judging = JudgeTask(judge.to(memory_format=FORMAT), *parts(some)[0], recipe.judge)
    rates = {
        True: _seconds_per_step(judging) / recipe.judge.batch / JUDGE,
        False: _seconds_per_step(GanTask(networks, some, recipe.gan, level.weights, 0)) / recipe.gan.batch,
    }
    costs = [(cost(stage), rates[isinstance(stage, JudgeStage)]) for _, stage in trial.stages]
    return sum(units * rate for units, rate in costs) / sum(units for units, _ in costs)


def _seconds_per_step(task: Task) -> float:
    """Lower quartile over the steps of the second half: a GPU's first ones are no measure, nor are those of a stall."""
    times = [time.perf_counter()]
    for step in range(STEPS):
        next(iter(task.step(step).values())).item()  # waits for the GPU
        times.append(time.perf_counter())
    seconds = [after - before for before, after in itertools.pairwise(times)]
    return statistics.quantiles(seconds[STEPS // 2 :], n=4)[0]
