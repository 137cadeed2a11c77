"""Each rule in which the paper's text and the released code differ, against a hand-written reference; those of a
training step's losses are in test_train.py, those of the networks in test_networks.py."""

import dataclasses
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    CLASSIFIER,
    PAPER,
    STACK,
    TINY,
    finish,
    make_context,
    named_recipe,
    released_recipe,
    run_trial,
    tiny_data,
    tiny_plan,
    tiny_recipe,
)

from sgan.checks import as_json
from sgan.config import IMAGE, LABEL, Codes, Level, Recipe, Variant, Weights
from sgan.data.batches import to_input, turned
from sgan.models.discriminator import Discriminator
from sgan.models.encoder import Encoder
from sgan.models.generator import Generator, new_generator
from sgan.models.stack import draw, sample
from sgan.models.tensors import read_tensors
from sgan.presets import DATASETS, TRAINING_IMAGES, VARIANTS, configure
from sgan.stages.context import MODEL_FILE
from sgan.stages.graph import LevelStage, name, plan
from sgan.stages.kinds import joint
from sgan.stages.kinds.level import START_FILE, new_task
from sgan.store.local import Store
from sgan.training.steps import ClassifierTask, GanTask, step_seed
from sweeps.planning.options import Sweep


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted field -> value."""
    if not dataclasses.is_dataclass(value):
        return {path: value}
    found = {}
    for field in dataclasses.fields(value):
        found |= leaves(getattr(value, field.name), f"{path}.{field.name}".strip("."))
    return found


def test_the_two_recipes_of_cifar10_differ_in_just_the_facts_of_the_released_code():
    paper, released = (leaves(named_recipe(recipe, "cifar10")) for recipe in ("paper", "released"))
    gan = {
        "adam.eps_in_root": (False, True),
        "discriminator": ("binary", "classes"),
        "class_weight": (0.0, 1.0),
        "adversarial": ("non-saturating", "saturating"),
        "discriminator_scale": (1.0, 0.5),
        "generator_steps": (((0.0, 1),), ((0.65, 1), (0.5, 3), (0.3, 5), (0.0, 7))),
        "fresh_noise": (False, True),
        "pixel_mean": (False, True),
    }
    expected = {f"{part}.{field}": values for part in ("gan", "joint") for field, values in gan.items()}
    expected |= {"joint.hidden_noise": (0.0, 0.2), "joint.dropout": (0.1, 0.3), "joint_start": (1.0, 0.95)}
    expected |= {"feedback": (1.0, 0.01), "fresh_adam": (False, True), "encoder.pixel_mean": (False, True)}
    expected |= {"name": ("paper", "released")}
    assert {field: (paper[field], released[field]) for field in paper if paper[field] != released[field]} == expected
    shared = {"gan.batch": 100, "gan.adam.learning_rate": 1e-4, "gan.adam.beta1": 0.5, "gan.adam.beta2": 0.999}
    shared |= {"gan.adam.eps": 1e-8, "image_level": 10_000_000, "feature_level": 10_000_000, "gan.init_std": 0.02}
    shared |= {"gan.image_noise": 0.05, "gan.feature_noise": 0.2, "gan.dropout": 0.1}
    shared |= {"encoder.flips": True, "samples": 50_000, "encoder.init_std": 0.01, "encoder.feature_variance": 0.441}
    assert {field: paper[field] for field in shared} == shared == {field: released[field] for field in shared}


def test_images_that_are_turned_are_not_mirrored():
    """Mirrored, an image turned by 90 degrees is one turned by 270."""
    cifar, variant = DATASETS["cifar10"], VARIANTS["sgan-unsupervised"].variant
    encoder = configure(cifar, "", named_recipe("paper", "cifar10"), variant, 0, None, ("fc3",)).recipe.encoder
    assert (encoder.objective, encoder.flips) == ("rotation", False)


def test_the_released_recipe_of_mnist():
    paper, released = (leaves(named_recipe(recipe, "mnist")) for recipe in ("paper", "released"))
    gan = {"adam.eps_in_root": (False, True), "discriminator_scale": (1.0, 0.5), "fresh_noise": (False, True)}
    expected: dict[str, Any] = {f"{part}.{field}": each for part in ("gan", "joint") for field, each in gan.items()}
    expected |= {"joint.dense_slope": (0.2, 0.0), "joint.dense_glorot": (False, True)}
    expected |= {"joint.convolution_std": (None, 0.01), "joint_start": (1.0, 0.0), "fresh_adam": (False, True)}
    expected |= {"feedback": (1.0, 0.0), "name": ("paper", "released")}
    assert {field: (paper[field], released[field]) for field in paper if paper[field] != released[field]} == expected
    assert paper["encoder.feature_variance"] == 0.515


def test_svhn_follows_cifar10_but_digits_are_not_mirrored():
    for recipe in ("paper", "released"):
        one, other = (leaves(named_recipe(recipe, dataset)) for dataset in ("cifar10", "svhn"))
        assert {field for field in one if one[field] != other[field]} == {
            *("encoder.flips", "judge.flips"),
            *("encoder.images", "image_level", "feature_level", "joint_images"),  # epochs of another size
        }


COUPLED = ("discriminator", "pixel_mean", "discriminator_norm")
"""The joint stage continues the levels, so gan and joint agree in these."""


@pytest.mark.parametrize("dataset", ["cifar10", "svhn", "mnist"])
def test_a_sweep_can_switch_each_difference_by_itself(dataset):
    row, images = DATASETS[dataset], TRAINING_IMAGES[dataset]
    paper, released = (leaves(named_recipe(recipe, dataset)) for recipe in ("paper", "released"))
    switched = [field for field in paper if paper[field] != released[field] and field != "name"]
    assert switched
    for field in switched:
        fields = [field]
        part, _, own = field.partition(".")
        if own in COUPLED:
            fields = [f"{each}.{own}" for each in ("gan", "joint")]
        text = json.dumps(as_json(released[field]))
        sweep = Sweep(dataset=dataset, recipe="paper", override=tuple(f"{each}={text}" for each in fields))
        found = leaves(sweep.build_recipe(row, "paper", images))
        changed = {each for each in paper if found[each] != paper[each]}
        assert changed == set(fields), (part, field)
        assert all(found[each] == released[each] for each in fields)


def moments(root: Path, trial_levels: tuple[LevelStage, ...], side: str, file: str) -> list[dict[str, torch.Tensor]]:
    """Adam's state of each parameter of a side, level after level, as the levels' own files have it."""
    found = []
    for stage in trial_levels:
        tensors = read_tensors(Store(root).file(name(stage), file))
        own: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimiser/{side}/"):
                index, field = key.split("/")[2:]
                own.setdefault(int(index), {})[field] = value
        found += [own[index] for index in sorted(own)]
    return found


@pytest.mark.parametrize("recipe", ["paper", "released"])
@pytest.mark.parametrize("fresh", [False, True])
def test_the_joint_stage_goes_on_with_the_levels_adam_or_starts_it_afresh(recipe, fresh, root, monkeypatch):
    """The states with which the joint stage begins, parameter by parameter, against the levels' files."""
    whole = tiny_recipe(steps=4) if recipe == "paper" else released_recipe(steps=4)
    trial = tiny_plan(replace(whole, fresh_adam=fresh))
    begun: list[tuple[GanTask, dict[str, list[dict[str, torch.Tensor]]]]] = []

    def train(task: GanTask, *rest: Any):
        states = {
            side: [
                {key: value.clone() for key, value in optimiser.state[parameter].items()}
                for parameter in task.modules[side].parameters()
                if parameter in optimiser.state
            ]
            for side, optimiser in task.optimisers.items()
        }
        begun.append((task, states))
        yield from original(task, *rest)

    original = joint.train
    monkeypatch.setattr(joint, "train", train)
    for _ in run_trial(trial, make_context(root)):
        if begun:
            break
    ((task, states),) = begun
    file = START_FILE if recipe == "released" else MODEL_FILE
    for side, found in states.items():
        if fresh:
            assert found == []
            continue
        expected = moments(root, trial.score.levels, side, file)
        assert len(found) == len(expected) == len(list(task.modules[side].parameters()))
        for one, other in zip(found, expected, strict=True):
            assert set(one) == {"step", "exp_avg", "exp_avg_sq"}
            assert all(torch.equal(one[key], other[key]) for key in one)
        assert any(one["exp_avg"].abs().max() > 0 for one in found)


def test_a_joint_stage_from_scratch_needs_no_level_and_starts_with_weights_of_its_own(root, monkeypatch):
    """Those that its levels start with, and no Adam state."""
    recipe = tiny_recipe(steps=2, joint_start=0.0, fresh_adam=False)
    begun: list[dict[str, torch.Tensor]] = []

    def train(task: GanTask, *rest: Any):
        assert not any(optimiser.state for optimiser in task.optimisers.values())
        begun.append(task.modules["generator"].state_dict())
        begun[-1] = {key: value.clone() for key, value in begun[-1].items()}
        yield from original(task, *rest)

    original = joint.train
    monkeypatch.setattr(joint, "train", train)
    trial = tiny_plan(recipe)
    assert finish(trial, root) == ["joint", "score"]
    assert trial.score.joint is not None
    fresh = new_task(trial.score.joint, tiny_data(), "cpu", Encoder(TINY, 0.1))
    wanted = fresh.generator.state_dict()
    assert begun[0].keys() == wanted.keys()
    assert all(torch.equal(value, wanted[key]) for key, value in begun[0].items())
    alone = tiny_plan(recipe, replace(STACK, joint=False))
    assert finish(alone, root) == ["level1", "level0", "score"]
    files = Store(root).facts(name(alone.score.levels[0]))["files"]
    assert START_FILE not in files


def test_levels_keep_adams_state_only_for_a_joint_stage_that_wants_it(root):
    for variant, fresh, kept in (
        (STACK, False, True),
        (STACK, True, False),
        (VARIANTS["dcgan-adv"].variant, False, False),
    ):
        trial = tiny_plan(tiny_recipe(steps=2, fresh_adam=fresh), variant)
        finish(trial, root)
        tensors = read_tensors(Store(root).file(name(trial.score.levels[0]), MODEL_FILE))
        assert any(key.startswith("optimiser/") for key in tensors) == kept


def test_images_are_turned_by_right_angles(digits):
    images, quarters = digits.images[:8], torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])
    expected = [np.rot90(image.numpy(), int(quarter), (1, 2)) for image, quarter in zip(images, quarters, strict=True)]
    assert np.array_equal(turned(images, quarters).numpy(), np.stack(expected))


def test_an_encoder_without_labels_learns_by_how_much_images_are_turned(digits, float64):
    torch.manual_seed(0)
    encoder = Encoder(TINY, 0.2, classes=4)
    task = ClassifierTask(encoder, digits, replace(CLASSIFIER, objective="rotation"), seed=5)
    torch.manual_seed(step_seed(5, 0))
    index = task.batches[0]
    quarters = torch.randint(4, (len(index),))
    with torch.no_grad():
        logits = encoder(to_input(turned(digits.images[index], quarters), encoder.mean).double())
    expected = -(logits - logits.logsumexp(1, True))[torch.arange(len(index)), quarters].mean().item()
    assert task.step(0)["class_loss"].item() == pytest.approx(expected, rel=1e-9)
    other = replace(digits, labels=digits.labels.flip(0))  # labels have no part in it
    torch.manual_seed(0)
    again = ClassifierTask(Encoder(TINY, 0.2, classes=4), other, task.recipe, seed=5)
    assert again.step(0)["class_loss"].item() == pytest.approx(expected, rel=1e-9)


def test_the_unsupervised_stack_uses_no_label(tmp_path, classifiers):
    """Trained with other labels, its levels have the same weights."""
    row = VARIANTS["sgan-unsupervised"].variant
    data, found = tiny_data(), []
    for index, labels in enumerate((data.labels, data.labels.roll(7))):
        root = tmp_path / str(index)
        shutil.copytree(classifiers, root)
        config = configure(TINY, data.digest, tiny_recipe(steps=3), row, 0, None, ("fc3",))
        assert config.recipe.encoder.objective == "rotation"
        assert config.recipe.gan.discriminator == "binary"
        trial = plan(config)
        context = replace(make_context(root), data=replace(data, labels=labels))
        for _ in run_trial(trial, context):
            pass
        stages = [stage for label, stage in trial.stages if label.startswith(("encoder", "level", "joint"))]
        found.append([Store(root).facts(name(stage))["files"][MODEL_FILE] for stage in stages])
    assert len(found[0]) == 4
    assert found[0] == found[1]


def test_a_categorical_code_is_one_hot_and_every_value_as_likely():
    level = Level(IMAGE, LABEL, False, Codes(5, 2))
    plain = TINY.gan.image_noise
    z = draw(Generator(TINY, PAPER, level), 20_000, "cpu", torch.Generator().manual_seed(0))
    assert z.shape == (20_000, plain + 7)
    code = z[:, plain : plain + 5]
    assert torch.equal(code.sum(1), torch.ones(20_000))
    assert torch.equal(code.max(1).values, torch.ones(20_000))
    assert (code.mean(0) - 0.2).abs().max() < 5 * (0.16 / 20_000) ** 0.5
    rest = torch.cat([z[:, :plain], z[:, plain + 5 :]], 1)
    assert (rest.mean(0) - 0.5).abs().max() < 5 * (1 / 12 / 20_000) ** 0.5
    assert Discriminator(TINY, PAPER, level).q.out_features == 7


def test_the_full_generator_has_one_discriminator_and_gradients_in_all_of_it(digits):
    torch.manual_seed(0)
    encoder = Encoder(TINY, 0.3).requires_grad_(False)
    level = Level(IMAGE, LABEL, through=("fc3",))
    chain = new_generator(TINY, PAPER, level)
    few = replace(digits, images=digits.images[:64], labels=digits.labels[:64])
    discriminator = Discriminator(TINY, PAPER, level)
    task = GanTask([(chain, discriminator)], encoder, few, PAPER, Weights(), 0)
    before = {key: value.clone() for key, value in chain.state_dict().items()}
    report = task.step(0)
    assert {"g_adversarial", "g_conditional", "g_entropy", "d_accuracy"} <= set(report)
    moved = {key for key, value in chain.named_parameters() if not torch.equal(value, before[key])}
    assert moved == {key for key, _ in chain.named_parameters()}
    assert report["g_entropy"].item() == pytest.approx(report["entropy_ratio"].item() / 12, rel=1e-6)
    assert report["g_conditional"].item() == pytest.approx(report["conditional_ratio"].item() * np.log(10), rel=1e-6)


def test_the_conditional_ratio_of_features_is_to_their_variance(digits):
    torch.manual_seed(0)
    encoder = Encoder(TINY, 0.3).requires_grad_(False)
    level = Level(IMAGE, "fc3")
    networks = [(Generator(TINY, PAPER, level), Discriminator(TINY, PAPER, level))]
    task = GanTask(networks, encoder, digits, PAPER, Weights(), 0)
    with torch.no_grad():
        real = encoder(digits.images.float() / 255, IMAGE, "fc3").double().numpy()
    report = task.step(0)
    variance = real.var(0, ddof=1).mean()
    assert report["g_conditional"].item() / report["conditional_ratio"].item() == pytest.approx(variance, rel=1e-5)


def test_sampling_by_running_averages_and_by_the_batch_are_batch_normalisations_two_forms():
    torch.manual_seed(0)
    generator = Generator(TINY, PAPER, Level("fc3", LABEL))
    for module in generator.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    condition = torch.eye(10)[torch.arange(40) % 10]

    def by_hand(statistics: str) -> torch.Tensor:
        h = torch.cat([condition, draw(generator, 40, "cpu", torch.Generator().manual_seed(3))], 1)
        for module in generator.body.modules():
            if isinstance(module, torch.nn.Linear):
                h = h @ module.weight.T + (0 if module.bias is None else module.bias)
            elif isinstance(module, torch.nn.BatchNorm1d):
                assert module.running_mean is not None
                assert module.running_var is not None
                mean, variance = (module.running_mean, module.running_var)
                if statistics == "batch":
                    mean, variance = h.mean(0), h.var(0, unbiased=False)
                h = (h - mean) / (variance + 1e-6).sqrt() * module.weight + module.bias
            elif isinstance(module, torch.nn.ReLU):
                h = h.clamp(min=0)
        return h.clamp(min=0)

    for statistics in ("running", "batch"):
        kept = {key: value.clone() for key, value in generator.state_dict().items()}
        made = sample([generator], condition, statistics, 3)
        assert torch.allclose(made, by_hand(statistics), atol=1e-5)
        assert all(torch.equal(value, kept[key]) for key, value in generator.state_dict().items())
    assert generator.training  # as it was


def test_config_refuses_a_labelled_stack_with_an_encoder_that_knows_none():
    recipe: Recipe = tiny_recipe(encoder=replace(CLASSIFIER, objective="rotation"))
    with pytest.raises(ValueError, match=r"encoder\.objective must be 'labels', but got 'rotation'"):
        tiny_plan(recipe)
    tiny_plan(recipe, Variant(("fc3",), Weights(), joint=True, labels=False))
