"""The losses against closed forms, and against formulas written out with log and exp."""

import math

import numpy as np
import pytest
import torch
from conftest import PAPER, RELEASED

from sgan import losses


def logits(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def random_logits(classes: int, seed: int) -> torch.Tensor:
    return 3 * torch.randn(7, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def probability(values: torch.Tensor) -> np.ndarray:
    """D = Z / (Z + 1) with Z = sum exp(l), written out."""
    total = np.exp(values.numpy()).sum(1)
    return total / (total + 1)


@pytest.mark.parametrize("classes", [1, 10])
def test_d_is_z_over_z_plus_one(classes):
    values = random_logits(classes, 0)
    np.testing.assert_allclose(torch.sigmoid(losses.real_logit(values)), probability(values), rtol=1e-12)


def test_one_logit_is_the_logit_itself():
    values = logits([-3.0], [0.0], [5.0])
    assert losses.real_logit(values).tolist() == [-3.0, 0.0, 5.0]


def test_ten_equal_classes_make_ten_elevenths():
    assert torch.sigmoid(losses.real_logit(torch.zeros(1, 10))).item() == pytest.approx(10 / 11, rel=1e-6)


def test_a_discriminator_that_cannot_tell_loses_two_log_two():
    assert losses.discriminator(logits([0.0]), logits([0.0])).item() == pytest.approx(2 * math.log(2), rel=1e-12)


@pytest.mark.parametrize("classes", [1, 10])
def test_the_discriminators_loss_written_out(classes):
    real, fake = random_logits(classes, 1), random_logits(classes, 2)
    expected = -np.log(probability(real)).mean() - np.log(1 - probability(fake)).mean()
    assert losses.discriminator(real, fake).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("classes", [1, 10])
def test_the_generators_two_forms_written_out(classes):
    fake = random_logits(classes, 3)
    non_saturating, saturating = losses.adversarial(fake, "non-saturating"), losses.adversarial(fake, "saturating")
    assert non_saturating.item() == pytest.approx(-np.log(probability(fake)).mean(), rel=1e-10)
    assert saturating.item() == pytest.approx(np.log(1 - probability(fake)).mean(), rel=1e-10)


@pytest.mark.parametrize(("form", "sure", "fooled"), [("non-saturating", -1.0, 0.0), ("saturating", 0.0, -1.0)])
def test_where_the_generators_gradient_vanishes(form, sure, fooled):
    """-log D pushes hardest where D is sure of a fake, log(1 - D) where D is fooled; both push the logit up."""
    for place, slope in ((-40.0, sure), (40.0, fooled)):
        logit = torch.tensor([[place]], dtype=torch.float64, requires_grad=True)
        losses.adversarial(logit, form).backward()
        assert logit.grad is not None
        assert logit.grad.item() == pytest.approx(slope, abs=1e-12)


def test_huge_logits_stay_finite():
    real, fake = torch.full((2, 10), -1e4), torch.full((2, 10), 1e4)
    assert losses.discriminator(real, fake).item() == pytest.approx(2e4, rel=1e-3)
    assert losses.adversarial(-fake, "non-saturating").item() == pytest.approx(1e4, rel=1e-3)
    assert losses.adversarial(fake, "saturating").item() == pytest.approx(-1e4, rel=1e-3)


def test_the_conditional_loss_of_a_label_is_cross_entropy():
    values, labels = random_logits(10, 4), torch.tensor([0, 1, 2, 3, 4, 9, 0])
    soft = np.exp(values.numpy())
    expected = -np.log((soft / soft.sum(1, keepdims=True))[np.arange(7), labels.numpy()]).mean()
    assert losses.conditional(values, labels).item() == pytest.approx(expected, rel=1e-10)
    assert losses.conditional(torch.zeros(7, 10), labels).item() == pytest.approx(math.log(10), rel=1e-6)


@pytest.mark.parametrize("shape", [(5, 8), (5, 3, 4, 4)])
def test_the_conditional_loss_of_features_is_the_mean_over_all_of_their_numbers(shape):
    generator = torch.Generator().manual_seed(5)
    recovered, wanted = torch.rand(2, *shape, dtype=torch.float64, generator=generator)
    expected = ((recovered.numpy() - wanted.numpy()) ** 2).sum() / math.prod(shape)
    assert losses.conditional(recovered, wanted).item() == pytest.approx(expected, rel=1e-12)


def test_a_constant_q_scores_the_variance_of_the_noise():
    """Var U(0, 1) = 1/12; the mean of n squares has a standard deviation of sqrt(1/180/n)."""
    z = torch.rand(20_000, 50, generator=torch.Generator().manual_seed(6))
    assert losses.entropy(torch.full_like(z, 0.5), z).item() == pytest.approx(1 / 12, abs=5 * math.sqrt(1 / 180 / 1e6))
    assert losses.entropy(torch.zeros_like(z), z).item() == pytest.approx(1 / 3, abs=2e-3)
    assert losses.entropy(z, z).item() == 0.0


@pytest.mark.parametrize(
    ("loss", "steps"), [(2.0, 1), (0.66, 1), (0.65, 3), (0.51, 3), (0.5, 5), (0.31, 5), (0.3, 7), (0.01, 7), (0.0, 7)]
)
def test_the_released_rule_of_generator_steps(loss, steps):
    assert losses.generator_steps(RELEASED.generator_steps, loss) == steps


@pytest.mark.parametrize("loss", [0.0, 0.4, 9.0])
def test_the_paper_alternates(loss):
    assert losses.generator_steps(PAPER.generator_steps, loss) == 1
