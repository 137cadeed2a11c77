"""Scores a finished stack, at its end and at its best evaluation, and draws the paper's figures of it."""

import math
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from sgan.evaluation import figures, grid
from sgan.evaluation.evaluate import EVALUATION_SAMPLES, GRID_SEED, Evaluation
from sgan.evaluation.judges import HELD_OUT
from sgan.evaluation.scores import SUBSET
from sgan.models import export as model
from sgan.models.generator import new_generator
from sgan.models.stack import Stack, balanced_labels
from sgan.models.tensors import load_modules
from sgan.stages.context import MODEL_FILE, Context, Evaluator, Running
from sgan.stages.graph import GanStage, ScoreStage, name
from sgan.stages.kinds import classifier, judge
from sgan.stages.kinds.level import WEIGHTS
from sgan.store.local import FIGURES, MODELS
from sgan.training.loop import Progress
from sgan.training.steps import FORMAT


def run(stage: ScoreStage, context: Context, folder: Path, evaluator: Evaluator | None) -> Running:
    """Score the last and the best weights; both become models in the stage's folder."""
    yield Progress(0, stage.samples)
    first, recipe = stage.levels[0], stage.trained[0].recipe
    built = [new_generator(each.dataset, recipe, each.level) for each in stage.levels]
    stack = [generator.to(context.device).to(memory_format=FORMAT) for generator in built]
    parts = [stack] if stage.joint else [[generator] for generator in stack]
    encoder = classifier.load(stage.encoder or first.encoder, context)
    known, held_out = (judge.load(stage.judge, network, context) for network in (stage.network, None))
    evaluation = Evaluation(stack, stage.sampling, context.data, encoder, known)
    others = [Evaluation(part, stage.sampling, context.data, encoder, held_out) for part in parts]
    last = [context.facts(trained)["images"] for trained in stage.trained]
    best = [_best(*each, context) for each in zip(stage.trained, others, strict=True)]
    scores, coverage, seed = dict[str, float](), list[float | None](), first.seed
    for title, points in ((model.LAST, last), (model.BEST, best)):
        if points != last or title == model.LAST:
            for each in zip(stage.trained, parts, points, strict=True):
                _load(*each, context)
            values = evaluation.score(stage.samples, seed)
        scores |= {f"best_{score}": value for score, value in values.items()} if title == model.BEST else values
        about = {"trial": name(stage), "seed": seed, "commit": context.commit, "scores": values}
        model.save(folder / MODELS / title, stack, first.dataset, recipe, stage.sampling, about)
        if title == model.LAST:
            own = known.rows[HELD_OUT]
            some = evaluation.made(balanced_labels(min(stage.samples, SUBSET), evaluation.classes), seed)
            coverage = own.class_coverage(own.describe(some).features)
            names = figures.class_names(first.dataset)
            pictures = figures.samples(stack, stage.sampling, names) | {"real": figures.real(context.data, names)}
            pictures["neighbours"] = figures.neighbours(stack, stage.sampling, names, context.data.images, own)
            for figure, (images, words) in pictures.items():
                grid.save(images, folder / FIGURES / f"{figure}.png", len(words.columns), words, figures.SIDE)
    facts = [context.facts(each)["fingerprint"] for each in (stage.judge, stage.network) if each]
    yield Progress(stage.samples, stage.samples)
    best_images = {name(trained): images for trained, images in zip(stage.trained, best, strict=True)}
    fingerprint = facts[0] | facts[-1]
    return {"scores": scores, "class_coverage": coverage, "best_images": best_images, "fingerprint": fingerprint}


def _best(trained: GanStage, evaluation: Evaluation, context: Context) -> int:
    """Return the number of images that a trained stage had seen at its best evaluation, by the FID of images or of
    features."""
    facts = context.facts(trained)
    kept = sorted(int(Path(file).stem) for file in facts["files"] if file.startswith(f"{WEIGHTS}/"))
    if not kept:
        return facts["images"]
    values = {}
    for images in (*kept, facts["images"]):
        _load(trained, evaluation.stack, images, context)
        scores = evaluation.score(EVALUATION_SAMPLES, GRID_SEED)
        values[images] = scores["fid" if "fid" in scores else "feature_fid"]
    return best_point(values)


def best_point(values: Mapping[int, float]) -> int:
    """The earliest point with the lowest finite value; the last one where none is finite."""
    finite = {images: value for images, value in sorted(values.items()) if math.isfinite(value)}
    return min(finite, key=finite.__getitem__) if finite else max(values)


def _load(trained: GanStage, stack: Stack, images: int, context: Context) -> None:
    """Load the weights that a stack had after `images` training images."""
    file = f"{WEIGHTS}/{images:09d}.safetensors"
    tensors = context.tensors(trained, file if file in context.facts(trained)["files"] else MODEL_FILE)
    load_modules({"generator": nn.ModuleList(stack)}, tensors)
