"""A trial as a graph of stages (docs/architecture.md draws it).

A stage is a frozen dataclass of all that its result depends on, its parent stages included. Its name is a hash of its
fields, with parents by their names, and of its code. The code is all modules in COUNTED that the module of its kind
imports, directly or indirectly. Comments, docstrings and layout do not count, nor does code that only computes fields:
the fields count themselves. So equal work has one name in every sweep, and is done once.
"""

import ast
import functools
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from sgan.checks import content_key
from sgan.config import IMAGE, Config, EncoderRecipe, GanRecipe, JudgeRecipe, Level, Recipe, Weights
from sgan.shapes import Dataset

KINDS = {kind: kind for kind in ("judge", "level", "joint", "score")} | {"encoder": "classifier"}
"""Kind of a stage -> its file in sgan/stages/kinds."""
COUNTED = ("sgan.data.batches", "sgan.models.", "sgan.training.", "sgan.evaluation.", "sgan.stages.kinds.")
"""Modules, and packages (with a dot at the end), whose code counts in the names of stages."""
PACKAGE = Path(__file__).parents[1]


class _Stage:
    kind: str

    @property
    def inputs(self) -> tuple[Any, ...]:
        """The stages whose results this one reads: those among the fields."""
        return tuple(each for each in vars(self).values() if isinstance(each, _Stage))

    @property
    def parents(self) -> tuple[Any, ...]:
        """The inputs and all their parents, each once, and each after its own parents."""
        return tuple(dict.fromkeys(parent for stage in self.inputs for parent in (*stage.parents, stage)))


@dataclass(frozen=True)
class ClassifierStage(_Stage):
    """Trains the encoder of one seed on the real data."""

    dataset: Dataset
    data: str
    recipe: EncoderRecipe
    seed: int

    kind = "encoder"


@dataclass(frozen=True)
class JudgeStage(_Stage):
    """Makes a judge, a row of sgan.evaluation.judges, and scores `samples` draws of the real images, with repeats.

    Attributes:
        shape: channels and size of images.
        recipe, weights: the held-out judge's recipe and ""; or None and the SHA-256 of a given network's weights."""

    judge: str
    dataset: str
    shape: tuple[int, int]
    classes: int
    data: str
    recipe: JudgeRecipe | None
    weights: str
    samples: int

    kind = "judge"


@dataclass(frozen=True)
class LevelStage(_Stage):
    """Trains one level on real features; fields as in Recipe.

    Attributes:
        joint_start: share of the training after which the state is kept for the joint stage; 1: it uses the last state.
        keep_adam: the state for the joint stage includes Adam's.
        encoder: None where neither a tap nor a loss needs it."""

    dataset: Dataset
    data: str
    level: Level
    recipe: GanRecipe
    weights: Weights
    images: int
    joint_start: float
    keep_adam: bool
    evaluations: int
    sampling: str
    seed: int
    encoder: ClassifierStage | None

    kind = "level"
    feedback = 1.0  # no level stands above

    @property
    def levels(self) -> tuple["LevelStage"]:
        """The stage itself, as in a joint stage of one level."""
        return (self,)


@dataclass(frozen=True)
class JointStage(_Stage):
    """Trains all levels together, from their trained weights; fields as in Recipe. `scratch`: it starts from new
    weights, and takes only the architecture and the encoder from the levels."""

    levels: tuple[LevelStage, ...]
    scratch: bool
    recipe: GanRecipe
    feedback: float
    fresh_adam: bool
    images: int
    evaluations: int
    sampling: str

    kind = "joint"
    joint_start, keep_adam = 1.0, False  # no joint stage follows

    @property
    def inputs(self) -> tuple[Any, ...]:
        return tuple(filter(None, (each.encoder for each in self.levels))) if self.scratch else self.levels


GanStage = LevelStage | JointStage


@dataclass(frozen=True)
class ScoreStage(_Stage):
    """Samples from the whole stack, with its last and its best weights, and scores the samples by the held-out judge. A
    given `network` also scores them, and then leads (Judges.scores). `encoder` tells which samples have the
    requested label: a stack without labels has none here."""

    levels: tuple[LevelStage, ...]
    joint: JointStage | None
    encoder: ClassifierStage | None
    judge: JudgeStage
    network: JudgeStage | None
    samples: int
    sampling: str

    kind = "score"

    @property
    def inputs(self) -> tuple[Any, ...]:
        return (*self.trained, *filter(None, (self.encoder, self.judge, self.network)))

    @property
    def trained(self) -> tuple[GanStage, ...]:
        """The stages whose weights are scored."""
        return (self.joint,) if self.joint else self.levels


Stage = ClassifierStage | JudgeStage | GanStage | ScoreStage


@dataclass(frozen=True)
class Plan:
    """The stages of one trial. `stages`: pairs of a role ("judge", "network", "encoder", "level1", "level0", "joint",
    "score") and a stage, in an order in which each stage follows those that it needs."""

    stages: tuple[tuple[str, Stage], ...]

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(name(stage) for _, stage in self.stages)

    @property
    def name(self) -> str:
        """The trial's name: that of its last stage."""
        return self.names[-1]

    @property
    def score(self) -> ScoreStage:
        stage = self.stages[-1][1]
        assert isinstance(stage, ScoreStage)
        return stage

    @property
    def judges(self) -> tuple[Stage, ...]:
        """The stages that score: the held-out judge, and the given network where the config has one."""
        return (self.score.judge, *((self.score.network,) if self.score.network else ()))

    def needs(self, stage: Stage) -> tuple[Stage, ...]:
        """The stages of the trial that must be finished before this one runs: its parents and, for levels and the joint
        stage, the judge that evaluates while they train."""
        judge = (self.score.judge,) if isinstance(stage, GanStage) else ()
        return (*judge, *stage.parents)


def judge_stage(dataset: Dataset, data: str, recipe: Recipe) -> JudgeStage:
    """The stage of the held-out judge, the same for all widths of a dataset."""
    images = (dataset.channels, dataset.size)
    return JudgeStage("held-out", dataset.name, images, dataset.classes, data, recipe.judge, "", recipe.samples)


def plan(config: Config) -> Plan:
    """The stages of a trial. Levels come from the top down, since a top level trains longest."""
    recipe, variant = config.recipe, config.variant
    judge = judge_stage(config.dataset, config.data, recipe)
    given = replace(judge, judge=config.judge, recipe=None, weights=config.judge_weights)
    network = given if config.judge_weights else None
    encoder = ClassifierStage(config.dataset, config.data, recipe.encoder, config.seed)
    levels = tuple(
        LevelStage(
            dataset=config.dataset,
            data=config.data,
            level=level,
            recipe=recipe.gan,
            weights=variant.weights,
            images=recipe.image_level if level.low == IMAGE else recipe.feature_level,
            joint_start=recipe.joint_start or 1.0 if variant.cuts else 1.0,
            keep_adam=bool(variant.cuts and recipe.joint_start) and not recipe.fresh_adam,
            evaluations=recipe.evaluations,
            sampling=recipe.sampling,
            seed=config.seed,
            encoder=encoder if variant.cuts or variant.weights.conditional > 0 else None,
        )
        for level in variant.levels
    )
    joint = JointStage(
        levels=levels,
        scratch=recipe.joint_start == 0,
        recipe=recipe.joint,
        feedback=recipe.feedback,
        fresh_adam=recipe.fresh_adam,
        images=recipe.joint_images,
        evaluations=recipe.evaluations,
        sampling=recipe.sampling,
    )
    score = ScoreStage(
        levels=levels,
        joint=joint if variant.joint else None,
        encoder=encoder if variant.labels else None,
        judge=judge,
        network=network,
        samples=recipe.samples,
        sampling=recipe.sampling,
    )
    numbered = reversed(list(enumerate(levels)))
    stages = [("judge", judge), ("network", network), ("encoder", encoder)]
    stages += [*((f"level{index}", level) for index, level in numbered), ("joint", joint)]
    needed = score.parents
    return Plan((*((label, stage) for label, stage in stages if stage in needed), ("score", score)))


def cost(stage: Stage) -> float:
    """Rough cost of a stage; the unit is one training image of an image level."""
    match stage:
        case ClassifierStage():
            return 0.15 * stage.recipe.images
        case LevelStage():
            return stage.images * (1.0 if stage.level.low == IMAGE else 0.25)
        case JointStage():
            return 1.2 * stage.images
        case ScoreStage():
            return (2.0 if stage.network else 0.3) * stage.samples
        case JudgeStage():
            return stage.recipe.images if stage.recipe else 50_000


@functools.cache
def name(stage: Any) -> str:
    """Return the name of a stage in the store: its kind and content key."""
    values = {field.name: _by_name(getattr(stage, field.name)) for field in fields(stage)}
    return f"{stage.kind}-{content_key([stage.kind, values, code_digest(stage.kind)])}"


def _by_name(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_by_name(item) for item in value]
    return name(value) if hasattr(value, "parents") else value


def code_version() -> str:
    """Hash of the code that the results of stages of any kind depend on."""
    return content_key({kind: code_digest(kind) for kind in KINDS})


@functools.cache
def code_digest(kind: str, package: Path = PACKAGE) -> str:
    """Hash of the code of one kind of stage. `package`: folder of the package sgan."""
    code = import_closure(f"sgan.stages.kinds.{KINDS[kind]}", package)
    return content_key({module: code[module] for module in code if module.startswith(COUNTED)})


def import_closure(module: str, package: Path = PACKAGE) -> dict[str, str]:
    """The module and all modules of sgan that it imports, directly or through others, anywhere in their code: dotted
    name -> code as from `_parse`. A package's __init__ counts only where it is named."""
    code: dict[str, str] = {}
    queue = [module]
    while queue:
        module = queue.pop()
        path = package.joinpath(*module.split(".")[1:])
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if module not in code and path.is_file():
            code[module], imported = _parse(path.read_text())
            queue += imported
    return code


@functools.cache
def _parse(source: str) -> tuple[str, tuple[str, ...]]:
    """A module's code without comments, docstrings and layout, and the dotted names in sgan that it may import."""
    tree, imported = ast.parse(source), list[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            texts = [item for item in node.body if isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant)]
            node.body = [item for item in node.body if item not in texts] or [ast.Pass()]
    return ast.unparse(tree), tuple(each for each in imported if each.split(".")[0] == "sgan")
