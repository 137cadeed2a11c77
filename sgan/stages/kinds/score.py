"""Scores a finished stack, at its end and at its best evaluation, and draws the paper's figures of it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from sgan.config import IMAGE
from sgan.evaluation import figures
from sgan.evaluation.evaluate import EVALUATION_SAMPLES, GRID_SEED, Evaluation
from sgan.models import export as model
from sgan.models.encoder import Encoder
from sgan.models.stack import Level
from sgan.stages.context import MODEL_FILE, REFERENCE_FILE, Context, Evaluator, Running
from sgan.stages.graph import JointStage, LevelStage, ScoreStage
from sgan.stages.kinds import classifier, inception, scorer
from sgan.stages.kinds.level import WEIGHTS, build, generators, load_encoder
from sgan.stages.naming import name
from sgan.store.local import FIGURES, MODELS
from sgan.training.checkpoint import load_modules
from sgan.training.loop import Progress

LOWER_IS_BETTER = ("fid", "feature_fid")


def run(stage: ScoreStage, context: Context, folder: Path, evaluator: Evaluator | None) -> Running:
    """Score the last and the best weights; both become models in the stage's folder."""
    yield Progress(0, stage.samples)
    first, recipe = stage.levels[0], stage.joint.recipe if stage.joint else stage.levels[0].recipe
    levels, _ = build(stage.levels, recipe, context.data, context.device)
    parts = [levels] if stage.joint else [[level] for level in levels]
    encoder = classifier.load(stage.encoder, context) if stage.encoder else None
    judge = inception.load(stage.inception, context) if stage.inception else None
    evaluation = _evaluation(stage, levels, encoder, context)
    last = [context.facts(trained)["images"] for trained in stage.trained]
    best = [_best(stage, *each, context) for each in zip(stage.trained, parts, strict=True)]
    scores: dict[str, float] = {}
    for title, points in ((model.LAST, last), (model.BEST, best)):
        if points != last or title == model.LAST:
            for trained, part, images in zip(stage.trained, parts, points, strict=True):
                _load(trained, part, images, context)
            values = evaluation.score(stage.samples, first.seed, judge)
        scores |= {f"best_{score}": value for score, value in values.items()} if title == model.BEST else values
        about = {"trial": name(stage), "seed": first.seed, "commit": context.commit, "scores": values}
        model.save(folder / MODELS / title, levels, first.dataset, recipe, stage.sampling, about)
        if title == model.LAST:
            features = context.tensors(stage.scorer, REFERENCE_FILE)["features"]
            known = (figures.class_names(first.dataset), context.data, evaluation.scorer, features)
            for figure, drawn in figures.draw_all(levels, stage.sampling, *known).items():
                drawn.save(folder / FIGURES / f"{figure}.png")
    weights = context.facts(stage.scorer)["files"][MODEL_FILE]
    by_classes = scorer.fingerprint(stage.scorer, weights, stage.samples)
    judged = inception.fingerprint(stage.inception, stage.samples) if stage.inception else by_classes
    yield Progress(stage.samples, stage.samples)
    return {
        "scores": scores,
        "best_images": {name(trained): images for trained, images in zip(stage.trained, best, strict=True)},
        "fingerprint": {"scores": judged, "classes": by_classes},
    }


def _evaluation(stage: ScoreStage, levels: list[Level], encoder: Encoder | None, context: Context) -> Evaluation:
    return Evaluation(levels, stage.sampling, context.data, encoder, *scorer.load(stage.scorer, context))


def _best(stage: ScoreStage, trained: JointStage | LevelStage, levels: list[Level], context: Context) -> int:
    """Images that a trained stage had seen at its best evaluation."""
    last = context.facts(trained)["images"]
    kept = [int(Path(file).stem) for file in context.facts(trained)["files"] if file.startswith(f"{WEIGHTS}/")]
    if not kept:
        return last
    lowest = stage.levels[0] if isinstance(trained, JointStage) else trained
    evaluation = _evaluation(stage, levels, load_encoder(lowest, context), context)
    score = stage.best_by if lowest.low == IMAGE else "feature_fid"
    values = {}
    for images in (*sorted(kept), last):
        _load(trained, levels, images, context)
        values[images] = evaluation.score(EVALUATION_SAMPLES, GRID_SEED)[score]
    return best_point(values, score in LOWER_IS_BETTER)


def best_point(values: Mapping[int, float], lower: bool) -> int:
    """The earliest point with the best finite value, the lowest or the highest; the last one where none is finite."""
    finite = {images: value for images, value in sorted(values.items()) if math.isfinite(value)}
    pick = min if lower else max
    return pick(finite, key=finite.__getitem__) if finite else max(values)


def _load(trained: JointStage | LevelStage, levels: Sequence[Level], images: int, context: Context) -> None:
    """Give levels the weights that they had after so many images."""
    file = f"{WEIGHTS}/{images:09d}.safetensors"
    tensors = context.tensors(trained, file if file in context.facts(trained)["files"] else MODEL_FILE)
    load_modules(generators(levels), tensors)
