"""A stage that is killed at any step and goes on is the stage that nobody killed, bit for bit; a damaged checkpoint is
not used."""

import errno
import os
import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import (
    CLASSIFIER,
    JUDGE,
    PAPER,
    SERVER,
    STACK,
    TINY,
    contents,
    finish,
    make_context,
    released_recipe,
    run_trial,
    tiny_plan,
    tiny_recipe,
)
from safetensors.torch import load_file

from sgan.config import AdamRecipe, Recipe, Variant, Weights
from sgan.models import export as model
from sgan.stages.context import MODEL_FILE
from sgan.stages.graph import Plan, name
from sgan.stages.kinds import judge
from sgan.stages.kinds.level import START_FILE, WEIGHTS
from sgan.stages.run import run_stage
from sgan.store.files import RECORD_FILE, StoreError, read_json, write_json
from sgan.store.local import GRIDS, Store
from sgan.training import checkpoint, loop
from sgan.training import steps as train
from sgan.training.checkpoint import CHECKPOINTS, HEAD_FILE, STATE_FILE, Checkpoints
from sgan.training.loop import Diverged

STEPS = 30
RECIPES = {
    "paper": tiny_recipe(steps=STEPS, fresh_adam=False, evaluations=2),
    "released": released_recipe(steps=STEPS),
}
DEEP = Variant(("pool2", "fc3"), Weights(), joint=True)
"""Levels of all three kinds: label to vector, vector to maps, maps to image."""


def deep(recipe: str) -> Plan:
    return tiny_plan(RECIPES[recipe], DEEP)


def rare_points(patch=setattr) -> None:
    """Records have points every tenth step, so that most kills and most checkpoints lie between two of them."""
    patch(loop, "POINTS", 3)


def _life(root: str, recipe: str, label: str, kill_at: int, seconds: float) -> None:
    """A process that runs the trial and, in the stage `label`, kills itself in the middle of step `kill_at`; a score
    stage, which has no steps, is killed when it writes its model."""
    torch.set_num_threads(1)
    rare_points()
    checkpoint.SPARSE, checkpoint.SECONDS = 0, seconds
    trial, now = deep(recipe), [""]

    def deadly(kind: type) -> None:
        update = kind.step

        def step(self, number: int):
            result = update(self, number)
            if (now[0], number) == (label, kill_at):
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        kind.step = step

    deadly(judge.JudgeTask)
    deadly(train.ClassifierTask)
    deadly(train.GanTask)
    save = model.save

    def save_and_die(*arguments) -> None:
        save(*arguments)
        if label == "score":
            os.kill(os.getpid(), signal.SIGKILL)

    model.save = save_and_die
    context = make_context(Path(root))
    for at, stage in trial.stages:
        now[0] = at
        if not context.store.has(name(stage)):
            with context.store.claim(name(stage)):
                list(run_stage(stage, trial.score.judge, context))


def live(*arguments) -> int:
    """The exit code of such a process."""
    process = SERVER.Process(target=_life, args=arguments)
    process.start()
    process.join(100)
    if process.exitcode is None:
        process.kill()
    return process.exitcode or 0


@pytest.fixture(scope="module")
def quiet(tmp_path_factory) -> dict[str, Path]:
    """A store for each recipe in which the trial ran undisturbed, from the judge on."""
    roots = {}
    with pytest.MonkeyPatch.context() as patch:
        rare_points(patch.setattr)
        for recipe in RECIPES:
            roots[recipe] = tmp_path_factory.mktemp("quiet") / recipe
            finish(deep(recipe), roots[recipe])
    return roots


@pytest.fixture(scope="module")
def levels(tmp_path_factory, classifiers) -> dict[str, Path]:
    """A store for each recipe in which the trial ran undisturbed to the end of its image level."""
    roots = {}
    with pytest.MonkeyPatch.context() as patch:
        rare_points(patch.setattr)
        for recipe in RECIPES:
            roots[recipe] = tmp_path_factory.mktemp("levels") / recipe
            shutil.copytree(classifiers, roots[recipe])
            through(recipe, roots[recipe])
    return roots


def through(recipe: str, root: Path) -> None:
    """Run the trial until its image level is finished."""
    for _ in run_trial(deep(recipe), make_context(root)):
        if Store(root).has(level0(recipe)):
            break


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_killed_at_random_steps_of_every_stage_it_ends_with_the_same_bytes(recipe, quiet, tmp_path):
    """SIGKILL of a real process, once in each stage, with a checkpoint after every step, some or none."""
    trial, dice, killed = deep(recipe), random.Random(recipe), []
    for label, _ in trial.stages:
        classifier = {"judge": JUDGE, "encoder": CLASSIFIER}.get(label)
        steps = classifier.images // classifier.batch if classifier else STEPS
        seconds = dice.choice((0.0, 0.05, 1e9))
        killed.append(live(str(tmp_path / "store"), recipe, label, dice.randrange(steps), seconds))
    assert killed == [-signal.SIGKILL] * len(trial.stages)
    assert live(str(tmp_path / "store"), recipe, "", 0, 0.0) == 0
    whole, resumed = contents(trial, quiet[recipe]), contents(trial, tmp_path / "store")
    for label in whole:
        assert resumed[label] == whole[label], label
    assert not list((tmp_path / "store" / "work").iterdir())


class Killed(BaseException):
    """Nothing in the product knows it."""


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory, levels) -> dict[str, Path]:
    """A store for each recipe whose image level was cut off near its end, as a kill does, which leaves nothing that was
    not there before: two checkpoints, weights put aside, grids."""
    stores, update = {}, train.GanTask.step

    def deadly(self, number: int):
        result = update(self, number)
        if number == STEPS - 3:
            raise Killed
        return result

    for recipe in RECIPES:
        root = stores[recipe] = tmp_path_factory.mktemp("cut") / "store"
        shutil.copytree(levels[recipe], root)
        shutil.rmtree(root / "stages" / level0(recipe))
        with pytest.MonkeyPatch.context() as patch:
            rare_points(patch.setattr)
            patch.setattr(checkpoint, "SPARSE", 0)
            patch.setattr(checkpoint, "SECONDS", 0.0)
            patch.setattr(train.GanTask, "step", deadly)
            with pytest.raises(Killed):
                through(recipe, root)
    return stores


def level0(recipe: str) -> str:
    return name(dict(deep(recipe).stages)["level0"])


def resumed(recipe: str, root: Path, monkeypatch) -> int:
    """Goes on until level0 is finished; returns the step from which it did, after comparing with the quiet run."""
    rare_points(monkeypatch.setattr)
    trial, quiet = deep(recipe), root.parent / "levels"
    events = run_trial(trial, make_context(root))
    label, first = next(events)
    assert label == "level0"
    for _ in events:
        if Store(root).has(level0(recipe)):
            break
    found = [Store(place).facts(level0(recipe))["files"] for place in (root, quiet)]
    for files in found:
        files.pop("record.jsonl")
    assert found[0] == found[1]
    return first.images // RECIPES[recipe].gan.batch


@pytest.fixture
def torn(cut_off, levels, tmp_path):
    """Makes a copy of such a store; returns it and the work folder in it. The undisturbed one lies beside it."""

    def make(recipe: str) -> tuple[Path, Path]:
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        shutil.copytree(cut_off[recipe], tmp_path / "store")
        if not (tmp_path / "levels").exists():
            (tmp_path / "levels").symlink_to(levels[recipe])
        return tmp_path / "store", tmp_path / "store" / "work" / level0(recipe)

    return make


def flip(path: Path, dice: random.Random) -> None:
    held = bytearray(path.read_bytes())
    held[dice.randrange(len(held))] ^= 1 << dice.randrange(8)
    path.write_bytes(held)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_damaged_checkpoint_is_not_used_but_the_one_before(recipe, torn, monkeypatch):
    dice = random.Random(recipe)
    root, work = torn(recipe)
    older, newer = sorted((work / CHECKPOINTS).glob("[0-9]*"))
    assert (int(older.stem), int(newer.stem)) == (STEPS - 4, STEPS - 3)
    assert resumed(recipe, root, monkeypatch) == STEPS - 3
    for file in (STATE_FILE, RECORD_FILE, HEAD_FILE):
        root, work = torn(recipe)
        if dice.random() < 0.5:
            flip(work / CHECKPOINTS / newer.name / file, dice)
        else:
            os.truncate(work / CHECKPOINTS / newer.name / file, dice.randrange(1000))
        assert resumed(recipe, root, monkeypatch) == STEPS - 4
    root, work = torn(recipe)
    os.truncate(work / CHECKPOINTS / newer.name / STATE_FILE, dice.randrange(1000))
    flip(work / CHECKPOINTS / older.name / HEAD_FILE, dice)
    assert resumed(recipe, root, monkeypatch) == 0


@pytest.mark.parametrize(("recipe", "file"), [("paper", WEIGHTS), ("released", START_FILE), ("paper", GRIDS)])
def test_weights_or_a_grid_put_aside_and_damaged_or_gone_begin_the_stage_anew(recipe, file, torn, monkeypatch):
    for damage in (lambda path: flip(path, random.Random(1)), Path.unlink):
        root, work = torn(recipe)
        path = work / file if file == START_FILE else sorted((work / file).iterdir())[0]
        damage(path)
        assert resumed(recipe, root, monkeypatch) == 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_any_file_of_a_stage_in_progress_damaged_anywhere_changes_nothing(recipe, torn, monkeypatch):
    dice = random.Random(recipe)
    for _ in range(3):
        root, work = torn(recipe)
        files = sorted(path for path in work.rglob("*") if path.is_file())
        for path in dice.sample(files, dice.randint(1, 3)):
            kind = dice.choice((flip, lambda path, dice: path.write_bytes(dice.randbytes(99)), None))
            if kind:
                kind(path, dice)
            else:
                path.unlink()
        resumed(recipe, root, monkeypatch)


def test_a_stage_whose_grid_is_changed_while_it_trains_is_not_published_but_made_anew(torn, monkeypatch):
    root, work = torn("paper")
    rare_points(monkeypatch.setattr)
    events = run_trial(deep("paper"), make_context(root))
    next(events)
    grid = sorted((work / GRIDS).iterdir())[0]
    flip(grid, random.Random(0))
    with pytest.raises(StoreError, match=rf"{grid} is not as it was written; the same command makes the stage anew"):
        list(events)
    assert resumed("paper", root, monkeypatch) == 0


def test_another_stages_checkpoint_is_not_used(torn, monkeypatch):
    """A whole one, of the same shapes, which somebody has copied to the wrong place."""
    root, work = torn("paper")
    path = sorted((work / CHECKPOINTS).iterdir())[-1] / HEAD_FILE
    write_json(path, {**read_json(path), "stage": "level-0123456789abcdef"})
    assert resumed("paper", root, monkeypatch) == STEPS - 4


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ESHUTDOWN])
def test_a_checkpoint_that_a_sick_disk_does_not_give_is_kept(number, torn, monkeypatch):
    _, work = torn("paper")

    def sick(path: Path) -> str:
        raise OSError(number, os.strerror(number), path)

    before = sorted((work / CHECKPOINTS).iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "sha256", sick)
        with pytest.raises(OSError, match=os.strerror(number)):
            Checkpoints(work).load()
    assert sorted((work / CHECKPOINTS).iterdir()) == before
    assert Checkpoints(work).load().step == STEPS - 3


def test_files_that_the_checkpoint_does_not_list_are_removed(torn, monkeypatch):
    root, work = torn("paper")
    extra = [work / "rest.txt", work / GRIDS / "999999999.png", work / CHECKPOINTS / ".000000099" / STATE_FILE]
    for path in extra:
        path.parent.mkdir(exist_ok=True)
        path.write_text("left over")
    assert resumed("paper", root, monkeypatch) == STEPS - 3


def test_a_clean_stop_between_two_points_keeps_every_step(torn, monkeypatch, tmp_path):
    """Closed, as Ctrl-C does, where the steps are slow, a stage goes on from the very step."""
    root, work = torn("paper")
    shutil.rmtree(work / CHECKPOINTS)
    rare_points(monkeypatch.setattr)
    monkeypatch.setattr(loop, "SILENCE", 0.0)
    trial = deep("paper")
    events = run_trial(trial, make_context(root))
    for _, progress in events:
        if progress.images == 14 * RECIPES["paper"].gan.batch:
            break
    events.close()
    assert resumed("paper", root, monkeypatch) == 14


def test_a_diverged_stage_keeps_its_last_good_checkpoint_and_grid(root, monkeypatch):
    """Without eps and memory of the second moment, Adam's step is m / |g|: it grows without bound as g shrinks."""
    wild = AdamRecipe(learning_rate=1.0, beta1=0.9, beta2=0.0, eps=1e-40)
    recipe: Recipe = tiny_recipe(replace(PAPER, adam=wild), steps=60)
    monkeypatch.setattr(checkpoint, "SPARSE", 0)
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    rare_points(monkeypatch.setattr)
    trial = tiny_plan(recipe, replace(STACK, cuts=(), joint=False), dataset=TINY)
    with pytest.raises(Diverged, match=r"^level0: [dg]_\w+ is (nan|-?inf) in step \d+$") as caught:
        finish(trial, root)
    folder = Store(root).stage(name(dict(trial.stages)["level0"]))
    kept = sorted((folder / CHECKPOINTS).iterdir())
    assert 1 <= len(kept) <= checkpoint.KEPT
    assert int(kept[-1].stem) < int(str(caught.value).split()[-1])
    for path in kept:
        assert all(tensor.isfinite().all() for tensor in load_file(path / STATE_FILE).values())
    assert sorted((folder / GRIDS).iterdir())
    assert MODEL_FILE not in {path.name for path in folder.iterdir()}
