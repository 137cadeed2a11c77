"""Adam, in torch's form and in the released code's."""

import torch
from torch import Tensor, nn

from sgan.config import AdamRecipe


class AdamEpsInRoot(torch.optim.Optimizer):
    """Adam that divides by sqrt(v + eps) with the uncorrected v, and corrects both biases in the step size.

    Source: the released code's own Adam (Lasagne's, with eps moved inside the root). Lasagne's a_t is
    learning_rate * sqrt(1 - beta2^t) / (1 - beta1^t).
    """

    def __init__(self, params, lr: float, betas: tuple[float, float], eps: float):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter] = {
                        "step": torch.zeros((), dtype=torch.float64, device=parameter.device),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }
            states = [self.state[parameter] for parameter in parameters]
            gradients: list[Tensor] = [parameter.grad for parameter in parameters]
            first = [state["exp_avg"] for state in states]
            second = [state["exp_avg_sq"] for state in states]
            beta1, beta2 = group["betas"]
            for state in states:
                state["step"] += 1
            step = states[0]["step"]
            torch._foreach_lerp_(first, gradients, 1 - beta1)
            torch._foreach_mul_(second, beta2)
            torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
            roots = torch._foreach_add(second, group["eps"])
            torch._foreach_sqrt_(roots)
            # A tensor, so that the GPU need not wait for Python and a CUDA graph counts on.
            size = group["lr"] * (1 - beta2**step) ** 0.5 / (1 - beta1**step)
            change = torch._foreach_div(first, roots)
            torch._foreach_mul_(change, size)
            torch._foreach_sub_(parameters, change)


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
