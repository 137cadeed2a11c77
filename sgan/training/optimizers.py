"""Adam, in torch's form and in the released code's."""

import torch
from torch import Tensor, nn

from sgan.config import AdamRecipe


class AdamEpsInRoot(torch.optim.Optimizer):
    """Adam whose step is lr * m_hat / sqrt(v_hat + eps), with both moments corrected for their bias.

    Source: the released code's nn.py, adam_updates. Plain Adam has eps outside the root."""

    def __init__(self, params, lr: float, betas: tuple[float, float], eps: float):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in (each for each in group["params"] if each.grad is not None):
                state = self.state[parameter]
                if not state:
                    # As in torch's Adam: a CUDA graph can count it, and either Adam can continue the other.
                    state["step"] = torch.zeros((), device=parameter.device)
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                step = state["step"].add_(1).double()
                first = state["exp_avg"].lerp_(parameter.grad, 1 - beta1)
                second = state["exp_avg_sq"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                root = (second / (1 - beta2**step) + group["eps"]).sqrt_()
                parameter.sub_(first / root * (group["lr"] / (1 - beta1**step)))


def adam(module: nn.Module, recipe: AdamRecipe) -> torch.optim.Optimizer:
    """The recipe's Adam over a module's parameters."""
    settings = {"lr": recipe.learning_rate, "betas": (recipe.beta1, recipe.beta2), "eps": recipe.eps}
    if recipe.eps_in_root:
        return AdamEpsInRoot(module.parameters(), **settings)
    on_gpu = any(parameter.is_cuda for parameter in module.parameters())
    return torch.optim.Adam(module.parameters(), fused=True, capturable=on_gpu, **settings)


def in_layout_of(parameter: Tensor, value: Tensor) -> Tensor:
    """The same values with the parameter's strides."""
    return value if value.stride() == parameter.stride() else torch.empty_like(parameter).copy_(value)
