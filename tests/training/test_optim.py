"""The optimisers against a few lines of numpy, and against torch's own plain loop."""

import numpy as np
import pytest
import torch
from torch import nn

from sgan.config import AdamRecipe
from sgan.training.optimizers import AdamEpsInRoot, adam

RATE, BETAS, EPS = 0.01, (0.5, 0.999), 1e-8


def gradients(size: float) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [size * random.normal(size=(4, 3)) for _ in range(6)]


def released(start: np.ndarray, steps: list[np.ndarray]) -> np.ndarray:
    """The released code's formula: lr * m_hat / sqrt(v_hat + eps)."""
    parameter, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for t, gradient in enumerate(steps, 1):
        m = BETAS[0] * m + (1 - BETAS[0]) * gradient
        v = BETAS[1] * v + (1 - BETAS[1]) * gradient**2
        m_hat, v_hat = m / (1 - BETAS[0] ** t), v / (1 - BETAS[1] ** t)
        parameter = parameter - RATE * m_hat / np.sqrt(v_hat + EPS)
    return parameter


def follow(optimiser: torch.optim.Optimizer, parameter: torch.Tensor, steps: list[np.ndarray]) -> None:
    for gradient in steps:
        parameter.grad = torch.from_numpy(gradient.copy()).to(parameter.dtype)
        optimiser.step()


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6], ids=["large", "near the root of eps", "small"])
def test_eps_in_the_root_follows_the_released_code(size):
    start = np.random.default_rng(1).normal(size=(4, 3))
    parameter = nn.Parameter(torch.from_numpy(start.copy()))
    follow(AdamEpsInRoot([parameter], RATE, BETAS, EPS), parameter, gradients(size))
    np.testing.assert_allclose(parameter.detach().numpy(), released(start, gradients(size)), rtol=1e-12, atol=1e-15)


def test_a_first_step_is_as_worked_out_by_hand():
    """From zero moments m_hat is g and v_hat is g^2: the step is rate * g / sqrt(g^2 + eps). For g = 1e-4 that is
    rate / sqrt(2), where g^2 = eps; for g = 1e-6 about a hundredth of the rate, and about the rate in plain Adam."""
    for gradient, expected in ((1e-4, RATE / np.sqrt(2)), (1e-6, RATE * 1e-6 / np.sqrt(1e-12 + 1e-8))):
        moved = []
        for in_root in (True, False):
            module = nn.Linear(1, 1, bias=False).double()
            nn.init.zeros_(module.weight)
            recipe = AdamRecipe(RATE, *BETAS, EPS, eps_in_root=in_root)
            follow(adam(module, recipe), module.weight, [np.full((1, 1), gradient)])
            moved.append(-module.weight.item())
        assert moved[0] == pytest.approx(expected, rel=1e-9)
        assert moved[1] == pytest.approx(RATE * gradient / (gradient + EPS), rel=1e-9)


def test_both_forms_keep_states_of_the_same_types():
    """The joint stage may continue the levels' states in the other form; a GPU's fused Adam reads them as float32."""
    types = []
    for in_root in (True, False):
        module = nn.Linear(3, 4, bias=False)
        optimiser = adam(module, AdamRecipe(eps_in_root=in_root))
        follow(optimiser, module.weight, gradients(1.0))
        types.append({name: value.dtype for name, value in optimiser.state[module.weight].items()})
        assert optimiser.state[module.weight]["step"] == len(gradients(1.0))
    assert types[0] == types[1] == dict.fromkeys(("step", "exp_avg", "exp_avg_sq"), torch.float32)


def test_plain_adam_is_torchs():
    torch.manual_seed(0)
    ours, reference = nn.Linear(3, 4, bias=False).double(), nn.Linear(3, 4, bias=False).double()
    reference.load_state_dict(ours.state_dict())
    follow(adam(ours, AdamRecipe(RATE, *BETAS, EPS)), ours.weight, gradients(1.0))
    plain = torch.optim.Adam(reference.parameters(), lr=RATE, betas=BETAS, eps=EPS, fused=False, foreach=False)
    follow(plain, reference.weight, gradients(1.0))
    torch.testing.assert_close(ours.weight, reference.weight, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("in_root", [False, True])
def test_a_parameter_without_a_gradient_stays(in_root):
    module = nn.Linear(3, 4)
    before = module.bias.detach().clone()
    follow(adam(module, AdamRecipe(eps_in_root=in_root)), module.weight, gradients(1.0))
    assert torch.equal(module.bias, before)
