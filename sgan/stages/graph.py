"""A trial as stages with content keys.

    scorer ------------------------------------------+
    encoder -> level N-1, ..., level 0 -> [joint] -> score

A stage is a frozen dataclass of all that its result depends on, its parents included; its name is the hash of that and
of the code that makes it, so equal work has one name in every trial and every sweep, and is done once.
"""

import ast
import dataclasses
import functools
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from sgan.checks import content_key
from sgan.config import IMAGE, LABEL, Codes, Config, EncoderRecipe, GanRecipe, Weights
from sgan.shapes import Dataset

SCORER_SEED = 2**31 - 1
"""The scorer shares its seed with no trial."""
_TRAINING = (
    "data/batches",
    *("models/encoder", "models/generator", "models/discriminator", "models/stack"),
    *(f"training/{name}" for name in ("losses", "optimizers", "checkpoint", "loop", "cuda_graphs", "steps")),
    *("stages/runners", "stages/run"),
)
_SCORING = (
    *_TRAINING,
    *(f"evaluation/{name}" for name in ("scores", "inception", "evaluate", "figures", "grid")),
    "models/export",
)


@functools.cache
def code_version(scoring: bool = True) -> str:
    """Hash of the code that training depends on, and scoring too, without its comments, docstrings and layout."""
    return content_key([_code(module) for module in (_SCORING if scoring else _TRAINING)])


@functools.cache
def _code(module: str) -> str:
    tree = ast.parse((Path(__file__).parents[1] / f"{module}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            node.body = [item for item in node.body if not _is_text(item)] or [ast.Pass()]
    return ast.unparse(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@dataclass(frozen=True)
class ClassifierStage:
    """Trains a classifier on the real data: a seed's encoder, or the scorer (`kind` says which)."""

    kind: str
    dataset: Dataset
    data: str
    recipe: EncoderRecipe
    seed: int

    @property
    def parents(self) -> "tuple[Stage, ...]":
        return ()


@dataclass(frozen=True)
class InceptionStage:
    """Asks the Inception network with these weights (SHA-256) about the real images, once for all trials."""

    dataset: str
    data: str
    weights: str

    kind = "inception"

    @property
    def parents(self) -> "tuple[Stage, ...]":
        return ()


@dataclass(frozen=True)
class Evaluations:
    """Scores and grids drawn while a stage trains; its weights at the best of them are kept beside the last.

    Attributes:
        count: how many, at even distances, the last at the end.
        best_by: the score whose best point is kept.
        sampling: as in Recipe.
    """

    scorer: ClassifierStage
    count: int
    best_by: str
    sampling: str


@dataclass(frozen=True)
class LevelStage:
    """Trains the level between taps `low` and `high` on real features.

    `encoder` is None where neither a tap nor a loss needs it; `keep_adam` keeps Adam's states for the joint stage;
    fields as in Recipe and Variant.
    """

    dataset: Dataset
    data: str
    low: str
    high: str
    labels: bool
    through: tuple[str, ...]
    codes: Codes | None
    recipe: GanRecipe
    weights: Weights
    images: int
    joint_start: float
    keep_adam: bool
    evaluations: Evaluations
    seed: int
    encoder: ClassifierStage | None

    kind = "level"

    @property
    def parents(self) -> "tuple[Stage, ...]":
        return (self.evaluations.scorer, *((self.encoder,) if self.encoder else ()))


@dataclass(frozen=True)
class JointStage:
    """Goes on training all levels together, each on what the one above makes."""

    levels: tuple[LevelStage, ...]
    recipe: GanRecipe
    feedback: float
    fresh_adam: bool
    images: int
    evaluations: Evaluations

    kind = "joint"

    @property
    def parents(self) -> "tuple[Stage, ...]":
        return (*self.levels[0].parents, *self.levels)


@dataclass(frozen=True)
class ScoreStage:
    """Samples from the whole stack, at its end and at its best, and scores the samples.

    `encoder` is None for a stack without labels; `inception` is None where the dataset's classifier gives all scores.
    """

    levels: tuple[LevelStage, ...]
    joint: JointStage | None
    encoder: ClassifierStage | None
    scorer: ClassifierStage
    inception: InceptionStage | None
    samples: int
    sampling: str

    kind = "score"

    @property
    def parents(self) -> "tuple[Stage, ...]":
        made = (self.joint,) if self.joint else self.levels
        judges = (self.scorer, *((self.inception,) if self.inception else ()))
        return (*judges, *((self.encoder,) if self.encoder else ()), *made)


Stage = ClassifierStage | InceptionStage | LevelStage | JointStage | ScoreStage


@functools.cache
def name(stage: Stage) -> str:
    """The stage's name in the store: its kind and content key. Stages inside it stand in the key by their names."""
    scores = stage.kind in ("score", "scorer", "inception")
    return f"{stage.kind}-{content_key([stage.kind, _named(stage), code_version(scores)])}"


def _named(value: "Stage | Evaluations") -> dict[str, Any]:
    """The fields of a stage, where stages are their names."""
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    for key, inner in fields.items():
        if isinstance(inner, Stage):
            fields[key] = name(inner)
        elif isinstance(inner, Evaluations):
            fields[key] = _named(inner)
        elif isinstance(inner, tuple):
            fields[key] = [name(item) if isinstance(item, Stage) else item for item in inner]
    return fields


@dataclass(frozen=True)
class Plan:
    """The stages of one trial.

    Attributes:
        stages: each after its parents, with what it is to the trial: "scorer", "encoder", "level1", "level0", "joint",
            "score".
    """

    stages: tuple[tuple[str, Stage], ...]

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The stages' names, in their order."""
        return tuple(name(stage) for _, stage in self.stages)

    @property
    def score(self) -> ScoreStage:
        """The last stage."""
        stage = self.stages[-1][1]
        assert isinstance(stage, ScoreStage)
        return stage

    @property
    def judges(self) -> tuple[Stage, ...]:
        """What scores: the classifier, and where one was asked for the Inception network."""
        return (self.score.scorer, *((self.score.inception,) if self.score.inception else ()))

    @property
    def name(self) -> str:
        """The trial's name: that of its last stage."""
        return self.names[-1]


def plan(config: Config) -> Plan:
    """The stages of a trial. Levels come from the top down, since a top level trains longest."""
    recipe, variant = config.recipe, config.variant
    scorer = ClassifierStage("scorer", config.judge, config.data, recipe.scorer, SCORER_SEED)
    inception = InceptionStage(config.judge.name, config.data, config.inception) if config.inception else None
    encoder = ClassifierStage("encoder", config.dataset, config.data, recipe.encoder, config.seed)
    evaluations, levels = Evaluations(scorer, recipe.evaluations, recipe.best_by, recipe.sampling), []
    for low, high in pairwise(variant.bounds):
        needs_encoder = low != IMAGE or high != LABEL or variant.weights.conditional > 0
        levels.append(
            LevelStage(
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
                evaluations=evaluations if low == IMAGE else replace(evaluations, best_by="feature_fid"),
                seed=config.seed,
                encoder=encoder if needs_encoder else None,
            )
        )
    joint = None
    if variant.joint:
        joint = JointStage(
            tuple(levels), recipe.joint, recipe.feedback, recipe.fresh_adam, recipe.joint_images, evaluations
        )
    score = ScoreStage(
        tuple(levels), joint, encoder if variant.labels else None, scorer, inception, recipe.samples, recipe.sampling
    )
    stages: list[tuple[str, Stage]] = [("scorer", scorer)]
    stages += [("inception", inception)] if inception else []
    if score.encoder or levels[0].encoder:
        stages.append(("encoder", encoder))
    stages += [(f"level{index}", level) for index, level in reversed(list(enumerate(levels)))]
    stages += [("joint", joint)] if joint else []
    return Plan((*stages, ("score", score)))
