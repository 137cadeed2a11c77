"""A trial as a graph of stages.

scorer -----------------------------------------------+
encoder -> level N-1, ..., level 0 -> [joint] -> score

A stage is a frozen dataclass of all that its result depends on, its parents included; its name (sgan.stages.naming) is
the hash of that and of the code that makes it.
"""

import functools
from dataclasses import dataclass
from itertools import pairwise

from sgan.config import IMAGE, LABEL, Config
from sgan.stages.kinds.classifier import ClassifierStage
from sgan.stages.kinds.inception import InceptionStage
from sgan.stages.kinds.joint import JointStage
from sgan.stages.kinds.level import LevelStage
from sgan.stages.kinds.score import ScoreStage
from sgan.stages.naming import code_version as code_version
from sgan.stages.naming import name as name

SCORER_SEED = 2**31 - 1
"""The scorer shares its seed with no trial."""
Stage = ClassifierStage | InceptionStage | LevelStage | JointStage | ScoreStage


@dataclass(frozen=True)
class Plan:
    """The stages of one trial.

    Attributes:
        stages: each after those that it needs, with its role: "scorer", "inception", "encoder", "level1", "level0",
            "joint", "score".
    """

    stages: tuple[tuple[str, Stage], ...]

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The stages' names, in their order."""
        return tuple(name(stage) for _, stage in self.stages)

    @property
    def name(self) -> str:
        """The trial's name: that of its last stage."""
        return self.names[-1]

    @property
    def score(self) -> ScoreStage:
        """The last stage."""
        stage = self.stages[-1][1]
        assert isinstance(stage, ScoreStage)
        return stage

    @property
    def judges(self) -> tuple[Stage, ...]:
        """The stages that score: the classifier, and the Inception network where the config has one."""
        return (self.score.scorer, *((self.score.inception,) if self.score.inception else ()))

    @functools.cached_property
    def needs(self) -> dict[str, tuple[str, ...]]:
        """Label of each stage -> labels of the stages that must be finished before it runs: its parents and, for levels
        and the joint stage, the judge that evaluates while they train."""
        labels = {stage: label for label, stage in self.stages}
        judge = {"level": (self.score.scorer,), "joint": (self.score.scorer,)}
        return {
            label: tuple(labels[each] for each in (*judge.get(stage.kind, ()), *stage.parents))
            for label, stage in self.stages
        }


def plan(config: Config) -> Plan:
    """The stages of a trial. Levels come from the top down, since a top level trains longest."""
    recipe, variant = config.recipe, config.variant
    scorer = ClassifierStage("scorer", config.judge, config.data, recipe.scorer, SCORER_SEED)
    inception = InceptionStage(config.judge.name, config.data, config.inception) if config.inception else None
    encoder = ClassifierStage("encoder", config.dataset, config.data, recipe.encoder, config.seed)
    levels = tuple(_level(config, *ends, encoder) for ends in pairwise(variant.bounds))
    joint = None
    if variant.joint:
        joint = JointStage(
            levels=levels,
            recipe=recipe.joint,
            feedback=recipe.feedback,
            fresh_adam=recipe.fresh_adam,
            images=recipe.joint_images,
            evaluations=recipe.evaluations,
            sampling=recipe.sampling,
        )
    score = ScoreStage(
        levels=levels,
        joint=joint,
        encoder=encoder if variant.labels else None,
        scorer=scorer,
        inception=inception,
        samples=recipe.samples,
        sampling=recipe.sampling,
        best_by=recipe.best_by,
    )
    stages: list[tuple[str, Stage]] = [("scorer", scorer)]
    stages += [("inception", inception)] if inception else []
    stages += [("encoder", encoder)] if encoder in score.parents else []
    stages += [(f"level{index}", level) for index, level in reversed(list(enumerate(levels)))]
    stages += [("joint", joint)] if joint else []
    return Plan((*stages, ("score", score)))


def _level(config: Config, low: str, high: str, encoder: ClassifierStage) -> LevelStage:
    recipe, variant = config.recipe, config.variant
    needs_encoder = low != IMAGE or high != LABEL or variant.weights.conditional > 0
    return LevelStage(
        dataset=config.dataset,
        data=config.data,
        low=low,
        high=high,
        labels=variant.labels,
        through=variant.through,
        codes=variant.codes,
        recipe=recipe.gan,
        weights=variant.weights,
        images=recipe.image_level if low == IMAGE else recipe.feature_level,
        joint_start=recipe.joint_start if variant.cuts else 1.0,
        keep_adam=bool(variant.cuts) and not recipe.fresh_adam,
        evaluations=recipe.evaluations,
        sampling=recipe.sampling,
        seed=config.seed,
        encoder=encoder if needs_encoder else None,
    )
