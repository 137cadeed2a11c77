"""The losses, pure functions; each returns a scalar, the mean over the batch.

Source: SGAN paper, section 3, "Stacked Generators" (adversarial), "Conditional Loss" and "Entropy Loss".
Legend: B batch, K classes, Z noise size. Logits are (B, 1) for a binary discriminator and (B, K) for one over classes.
"""

from torch import Tensor
from torch.nn import functional as F


def real_logit(logits: Tensor) -> Tensor:
    """The logit (B,) of "real": D = Z / (Z + 1) = sigmoid(log Z) with Z = sum exp(l) over the classes (released code,
    cifar10); for one logit that is the logit itself."""
    return logits.logsumexp(1)


def discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """-log D(h) - log(1 - D(h_hat)), the representation discriminator's loss; D as in `real_logit`."""
    return F.softplus(-real_logit(real)).mean() + F.softplus(real_logit(fake)).mean()


def adversarial(fake: Tensor, form: str) -> Tensor:
    """The generator's side: -log D(h_hat) ("non-saturating"), or log(1 - D(h_hat)) ("saturating", released
    code)."""
    logit = real_logit(fake)
    return F.softplus(-logit).mean() if form == "non-saturating" else -F.softplus(logit).mean()


def conditional(recovered: Tensor, condition: Tensor) -> Tensor:
    """f(E_i(h_hat_i), h_{i+1}): cross-entropy where the condition is a label (int64 (B,)), else the mean
    squared error."""
    if condition.dim() == 1:
        return F.cross_entropy(recovered, condition)
    return F.mse_loss(recovered, condition)


def entropy(recovered: Tensor, z: Tensor) -> Tensor:
    """-log Q(z | h_hat) for a Gaussian Q of fixed variance: the squared error of the recovered noise.

    A Q that learned nothing scores 1/12, the variance of U(0, 1)."""
    return F.mse_loss(recovered, z)


def generator_steps(rule: tuple[tuple[float, int], ...], loss: float) -> int:
    """Generator steps after a discriminator step: those of the first threshold below its adversarial loss, half the sum
    of its two terms (released code, cifar10)."""
    return next((steps for threshold, steps in rule if loss > threshold), rule[-1][1])
