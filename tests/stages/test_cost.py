"""FLOPs and steps: against torch's own count of the real step, the paper's networks, and what a trial did."""

from dataclasses import replace

import pytest
from conftest import RELEASED, TINY, finish, named_recipe, released_recipe, tiny_plan, tiny_recipe
from torch.utils.flop_counter import FlopCounterMode

from sgan.data.batches import Data
from sgan.models.encoder import Encoder
from sgan.presets import DATASETS, VARIANTS, configure
from sgan.stages.cost import flops, planned_steps, step_flops
from sgan.stages.graph import JointStage, LevelStage, plan
from sgan.stages.kinds.level import new_task
from sgan.store.files import read_record
from sgan.store.local import Store
from sweeps.planning.trials import TRAINING, scores_of, state_of

CIFAR_GENERATOR = 213.16e6
"""Multiply-accumulates of an image of the paper's lower CIFAR-10 generator."""


def gan_stages(variant: str, recipe) -> list[JointStage | LevelStage]:
    config = configure(TINY, "", recipe, VARIANTS[variant].variant, 0, None, ("pool2", "fc3"))
    return [stage for _, stage in plan(config).stages if isinstance(stage, JointStage | LevelStage)]


def counted(stage: JointStage | LevelStage, data: Data) -> float:
    """FLOPs an image of a whole step of the real task, by torch's counter."""
    task = new_task(stage, data, "cpu", Encoder(TINY, 0.1).requires_grad_(False))
    with FlopCounterMode(display=False) as counter:
        task.step(0)
    return counter.get_total_flops() / stage.recipe.batch


@pytest.mark.parametrize("variant", ["sgan", "sgan-no-entropy", "full-gan", "dcgan-adv", "infogan"])
@pytest.mark.parametrize(("fresh", "updates", "feedback"), [(False, 1, 1.0), (True, 1, 0.0), (False, 3, 0.01)])
def test_a_steps_flops_are_those_that_torch_counts(variant: str, fresh: bool, updates: int, feedback: float, digits):
    gan = replace(RELEASED, fresh_noise=fresh, generator_steps=((0.0, updates),))
    for stage in gan_stages(variant, tiny_recipe(gan, feedback=feedback)):
        of_discriminator, of_generator = step_flops(stage)
        assert of_discriminator + updates * of_generator == pytest.approx(counted(stage, digits), rel=1e-12)


def test_the_papers_generator_makes_an_image_in_its_multiply_accumulates():
    base = DATASETS["cifar10"]
    config = configure(base, "", named_recipe("paper", "cifar10"), VARIANTS["sgan"].variant, 0, None, ("fc3",))
    level = dict(plan(config).stages)["level0"]
    assert isinstance(level, LevelStage)
    fresh = replace(level, recipe=replace(level.recipe, fresh_noise=True))  # the discriminator step makes its own
    assert step_flops(fresh)[0] - step_flops(level)[0] == pytest.approx(2 * CIFAR_GENERATOR, rel=1e-4)


def test_a_trial_counts_the_generator_steps_that_its_rule_made(root):
    trial = tiny_plan(released_recipe(steps=6))
    finish(trial, root)
    store = Store(root)
    state = state_of(store, {"name": trial.name, "stages": [{"label": a, "name": b} for a, b in zip(
        [label for label, _ in trial.stages], trial.names, strict=True)]})  # fmt: skip
    found = {label: store.facts(each) for (label, _), each in zip(trial.stages, trial.names, strict=True)}
    for label, stage in trial.stages:
        if isinstance(stage, JointStage | LevelStage):
            facts, lines = found[label], read_record(store.stage(trial.names[[*dict(trial.stages)].index(label)]))
            before = [0, *(line["images"] for line in lines)]
            means = [line["metrics"].get("generator_steps", 0) for line in lines]
            widths = [(line["images"] - last) / 16 for line, last in zip(lines, before, strict=False)]
            assert facts["discriminator_steps"] == 6
            assert facts["generator_steps"] == pytest.approx(sum(a * b for a, b in zip(means, widths, strict=True)))
            assert 6 <= facts["generator_steps"] <= 7 * 6
            assert facts["generator_images"] == (0 if label == "level1" else 16 * facts["generator_steps"])
            assert facts["flops"] == flops(stage, 6, facts["generator_steps"])
        else:
            assert not {"discriminator_steps", "flops"} & set(found[label])
    gan = [found[label] for label in ("level1", "level0", "joint")]
    scores = scores_of(state)
    assert {name: scores[name] for name in TRAINING[1:]} == {
        name: sum(facts[name] for facts in gan) for name in TRAINING[1:]
    }


def test_planned_generator_steps_are_those_of_the_middle_of_the_rule():
    (stage,) = gan_stages("dcgan-adv", tiny_recipe(RELEASED, steps=10))
    assert planned_steps(stage) == (10, 10 * 4)
