"""Steps that CUDA graphs play back are the steps that Python launches, bit for bit. Needs a GPU."""

import dataclasses

import pytest
import torch
from test_train import STEPS, few, gan_task  # noqa: F401  # a fixture

from sgan.graphs import EAGER
from sgan.loop import task_tensors
from sgan.train import GanTask

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: there are no CUDA graphs")


def on_gpu(case: str, data, precision: str, graphs: bool) -> GanTask:
    bounds, recipe, weights, feedback, labels = STEPS[case]
    recipe = dataclasses.replace(recipe, precision=precision)
    task = gan_task(data, bounds, recipe, weights, feedback, labels)
    levels = [dataclasses.replace(level, generator=level.generator.cuda()) for level in task.levels]
    discriminators = [discriminator.cuda() for discriminator in task.discriminators]
    assert task.encoder is not None
    rest = (recipe, weights, task.seed, task.mean.cuda(), task.classes, feedback, graphs)
    return GanTask(levels, discriminators, task.encoder.cuda(), data.to("cuda"), *rest)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", STEPS)
def test_graphs_and_python_train_the_same_weights(case, precision, few):  # noqa: F811
    graphed, eager = (on_gpu(case, few, precision, graphs) for graphs in (True, False))
    for step in range(4 * EAGER):
        played, launched = graphed.step(step), eager.step(step)
        assert {name: value.item() for name, value in played.items()} == {
            name: value.item() for name, value in launched.items()
        }, step
    assert graphed.phases.recorded  # or nothing was played
    ours, theirs = task_tensors(graphed), task_tensors(eager)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
