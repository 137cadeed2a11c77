"""The losses against closed forms, and against formulas written out with log and exp."""

import math

import numpy as np
import pytest
import torch
from conftest import PAPER, RELEASED

from sgan.config import Codes
from sgan.training import losses


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


def test_the_entropy_loss_of_codes_is_cross_entropy_and_squared_error_of_the_codes_alone():
    """z: 3 plain numbers, 4 values of the categorical code, 2 continuous codes."""
    codes, generator = Codes(4, 2), torch.Generator().manual_seed(8)
    z = torch.rand(5, 9, dtype=torch.float64, generator=generator)
    chosen = [0, 3, 2, 2, 1]
    z[:, 3:7] = torch.eye(4, dtype=torch.float64)[chosen]
    recovered = torch.randn(5, 6, dtype=torch.float64, generator=generator)
    logits, means = recovered[:, :4].numpy(), recovered[:, 4:].numpy()
    cross = np.mean([np.log(np.exp(row).sum()) - row[right] for row, right in zip(logits, chosen, strict=True)])
    expected = cross + ((means - z[:, 7:].numpy()) ** 2).mean()
    assert losses.entropy(recovered, z, codes).item() == pytest.approx(expected, rel=1e-12)
    z[:, :3] = 0
    assert losses.entropy(recovered, z, codes).item() == pytest.approx(expected, rel=1e-12)


def test_what_ignoring_z_scores():
    z = torch.rand(200_000, 3, generator=torch.Generator().manual_seed(9))
    assert losses.trivial_entropy() == pytest.approx(losses.entropy(torch.full_like(z, 0.5), z).item(), rel=0.01)
    codes = Codes(4, 1)
    z = torch.cat([torch.eye(4).repeat(50_000, 1), z[:, :1]], 1)
    ignorant = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5]).expand(len(z), -1)
    assert losses.trivial_entropy(codes) == pytest.approx(losses.entropy(ignorant, z, codes).item(), rel=0.01)


def test_the_discriminators_accuracy_counts_both_sides():
    real, fake = torch.tensor([[2.0], [1.0], [-1.0], [3.0]]), torch.tensor([[-2.0], [1.0]])
    assert losses.discriminator_accuracy(real, fake).item() == pytest.approx((3 / 4 + 1 / 2) / 2)
    even = torch.full((3, 10), -5.0)  # D = Z / (Z + 1) with Z = 10 exp(-5) < 1
    assert losses.discriminator_accuracy(even, even).item() == pytest.approx(1 / 2)
