"""Steps that CUDA graphs play back are the steps that Python launches, bit for bit. Needs a GPU."""

import dataclasses

import pytest
import torch
from conftest import CLASSIFIER, TINY
from test_train import STEPS, few, gan_task  # noqa: F401  # a fixture

from sgan.models.encoder import Encoder
from sgan.training.checkpoint import task_tensors
from sgan.training.cuda_graphs import EAGER, Phases
from sgan.training.steps import ClassifierTask, GanTask

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: there are no CUDA graphs"),
]


def on_gpu(case: str, data, precision: str, graphs: bool) -> GanTask:
    bounds, recipe, weights, feedback, labels = STEPS[case]
    recipe = dataclasses.replace(recipe, precision=precision)
    task = gan_task(data, bounds, recipe, weights, feedback, labels)
    assert task.encoder is not None
    networks = [(each.cuda(), other.cuda()) for each, other in zip(task.stack, task.discriminators, strict=True)]
    task = GanTask(networks, task.encoder.cuda(), data.to("cuda"), recipe, weights, task.seed, feedback)
    task.phases.wanted = graphs
    return task


def same(graphed: GanTask | ClassifierTask, launched: GanTask | ClassifierTask) -> None:
    """Both train the same weights, optimisers' states and losses."""
    for step in range(4 * EAGER):
        played, wanted = graphed.step(step), launched.step(step)
        values = [{name: value.item() for name, value in each.items()} for each in (played, wanted)]
        assert values[0] == values[1], step
    assert graphed.phases.recorded  # or nothing was played
    ours, theirs = task_tensors(graphed), task_tensors(launched)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", STEPS)
def test_graphs_and_python_train_the_same_levels(case, precision, few):  # noqa: F811
    same(*(on_gpu(case, few, precision, graphs) for graphs in (True, False)))


@pytest.mark.parametrize("objective", ["labels", "rotation"])
def test_graphs_and_python_train_the_same_classifier(objective, few):  # noqa: F811
    recipe = dataclasses.replace(CLASSIFIER, objective=objective, flips=True)
    tasks = []
    for graphs in (True, False):
        torch.manual_seed(0)
        encoder = Encoder(TINY, 0.2, classes=4 if objective == "rotation" else None).cuda()
        tasks.append(ClassifierTask(encoder, few.to("cuda"), recipe, 3))
        tasks[-1].phases.wanted = graphs
    same(*tasks)


def test_a_phase_that_cannot_be_recorded_goes_on_launched():
    """It waits for the GPU, which no recording may."""
    total = torch.zeros((), device="cuda")

    def phase() -> dict[str, torch.Tensor]:
        total.add_(1)
        assert total.item() > 0
        return {"total": total}

    phases = Phases(total.device)
    with pytest.warns(UserWarning, match="training goes on without CUDA graphs"):
        found = [phases("phase", phase)["total"].item() for _ in range(EAGER + 3)]
    assert found == list(range(1, EAGER + 4))
    assert torch.rand(3, device="cuda").isfinite().all()  # the generator of the failed recording is replaced
