"""What each kind of stage does: trains a classifier, a level or all levels, asks the Inception network, or scores."""

import functools
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sgan.checks import as_json, content_key
from sgan.config import IMAGE, GanRecipe
from sgan.data.batches import Data, pixel_mean, turned
from sgan.evaluation import figures, grid, inception
from sgan.evaluation import scores as metrics
from sgan.evaluation.evaluate import Evaluation, InceptionJudge
from sgan.models import export as model
from sgan.models.discriminator import Discriminator
from sgan.models.encoder import Encoder
from sgan.models.generator import new_generator
from sgan.models.stack import Level
from sgan.stages.graph import ClassifierStage, InceptionStage, JointStage, LevelStage, Plan, ScoreStage, name
from sgan.store.files import read_tensors, sha256, write_tensors
from sgan.store.local import FIGURES, MODELS, Store
from sgan.training.loop import (
    BEST_FILE,
    START_FILE,
    Progress,
    load_modules,
    load_optimisers,
    loop,
    module_tensors,
    task_tensors,
)
from sgan.training.steps import ClassifierTask, GanTask

MODEL_FILE = "model.safetensors"
REFERENCE_FILE = "reference.safetensors"
CLASSIFIER_EVALUATIONS = 4
"""Test accuracies while a classifier trains, after one before it does."""
INCEPTION_PART = 256
"""Real images between two reports of the Inception network."""
FORMAT = torch.channels_last
"""Convolutions are faster with channels last, on CPUs and on GPUs."""


@dataclass(frozen=True)
class Worker:
    """Where stages run.

    Attributes:
        store: where finished stages lie.
        data: the dataset, on `device`.
        device: torch's name of the device.
        plan: the trial.
        commit: noted with every stage.
    """

    store: Store
    data: Data
    device: str
    plan: Plan
    commit: str


def _new_classifier(stage: ClassifierStage) -> Encoder:
    return Encoder(stage.dataset, stage.recipe.init_std, 4 if stage.recipe.objective == "rotation" else None)


def load_classifier(stage: ClassifierStage, store: Store, device: str) -> Encoder:
    """A trained classifier, frozen."""
    encoder = _new_classifier(stage).to(device)
    load_modules({"encoder": encoder}, store.tensors(name(stage), MODEL_FILE))
    return encoder.eval().requires_grad_(False).to(memory_format=FORMAT)


@functools.lru_cache(maxsize=1)
def _load_scorer(scorer: ClassifierStage, store: Store, device: str) -> tuple[Encoder, metrics.Reference]:
    """The scorer and what it says of the training images; kept, since every stage in a process needs it."""
    tensors = store.tensors(name(scorer), REFERENCE_FILE)
    reference = metrics.Reference(metrics.Features(tensors["features"], tensors["logits"]))
    return load_classifier(scorer, store, device), reference


def _evaluation(
    levels: list[Level], encoder: Encoder | None, scorer: ClassifierStage, sampling: str, worker: Worker
) -> Evaluation:
    """Scores and grids of levels, by a scorer."""
    judges = _load_scorer(scorer, worker.store, worker.device)
    return Evaluation(levels, sampling, worker.data, encoder, *judges)


def _encoder(stage: LevelStage | ScoreStage, worker: Worker) -> Encoder | None:
    return load_classifier(stage.encoder, worker.store, worker.device) if stage.encoder else None


def _role_seed(seed: int, role: str) -> int:
    """The seed of a trial's stage: the same for every variant, another for every role, so that the joint stage does
    not see the levels' batches and noise again."""
    return int(content_key([seed, role])[:12], 16)


def _run_classifier(stage: ClassifierStage, worker: Worker, folder: Path, outcome: dict) -> Generator[Progress]:
    seed, data = _role_seed(stage.seed, stage.kind), worker.data
    torch.manual_seed(seed)
    encoder = _new_classifier(stage).to(worker.device).to(memory_format=FORMAT)
    encoder.mean.copy_(pixel_mean(data.images, stage.recipe.pixel_mean))
    task = ClassifierTask(encoder, data, stage.recipe, seed)

    test_images, test_labels = data.test_images, data.test_labels
    if stage.recipe.objective == "rotation":
        test_labels = torch.arange(len(test_images), device=test_images.device) % 4
        test_images = turned(test_images, test_labels)

    def evaluate(images: int) -> dict[str, float]:
        found = metrics.classify(encoder, test_images)
        return {"test_accuracy": metrics.accuracy(found.logits, test_labels)}

    steps = max(1, stage.recipe.images // stage.recipe.batch)
    yield from loop(task, steps, stage.recipe.batch, folder, evaluate, CLASSIFIER_EVALUATIONS)
    write_tensors(folder / MODEL_FILE, module_tensors(task.modules))
    if stage.kind == "scorer":
        train, test = metrics.classify(encoder, data.images), metrics.classify(encoder, data.test_images)
        reference = metrics.Reference(train)
        on_train = metrics.scores(train, reference, data.labels.cpu())
        on_test = metrics.scores(test, reference, data.test_labels.cpu())
        # As in the paper, the ceiling is the Inception score of the training images; their FID would be 0, so FID and
        # diversity are the test images' against the training images.
        outcome["scores"] = on_test | {key: on_train[key] for key in on_train if key.startswith("inception")}
        write_tensors(folder / REFERENCE_FILE, {"features": train.features, "logits": train.logits})
        found = as_json(_scorer_fingerprint(stage, sha256(folder / MODEL_FILE), len(data.images)))
        outcome["fingerprint"] = {"scores": found, "classes": found}


def build(
    stages: tuple[LevelStage, ...], recipe: GanRecipe, data: Data, device: str
) -> tuple[list[Level], list[Discriminator]]:
    """Fresh levels with their discriminators, each initialised from its stage's seed."""
    levels, discriminators = [], []
    for stage in stages:
        torch.manual_seed(_role_seed(stage.seed, stage.low))
        ends = (stage.low, stage.high, stage.labels, stage.through, stage.codes)
        generator = new_generator(stage.dataset, recipe, *ends).to(device)
        if stage.low == IMAGE:
            generator.mean.copy_(pixel_mean(data.images, recipe.pixel_mean))
        discriminator = Discriminator(stage.dataset, recipe, stage.low, stage.through, stage.codes).to(device)
        generator = generator.to(memory_format=FORMAT)
        levels.append(Level(stage.low, stage.high, generator, stage.labels, stage.codes, stage.through))
        discriminators.append(discriminator.to(memory_format=FORMAT))
    return levels, discriminators


def _modules(levels: list[Level], discriminators: list[Discriminator]) -> dict[str, nn.Module]:
    """The modules under the names by which GanTask keeps them."""
    generators = nn.ModuleList(level.generator for level in levels)
    return {"generator": generators, "discriminator": nn.ModuleList(discriminators)}


def _load(
    stages: tuple[LevelStage, ...], recipe: GanRecipe, worker: Worker, file: str = MODEL_FILE
) -> tuple[list[Level], list[Discriminator]]:
    """Independently trained levels with their discriminators."""
    levels, discriminators = build(stages, recipe, worker.data, worker.device)
    for stage, level, discriminator in zip(stages, levels, discriminators, strict=True):
        load_modules(_modules([level], [discriminator]), worker.store.tensors(name(stage), file))
    return levels, discriminators


def _run_level(stage: LevelStage, worker: Worker, folder: Path, outcome: dict) -> Generator[Progress]:
    built = build((stage,), stage.recipe, worker.data, worker.device)
    steps = max(1, stage.images // stage.recipe.batch)
    snapshot = max(1, round(steps * stage.joint_start)) if stage.joint_start < 1 else None
    task = _task(*built, stage, stage.low, stage, 1.0, worker)
    yield from _train(task, stage, worker, folder, outcome, snapshot)
    if stage.keep_adam:
        write_tensors(folder / MODEL_FILE, task_tensors(task))


def _run_joint(stage: JointStage, worker: Worker, folder: Path, outcome: dict) -> Generator[Progress]:
    first = stage.levels[0]
    file = START_FILE if first.joint_start < 1 else MODEL_FILE
    loaded = _load(stage.levels, stage.recipe, worker, file)
    task = _task(*loaded, stage, "joint", first, stage.feedback, worker)
    if not stage.fresh_adam:
        place = dict.fromkeys(task.modules, 0)
        for level, generator, discriminator in zip(stage.levels, task.generator, task.discriminator, strict=True):
            load_optimisers(task, worker.store.tensors(name(level), file), place)
            place["generator"] += len(list(generator.parameters()))
            place["discriminator"] += len(list(discriminator.parameters()))
    yield from _train(task, stage, worker, folder, outcome)


def _task(
    levels: list[Level],
    discriminators: list[Discriminator],
    stage: LevelStage | JointStage,
    role: str,
    lowest: LevelStage,
    feedback: float,
    worker: Worker,
) -> GanTask:
    """What trains levels, alone or together."""
    recipe, data = stage.recipe, worker.data
    return GanTask(
        levels,
        discriminators,
        _encoder(lowest, worker),
        data,
        recipe,
        lowest.weights,
        seed=_role_seed(lowest.seed, role),
        mean=pixel_mean(data.images, recipe.pixel_mean),
        classes=lowest.dataset.classes,
        feedback=feedback,
    )


def _train(
    task: GanTask,
    stage: LevelStage | JointStage,
    worker: Worker,
    folder: Path,
    outcome: dict,
    snapshot: int | None = None,
) -> Iterator[Progress]:
    """Train levels, and keep their last weights and the best."""
    asked = stage.evaluations
    evaluation = _evaluation(task.levels, task.encoder, asked.scorer, asked.sampling, worker)
    yield from loop(
        task,
        max(1, stage.images // stage.recipe.batch),
        stage.recipe.batch,
        folder,
        lambda seen: evaluation(seen, folder),
        asked.count,
        snapshot,
        asked.best_by,
    )
    if (folder / BEST_FILE).exists():
        outcome["best_images"] = int(read_tensors(folder / BEST_FILE)[1]["images"])
    write_tensors(folder / MODEL_FILE, module_tensors(task.modules))


def _run_inception(stage: InceptionStage, worker: Worker, folder: Path, outcome: dict) -> Generator[Progress]:
    network, data = inception.load(worker.store.weights(stage.weights), worker.device), worker.data
    total, parts = len(data.images), []
    for part in data.images.split(INCEPTION_PART):
        yield Progress(sum(len(found.logits) for found in parts), total)
        parts.append(network.describe(part))
    real = metrics.join(parts)
    statistics = metrics.statistics(real.features)
    on_test = metrics.network_scores(network.describe(data.test_images), real, statistics)
    outcome["scores"] = on_test | metrics.inception_scores(real.logits)
    outcome["fingerprint"] = {"scores": as_json(_inception_fingerprint(stage, total))}
    tensors = {"features": real.features, "logits": real.logits}
    tensors |= {key: torch.from_numpy(value) for key, value in statistics.items()}
    write_tensors(folder / REFERENCE_FILE, tensors)
    yield Progress(total, total)


def _inception_fingerprint(stage: InceptionStage, samples: int) -> metrics.Fingerprint:
    reference = f"{stage.dataset}, training images ({stage.data})"
    return metrics.Fingerprint(inception.NETWORK, stage.weights, inception.RESIZE, samples, reference)


def _scorer_fingerprint(stage: ClassifierStage, weights: str, samples: int) -> metrics.Fingerprint:
    reference = f"{stage.dataset.name}, training images ({stage.data})"
    return metrics.Fingerprint("the dataset's own classifier", weights, "none", samples, reference)


@functools.lru_cache(maxsize=1)
def _load_judge(stage: InceptionStage, store: Store, device: str) -> InceptionJudge:
    """The Inception network and what it says of the training images; kept, since every score needs it."""
    tensors = store.tensors(name(stage), REFERENCE_FILE)
    real = metrics.Features(tensors["features"], tensors["logits"])
    statistics = {key: tensors[key].numpy() for key in ("mu", "root")}
    return InceptionJudge(inception.load(store.weights(stage.weights), device), real, statistics)


def _stack(stage: ScoreStage, worker: Worker, best: bool) -> list[Level]:
    """A finished stack: as it was at its end, or at the best point of its joint stage or else of each level."""
    first = stage.levels[0]
    recipe = stage.joint.recipe if stage.joint else first.recipe
    levels, _ = build(stage.levels, recipe, worker.data, worker.device)
    made = [stage.joint] if stage.joint else list(stage.levels)
    for part, trained in zip([levels] if stage.joint else [[level] for level in levels], made, strict=True):
        file = BEST_FILE if best and "best_images" in worker.store.facts(name(trained)) else MODEL_FILE
        tensors = worker.store.tensors(name(trained), file)
        load_modules({"generator": nn.ModuleList(level.generator for level in part)}, tensors)
    return levels


def _run_score(stage: ScoreStage, worker: Worker, folder: Path, outcome: dict) -> Generator[Progress]:
    first = stage.levels[0]
    yield Progress(0, stage.samples)
    made = [worker.store.facts(name(trained)) for trained in ((stage.joint,) if stage.joint else stage.levels)]
    is_last = all(facts.get("best_images", facts["images"]) == facts["images"] for facts in made)
    judge = _load_judge(stage.inception, worker.store, worker.device) if stage.inception else None
    scores: dict[str, float] = {}
    for best in (False, True):
        if not best or not is_last:
            levels, encoder = _stack(stage, worker, best), _encoder(stage, worker)
            evaluation = _evaluation(levels, encoder, stage.scorer, stage.sampling, worker)
            found = evaluation.score(stage.samples, first.seed, judge)
        scores |= {f"best_{score}": value for score, value in found.items()} if best else found
        about = {"trial": name(stage), "seed": first.seed, "commit": worker.commit, "scores": found}
        place = folder / MODELS / (model.BEST if best else model.LAST)
        recipe = stage.joint.recipe if stage.joint else first.recipe
        model.save(place, levels, first.dataset, recipe, stage.sampling, about)
        if not best:
            features = worker.store.tensors(name(stage.scorer), REFERENCE_FILE)["features"]
            known = (worker.data, evaluation.scorer, features, evaluation.classes)
            for title, drawn in figures.draw_all(levels, stage.sampling, *known).items():
                grid.save(drawn.images, folder / FIGURES / f"{title}.png", drawn.columns)
    outcome["scores"] = scores
    weights = worker.store.facts(name(stage.scorer))["files"][MODEL_FILE]
    classes = _scorer_fingerprint(stage.scorer, weights, stage.samples)
    judged = _inception_fingerprint(stage.inception, stage.samples) if stage.inception else classes
    outcome["fingerprint"] = {"scores": as_json(judged), "classes": as_json(classes)}
    yield Progress(stage.samples, stage.samples)


RUNNERS: dict[str, Callable[..., Generator[Progress]]] = {
    "encoder": _run_classifier,
    "scorer": _run_classifier,
    "inception": _run_inception,
    "level": _run_level,
    "joint": _run_joint,
    "score": _run_score,
}
"""Kind of a stage -> what runs it."""
