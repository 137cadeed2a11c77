"""Scores of images through a network: Inception score, KID, precision and recall by torch-fidelity's own functions,
FID, accuracy of the labels, and diversity within a class.

Legend: n images, F features, K classes.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from sgan.models.encoder import Encoder

SPLITS, SHUFFLE_SEED = 10, 2020
SUBSET = 1000
"""Images a subset of KID."""
SPREAD = 1000
"""Images of a class whose distances are taken, at most."""
COLLAPSED = 1 / 3
"""A class has collapsed where its samples lie closer together than this share of the distance of real images."""


@dataclass(frozen=True)
class Features:
    """A network's outputs for images: the features before its last layer (n, F) and its logits (n, K)."""

    features: Tensor
    logits: Tensor


def join(parts: list[Features]) -> Features:
    """The outputs for parts of a set of images as those for the whole set."""
    return Features(torch.cat([part.features for part in parts]), torch.cat([part.logits for part in parts]))


def classify(classifier: Encoder, images: Tensor) -> Features:
    """Features (fc3) and logits of uint8 images (n, channels, size, size)."""
    found = classifier.features(images, ("fc3", "fc4"))
    return Features(found["fc3"].cpu(), found["fc4"].cpu())


def fingerprint(network: str, weights: str, resize: str, samples: int, reference: str) -> dict[str, str | int]:
    """All that a score was computed with. Scores can be compared where all of it agrees.

    Args:
        network, weights: the network that sees the images, and the SHA-256 of its weights file.
        resize: how images are brought to its size.
        samples: number of images.
        reference: the real images, in words and by digest.
    """
    origin = {"network": network, "weights": weights, "resize": resize, "samples": samples, "reference": reference}
    return origin | {"splits": SPLITS, "shuffle": f"NumPy RandomState({SHUFFLE_SEED})"}


def inception_scores(logits: Tensor) -> dict[str, float]:
    """inception_score and inception_score_split_std: mean and std over 10 splits of exp(E KL(p(y|x) || p(y)))
    (Salimans et al. 2016), from logits (n, K)."""
    found = isc_features_to_metric(logits, splits=SPLITS, shuffle=True, rng_seed=SHUFFLE_SEED)
    names = {"inception_score": "inception_score_mean", "inception_score_split_std": "inception_score_std"}
    return {name: found[theirs] for name, theirs in names.items()}


@threadpool_limits.wrap(limits=1, user_api="blas")
def statistics(features: Tensor) -> dict[str, np.ndarray]:
    """Mean `mu` (F,) of features (n, F) and `root` (min(n, F), F), of which root' root is their covariance, in double
    precision."""
    values = features.double().numpy()
    mean = values.mean(axis=0)
    centred = (values - mean) / math.sqrt(len(values) - 1)
    if len(values) > len(mean):
        centred: np.ndarray = np.linalg.qr(centred, mode="r")  # pyright: ignore[reportAssignmentType]
    return {"mu": mean, "root": centred}


@threadpool_limits.wrap(limits=1, user_api="blas")
def frechet_distance(features: Tensor, real: dict[str, np.ndarray]) -> float:
    """Squared Frechet distance (FID, Heusel et al. 2017) of features (n, F) to the statistics of real ones; NaN where
    features are not finite.

    With covariances A' A and B' B, the trace of the root of their product is the sum of the singular values of A B'.
    The usual sum of the roots of the product's eigenvalues is blurred where features are constant, or more than the
    samples: there those are rounding alone, and of 1e-16 the root makes 1e-8.

    NumPy multiplies in one thread: with two, the last digits differ.
    """
    if not features.isfinite().all():
        return math.nan
    found = statistics(features)
    means = found["mu"] - real["mu"]
    shared = np.linalg.svd(found["root"] @ real["root"].T, compute_uv=False)
    return float(means @ means + (found["root"] ** 2).sum() + (real["root"] ** 2).sum() - 2 * shared.sum())


@threadpool_limits.wrap(limits=1, user_api="blas")
def kernel_distance(features: Tensor, real: Tensor) -> dict[str, float]:
    """kid and kid_std (Binkowski et al. 2018) of features (n, F) and (m, F): mean and std over 100 subsets of 1,000, or
    of all where there are fewer."""
    size = min(SUBSET, len(features), len(real))
    found = kid_features_to_metric(features, real, kid_subset_size=size, verbose=False, rng_seed=SHUFFLE_SEED)
    return {"kid": found["kernel_inception_distance_mean"], "kid_std": found["kernel_inception_distance_std"]}


def precision_recall(features: Tensor, real: Tensor) -> dict[str, float]:
    """precision and recall (Kynkaanniemi et al. 2019, 3 neighbours): the share of features (n, F) that lie in the
    manifold of the real ones (m, F), and the other way round."""
    found = prc_features_to_metric(features, real, save_cpu_ram=True, verbose=False)
    return {name: found[name] for name in ("precision", "recall")}


def network_scores(found: Features, real: Features, known: dict[str, np.ndarray] | None = None) -> dict[str, float]:
    """The scores of images by the paper's network and its successors against real ones: inception_scores, fid,
    kernel_distance, precision_recall. `known`: `statistics` of the real features, where they were computed before."""
    return {
        **inception_scores(found.logits),
        "fid": frechet_distance(found.features, known or statistics(real.features)),
        **kernel_distance(found.features, real.features),
        **precision_recall(found.features, real.features),
    }


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is that of their label, from logits (n, K) and labels (n,)."""
    return (logits.argmax(1) == labels.to(logits.device)).float().mean().item()


def class_spread(found: Features) -> Tensor:
    """For each class (K,): the mean Euclidean distance in feature space between two images that the classifier, not the
    label asked for, puts into it, so that wrong samples are no diversity; 0 where it puts fewer than two there."""
    decided = found.logits.argmax(1)
    groups = [found.features[decided == label][:SPREAD] for label in range(found.logits.shape[1])]
    return torch.stack([functional.pdist(group).mean() if len(group) > 1 else torch.zeros(()) for group in groups])


class Reference:
    """The real images that scores compare with: their features' `statistics` and `class_spread`, computed once."""

    def __init__(self, real: Features):
        self.statistics, self.spread = statistics(real.features), class_spread(real)


def scores(found: Features, reference: Reference, labels: Tensor | None) -> dict[str, float]:
    """All scores of images against the real ones, by the dataset's classifier.

    Args:
        found: the classifier's outputs for the images.
        labels: the label each image should have, (n,); None leaves the accuracy out.
    Returns:
        inception_scores (the std is over the splits of this one set), fid, diversity (mean over classes of class_spread
        relative to the real images'), collapsed_classes (share of the classes that are missed or repeat themselves:
        class_spread below COLLAPSED of the real images'), and judge_accuracy in [0, 1].
    """
    spread = (class_spread(found) / reference.spread)[reference.spread > 0]
    values = inception_scores(found.logits) | {
        "fid": frechet_distance(found.features, reference.statistics),
        "diversity": spread.mean().item(),
        "collapsed_classes": (spread < COLLAPSED).float().mean().item(),
    }
    return values if labels is None else values | {"judge_accuracy": accuracy(found.logits, labels)}
