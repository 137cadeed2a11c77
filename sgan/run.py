"""Runs stages: one, or all that a trial still needs, sharing them with every other process on the same store."""

import functools
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sgan import metrics
from sgan.checks import as_json, content_key
from sgan.config import IMAGE, GanRecipe
from sgan.data import Data, pixel_mean
from sgan.encoder import Encoder
from sgan.evaluation import Evaluation
from sgan.networks import Chain, Discriminator, Generator
from sgan.stack import Level
from sgan.stages import ClassifierStage, JointStage, LevelStage, Plan, ScoreStage, Stage, name
from sgan.store import Store, grid_file, write_tensors
from sgan.train import CHECKPOINT_FILE, ClassifierTask, Diverged, GanTask, Progress, load_modules, loop, module_tensors

MODEL_FILE = "model.safetensors"
START_FILE = "joint-start.safetensors"
REFERENCE_FILE = "reference.safetensors"
SECONDS_FILE = "seconds"
FORMAT = torch.channels_last
"""Convolutions are faster with channels last, on CPUs and on GPUs."""
WAIT = 0.2
"""Seconds between two looks at a stage that another process trains."""


@dataclass(frozen=True)
class Worker:
    """Where stages run.

    Attributes:
        store: where finished stages lie.
        data: the dataset, on `device`.
        device: torch's name of the device.
        plan: the trial. Its scorer and sampling serve the scores drawn while stages train, which are no parents of
            those stages, since they change nothing about them.
        commit: noted with every stage.
    """

    store: Store
    data: Data
    device: str
    plan: Plan
    commit: str


@dataclass(frozen=True)
class Event:
    """What a trial is doing: the label of a stage, and its progress; None while another process trains it."""

    label: str
    progress: Progress | None


def run_trial(worker: Worker) -> Iterator[Event]:
    """Bring every stage of a trial into the store, each trained once whoever needs it.

    A stage that another process trains is left to it; meanwhile any other stage of the trial that is ready runs.
    Raises:
        Diverged: a stage diverged, here or in an earlier run.
        StoreError: a finished stage is damaged, or the store cannot be written.
    """
    store, finished = worker.store, set()
    while len(finished) < len(worker.plan.stages):
        for label, stage in worker.plan.stages:
            if stage not in finished and store.has(name(stage)):
                facts = store.facts(name(stage))
                if facts["status"] == "diverged":
                    raise Diverged(f"{label}: {facts['reason']}")
                finished.add(stage)
        waiting = None
        for label, stage in worker.plan.stages:
            if stage in finished or not finished.issuperset(_needed(stage, worker)):
                continue
            with store.claim(name(stage)) as mine:
                if mine:
                    for progress in run(stage, worker):
                        yield Event(label, progress)
                    break
            waiting = waiting or label
        else:
            if waiting and len(finished) < len(worker.plan.stages):
                yield Event(waiting, None)
                time.sleep(WAIT)


def _needed(stage: Stage, worker: Worker) -> tuple[Stage, ...]:
    """The stages that must be finished first."""
    return stage.parents if isinstance(stage, ClassifierStage) else (worker.plan.score.scorer, *stage.parents)


def run(stage: Stage, worker: Worker) -> Iterator[Progress]:
    """Run one stage whose parents are finished, and publish it; the caller holds its claim.

    A stage that diverges is published with the reason: run again, it would diverge again.
    """
    stage_name = name(stage)
    folder = worker.store.begin(stage_name)
    before, clock = _seconds(folder), time.monotonic()
    outcome: dict[str, Any] = {"status": "done", "reason": None}
    progress = Progress(0, 0)
    try:
        for progress in _RUNNERS[stage.kind](stage, worker, folder, outcome):
            (folder / SECONDS_FILE).write_text(repr(before + time.monotonic() - clock))
            yield progress
    except Diverged as error:
        outcome = {"status": "diverged", "reason": str(error)}
    facts = {
        "kind": stage.kind,
        "name": stage_name,
        "images": progress.images,
        "makes_images": stage.kind == "joint" or (isinstance(stage, LevelStage) and stage.low == IMAGE),
        "seconds": before + time.monotonic() - clock,
        "commit": worker.commit,
        "machine": machine(worker.device),
        "torch": torch.__version__,
        "fields": as_json(stage),
    }
    worker.store.publish(stage_name, facts | outcome, drop=(CHECKPOINT_FILE, SECONDS_FILE))


def _seconds(folder: Path) -> float:
    """Training seconds of the stage before it was interrupted."""
    try:
        return float((folder / SECONDS_FILE).read_text())
    except (OSError, ValueError):
        return 0.0


@functools.cache
def machine(device: str) -> str:
    """The machine in words, for tables."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    gpu = torch.cuda.get_device_name() if device.startswith("cuda") and torch.cuda.is_available() else "no GPU"
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores, {gpu}"


def load_classifier(stage: ClassifierStage, store: Store, device: str) -> Encoder:
    """A trained classifier, frozen."""
    encoder = Encoder(stage.dataset, stage.recipe.init_std).to(device)
    load_modules({"encoder": encoder}, store.tensors(name(stage), MODEL_FILE))
    return encoder.eval().requires_grad_(False).to(memory_format=FORMAT)


@functools.lru_cache(maxsize=1)
def _load_scorer(scorer: ClassifierStage, root: Path, device: str) -> tuple[Encoder, metrics.Reference]:
    """The scorer and what it says of the training images; kept, since every stage in a process needs it."""
    store = Store(root)
    tensors = store.tensors(name(scorer), REFERENCE_FILE)
    reference = metrics.Reference(metrics.Features(tensors["features"], tensors["logits"]))
    return load_classifier(scorer, store, device), reference


def _evaluation(levels: list[Level], encoder: Encoder | None, worker: Worker) -> Evaluation:
    """Scores and grids of levels, by the trial's scorer."""
    score = worker.plan.score
    judges = _load_scorer(score.scorer, worker.store.root, worker.device)
    return Evaluation(levels, score.sampling, worker.data, encoder, *judges)


def _encoder(stage: LevelStage | ScoreStage, worker: Worker) -> Encoder | None:
    return load_classifier(stage.encoder, worker.store, worker.device) if stage.encoder else None


def _role_seed(seed: int, role: str) -> int:
    """The seed of a trial's stage: the same for every variant, another for every role, so that the joint stage does
    not see the levels' batches and noise again."""
    return int(content_key([seed, role])[:12], 16)


def _run_classifier(stage: ClassifierStage, worker: Worker, folder: Path, outcome: dict) -> Iterator[Progress]:
    seed, data = _role_seed(stage.seed, stage.kind), worker.data
    torch.manual_seed(seed)
    encoder = Encoder(stage.dataset, stage.recipe.init_std).to(worker.device)
    encoder.mean.copy_(pixel_mean(data.images, stage.recipe.pixel_mean))
    task = ClassifierTask(encoder, data, stage.recipe, seed)

    def evaluate(images: int) -> dict[str, float]:
        found = metrics.classify(encoder, data.test_images)
        return {"test_accuracy": metrics.accuracy(found.logits, data.test_labels)}

    steps = max(1, stage.recipe.images // stage.recipe.batch)
    yield from loop(task, steps, stage.recipe.batch, folder, evaluate, evaluations=4)
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


def _build(
    stages: tuple[LevelStage, ...], recipe: GanRecipe, worker: Worker
) -> tuple[list[Level], list[Discriminator]]:
    """Fresh levels with their discriminators, each initialised from its stage's seed."""
    levels, discriminators = [], []
    for stage in stages:
        torch.manual_seed(_role_seed(stage.seed, stage.low))
        bounds = (stage.low, *stage.through, stage.high)
        parts = [
            Generator(stage.dataset, recipe, low, high, stage.labels, stage.codes) for low, high in pairwise(bounds)
        ]
        generator = (Chain(parts) if stage.through else parts[0]).to(worker.device)
        if stage.low == IMAGE:
            generator.mean.copy_(pixel_mean(worker.data.images, recipe.pixel_mean))
        discriminator = Discriminator(stage.dataset, recipe, stage.low, stage.through, stage.codes).to(worker.device)
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
    levels, discriminators = _build(stages, recipe, worker)
    for stage, level, discriminator in zip(stages, levels, discriminators, strict=True):
        load_modules(_modules([level], [discriminator]), worker.store.tensors(name(stage), file))
    return levels, discriminators


def _run_level(stage: LevelStage, worker: Worker, folder: Path, outcome: dict) -> Iterator[Progress]:
    built = _build((stage,), stage.recipe, worker)
    steps = max(1, stage.images // stage.recipe.batch)
    snapshot = (max(1, round(steps * stage.joint_start)), START_FILE) if stage.joint_start < 1 else None
    yield from _train(*built, stage, stage.low, stage, 1.0, worker, folder, snapshot)


def _run_joint(stage: JointStage, worker: Worker, folder: Path, outcome: dict) -> Iterator[Progress]:
    first = stage.levels[0]
    file = START_FILE if first.joint_start < 1 else MODEL_FILE
    loaded = _load(stage.levels, stage.recipe, worker, file)
    yield from _train(*loaded, stage, "joint", first, stage.feedback, worker, folder, None)


def _train(
    levels: list[Level],
    discriminators: list[Discriminator],
    stage: LevelStage | JointStage,
    role: str,
    lowest: LevelStage,
    feedback: float,
    worker: Worker,
    folder: Path,
    snapshot: tuple[int, str] | None,
) -> Iterator[Progress]:
    """Train levels, alone or together, and keep their weights."""
    encoder, recipe, data = _encoder(lowest, worker), stage.recipe, worker.data
    task = GanTask(
        levels,
        discriminators,
        encoder,
        data,
        recipe,
        lowest.weights,
        seed=_role_seed(lowest.seed, role),
        mean=pixel_mean(data.images, recipe.pixel_mean),
        classes=lowest.dataset.classes,
        feedback=feedback,
    )
    evaluation = _evaluation(levels, encoder, worker)
    steps = max(1, stage.images // recipe.batch)
    yield from loop(
        task,
        steps,
        recipe.batch,
        folder,
        lambda seen: evaluation(seen, folder),
        worker.plan.evaluations,
        snapshot,
    )
    write_tensors(folder / MODEL_FILE, module_tensors(task.modules))


def _run_score(stage: ScoreStage, worker: Worker, folder: Path, outcome: dict) -> Iterator[Progress]:
    first = stage.levels[0]
    yield Progress(0, stage.samples)
    if stage.joint:
        levels, discriminators = _build(stage.levels, stage.joint.recipe, worker)
        load_modules(_modules(levels, discriminators), worker.store.tensors(name(stage.joint), MODEL_FILE))
    else:
        levels, _ = _load(stage.levels, first.recipe, worker)
    evaluation = _evaluation(levels, _encoder(stage, worker), worker)
    outcome["scores"] = evaluation.score(stage.samples, first.seed)
    evaluation.draw(grid_file(folder, 0))
    yield Progress(stage.samples, stage.samples)


_RUNNERS: dict[str, Callable[..., Iterator[Progress]]] = {
    "encoder": _run_classifier,
    "scorer": _run_classifier,
    "level": _run_level,
    "joint": _run_joint,
    "score": _run_score,
}
