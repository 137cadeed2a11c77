"""Training steps against a reference written out with plain torch operations, and the loop that runs them."""

import copy
import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BATCH, CLASSIFIER, PAPER, RELEASED, TINY
from torch import Tensor, nn

from sgan.config import IMAGE, INNER_TAPS, LABEL, AdamRecipe, EncoderRecipe, GanRecipe, Level, Weights
from sgan.data.batches import Data, pixel_mean, random_flips
from sgan.models import generator as networks
from sgan.models.discriminator import Discriminator
from sgan.models.encoder import Encoder
from sgan.models.stack import sample
from sgan.models.tensors import module_tensors, write_tensors
from sgan.store.files import read_record
from sgan.training import checkpoint
from sgan.training.checkpoint import CHECKPOINTS, Task
from sgan.training.cuda_graphs import EAGER, Phases
from sgan.training.loop import Diverged, Progress, loop, marks
from sgan.training.steps import ClassifierTask, GanTask, step_seed

SEED = 3
ADV, ADV_ENT, ALL = Weights(1, 0, 0), Weights(1, 0, 10), Weights()
RULE = ((9.0, 1), (0.5, 3), (0.0, 5))
"""Three generator steps at the losses with which training starts."""
MNIST_RELEASED = dataclasses.replace(PAPER, discriminator_scale=0.5, fresh_noise=True, dense_slope=0.0)
JOINT_RELEASED = dataclasses.replace(RELEASED, hidden_noise=0.2, dropout=0.3, generator_steps=RULE)


@pytest.fixture
def few(digits) -> Data:
    return dataclasses.replace(digits, images=digits.images[:100], labels=digits.labels[:100])


def gan_task(
    data: Data,
    bounds: tuple[str, ...],
    recipe: GanRecipe,
    weights: Weights = ALL,
    feedback: float = 1.0,
    labels: bool = True,
) -> GanTask:
    """Levels between neighbouring bounds, from the image up, with an encoder of random weights."""
    torch.manual_seed(0)
    encoder = Encoder(TINY, 0.4).requires_grad_(False)
    encoder.mean.copy_(pixel_mean(data.images, True) / 2)
    pairs = []
    for low, high in itertools.pairwise(bounds):
        level = Level(low, high, labels)
        pair = networks.Generator(TINY, recipe, level), Discriminator(TINY, recipe, level)
        pairs.append(tuple(each.to(memory_format=torch.channels_last) for each in pair))
    return GanTask(pairs, encoder, data, recipe, weights, SEED, feedback)


class Adam:
    """Kingma and Ba's Adam, or with eps inside the root beside the corrected v (released code)."""

    def __init__(self, recipe: GanRecipe):
        self.recipe = recipe.adam
        self.moments: dict[str, tuple[Tensor, Tensor, int]] = {}

    def __call__(self, name: str, parameter: nn.Parameter, gradient: Tensor) -> None:
        r = self.recipe
        m, v, t = self.moments.get(name, (torch.zeros_like(parameter), torch.zeros_like(parameter), 0))
        m, v, t = r.beta1 * m + (1 - r.beta1) * gradient, r.beta2 * v + (1 - r.beta2) * gradient**2, t + 1
        self.moments[name] = m, v, t
        if r.eps_in_root:
            move = m / (1 - r.beta1**t) / (v / (1 - r.beta2**t) + r.eps).sqrt()
        else:
            move = m / (1 - r.beta1**t) / ((v / (1 - r.beta2**t)).sqrt() + r.eps)
        parameter.data -= r.learning_rate * move


class ReferenceGan:
    """A stack's training steps, from the paper's equations and the facts of the released code."""

    def __init__(self, task: GanTask):
        self.G = copy.deepcopy(task.stack)
        self.D = copy.deepcopy(task.discriminators)
        self.task, self.r, self.w = task, task.recipe, task.weights
        self.adam = Adam(task.recipe)

    def generate(self, condition: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        made, noise = [], []
        for G in reversed(self.G):
            z = torch.rand(len(condition), G.noise)
            condition = G(condition, z)
            made, noise = [condition, *made], [z, *noise]
        return made, noise

    def update(self, name: str, module: nn.Module, losses: list[tuple[float, Tensor]]) -> dict[str, Tensor]:
        """Gradient of a weighted sum of losses, each taken apart from the others."""
        parameters, total = dict(module.named_parameters()), {}
        for factor, loss in losses:
            found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
            for key, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    total[f"{name}.{key}"] = total.get(f"{name}.{key}", 0) + factor * gradient
        return total

    def apply(self, name: str, module: nn.Module, gradients: dict[str, Tensor]) -> None:
        for key, parameter in module.named_parameters():
            if f"{name}.{key}" in gradients:
                self.adam(f"{name}.{key}", parameter, gradients[f"{name}.{key}"])

    def step(self, step: int) -> float:
        """One discriminator step and its generator steps; returns half the sum of D0's adversarial terms."""
        task, r, w, levels = self.task, self.r, self.w, self.task.levels
        torch.manual_seed(step_seed(SEED, step))
        index = task.batches[step]
        encoder, y = task.encoder, task.data.labels[index]
        assert encoder is not None
        pixels = task.data.images[index].float() / 255
        h = encoder.taps(pixels - encoder.mean)
        h[IMAGE] = pixels - task.mean
        one_hot = torch.eye(10)[y] if levels[-1].labels else torch.zeros(len(y), 0)
        condition = one_hot if levels[-1].high == LABEL else h[levels[-1].high]

        def p_real(logits: Tensor) -> Tensor:
            Z = logits.exp().sum(1)
            return Z / (Z + 1)

        averages = copy.deepcopy([dict(G.named_buffers()) for G in self.G])
        made, noise = self.generate(condition)
        if r.fresh_noise:  # running averages move in generator steps alone, and none goes on with this batch
            for G, kept in zip(self.G, averages, strict=True):
                for name, buffer in G.named_buffers():
                    buffer.copy_(kept[name])
        updates, halves = [], []
        for i, D in enumerate(self.D):
            real, _ = D(h[levels[i].low])
            fake, mean = D(made[i].detach())
            adversarial = -(p_real(real).log().mean() + (1 - p_real(fake)).log().mean())
            loss = r.discriminator_scale * adversarial
            if w.entropy:
                loss = loss + w.entropy * ((mean - noise[i]) ** 2).mean()
            if r.class_weight:
                loss = loss - r.class_weight * (real - real.logsumexp(1, True))[torch.arange(len(y)), y].mean()
            updates.append(self.update(f"D{i}", D, [(1.0, loss)]))
            halves.append(adversarial.item() / 2)
        for i, D in enumerate(self.D):
            self.apply(f"D{i}", D, updates[i])
        steps = next(steps for threshold, steps in r.generator_steps if halves[0] > threshold)
        for repeat in range(steps):
            if repeat or r.fresh_noise:
                made, noise = self.generate(condition)
            losses = [self.generator_loss(i, made, noise, condition, y) for i in range(len(levels))]
            # Each G minimises its own loss, and `feedback` of the loss of the level below, of which it is the condition
            # and the target.
            updates = [
                self.update(f"G{i}", G, [(task.feedback ** (i - j), losses[j]) for j in range(i + 1)])
                for i, G in enumerate(self.G)
            ]
            for i, G in enumerate(self.G):
                self.apply(f"G{i}", G, updates[i])
        return halves[0]

    def generator_loss(self, i: int, made: list[Tensor], noise: list[Tensor], condition: Tensor, y: Tensor) -> Tensor:
        w, level, encoder, loss = self.w, self.task.levels[i], self.task.encoder, torch.zeros(())
        assert encoder is not None
        logits, mean = self.D[i](made[i])
        Z = logits.exp().sum(1)
        if self.r.adversarial == "saturating":
            loss = loss + w.adversarial * (1 - Z / (Z + 1)).log().mean()
        else:
            loss = loss - w.adversarial * (Z / (Z + 1)).log().mean()
        loss = loss + w.entropy * ((mean - noise[i]) ** 2).mean()
        if w.conditional and (level.high != LABEL or level.labels):
            seen = made[i] + self.task.mean - encoder.mean if level.low == IMAGE else made[i]
            recovered = encoder(seen, level.low, level.high)
            if level.high == LABEL:
                error = -(recovered - recovered.logsumexp(1, True))[torch.arange(len(y)), y].mean()
            else:
                error = ((recovered - (made[i + 1] if i + 1 < len(made) else condition)) ** 2).mean()
            loss = loss + w.conditional * error
        return loss


STEPS = {
    "paper, DCGAN with all losses": ((IMAGE, LABEL), PAPER, ALL, 1.0, True),
    "paper, DCGAN without labels": ((IMAGE, LABEL), PAPER, ADV_ENT, 1.0, False),
    "paper, DCGAN with one loss": ((IMAGE, LABEL), PAPER, ADV, 1.0, False),
    "paper, level on images": ((IMAGE, "fc3"), PAPER, ALL, 1.0, True),
    "paper, level on maps": (("pool1", "pool2"), PAPER, Weights(0.5, 2, 3), 1.0, True),
    "paper, level on features": (("fc3", LABEL), PAPER, ALL, 1.0, True),
    "paper, joint": ((IMAGE, "fc3", LABEL), PAPER, ALL, 1.0, True),
    "paper, joint, without labels": ((IMAGE, "fc3", LABEL), PAPER, ALL, 1.0, False),
    "paper, joint, six levels": ((IMAGE, *INNER_TAPS, LABEL), PAPER, ALL, 1.0, True),
    "released, level on images": ((IMAGE, "fc3"), dataclasses.replace(RELEASED, generator_steps=RULE), ALL, 1.0, True),
    "released, level on features": (("fc3", LABEL), RELEASED, ALL, 1.0, True),
    "released, joint": ((IMAGE, "fc3", LABEL), JOINT_RELEASED, ALL, 0.01, True),
    "released, joint, without the conditional loss": ((IMAGE, "fc3", LABEL), JOINT_RELEASED, ADV_ENT, 0.01, True),
    "released, joint as on MNIST": ((IMAGE, "fc3", LABEL), MNIST_RELEASED, ALL, 0.0, True),
}


@pytest.mark.parametrize("case", STEPS)
def test_steps_are_those_of_the_equations(case, few, float64):
    bounds, recipe, weights, feedback, labels = STEPS[case]
    task = gan_task(few, bounds, recipe, weights, feedback, labels)
    reference = ReferenceGan(task)
    prefix = "level0/" if len(task.levels) > 1 else ""
    for step in range(3):
        half, report = reference.step(step), task.step(step)
        assert report[f"{prefix}d_adversarial"].item() == pytest.approx(2 * half, rel=1e-9)
        assert report["generator_steps"] == next(n for bound, n in recipe.generator_steps if half > bound)
    for ours, theirs in zip(
        [*task.stack, *task.discriminators],
        [*reference.G, *reference.D],
        strict=True,
    ):
        for (name, tensor), (_, wanted) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
            torch.testing.assert_close(
                tensor, wanted, rtol=1e-8, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("fresh", [False, True])
def test_running_averages_move_by_a_tenth_once_in_each_generator_step_and_in_no_other(fresh, few, float64):
    """NumPy: the first layer of G1 is given [y, z], where z is the discriminator step's draw or, afresh, the second."""
    task = gan_task(few, ("fc3", LABEL), dataclasses.replace(PAPER, fresh_noise=fresh))
    parts = task.stack[0].modules()
    linear = next(part for part in parts if isinstance(part, nn.Linear))
    norm = next(part for part in parts if isinstance(part, nn.BatchNorm1d))
    mean, variance = np.zeros(linear.out_features), np.ones(linear.out_features)
    for step in range(3):
        torch.manual_seed(step_seed(SEED, step))
        noise = [torch.rand(BATCH, TINY.gan.feature_noise).numpy() for _ in range(2)]
        labels = np.eye(10)[few.labels[task.batches[step]].numpy()]
        h = np.concatenate([labels, noise[fresh]], 1) @ linear.weight.detach().numpy().T
        mean, variance = 0.9 * mean + 0.1 * h.mean(0), 0.9 * variance + 0.1 * h.var(0, ddof=1)
        task.step(step)
        found = norm.state_dict()
        np.testing.assert_allclose(found["running_mean"].numpy(), mean, rtol=1e-10)
        np.testing.assert_allclose(found["running_var"].numpy(), variance, rtol=1e-10)


def upper_gradients(data: Data, feedback: float, weights: Weights) -> list[Tensor]:
    """The gradient that level 1's generator is given in one joint step."""
    task = gan_task(data, (IMAGE, "fc3", LABEL), PAPER, weights, feedback)
    task.step(0)
    gradients = [parameter.grad for parameter in task.stack[1].parameters()]
    return [gradient for gradient in gradients if gradient is not None]


@pytest.mark.parametrize("weights", [ADV_ENT, ALL, Weights(1, 1, 0)], ids=["adv ent", "adv cond ent", "adv cond"])
def test_feedback_is_the_share_of_the_lower_loss_that_reaches_the_upper_generator(weights, few, float64):
    """With g(f) = own + f * below: g(1) - g(0) is level 0's loss, and g(0.01) - g(0) exactly a hundredth of it."""
    none, some, whole = (upper_gradients(few, feedback, weights) for feedback in (0.0, 0.01, 1.0))
    below = [b - a for a, b in zip(none, whole, strict=True)]
    assert max(gradient.abs().max() for gradient in below) > 1e-6
    for a, b, gradient in zip(none, some, below, strict=True):
        torch.testing.assert_close(b - a, 0.01 * gradient, rtol=1e-8, atol=1e-13)


def test_without_feedback_the_upper_generator_trains_as_if_alone(few, float64):
    """The same noise and data: level 1's step is the one it would make with level 0's loss taken away."""
    task = gan_task(few, (IMAGE, "fc3", LABEL), PAPER, ALL, 0.0)
    reference = ReferenceGan(task)
    torch.manual_seed(step_seed(SEED, 0))
    y = few.labels[task.batches[0]]
    made, noise = reference.generate(torch.eye(10)[y])
    task.step(0)
    reference.D = task.discriminators
    for discriminator in reference.D:
        for part in discriminator.modules():
            if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
                part.momentum = 0.0
    own = reference.update("G1", reference.G[1], [(1.0, reference.generator_loss(1, made, noise, torch.empty(0), y))])
    for name, parameter in task.stack[1].named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, own[f"G1.{name}"], rtol=1e-8, atol=1e-13)


def test_a_generator_step_leaves_discriminators_and_encoder_alone(few):
    """Their weights move by the discriminator step only, the encoder's never."""
    task = gan_task(few, (IMAGE, "fc3", LABEL), dataclasses.replace(PAPER, generator_steps=((0.0, 5),)))
    once = gan_task(few, (IMAGE, "fc3", LABEL), PAPER)
    assert task.encoder is not None
    before = copy.deepcopy(task.encoder.state_dict())
    task.step(0)
    once.step(0)
    for many, one in zip(task.discriminator.parameters(), once.discriminator.parameters(), strict=True):
        assert torch.equal(many, one)
    for name, tensor in task.encoder.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    "cuts", [cuts for n in range(6) for cuts in itertools.combinations(INNER_TAPS, n)], ids="-".join
)
def test_a_joint_step_trains_every_level_of_every_split(cuts, few):
    task = gan_task(few, (IMAGE, *cuts, LABEL), PAPER)
    before = copy.deepcopy(task.modules)
    report = task.step(0)
    assert all(math.isfinite(value) for value in report.values())
    assert sum("g_conditional" in name for name in report) == len(cuts) + 1
    for side, module in task.modules.items():
        for (name, parameter), old in zip(module.named_parameters(), before[side].parameters(), strict=True):
            assert parameter.isfinite().all()
            assert not torch.equal(parameter, old), (side, name)


def test_real_features_are_the_encoders_whether_kept_or_made_anew(few, monkeypatch):
    kept = gan_task(few, ("pool1", "fc3"), PAPER)
    monkeypatch.setattr("sgan.training.steps.CACHE_BYTES", 0)
    anew = gan_task(few, ("pool1", "fc3"), PAPER)
    assert kept.cache
    assert not anew.cache
    index = torch.tensor([5, 2, 99])
    assert kept.encoder is not None
    taps = kept.encoder.taps(few.images[index] / 255 - kept.encoder.mean)
    for task in (kept, anew):
        real = task.real(index)
        assert set(real) == {"pool1", "fc3", LABEL}
        assert torch.equal(real.pop(LABEL), few.labels[index])
        for tap, tensor in real.items():
            torch.testing.assert_close(tensor, taps[tap])


@pytest.mark.parametrize(("rate", "steps"), [(1e-2, 1), (1e-4, 20)])
@pytest.mark.parametrize("bounds", [(IMAGE, "fc3"), ("pool1", "fc3"), ("fc3", LABEL), (IMAGE, "fc3", LABEL)])
def test_bfloat16_gives_the_losses_of_float32_within_two_per_cent(bounds, rate, steps, few):
    # At the high rate D's step changes what G's step sees by far more, so weights of before it would show.
    recipe = dataclasses.replace(PAPER, adam=AdamRecipe(learning_rate=rate))
    exact, fast = (
        gan_task(few, bounds, dataclasses.replace(recipe, precision=precision)) for precision in ("float32", "bfloat16")
    )
    for step in range(steps):
        wanted, found = exact.step(step), fast.step(step)
        assert found.keys() == wanted.keys()
        for name, loss in found.items():
            assert loss.dtype == torch.float32
            if "accuracy" not in name:
                assert loss.item() == pytest.approx(wanted[name].item(), rel=0.02, abs=2e-3), (step, name)
    for task in (exact, fast):
        assert all(value.dtype == torch.float32 for value in task.generator.parameters())
    same = [torch.equal(a, b) for a, b in zip(exact.generator.parameters(), fast.generator.parameters(), strict=True)]
    assert not all(same)  # or bfloat16 would not have been used


@pytest.mark.parametrize("flips", [False, True])
def test_a_classifiers_steps_are_cross_entropy_and_adam(flips, few, float64):
    recipe = EncoderRecipe(images=100, batch=20, adam=CLASSIFIER.adam, flips=flips)
    torch.manual_seed(0)
    ours = Encoder(TINY, 0.2)
    ours.mean.copy_(pixel_mean(few.images, True))
    reference = copy.deepcopy(ours)
    task = ClassifierTask(ours, few, recipe, SEED)
    adam = torch.optim.Adam(reference.parameters(), lr=5e-3, betas=(0.9, 0.999), eps=1e-8, fused=False, foreach=False)
    for step in range(8):
        report = task.step(step)
        torch.manual_seed(step_seed(SEED, step))
        index = task.batches[step]
        images = few.images[index].float() / 255 - reference.mean
        logits = reference(random_flips(images) if flips else images)
        loss = -(logits - logits.logsumexp(1, True))[torch.arange(20), few.labels[index]].mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        assert report["class_loss"].item() == pytest.approx(loss.item(), rel=1e-9)
    for parameter, wanted in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-8, atol=1e-12)


def test_steps_have_seeds_of_their_own():
    seeds = {step_seed(seed, step) for seed in (*range(30), 2**31 - 2, 2**31 - 1) for step in range(300)}
    assert len(seeds) == 32 * 300
    assert all(0 <= seed < 2**63 for seed in seeds)


class Toy:
    """Counts its steps in a parameter; its loss in step k (from 1) is what `losses` says."""

    def __init__(self, losses: Callable[[int], dict[str, float]] = lambda number: {"loss": float(number)}):
        self.counter, self.losses = nn.Linear(1, 1, bias=False), losses
        nn.init.zeros_(self.counter.weight)
        self.modules: dict[str, nn.Module] = {"toy": self.counter}
        self.optimisers: dict[str, torch.optim.Optimizer] = {}

    def step(self, step: int) -> dict[str, Tensor]:
        self.counter.weight.data += 1
        return {name: torch.tensor(value) for name, value in self.losses(step + 1).items()}


def run(task: Task, folder: Path, steps: int = 100, **settings) -> list[Progress]:
    """The loop with an evaluation that says what it was called with."""
    evaluations = marks(steps, 4)
    return list(loop(task, steps, BATCH, folder, lambda images: {"images": float(images)}, evaluations, **settings))


def test_the_record_has_the_mean_of_each_window_and_scores_at_the_start_and_each_quarter(tmp_path):
    progress = run(Toy(), tmp_path, steps=400, judge="judge-0123456789abcdef")
    lines = read_record(tmp_path)
    assert [line["images"] for line in lines] == [BATCH * 10 * point for point in range(41)]
    assert [line["metrics"]["loss"] for line in lines[1:]] == [10 * point - 4.5 for point in range(1, 41)]
    scored = {line["images"]: line["metrics"]["images"] for line in lines if "images" in line["metrics"]}
    assert scored == {BATCH * number: BATCH * number for number in (0, 100, 200, 300, 400)}
    judged = {line["images"]: line["judge"] for line in lines if "judge" in line}
    assert judged == dict.fromkeys(scored, "judge-0123456789abcdef")
    assert progress == [Progress(BATCH * 10 * point, BATCH * 400) for point in range(41)]
    assert [each.metrics for each in progress] == [line["metrics"] for line in lines]


@pytest.mark.parametrize(("bad", "word"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
@pytest.mark.parametrize("when", [1, 57, 100])
def test_a_loss_that_is_not_finite_names_its_first_step_its_term_and_its_value(tmp_path, bad, word, when):
    toy = Toy(lambda number: {"fine": 0.0, "g_adversarial": bad if number >= when else 1.0})
    with pytest.raises(Diverged, match=rf"^g_adversarial is {word} in step {when}$"):
        run(toy, tmp_path)
    assert all(math.isfinite(line["metrics"]["g_adversarial"]) for line in read_record(tmp_path)[1:])


def classifier_task(data: Data) -> ClassifierTask:
    torch.manual_seed(0)
    recipe = dataclasses.replace(CLASSIFIER, batch=BATCH, flips=True)
    return ClassifierTask(Encoder(TINY, 0.2), data, recipe, SEED)


TASKS: dict[str, Callable[[Data], Task]] = {
    "encoder": classifier_task,
    "level on features": lambda data: gan_task(data, ("fc3", LABEL), PAPER),
    "level on maps": lambda data: gan_task(data, ("pool1", "pool2"), RELEASED),
    "level on images": lambda data: gan_task(data, (IMAGE, "fc3"), PAPER),
    "level on images, released": lambda data: gan_task(data, (IMAGE, "fc3"), RELEASED),
    "joint": lambda data: gan_task(data, (IMAGE, "fc3", LABEL), PAPER),
    "joint, released": lambda data: gan_task(data, (IMAGE, "fc3", LABEL), JOINT_RELEASED, ALL, 0.01),
    "without entropy": lambda data: gan_task(data, (IMAGE, LABEL), PAPER, ADV, 1.0, False),
}


def everything(task: Task) -> dict[str, Tensor]:
    """Weights, buffers and the optimisers' moments."""
    tensors = module_tensors(task.modules)
    for side, optimiser in task.optimisers.items():
        for index, state in optimiser.state_dict()["state"].items():
            tensors |= {f"{side}/{index}/{name}": value for name, value in state.items()}
    return tensors


@pytest.mark.parametrize("kind", TASKS)
def test_a_resumed_run_is_the_same_run_bit_for_bit(kind, few, tmp_path, monkeypatch):
    """Stopped at two random points, with a checkpoint at every step and with one at the stop."""
    steps, build = 20, TASKS[kind]
    monkeypatch.setattr(checkpoint, "SPARSE", 0)

    def evaluate(task: Task, folder: Path) -> Callable[[int], dict[str, float]]:
        def draw(images: int) -> dict[str, float]:
            if isinstance(task, GanTask):
                sample(task.stack, torch.rand(9, *_condition(task)), "batch", seed=1)
            write_tensors(folder / "weights" / f"{images}.safetensors", module_tensors(task.modules))
            return {"images": float(images), "wave": math.sin(images)}

        return draw

    def part(folder: Path, points: int, seconds: float) -> Task:
        task = build(few)
        monkeypatch.setattr(checkpoint, "SECONDS", seconds)
        points_of = loop(task, steps, BATCH, folder, evaluate(task, folder), marks(steps, 3) | {12})
        for _ in itertools.islice(points_of, points + 1):
            pass
        assert isinstance(points_of, Generator)
        points_of.close()
        return task

    (tmp_path / "whole").mkdir()
    whole = everything(part(tmp_path / "whole", steps, 1e9))
    assert not (tmp_path / "whole" / CHECKPOINTS).exists()
    lines = read_record(tmp_path / "whole")
    assert [line["images"] for line in lines] == [BATCH * number for number in range(steps + 1)]
    dice = random.Random(kind)
    for trial in range(2):
        folder = tmp_path / f"parts{trial}"
        folder.mkdir()
        first = dice.randint(1, steps - 4)
        second = dice.randint(1, steps - first - 1)
        part(folder, first, 0.0)
        part(folder, second, 1e9)
        resumed = everything(part(folder, steps, 0.0))
        assert set(resumed) == set(whole)
        for name, tensor in whole.items():
            assert torch.equal(tensor, resumed[name]), (name, first, second)
        found = read_record(folder)
        assert [(line["images"], line["metrics"]) for line in found] == [
            (line["images"], line["metrics"]) for line in lines
        ]
        kept = [
            {path.name: path.read_bytes() for path in (root / "weights").iterdir()}
            for root in (tmp_path / "whole", folder)
        ]
        assert kept[0] == kept[1]
        assert set(kept[0]) == {f"{BATCH * number}.safetensors" for number in (0, 7, 12, 13, 20)}


def _condition(task: GanTask) -> tuple[int, ...]:
    """Shape of what the top level is given."""
    top = task.levels[-1]
    if top.high == LABEL:
        return (10,) if top.labels else (0,)
    return tuple(task.real(torch.tensor([0]))[top.high].shape[1:])


def test_a_run_without_interruption_does_not_depend_on_the_order_of_earlier_runs(few, tmp_path):
    """Nothing random is left over from one run to the next."""
    found = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        task = gan_task(few, (IMAGE, "fc3"), RELEASED)
        run(task, tmp_path / name, steps=4)
        found.append(everything(task))
        torch.rand(17)
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


PLAYED: Any = SimpleNamespace(replay=lambda: None)
"""In a graph's place."""


def test_phases_are_recorded_in_the_order_in_which_a_step_calls_them(monkeypatch):
    """A step with three generator phases has run those often enough before the discriminator's."""
    phases = Phases(torch.device("cpu"))
    phases.wanted = True
    monkeypatch.setattr(phases, "_aside", lambda phase: phase())
    recorded = (PLAYED, (), torch.zeros(0))
    monkeypatch.setattr(phases, "_record", lambda phase: recorded)
    for step in range(EAGER + 1):
        phases("discriminator", dict)
        assert list(phases.recorded) == ["discriminator"] * (step == EAGER)
        for _ in range(3):
            phases("generator", dict)
    assert list(phases.recorded) == ["discriminator", "generator"]


def test_a_generator_that_cannot_be_recorded_takes_its_step_all_the_same(few, monkeypatch):
    """The attempt has used up the batch that the discriminator's phase left."""
    task = gan_task(few, (IMAGE, "fc3"), dataclasses.replace(PAPER, generator_steps=RULE))
    task.phases.wanted = True
    monkeypatch.setattr(task.phases, "_aside", lambda phase: phase())

    def record(phase):
        report = phase()
        if "d_adversarial" not in report:
            task.phases.wanted = False
            return None
        return PLAYED, tuple(report), torch.stack(list(report.values()))

    monkeypatch.setattr(task.phases, "_record", record)
    for step in range(EAGER + 3):
        assert all(value.isfinite() for value in task.step(step).values())
    assert not task.phases.wanted
