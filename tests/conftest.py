"""Shared by all tests: a digits trial small enough to run the production path in about a second."""

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from sgan.config import AdamRecipe, Config, EncoderRecipe, GanRecipe, JudgeRecipe, Recipe, Variant, Weights
from sgan.data.batches import Data
from sgan.data.datasets import read
from sgan.presets import DATASETS, RECIPES, TRAINING_IMAGES
from sgan.shapes import Dataset
from sgan.stages.context import Context
from sgan.stages.graph import Plan, name, plan
from sgan.stages.run import run_stage
from sgan.store.files import RECORD_FILE, read_json, read_record
from sgan.store.local import Store
from sgan.training.loop import Diverged, Progress

torch.set_num_threads(1)
# Tests that hang up or interrupt need both signals in their processes, whoever started pytest: nohup, or a background
# job of a shell, ignores them.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
HERE: dict[str, Any] = {"deadline": None, "database": None, "derandomize": True}
settings.register_profile("here", max_examples=25, **HERE)
settings.register_profile("many", max_examples=500, **HERE)  # pytest --hypothesis-profile many
settings.load_profile("here")
SERVER = multiprocessing.get_context("forkserver")
"""Its processes share one import of torch."""
SERVER.set_forkserver_preload(["sgan.stages.run", "hypothesis", "pytest"])
SLOW_FOLDERS = ("slow", "cluster")
"""Below tests/: whatever lies there is slow."""
FIRST = ("test_hosts", "test_ablation", "test_run", "test_tracking", "test_docs", "test_phases", "test_resume")
FIRST += ("test_golden",)
"""The files that take longest: they come first, so that both workers end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (*FIRST, item.path.stem).index(item.path.stem))
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in SLOW_FOLDERS:
            item.add_marker(pytest.mark.slow)


TINY = DATASETS["digits"].scaled(0.5)
BATCH = 16
CLASSIFIER = EncoderRecipe(
    images=300 * 32, batch=32, adam=AdamRecipe(learning_rate=5e-3, beta1=0.9), init_std=0.2
)  # enough to see all ten classes
JUDGE = JudgeRecipe(images=150 * 32, batch=32)
PAPER = GanRecipe(batch=BATCH, adam=AdamRecipe(learning_rate=1e-3), init_std=0.1)
"""The features of the paper's text, small."""
RELEASED = GanRecipe(
    batch=BATCH,
    adam=AdamRecipe(learning_rate=1e-3, eps_in_root=True),
    discriminator="classes",
    class_weight=1.0,
    adversarial="saturating",
    discriminator_scale=0.5,
    generator_steps=((0.65, 1), (0.5, 3), (0.3, 5), (0.0, 7)),
    fresh_noise=True,
    pixel_mean=True,
    image_noise=0.05,
    feature_noise=0.2,
    dropout=0.1,
    init_std=0.1,
)
"""The features of the released CIFAR-10 code, small."""
STACK = Variant(cuts=("fc3",), weights=Weights(), joint=True)


def tiny_recipe(gan: GanRecipe = PAPER, steps: int = 6, **changes: Any) -> Recipe:
    """A recipe of a few steps a stage."""
    fields = {
        "name": "tiny",
        "encoder": CLASSIFIER,
        "gan": gan,
        "joint": gan,
        "image_level": steps * gan.batch,
        "feature_level": steps * gan.batch,
        "joint_images": steps * gan.batch,
        "judge": JUDGE,
        "samples": 100,
        "evaluations": 1,
    }
    return Recipe(**fields | changes)


def released_recipe(steps: int = 6) -> Recipe:
    """A tiny recipe with every feature of the released CIFAR-10 code."""
    joint = dataclasses.replace(RELEASED, hidden_noise=0.2, dropout=0.3)
    return tiny_recipe(RELEASED, steps, joint=joint, joint_start=0.5, feedback=0.01)


@functools.cache
def tiny_data() -> Data:
    """Every third of the digits, since the time of an evaluation grows with the square of their number."""
    *parts, digest = vars(read(DATASETS["digits"], Path())).values()
    return Data(*(part[::3].contiguous() for part in parts), digest=f"third-{digest}")


def tiny_plan(recipe: Recipe | None = None, variant: Variant = STACK, seed: int = 0, dataset: Dataset = TINY) -> Plan:
    """The plan of a trial on the tiny data."""
    return plan(Config(dataset, tiny_data().digest, recipe or tiny_recipe(), variant, seed))


def named_recipe(name: str, dataset: str) -> Recipe:
    """A recipe of presets.py for a dataset of known size."""
    return RECIPES[name](DATASETS[dataset], TRAINING_IMAGES[dataset])


def make_context(root: Path, data: Data | None = None) -> Context:
    """What stages on the tiny data, or on other data, run with, in the store `root`."""
    return Context(Store(root), data or tiny_data(), "cpu", "test")


def run_trial(trial: Plan, context: Context) -> Generator[tuple[str, Progress]]:
    """Train what the store lacks of a trial, in this process; yields the stage's label with its progress."""
    for label, stage in trial.stages:
        while not context.store.has(name(stage)):  # another process may train it
            with context.store.claim(name(stage)) as mine:
                if mine:
                    with contextlib.closing(run_stage(stage, trial.score.judge, context)) as running:
                        yield from ((label, progress) for progress in running)
                else:
                    time.sleep(0.2)
        facts = context.store.facts(name(stage))
        if facts["status"] == "diverged":
            raise Diverged(f"{label}: {facts['reason']}")


def finish(trial: Plan, root: Path, data: Data | None = None) -> list[str]:
    """Run a trial to its end; returns the labels of the stages that were trained."""
    return list(dict.fromkeys(label for label, _ in run_trial(trial, make_context(root, data))))


STOCHASTIC = {"time", "seconds", "finished"}
"""What differs between two runs that are the same."""


def contents(trial: Plan, root: Path) -> dict[str, dict]:
    """What each stage of a trial holds, but for the times."""
    held = {}
    for label, stage in trial.stages:
        folder = Store(root).stage(name(stage))
        lines = [{key: line[key] for key in line if key not in STOCHASTIC} for line in read_record(folder)]
        facts = {key: value for key, value in read_json(folder / "stage.json").items() if key not in STOCHASTIC}
        facts["files"] = {key: value for key, value in facts["files"].items() if key != RECORD_FILE}  # it has times
        grids = {path.name: path.read_bytes() for path in (folder / "grids").iterdir()}
        held[label] = {"record": lines, "facts": facts, "grids": grids}
    return held


@pytest.fixture(scope="session")
def digits() -> Data:
    return read(DATASETS["digits"], Path())


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory) -> Path:
    """A store with the judge and seed 0's encoder of every tiny trial."""
    root = tmp_path_factory.mktemp("classifiers")
    for pixel_mean in (False, True):
        encoder = dataclasses.replace(CLASSIFIER, pixel_mean=pixel_mean)
        for label, _ in run_trial(tiny_plan(tiny_recipe(encoder=encoder)), make_context(root)):
            if label.startswith("level"):
                break
    shutil.rmtree(root / "work")
    assert {path.name.partition("-")[0] for path in (root / "stages").iterdir()} == {"judge", "encoder"}
    return root


@pytest.fixture
def root(tmp_path, classifiers) -> Path:
    """A store of this test's own, with the classifiers in it."""
    shutil.copytree(classifiers, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def float64():
    """New tensors and modules have double precision, so that a comparison with a reference can be a sharp one."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def mount(*arguments: str) -> bool:
    """Whether `mount` did as it was told."""
    return subprocess.run(["mount", *arguments], check=False, capture_output=True, timeout=20).returncode == 0


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 8 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or not mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)):
        pytest.skip("only root can mount a small disk")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=False, timeout=20)


FILLER = "filler"


def fill(disk: Path) -> Path:
    """Fill a disk up; returns the file that does, by whose end there is room again."""
    filler = disk / FILLER
    try:
        with open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        return filler
