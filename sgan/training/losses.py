"""The losses, pure functions; each returns a scalar, the mean over the batch.

Source: SGAN paper, section 3, "Stacked Generators" (adversarial), "Conditional Loss" and "Entropy Loss".
Legend: B batch, K classes, Z noise size. Logits are (B, 1) for a binary discriminator and (B, K) for one over classes.
"""

import math

from torch import Tensor
from torch.nn import functional as F

from sgan.config import Codes


def real_logit(logits: Tensor) -> Tensor:
    """The logit (B,) of "real": D = Z / (Z + 1) = sigmoid(log Z) with Z = sum exp(l) over the classes (released code,
    cifar10); for one logit that is the logit itself."""
    return logits.squeeze(1) if logits.shape[1] == 1 else logits.logsumexp(1)


def discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """-log D(h) - log(1 - D(h_hat)), the representation discriminator's loss; D as in `real_logit`."""
    return F.softplus(-real_logit(real)).mean() + F.softplus(real_logit(fake)).mean()


def discriminator_accuracy(real: Tensor, fake: Tensor) -> Tensor:
    """Share of real and of generated samples that D puts on the right side of 1/2, the mean of both."""
    return ((real_logit(real) > 0).float().mean() + (real_logit(fake) < 0).float().mean()) / 2


def adversarial(fake: Tensor, form: str) -> Tensor:
    """The generator's loss: -log D(h_hat) ("non-saturating"), or log(1 - D(h_hat)) ("saturating", released
    code)."""
    logit = real_logit(fake)
    return F.softplus(-logit).mean() if form == "non-saturating" else -F.softplus(logit).mean()


def conditional(recovered: Tensor, condition: Tensor) -> Tensor:
    """f(E_i(h_hat_i), h_{i+1}): cross-entropy where the condition is a label (int64 (B,)), else the mean
    squared error."""
    if condition.dim() == 1:
        return F.cross_entropy(recovered, condition)
    return F.mse_loss(recovered, condition)


def entropy(recovered: Tensor, z: Tensor, codes: Codes | None = None) -> Tensor:
    """-log Q(z | h_hat) for a Gaussian Q of fixed variance: the squared error of the recovered noise.

    With codes (InfoGAN, Chen et al. 2016, section 5), Q recovers them alone: the same squared error for the continuous
    ones, and cross-entropy, which is -log Q, for the categorical one."""
    if codes is None:
        return F.mse_loss(recovered, z)
    known = z[:, -codes.size :]
    continuous = F.mse_loss(recovered[:, codes.categorical :], known[:, codes.categorical :])
    return F.cross_entropy(recovered[:, : codes.categorical], known[:, : codes.categorical]) + continuous


def trivial_entropy(codes: Codes | None = None) -> float:
    """The entropy loss of a Q that learned nothing: 1/12, the variance of U(0, 1), and log K for a categorical code."""
    return 1 / 12 + (math.log(codes.categorical) if codes else 0.0)


def generator_steps(rule: tuple[tuple[float, int], ...], loss: float) -> int:
    """Generator steps after a discriminator step: those of the first threshold below its adversarial loss, half the sum
    of its two terms (released code, cifar10)."""
    return next((steps for threshold, steps in rule if loss > threshold), rule[-1][1])
