"""Measures of images, computed from the features that a judge gives. docs/metrics.md explains each one.

Legend: n images, m real ones, F features, K classes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

SPLITS, SHUFFLE_SEED = 10, 2020
KID = (100, 1000)  # Number of KID's subsets, and images in each, as published
SUBSET, SPREAD = 2000, 1000  # Images whose pairwise distances are computed, at most: in all, and of a class
NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5
COLLAPSED, MISSED, FEWEST = 0.4, 0.2, 2
"""A class has collapsed where its samples' distances are below COLLAPSED times those of real images (class_diversity).
It is missed where its share of the samples is below MISSED times its share of real images, or, where that is larger, of
an equal share: labels are drawn equally often. With fewer than FEWEST images a class, neither can be told."""


@dataclass(frozen=True)
class Features:
    """A network's outputs for images: the features before its last layer (n, F) and its logits (n, K)."""

    features: Tensor
    logits: Tensor


def join(parts: Iterable[Features]) -> Features:
    """Concatenate the outputs for parts of a set of images, on the CPU."""
    features, logits = zip(*((part.features.cpu(), part.logits.cpu()) for part in parts), strict=True)
    return Features(torch.cat(features), torch.cat(logits))


def fingerprint(network: str, weights: str, resize: str, samples: int, reference: str) -> dict[str, str | int]:
    """Return all settings of a score. Two scores can be compared only where all of these agree.

    Args:
        network, weights: the network that gives the features, and the SHA-256 of its weights file.
        resize: how images are resized for it, in words.
        samples: number of images.
        reference: the real images, in words and by digest."""
    origin = {"network": network, "weights": weights, "resize": resize, "samples": samples, "reference": reference}
    return origin | {"splits": SPLITS, "shuffle": f"NumPy RandomState({SHUFFLE_SEED})", "subset": SUBSET}


def inception_scores(logits: Tensor) -> dict[str, float]:
    """inception_score and inception_score_split_std: mean and std over 10 splits of exp(E KL(p(y|x) || p(y)))
    (Salimans et al. 2016), from logits (n, K)."""
    found = isc_features_to_metric(logits, splits=SPLITS, shuffle=True, rng_seed=SHUFFLE_SEED)
    names = {"inception_score": "inception_score_mean", "inception_score_split_std": "inception_score_std"}
    return {name: found[theirs] for name, theirs in names.items()}


@threadpool_limits.wrap(limits=1, user_api="blas")
def statistics(features: Tensor) -> dict[str, np.ndarray]:
    """Return the mean `mu` (F,) of features (n, F), and `root` (min(n, F), F), where root' root is their covariance.
    Both have double precision."""
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
    The usual sum of the roots of the product's eigenvalues is inexact where features are constant, or outnumber the
    samples. There, eigenvalues are only rounding errors, and the root turns 1e-16 into 1e-8.

    NumPy multiplies in one thread: with two, the last digits differ."""
    if not features.isfinite().all():
        return math.nan
    found = statistics(features)
    means = found["mu"] - real["mu"]
    shared = np.linalg.svd(found["root"] @ real["root"].T, compute_uv=False)
    return float(means @ means + (found["root"] ** 2).sum() + (real["root"] ** 2).sum() - 2 * shared.sum())


@threadpool_limits.wrap(limits=1, user_api="blas")
def kernel_distance(features: Tensor, real: Tensor, subsets: int = KID[0], size: int = KID[1]) -> dict[str, float]:
    """kid and kid_std (Binkowski et al. 2018) of features (n, F) and (m, F): mean and std over `subsets` subsets of
    `size` images, or of all images where there are fewer."""
    settings = {
        "kid_subset_size": min(size, len(features), len(real)),
        "kid_subsets": subsets,
        "rng_seed": SHUFFLE_SEED,
    }
    found = kid_features_to_metric(features, real, verbose=False, **settings)
    return {"kid": found["kernel_inception_distance_mean"], "kid_std": found["kernel_inception_distance_std"]}


def precision_recall(features: Tensor, real: Tensor) -> dict[str, float]:
    """precision and recall (Kynkaanniemi et al. 2019, 3 neighbours): the share of features (n, F) that lie in the
    manifold of the real ones (m, F), and the other way round."""
    found = prc_features_to_metric(features, real, save_cpu_ram=True, verbose=False)
    return {name: found[name] for name in ("precision", "recall")}


def network_scores(found: Features, real: Features) -> dict[str, float]:
    """Return the scores of images against real ones, from a network's outputs for both: inception_scores, fid,
    kernel_distance, precision_recall."""
    return {
        **inception_scores(found.logits),
        "fid": frechet_distance(found.features, statistics(real.features)),
        **kernel_distance(found.features, real.features),
        **precision_recall(found.features, real.features),
    }


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is that of their label, from logits (n, K) and labels (n,)."""
    return (logits.argmax(1) == labels.to(logits.device)).float().mean().item()


def subset(count: int, most: int = SUBSET) -> Tensor:
    """Return the indices of at most `most` of `count` images, always the same ones. They represent all images in
    measures whose cost grows with the square of the number of images."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(SHUFFLE_SEED))[:most]


def distances(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distances (n, m) of points (n, F) and (m, F). Equal points have distance 0 for any number of threads;
    torch's faster form, a matrix product, does not ensure that."""
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")


def nearest(points: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Distance (n,) of each of the points (n, ...) to the nearest of the others (m, ...), and the index (n,) of that
    one. Both are features or images."""
    points = points.float().flatten(1)
    found = [distances(points, part.to(points).flatten(1)).min(1) for part in others.split(SUBSET)]
    near, place = torch.stack([each.values for each in found]).min(0)
    return near, place * SUBSET + torch.stack([each.indices for each in found]).gather(0, place[None])[0]


def radii(points: Tensor, *neighbours: int) -> list[Tensor]:
    """For each k in `neighbours`: the distance (n,) of each of the points (n, F) to its k-th nearest other point. With
    too few points, it is the distance to the farthest one."""
    between = distances(points, points)
    return [between.kthvalue(min(count + 1, len(points))).values for count in neighbours]


class Neighbourhoods:
    """Real points (m, F) and the distances to their neighbours, as a reference for measures of other points."""

    def __init__(self, real: Tensor):
        self.real, (self.near, self.far) = real, radii(real, NEIGHBOURS, DENSITY_NEIGHBOURS)

    def scores(self, found: Tensor) -> dict[str, float]:
        """precision and recall (Kynkaanniemi et al. 2019, 3 neighbours), density and coverage (Naeem et al. 2020, 5
        neighbours) of points (n, F)."""
        between = distances(self.real, found)
        inside = between < self.far[:, None]
        return {
            "precision": (between <= self.near[:, None]).any(0).float().mean().item(),
            "recall": (between <= radii(found, NEIGHBOURS)[0]).any(1).float().mean().item(),
            "density": inside.float().sum(0).mean().item() / DENSITY_NEIGHBOURS,
            "coverage": inside.any(1).float().mean().item(),
        }


def class_diversity(found: Features, real: Features) -> Tensor:
    """For each class (K,): the median distance of a sample to its nearest neighbour, relative to as many real images.

    The judge's logits, and not the requested labels, decide the classes, so that wrong samples add no diversity.
    The value is 0 for a missed class (see MISSED), and NaN where real images give no distance to divide by."""
    decided, known = found.logits.argmax(1), real.logits.argmax(1)
    ratios = torch.full((found.logits.shape[1],), math.nan)
    for label in range(len(ratios)):
        samples, images = (each.features[of == label][:SPREAD] for each, of in ((found, decided), (real, known)))
        if len(images) < 2 or not (gap := _gap(images)):
            continue
        share, real_share = ((of == label).float().mean() for of in (decided, known))
        count = min(len(samples), len(images))
        missed = count < 2 or share < MISSED * real_share.clamp(max=1 / len(ratios))
        ratios[label] = 0.0 if missed else _gap(samples[:count]) / (_gap(images[:count]) or gap)
    return ratios


def _gap(points: Tensor) -> float:
    return radii(points, 1)[0].median().item()


def class_scores(found: Features, real: Features) -> dict[str, float]:
    """diversity, the mean of class_diversity, and collapsed_classes, the share of the classes in which it is below
    COLLAPSED. Where no class of the real images varies, all classes count as collapsed. Empty with too few images (see
    FEWEST)."""
    if len(found.logits) < FEWEST * found.logits.shape[1]:
        return {}
    ratios = class_diversity(found, real)
    ratios = ratios[~ratios.isnan()]
    if not len(ratios):
        return {"diversity": 0.0, "collapsed_classes": 1.0}
    return {"diversity": ratios.mean().item(), "collapsed_classes": (ratios < COLLAPSED).float().mean().item()}
