"""Trials through the production path: every split, resumed, diverged, shared between trials and between processes."""

import contextlib
import dataclasses
import itertools
import math
import os
import random
import shutil
import signal
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import (
    PAPER,
    SERVER,
    STACK,
    TINY,
    contents,
    finish,
    make_context,
    released_recipe,
    run_trial,
    tiny_data,
    tiny_plan,
    tiny_recipe,
)

from sgan.config import INNER_TAPS, LABEL, AdamRecipe, EncoderRecipe, JudgeRecipe, Recipe, Variant, Weights
from sgan.evaluation.measures import MEASURES
from sgan.models import generator as networks
from sgan.models.encoder import Encoder
from sgan.models.stack import Stack, balanced_labels, label_condition, sample
from sgan.models.tensors import read_tensors
from sgan.presets import VARIANTS, configure
from sgan.stages.context import MODEL_FILE
from sgan.stages.graph import ClassifierStage, LevelStage, Plan, name, plan
from sgan.stages.kinds import classifier
from sgan.stages.kinds.level import START_FILE, WEIGHTS
from sgan.stages.kinds.score import best_point
from sgan.stages.run import processor, run_stage
from sgan.store.files import RECORD_FILE, StoreError, read_record
from sgan.store.local import CHECKPOINTS, Store
from sgan.training import checkpoint
from sgan.training.loop import Diverged, Progress

QUICK = ((), ("pool2",), INNER_TAPS)
"""Splits whose levels begin and end at every tap."""
SPLITS = [
    pytest.param(cuts, marks=[pytest.mark.slow] * (cuts not in QUICK))
    for count in range(6)
    for cuts in itertools.combinations(INNER_TAPS, count)
]
DCGAN = VARIANTS["dcgan-adv-cond-ent"].variant


@pytest.fixture(scope="module")
def shared(tmp_path_factory, classifiers) -> Path:
    """One store for all splits, so that they share levels as in a sweep."""
    path = tmp_path_factory.mktemp("shared") / "store"
    shutil.copytree(classifiers, path)
    return path


def generators(trial: Plan, root: Path) -> Stack:
    """The finished generators of a stack, put together from the files of its last stage."""
    score, store, stack = trial.score, Store(root), []
    for index, stage in enumerate(score.levels):
        generator = networks.Generator(stage.dataset, stage.recipe, stage.level)
        holder, place = (score.joint, index) if score.joint else (stage, 0)
        prefix = f"generator/{place}."
        tensors = read_tensors(store.file(name(holder), MODEL_FILE))
        found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        generator.load_state_dict(found)
        stack.append(generator)
    return stack


@pytest.mark.parametrize("cuts", SPLITS, ids="-".join)
def test_every_split_trains_jointly_and_has_finite_scores(cuts, shared):
    """All 32 splits, 1 to 6 levels, from the plan to the score; a single level has nothing to be trained with."""
    trial = tiny_plan(tiny_recipe(steps=2), replace(STACK, cuts=cuts, joint=bool(cuts)))
    assert finish(trial, shared)[-2:] == ["joint" if cuts else "level0", "score"]
    facts = Store(shared).facts(trial.name)
    assert facts["status"] == "done"
    scores = facts["scores"]
    names = set(MEASURES) | {"inception_score_split_std"}
    assert set(scores) == names | {f"best_{name}" for name in names}
    assert all(math.isfinite(value) for value in scores.values())
    assert 1 <= scores["inception_score"] <= 10
    assert 0 <= scores["accuracy"] <= 1
    stack = generators(trial, shared)
    assert len(stack) == len(cuts) + 1
    labels = balanced_labels(20, 10)
    made = sample(stack, label_condition(stack[-1], labels), "running", 0)
    assert made.shape == (20, 1, 8, 8)
    assert made.dtype == torch.uint8
    assert made.float().std() > 0


ALIKE = ("sgan-no-joint", "dcgan-adv-cond-ent", "dcgan-adv-cond", "dcgan-adv-ent", "sgan-no-entropy")
"""Variants that have a part of what the others have; test_golden.py runs them, too."""


@pytest.mark.parametrize(
    "variant", [pytest.param(each, marks=[pytest.mark.slow] * (each in ALIKE)) for each in VARIANTS]
)
def test_every_variant_runs_with_the_released_features(variant, shared):
    row = VARIANTS[variant].variant
    config = configure(TINY, tiny_data().digest, released_recipe(steps=4), row, 0, None, ("pool2", "fc3"))
    chosen, trial = config.variant, plan(config)
    assert chosen.cuts + chosen.through == (("pool2", "fc3") if row.cuts or row.through else ())
    finish(trial, shared)
    scores = Store(shared).facts(trial.name)["scores"]
    assert ("accuracy" in scores) == chosen.labels
    assert all(math.isfinite(value) for value in scores.values())
    for label, stage in trial.stages:
        folder = Store(shared).stage(name(stage))
        terms = {key.rpartition("/")[2] for line in read_record(folder) for key in line["metrics"]}
        if label.startswith(("level", "joint")):
            recovers = chosen.labels or not (isinstance(stage, LevelStage) and stage.level.high == LABEL)
            assert ("g_conditional" in terms) == (chosen.weights.conditional > 0 and recovers)
            assert ("conditional_ratio" in terms) == ("g_conditional" in terms)
            assert ("entropy_ratio" in terms) == ("g_entropy" in terms)
            assert "d_accuracy" in terms
            assert ("g_entropy" in terms) == ("d_entropy" in terms) == (chosen.weights.entropy > 0)
            assert {"g_adversarial", "d_adversarial"} <= terms
            assert ("d_class" in terms) == chosen.labels
        assert not (folder / CHECKPOINTS).exists()


def test_a_score_is_what_the_parts_say_of_samples_drawn_by_hand(shared):
    """Accuracy of the encoder on the samples of the published generators, with the noise of the trial's seed."""
    trial = tiny_plan(tiny_recipe(steps=2))
    finish(trial, shared)
    stack = generators(trial, shared)
    labels = torch.arange(100) % 10
    noise = torch.Generator().manual_seed(0)
    z = [torch.rand(100, generator.noise, generator=noise) for generator in stack]
    for generator in stack:
        generator.eval()
    with torch.no_grad():
        h = stack[1](torch.eye(10)[labels], z[1])
        pixels = (stack[0](h, z[0]) * 255).round() / 255
    encoder = Encoder(TINY, 0.1).requires_grad_(False)
    tensors = read_tensors(Store(shared).stage(name(dict(trial.stages)["encoder"])) / MODEL_FILE)
    encoder.load_state_dict({key.removeprefix("encoder/"): value for key, value in tensors.items()})
    by_hand = (encoder(pixels - encoder.mean).argmax(1) == labels).float().mean().item()
    assert Store(shared).facts(trial.name)["scores"]["accuracy"] == pytest.approx(by_hand, abs=1e-6)


def test_a_finished_trial_trains_nothing_again(shared):
    trial = tiny_plan(tiny_recipe(steps=2))
    finish(trial, shared)
    before = {path: path.stat().st_mtime_ns for path in (shared / "stages").rglob("*")}
    assert finish(trial, shared) == []
    assert {path: path.stat().st_mtime_ns for path in (shared / "stages").rglob("*")} == before


def test_sgan_after_sgan_no_joint_trains_only_joint_and_score(root):
    without = dataclasses.replace(STACK, joint=False)
    assert finish(tiny_plan(variant=without), root) == ["level1", "level0", "score"]
    assert finish(tiny_plan(), root) == ["joint", "score"]
    assert finish(tiny_plan(variant=DCGAN), root) == ["level0", "score"]
    assert finish(tiny_plan(tiny_recipe(samples=300)), root) == ["judge", "score"]  # real images at the same count
    assert finish(tiny_plan(seed=1, variant=DCGAN), root) == ["encoder", "level0", "score"]


def test_facts_of_a_stage_say_what_made_it(shared):
    trial = tiny_plan(tiny_recipe(steps=2))
    finish(trial, shared)
    for label, stage in trial.stages:
        facts = Store(shared).facts(name(stage))
        assert facts["name"] == name(stage)
        assert facts["commit"] == "test"
        assert facts["torch"] == torch.__version__
        assert facts["seconds"] > 0
        assert facts["status"] == "done"
        if isinstance(stage, LevelStage):
            assert facts["images"] == 2 * PAPER.batch
            assert facts["fields"]["weights"] == {"adversarial": 1.0, "conditional": 1.0, "entropy": 10.0}
            assert len(list((Store(shared).stage(name(stage)) / "grids").glob("*.png"))) == 2, label


def closing(events: Iterator[tuple[str, Progress]]) -> None:
    """End a trial where it stands."""
    assert isinstance(events, Generator)
    events.close()


@pytest.mark.parametrize(
    ("recipe", "variant"),
    [
        pytest.param(tiny_recipe(steps=12), STACK, marks=pytest.mark.slow, id="paper"),
        pytest.param(released_recipe(steps=12), STACK, id="released"),
        pytest.param(tiny_recipe(steps=12), DCGAN, marks=pytest.mark.slow, id="dcgan"),
    ],
)
def test_a_trial_killed_again_and_again_is_the_same_trial(recipe, variant, root, tmp_path, monkeypatch):
    """Killed after a random number of points until it is through, with and without a checkpoint at each point: the same
    bytes of every weight (by the digests in stage.json), score and grid, and each point of the record once."""
    trial = tiny_plan(recipe, variant)
    shutil.copytree(root, tmp_path / "killed")
    finish(trial, root)
    dice, kills = random.Random(5), 0
    while not Store(tmp_path / "killed").has(trial.name):
        monkeypatch.setattr(checkpoint, "SPARSE", 0)
        monkeypatch.setattr(checkpoint, "SECONDS", dice.choice((0.0, 0.0, 1e9)))
        events = run_trial(trial, make_context(tmp_path / "killed"))
        for _ in itertools.islice(events, dice.randint(2, 5) if kills < 6 else None):
            pass
        closing(events)
        kills += 1
    assert kills > 4
    whole, killed = contents(trial, root), contents(trial, tmp_path / "killed")
    for label in whole:
        assert killed[label] == whole[label], label
        images = [line["images"] for line in whole[label]["record"]]
        assert images == sorted(set(images))


def test_an_encoder_killed_and_resumed_is_the_same_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SPARSE", 0)
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    encoder = EncoderRecipe(images=40 * 32, batch=32, init_std=0.2, flips=True)
    trial = tiny_plan(tiny_recipe(encoder=encoder, judge=JudgeRecipe(images=40 * 32, batch=32)))
    digests = []
    for parts in ((1000,), (7, 20, 1000)):
        root = tmp_path / str(len(parts))
        for part in parts:
            events = run_trial(trial, make_context(root))
            for _ in itertools.islice(events, part):
                if Store(root).has(name(dict(trial.stages)["encoder"])):
                    break
            closing(events)
        facts = [Store(root).facts(name(stage))["files"] for _, stage in trial.stages[:2]]
        digests.append([{key: each[key] for key in each if key != RECORD_FILE} for each in facts])
    assert digests[0] == digests[1]
    assert digests[0][0].keys() == {MODEL_FILE, "reference.safetensors"}


@pytest.mark.parametrize("objective", ["labels", "rotation"])
def test_an_encoder_whose_features_are_scaled_is_the_same_classifier(objective, tmp_path):
    row = Variant(("fc3",), Weights(), joint=False, labels=objective == "labels")
    encoders = []
    for variance in (None, 0.5):
        recipe = EncoderRecipe(images=40 * 32, batch=32, init_std=0.2, objective=objective, feature_variance=variance)
        trial = tiny_plan(tiny_recipe(encoder=recipe), row)
        events = run_trial(trial, make_context(tmp_path))
        stage = dict(trial.stages)["encoder"]
        assert isinstance(stage, ClassifierStage)
        next(None for _ in events if Store(tmp_path).has(name(stage)))
        closing(events)
        encoders.append(classifier.load(stage, make_context(tmp_path)))
    images = tiny_data().images
    plain, scaled = (encoder.features(images, ("pool2", "fc3", "fc4")) for encoder in encoders)
    assert scaled["fc3"][:2000].double().var(0).mean().item() == pytest.approx(0.5, rel=1e-5)
    assert torch.equal(scaled["pool2"], plain["pool2"])
    assert torch.allclose(scaled["fc4"], plain["fc4"], rtol=1e-4, atol=1e-4)
    factors = scaled["fc3"][plain["fc3"] > 0.1] / plain["fc3"][plain["fc3"] > 0.1]
    assert factors.std() < 1e-4 * factors.mean()


def diverging() -> Recipe:
    """Weights so large that the first loss is infinite or no number."""
    return tiny_recipe(dataclasses.replace(PAPER, init_std=1e30))


def test_a_diverged_stage_names_step_term_and_value_and_is_not_trained_again(root):
    trial = tiny_plan(diverging())
    with pytest.raises(Diverged, match=r"^level1: [dg]_\w+ is (nan|-?inf) in step 1$") as first:
        finish(trial, root)
    stage = dict(trial.stages)["level1"]
    facts = Store(root).facts(name(stage))
    assert facts["status"] == "diverged"
    assert str(first.value) == f"level1: {facts['reason']}"
    assert not (root / "work" / name(stage)).exists()
    events = []
    with pytest.raises(Diverged) as second:
        events.extend(run_trial(trial, make_context(root)))
    assert events == []
    assert str(second.value) == str(first.value)
    other = tiny_plan(diverging(), dataclasses.replace(STACK, joint=False))
    with pytest.raises(Diverged, match=r"^level1: "):
        finish(other, root)


def test_a_stage_that_diverges_later_names_the_step_at_which_it_did(root):
    """Without eps and memory of the second moment, Adam's step is m / |g|: it grows without bound as g shrinks."""
    wild = AdamRecipe(learning_rate=1.0, beta1=0.9, beta2=0.0, eps=1e-40)
    recipe = tiny_recipe(dataclasses.replace(PAPER, adam=wild), steps=60)
    trial = tiny_plan(recipe, DCGAN)
    with pytest.raises(Diverged, match=r"^level0: [dg]_\w+ is (nan|-?inf) in step \d+$") as caught:
        finish(trial, root)
    step = int(str(caught.value).split()[-1])
    assert 2 <= step <= 60
    lines = read_record(Store(root).stage(name(dict(trial.stages)["level0"])))
    assert [line["images"] for line in lines] == [PAPER.batch * number for number in range(step)]
    assert all(math.isfinite(value) for line in lines for value in line["metrics"].values())


def test_a_finished_stage_has_finite_weights(root):
    """The very last update can spoil weights after the last loss was looked at."""
    for size in (1e8, 1e9, 1e10):
        trial = tiny_plan(tiny_recipe(dataclasses.replace(PAPER, init_std=size), steps=1), DCGAN)
        with contextlib.suppress(Diverged):
            finish(trial, root)
            tensors = read_tensors(Store(root).file(name(dict(trial.stages)["level0"]), MODEL_FILE))
            assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_diverged_encoder_ends_the_trial(tmp_path):
    bad = EncoderRecipe(images=320, batch=32, init_std=1e30)
    trial = tiny_plan(tiny_recipe(encoder=bad, judge=JudgeRecipe(images=320, batch=32)))
    with pytest.raises(Diverged, match=r"^encoder: class_loss is (nan|inf) in step 1$"):
        finish(trial, tmp_path)
    assert len(list((tmp_path / "stages").iterdir())) == 2


def test_a_damaged_parent_is_named(root):
    trial = tiny_plan()
    path = Store(root).stage(name(dict(trial.stages)["encoder"])) / MODEL_FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=rf"{path.parent.name}/{MODEL_FILE} is missing or damaged"):
        finish(trial, root)


def test_the_joint_stage_starts_from_the_share_of_training_that_the_recipe_says(shared):
    """Weights kept on the way to joint_start are those of a shorter training that ends there."""
    recipe = released_recipe(steps=8)
    short = dataclasses.replace(recipe, image_level=4 * recipe.gan.batch, joint_start=1.0)
    variant = Variant(("fc3",), Weights(), joint=False)
    for each in (recipe, short):
        finish(tiny_plan(each, variant), shared)
    stages = [dict(tiny_plan(each, variant).stages)["level0"] for each in (recipe, short)]
    kept = read_tensors(Store(shared).file(name(stages[0]), START_FILE))
    ended = read_tensors(Store(shared).file(name(stages[1]), MODEL_FILE))
    # What was kept for the joint stage is no candidate for the best weights.
    assert not (Store(shared).stage(name(stages[0])) / WEIGHTS).exists()
    assert set(kept) == set(ended)  # nobody reads Adam's states here
    assert all(torch.equal(tensor, ended[key]) for key, tensor in kept.items())


def _work(root: str, log: str, steps: int, seconds: float, ready, kill_at: tuple[str, int] | None) -> None:
    """Another process: run the trial and write down each event; at `kill_at` it kills itself, at once."""
    torch.set_num_threads(1)
    checkpoint.SECONDS, checkpoint.SPARSE = seconds, 0
    trial = tiny_plan(tiny_recipe(steps=steps))
    context = make_context(Path(root))
    ready.wait()
    with open(log, "a", buffering=1) as file:
        for label, progress in run_trial(trial, context):
            file.write(f"{label} {progress.images}\n")
            if (label, progress.images) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)


def _processes(root: Path, logs: list[Path], steps: int, seconds: float, kill_at: tuple[str, int] | None) -> list[int]:
    """Run the trial in a process a log, all from the same moment; returns their exit codes."""
    ready = SERVER.Barrier(len(logs))
    arguments = [(str(root), str(log), steps, seconds, ready, kill_at) for log in logs]
    processes = [SERVER.Process(target=_work, args=each) for each in arguments]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(100)
        return [process.exitcode or 0 for process in processes]
    finally:
        for process in processes:
            process.kill()


def _events(log: Path) -> list[tuple[str, int]]:
    rows = [line.split() for line in log.read_text().splitlines()]
    return [(label, int(images)) for label, images in rows]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_two_processes_on_one_store_train_each_stage_once(root, tmp_path):
    logs = [tmp_path / "first", tmp_path / "second"]
    assert _processes(root, logs, 20, 20.0, None) == [0, 0]
    rows = [_events(log) for log in logs]
    starts = [[label for label, images in events if images == 0] for events in rows]
    assert sorted(itertools.chain(*starts)) == ["joint", "level0", "level1", "score"]
    for _, stage in tiny_plan(tiny_recipe(steps=20)).stages:
        images = [line["images"] for line in read_record(Store(root).stage(name(stage)))]
        assert images == sorted(set(images))
    assert list((root / "work").iterdir()) == []


@pytest.mark.timeout(120)
def test_a_killed_process_frees_its_stage_and_another_goes_on_from_its_checkpoint(root, tmp_path):
    """And what comes out is what comes out of a run that nobody killed."""
    steps, point, log = 20, 10 * PAPER.batch, tmp_path / "killed"
    trial = tiny_plan(tiny_recipe(steps=steps))
    shutil.copytree(root, tmp_path / "whole")
    assert _processes(root, [log], steps, 0.0, ("level1", point)) == [-signal.SIGKILL]
    assert list((root / "work" / name(dict(trial.stages)["level1"]) / CHECKPOINTS).iterdir())
    events = run_trial(trial, make_context(root))
    assert next(events) == ("level1", Progress(point, steps * PAPER.batch))
    list(events)
    finish(trial, tmp_path / "whole")
    whole, resumed = contents(trial, tmp_path / "whole"), contents(trial, root)
    for label in whole:
        assert resumed[label] == whole[label], label


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ((4.0, 2.0, 3.0, 2.0), 2),  # of equal ones the first
        ((4.0, 5.0, 6.0, 8.0), 1),
        ((math.nan, 3.0, math.nan, 2.0), 4),
        ((math.nan, math.inf, -math.inf, math.nan), 4),
    ],
)
def test_the_best_point_is_the_earliest_with_the_best_finite_value(values, best):
    assert best_point(dict(enumerate(values, 1))) == best


def test_the_best_weights_are_those_of_the_best_evaluation_while_training(shared):
    """The scores that the record has of each evaluation choose the same point as the score stage, of which the best
    model has the weights."""
    unsteady = replace(PAPER, adam=AdamRecipe(learning_rate=0.1))
    recipe = tiny_recipe(unsteady, steps=40, evaluations=4)
    before_the_end = [
        images < 40 * PAPER.batch for joint in (True, False) for images in best_points(recipe, joint, shared)
    ]
    assert any(before_the_end)


def best_points(recipe: Recipe, joint: bool, root: Path) -> list[int]:
    """The best points of the trained stages of a trial, compared with the record's scores and the best model."""
    trial, store = tiny_plan(recipe, replace(STACK, joint=joint)), Store(root)
    finish(trial, root)
    best = store.facts(trial.name)["best_images"]
    assert set(best) == {name(stage) for stage in trial.score.trained}
    weights = read_tensors(store.file(trial.name, "model/best/generator.safetensors"))
    for index, stage in enumerate(trial.score.trained):
        score = "fid" if joint or stage == trial.score.levels[0] else "feature_fid"
        lines = [line for line in read_record(store.stage(name(stage))) if line["images"] > 0 and "judge" in line]
        assert [line["judge"] for line in lines] == [name(trial.score.judge)] * 4
        scores = {line["images"]: line["metrics"][score] for line in lines}
        images, last = best[name(stage)], max(scores)
        assert min(scores, key=scores.__getitem__) == images
        kept = {path.name for path in (store.stage(name(stage)) / WEIGHTS).iterdir()}
        assert kept == {f"{images:09d}.safetensors" for images in scores if images < last}
        tensors = read_tensors(
            store.file(name(stage), MODEL_FILE if images == last else f"{WEIGHTS}/{images:09d}.safetensors")
        )
        for key, tensor in tensors.items():
            if key.startswith("generator/"):
                level, _, rest = key.removeprefix("generator/").partition(".")
                assert torch.equal(tensor, weights[f"{level if joint else index}/{rest}"])
    return list(best.values())


def test_levels_and_the_joint_stage_train_the_same_with_and_without_evaluation(shared, tmp_path):
    """All files but the record and the grids have the same bytes."""
    trial = tiny_plan(released_recipe(steps=6))
    finish(trial, shared)
    shutil.copytree(shared, tmp_path / "store")
    context = make_context(tmp_path / "store")
    for label in ("level1", "level0", "joint"):
        stage = dict(trial.stages)[label]
        shutil.rmtree(context.store.stage(name(stage)))
        list(run_stage(stage, None, context))
        files = [store.facts(name(stage))["files"] for store in (Store(shared), context.store)]
        assert not any(file.startswith("grids/") for file in files[1])
        weights = [{file: each[file] for file in each if file.endswith(".safetensors")} for each in files]
        assert weights[0] == weights[1]
        assert not any("judge" in line for line in read_record(context.store.stage(name(stage))))


def test_the_processor_has_a_name():
    assert processor().strip()
