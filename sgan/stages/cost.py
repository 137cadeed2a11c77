"""What a config costs and whether its networks fit together, before anything is trained."""

import statistics
import tempfile
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sgan.checks import ConfigError
from sgan.config import IMAGE, LABEL, Config
from sgan.data.batches import Data, pixel_mean
from sgan.evaluation import figures, inception
from sgan.evaluation import scores as metrics
from sgan.evaluation.evaluate import EVALUATION_SAMPLES, REAL_SAMPLES, Evaluation
from sgan.models.discriminator import Discriminator
from sgan.models.encoder import Encoder, tap_shapes
from sgan.models.generator import new_generator
from sgan.shapes import Dataset
from sgan.stages.graph import ClassifierStage, InceptionStage, JointStage, LevelStage, ScoreStage, Stage, name, plan
from sgan.stages.runners import CLASSIFIER_EVALUATIONS, FORMAT, build
from sgan.training.cuda_graphs import EAGER
from sgan.training.steps import VARIANCE_IMAGES, ClassifierTask, GanTask

STEPS, STEP_SECONDS = 3, 0.1
"""Steps are measured, after one that is not, until there are so many and they have taken so long."""
INCEPTION_IMAGES = 8
"""Images that the Inception network's time is measured on; a GPU is given a whole batch."""


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


def stage_seconds(
    configs: list[Config], data: Data, images: int, device: str, inception_weights: Path | None = None
) -> dict[str, float]:
    """Seconds that each stage of these configs would take here (name -> seconds): its steps, its evaluations, and what
    looks at the dataset or a part of it, each measured with untrained networks.

    How often a generator steps depends on how training goes: the mean of the recipe's rule is taken. A joint stage's
    step is taken as the sum of its levels' steps, and of the Inception network's scores only its look at the images.

    Args:
        data: the dataset, of which EVALUATION_SAMPLES training images are enough.
        images: how many training images there are in all.
        inception_weights: file of the Inception network's weights, for configs that are scored by it.
    """
    probe, found = _Probe(data, images, device, inception_weights), {}
    for config in configs:
        for _, stage in plan(config).stages:
            if name(stage) not in found:
                found[name(stage)] = probe.seconds(stage)
    return found


@dataclass(frozen=True)
class _Level:
    """Measured of a level: seconds a step, and how many images pass through the encoder before the first step."""

    step: float
    before: int


class _Probe:
    """Measures every part of the stages once."""

    def __init__(self, data: Data, images: int, device: str, inception_weights: Path | None):
        self.data, self.images, self.device, self.inception_weights = data, images, device, inception_weights
        self.tests = len(data.test_images)
        self.measured: dict[Hashable, float] = {}
        self.levels: dict[LevelStage, _Level] = {}

    def seconds(self, stage: Stage) -> float:
        """Of a whole stage."""
        match stage:
            case ClassifierStage():
                looks = (CLASSIFIER_EVALUATIONS + 1) * self.tests
                looks += (self.images + self.tests) * (stage.kind == "scorer")
                judged = 2 * self._judged(stage.dataset) if stage.kind == "scorer" else 0.0
                steps = max(1, stage.recipe.images // stage.recipe.batch)
                return steps * self._classifier_step(stage) + looks * self._look(stage.dataset) + judged
            case LevelStage() | JointStage():
                stages = stage.levels if isinstance(stage, JointStage) else (stage,)
                levels = [self._level(each) for each in stages]
                steps = max(1, stage.images // stage.recipe.batch)
                return (
                    steps * sum(level.step for level in levels)
                    + max(level.before for level in levels) * self._look(stages[0].dataset)
                    + (stage.evaluations.count + 1) * self._evaluation(stages)
                )
            case ScoreStage():
                sample = self._evaluation(stage.levels) / EVALUATION_SAMPLES
                sample += self._inception() if stage.inception else 0.0
                # The weights at the best evaluation are scored too, where it was not the last.
                times = 2 if stage.levels[0].evaluations.count > 1 else 1
                return times * stage.samples * sample + self._figures(stage.levels)
            case InceptionStage():
                return (self.images + self.tests) * self._inception()

    def _once(self, what: Hashable, prepare: Callable[[], Callable[[int], object]]) -> float:
        """Seconds of a call that stands for all of its kind."""
        if what not in self.measured:
            self.measured[what] = _timed(prepare(), self.device, 1)
        return self.measured[what]

    def _classifier_step(self, stage: ClassifierStage) -> float:
        classes = 4 if stage.recipe.objective == "rotation" else None
        encoder = Encoder(stage.dataset, stage.recipe.init_std, classes).to(self.device).to(memory_format=FORMAT)
        recipe = replace(stage.recipe, batch=min(stage.recipe.batch, len(self.data.images)))
        task = ClassifierTask(encoder, self.data, recipe, 0)
        return _timed(task.step, self.device)

    def _level(self, stage: LevelStage) -> _Level:
        if stage not in self.levels:
            data, steps = self.data, round(statistics.fmean(steps for _, steps in stage.recipe.generator_steps))
            batch = min(stage.recipe.batch, len(data.images))
            recipe = replace(stage.recipe, batch=batch, generator_steps=((0.0, steps),))
            levels, discriminators = build((stage,), recipe, data, self.device)
            encoder = self._classifier(stage.dataset) if stage.encoder else None
            mean = pixel_mean(data.images, recipe.pixel_mean)
            classes = stage.dataset.classes
            task = GanTask(levels, discriminators, encoder, data, recipe, stage.weights, 0, mean, classes, 1.0)
            cached = task.caches(self.images)
            task.cache = task.cache if cached else {}
            # What GanTask and Evaluation look at when they are made.
            before = VARIANCE_IMAGES * (stage.high != LABEL) + REAL_SAMPLES * (stage.low != IMAGE)
            before = min(before, self.images) + self.images * cached
            self.levels[stage] = _Level(_timed(task.step, self.device), before)
        return self.levels[stage]

    def _evaluation(self, stages: tuple[LevelStage, ...]) -> float:
        """Of an evaluation while a level or a stack trains; what is above its lowest level counts for little."""
        with tempfile.TemporaryDirectory() as folder:

            def prepare() -> Callable[[int], object]:
                evaluation = self._judge(stages)
                return lambda images: evaluation(images, Path(folder))

            return self._once((stages[0].low, len(stages) > 1), prepare)

    def _figures(self, stages: tuple[LevelStage, ...]) -> float:
        def prepare() -> Callable[[int], object]:
            judge = self._judge(stages)
            features = metrics.classify(judge.scorer, self.data.images).features
            known = (judge.statistics, self.data, judge.scorer, features, judge.classes)
            return lambda _: figures.draw_all(judge.levels, *known)

        return self._once("figures", prepare)

    def _judge(self, stages: tuple[LevelStage, ...]) -> Evaluation:
        """What evaluates a level or a stack."""
        levels, _ = build(stages, stages[0].recipe, self.data, self.device)
        encoder = self._classifier(stages[0].dataset) if any(stage.encoder for stage in stages) else None
        scorer = self._classifier(stages[0].evaluations.scorer.dataset)
        reference = metrics.Reference(metrics.classify(scorer, self.data.images))
        return Evaluation(levels, stages[0].evaluations.sampling, self.data, encoder, scorer, reference)

    def _look(self, dataset: Dataset) -> float:
        """Of one image through a classifier."""

        def prepare() -> Callable[[int], object]:
            classifier = self._classifier(dataset)
            return lambda _: metrics.classify(classifier, self.data.images)

        return self._once(dataset, prepare) / len(self.data.images)

    def _judged(self, dataset: Dataset) -> float:
        """Of the scores of real images."""

        def prepare() -> Callable[[int], object]:
            found, labels = metrics.classify(self._classifier(dataset), self.data.images), self.data.labels.cpu()
            return lambda _: metrics.scores(found, metrics.Reference(found), labels)

        return self._once("judged", prepare)

    def _inception(self) -> float:
        """Of one image through the Inception network."""
        if self.inception_weights is None:
            return 0.0
        network = inception.load(self.inception_weights, self.device)
        some = self.data.images[: inception.BATCH if self.device.startswith("cuda") else INCEPTION_IMAGES]
        return self._once("inception", lambda: lambda _: network.describe(some)) / len(some)

    def _classifier(self, dataset: Dataset) -> Encoder:
        encoder = Encoder(dataset, 0.05).to(self.device).to(memory_format=FORMAT)
        return encoder.eval().requires_grad_(False)


def _timed(call: Callable[[int], object], device: str, times: int = STEPS) -> float:
    """Median seconds of a call, after one that is not counted (a step on a GPU: after those before its graph plays): of
    one that is long, or of several."""
    found: list[float] = []
    first = EAGER + 1 if device.startswith("cuda") and times > 1 else 1
    while len(found) < first + times or (times > 1 and sum(found[first:]) < STEP_SECONDS):
        began = time.perf_counter()
        call(len(found))
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return statistics.median(found[first:])
