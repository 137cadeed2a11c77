"""Scores against closed forms, and against the reference implementation run on the same images."""

import math

import numpy as np
import pytest
import torch
import torch_fidelity
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from sgan.data.batches import pixel_mean
from sgan.evaluation import scores as metrics
from sgan.evaluation.scores import (
    Features,
    class_diversity,
    class_scores,
    inception_scores,
    kernel_distance,
    precision_recall,
)
from sgan.models.encoder import Encoder


def inception_score(logits: torch.Tensor) -> tuple[float, float]:
    return tuple(inception_scores(logits).values())  # pyright: ignore[reportReturnType]


K = 10
CERTAIN = 60.0
"""A logit that makes a probability of 1 to double precision."""


def one_hot_logits(labels: torch.Tensor) -> torch.Tensor:
    return CERTAIN * torch.nn.functional.one_hot(labels, K).double()


def labels(count: int) -> torch.Tensor:
    return torch.randint(0, K, (count,), generator=torch.Generator().manual_seed(0))


def features(count: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_certain_and_balanced_predictions_score_the_number_of_classes():
    """A split of n random labels has exp of its own entropy, which lies about (K - 1) / 2n below log K."""
    count = 20_000
    mean, std = inception_score(one_hot_logits(torch.arange(count) % K))
    assert mean == pytest.approx(K * math.exp(-(K - 1) / (2 * count / 10)), rel=3e-3)
    assert 0 < std < 0.02 * K


def test_certain_predictions_of_some_classes_score_how_many():
    mean, _ = inception_score(one_hot_logits(3 + torch.arange(20_000) % 4))
    assert mean == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize("row", [torch.zeros(K), torch.arange(float(K))], ids=["uniform", "always the same"])
def test_predictions_that_say_nothing_score_one(row):
    assert inception_score(row.expand(500, K)) == pytest.approx((1.0, 0.0), abs=1e-9)


def test_half_certain_predictions_written_out():
    """Two classes, p = (q, 1 - q) or the reverse, equally often: log score = log 2 - H(q)."""
    q = 0.8
    rows = torch.tensor([[q, 1 - q], [1 - q, q]], dtype=torch.float64).log().repeat(20_000, 1)
    expected = math.exp(math.log(2) + q * math.log(q) + (1 - q) * math.log(1 - q))
    assert inception_score(rows)[0] == pytest.approx(expected, rel=2e-3)


def test_fid_does_not_depend_on_the_number_of_threads():
    found, real = features(2_000, 256), features(2_000, 256, 1)
    with threadpool_limits(1, user_api="blas"):
        alone = fid(found, real)
    with threadpool_limits(2, user_api="blas"):
        assert fid(found, real) == alone


def fid(found: torch.Tensor, real: torch.Tensor) -> float:
    return metrics.frechet_distance(found, metrics.statistics(real))


def test_the_fid_of_identical_features_is_zero():
    real = features(2000, 8)
    assert fid(real, real) == pytest.approx(0, abs=1e-12)
    assert fid(real.flip(0), real) == pytest.approx(0, abs=1e-12)


def test_the_fid_of_moved_features_is_the_squared_distance_moved():
    real, shift = features(2000, 5), torch.tensor([3.0, 0, 4.0, 0, 0])
    assert fid(real + shift, real) == pytest.approx(25, rel=1e-12)


def test_the_fid_of_two_gaussians():
    """|m1 - m2|^2 + sum of (s1 - s2)^2 for covariances diag(s^2) in the same axes, here turned."""
    first, second = torch.tensor([1.0, 2.0, 0.5, 1.0]), torch.tensor([2.0, 1.0, 0.5, 3.0])
    turn = torch.linalg.qr(features(4, 4, seed=5)).Q
    mean = torch.tensor([1.0, -1.0, 0.0, 2.0])
    found = (features(200_000, 4, seed=1) * first) @ turn
    real = (features(200_000, 4, seed=2) * second) @ turn + mean
    assert fid(found, real) == pytest.approx(6 + 1 + 1 + 0 + 4, rel=0.01)


def test_the_fid_of_full_covariances_is_the_trace_formula():
    """Tr(A + B - 2 (A^1/2 B A^1/2)^1/2), with the roots taken by eigenvectors."""
    found, real = features(3000, 6, 3) @ features(6, 6, 4), features(3000, 6, 7) @ features(6, 6, 8)

    def root(matrix: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(matrix)
        return vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T

    a, b = np.cov(found.numpy().T), np.cov(real.numpy().T)
    means = ((found.mean(0) - real.mean(0)) ** 2).sum().item()
    expected = means + np.trace(a + b - 2 * root(root(a) @ b @ root(a)))
    assert fid(found, real) == pytest.approx(expected, rel=1e-12)


def dead(count: int, seed: int) -> torch.Tensor:
    """Features like those of a narrow classifier: 24 of 64 are always 0, and the others span 20 dimensions."""
    found = (features(count, 20, seed) @ features(20, 64, 9)).relu()
    found[:, 40:] = 0
    return found.float()


@pytest.mark.parametrize("count", [30, 500])
def test_the_fid_has_the_digits_it_shows(count):
    """Another order of the images, another basis and noise as small as rounding change nothing: constant features and,
    with 30 images, directions without any spread have no share in it."""
    found, real = dead(count, 1), dead(1000, 2)
    expected = fid(found, real)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    assert fid(found[order], real) == pytest.approx(expected, rel=1e-11)
    turn = torch.linalg.qr(features(64, 64, seed=5)).Q
    assert fid(found.double() @ turn, real.double() @ turn) == pytest.approx(expected, rel=1e-11)
    noise = 1e-15 * features(count, 64, seed=6)
    assert fid(found + noise, real) == pytest.approx(expected, rel=1e-11)
    assert fid(found, found) == pytest.approx(0, abs=1e-11 * expected)


def test_the_fid_of_singular_covariances_in_closed_form():
    """Covariances diag(s^2), some of them 0, are sum of (s1 - s2)^2 apart; two lines at an angle are
    s1^2 + s2^2 - 2 s1 s2 |cos|."""

    def points(scales: list[float]) -> torch.Tensor:
        axes = torch.diag(torch.tensor(scales, dtype=torch.float64))
        return torch.cat([axes, -axes]) * math.sqrt((2 * len(scales) - 1) / 2)

    first, second = [3.0, 2.0, 0.0, 0.0, 1e-6], [1.0, 0.0, 0.5, 0.0, 2e-6]
    assert fid(points(first), points(second)) == pytest.approx(4 + 4 + 0.25 + 1e-12, rel=1e-12)

    def line(scale: float, angle: float) -> torch.Tensor:
        end = scale * torch.tensor([math.cos(angle), math.sin(angle), 0.0], dtype=torch.float64)
        return torch.stack([end, -end]) / math.sqrt(2)

    assert fid(line(2.0, 0.3), line(3.0, 1.1)) == pytest.approx(4 + 9 - 12 * math.cos(0.8), rel=1e-12)
    assert fid(line(2.0, 0.0), line(3.0, math.pi / 2)) == pytest.approx(13, rel=1e-12)


def test_the_fid_is_torch_fidelitys_to_what_that_can_say():
    for found, real in ((dead(500, 1), dead(1000, 2)), (features(500, 64).exp(), features(500, 64, 1).exp())):
        statistics = [fid_features_to_statistics(each.double()) for each in (found, real)]
        theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
        assert fid(found, real) == pytest.approx(theirs, rel=1e-7)


def test_diversity_is_one_for_the_real_images_themselves():
    real = Features(features(1000, 8), one_hot_logits(labels(1000)))
    assert class_scores(real, real) == {"diversity": pytest.approx(1), "collapsed_classes": 0}


def test_one_image_a_class_tells_nothing_of_diversity():
    real = Features(features(1000, 8), one_hot_logits(labels(1000)))
    for count, known in ((K, False), (2 * K, True)):
        found = Features(real.features[:count], real.logits[:count])
        assert bool(class_scores(found, real)) == known


def test_diversity_is_proportional_to_the_distances_within_classes():
    real = Features(features(1000, 8), one_hot_logits(labels(1000)))
    centres = 100 * features(K, 8, seed=1)[labels(1000)]
    for scale, collapsed in ((0.5, 0), (0.3, 1)):
        tight = Features(centres + scale * real.features, real.logits)
        assert class_scores(tight, real) == {"diversity": pytest.approx(scale), "collapsed_classes": collapsed}


@pytest.mark.parametrize("prototypes", [1, 2, 20])
def test_classes_that_repeat_some_images_have_collapsed(prototypes):
    """The Inception score, precision and the mean distance of two samples are blind to it."""
    real = Features(features(1000, 8), one_hot_logits(torch.arange(1000) % K))
    repeated = torch.arange(1000) % (K * prototypes)
    found = Features(real.features[repeated], real.logits[repeated])
    assert class_scores(found, real) == {"diversity": 0, "collapsed_classes": 1}
    assert inception_score(found.logits) == pytest.approx(inception_score(real.logits))


def test_the_gap_of_a_class_against_a_loop():
    found, real = (Features(features(n, 3, n), one_hot_logits(labels(n))) for n in (70, 150))

    def gap(points: np.ndarray) -> float:
        nearest = []
        for point in points:
            distances = sorted(np.linalg.norm(points - point, axis=1))
            nearest.append(distances[1])
        return sorted(nearest)[(len(nearest) - 1) // 2]

    for label, ratio in enumerate(class_diversity(found, real)):
        mine, theirs = (each.features[each.logits.argmax(1) == label].numpy() for each in (found, real))
        count = min(len(mine), len(theirs))
        assert ratio == pytest.approx(gap(mine[:count]) / gap(theirs[:count]))


def test_a_missed_class_has_no_diversity_and_one_without_real_images_does_not_count():
    real = Features(features(1000, 8), one_hot_logits((torch.arange(1000) % K).clamp_max(K - 2)))
    found = Features(features(1000, 8, 1), one_hot_logits((torch.arange(1000) % K).clamp_min(1).clamp_max(K - 2)))
    ratios = class_diversity(found, real)
    assert ratios[0] == 0
    assert ratios[-1].isnan()
    assert class_scores(found, real)["collapsed_classes"] == pytest.approx(1 / (K - 1))


def test_a_class_of_most_real_images_is_not_missed_by_equally_many_samples_of_each():
    real = Features(features(1000, 8), one_hot_logits((torch.arange(1000) % 50).clamp_max(K - 1)))
    assert (real.logits.argmax(1) == K - 1).float().mean() > 0.8
    equal = Features(features(1000, 8, 1), one_hot_logits(torch.arange(1000) % K))
    assert class_scores(equal, real)["collapsed_classes"] == 0
    few = torch.arange(1000) % (K - 1)
    few[:15] = K - 1
    missing = Features(equal.features, one_hot_logits(few))
    assert class_scores(missing, real)["collapsed_classes"] == pytest.approx(1 / K)


def test_real_images_without_any_variation_are_an_alarm_and_no_nan():
    flat = Features(torch.zeros(100, 8), one_hot_logits(torch.zeros(100).long()))
    assert class_scores(flat, flat) == {"diversity": 0, "collapsed_classes": 1}


def test_accuracy_is_the_share_of_labels_met():
    wanted = torch.arange(100) % K
    logits = one_hot_logits(wanted)
    logits[:30] = one_hot_logits((wanted[:30] + 1) % K)
    assert metrics.accuracy(logits, wanted) == pytest.approx(0.7)


def by_loops(found: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """The papers' formulas, a point at a time."""

    def radius(points: np.ndarray, index: int, k: int) -> float:
        return sorted(np.linalg.norm(points - points[index], axis=1))[k]

    near, far = ([radius(real, index, k) for index in range(len(real))] for k in (3, 5))
    own = [radius(found, index, 3) for index in range(len(found))]
    inside = np.array([[np.linalg.norm(y - x) < r for y in found] for x, r in zip(real, far, strict=True)])
    pairs = [[np.linalg.norm(y - x) for y in found] for x in real]
    return {
        "precision": np.mean([any(pairs[i][j] <= near[i] for i in range(len(real))) for j in range(len(found))]),
        "recall": np.mean([any(pairs[i][j] <= own[j] for j in range(len(found))) for i in range(len(real))]),
        "density": inside.sum() / (5 * len(found)),
        "coverage": inside.any(1).mean(),
    }  # pyright: ignore[reportReturnType]


@given(st.integers(8, 40), st.integers(8, 40), st.integers(1, 5), st.sampled_from([0.3, 1.0, 3.0]), st.integers(0, 99))
def test_neighbourhoods_are_those_of_the_formulas(count, others, size, scale, seed):
    found, real = scale * features(count, size, seed), features(others, size, seed + 100)
    expected = by_loops(found.numpy(), real.numpy())
    assert metrics.Neighbourhoods(real).scores(found) == pytest.approx(expected, abs=1e-6)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    assert metrics.Neighbourhoods(real).scores(found[order]) == pytest.approx(expected, abs=1e-6)


def test_precision_and_recall_are_torch_fidelitys():
    found, real = features(300, 6), features(200, 6, 1) * 1.3
    ours = metrics.Neighbourhoods(real).scores(found)
    assert {name: ours[name] for name in ("precision", "recall")} == pytest.approx(precision_recall(found, real))


def test_equal_points_are_at_no_distance_whatever_the_number_of_threads():
    points = (100 * features(500, 96)).float()
    expected = metrics.distances(points, points)
    assert (expected.diagonal() == 0).all()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    assert torch.equal(metrics.distances(points, points), expected)
    torch.set_num_threads(threads)
    direct = ((points[:, None] - points[None, :]) ** 2).sum(2).sqrt()
    torch.testing.assert_close(expected, direct)
    nearest, index = metrics.nearest(points[:50], points[50:])
    torch.testing.assert_close(nearest, direct[:50, 50:].amin(1))
    assert torch.equal(index, direct[:50, 50:].argmin(1))


def test_a_subset_is_always_the_same_and_has_no_image_twice():
    assert sorted(metrics.subset(1347).tolist()) == list(range(1347))
    assert len(set(metrics.subset(10_000).tolist())) == metrics.SUBSET
    assert torch.equal(metrics.subset(10_000), metrics.subset(10_000))


class Images(Dataset):
    """uint8 images, as torch-fidelity takes them."""

    def __init__(self, images: torch.Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


class TinyExtractor(FeatureExtractorBase):
    """A digits classifier written in torch-fidelity's terms."""

    encoder: Encoder

    def __init__(self, name: str, features_list: list[str], **settings):
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "fc3", "fc4"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return {"isc": "fc4", "fid": "fc3"}[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> torch.Tensor:
        return torch.zeros(1, 1, 8, 8, dtype=torch.uint8)

    def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, ...]:
        taps = self.encoder.taps(input.float() / 255 - self.encoder.mean)
        return tuple(taps[name] for name in self.features_list)


def test_scores_are_those_of_torch_fidelity(digits):
    torch.manual_seed(0)
    encoder = Encoder(TINY, 0.4).requires_grad_(False)
    encoder.mean.copy_(pixel_mean(digits.images, True))
    TinyExtractor.encoder = encoder
    torch_fidelity.register_feature_extractor("tiny-digits", TinyExtractor)
    expected = torch_fidelity.calculate_metrics(
        input1=Images(digits.test_images),
        input2=Images(digits.images),
        feature_extractor="tiny-digits",
        isc=True,
        fid=True,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
        batch_size=100,
    )
    real, found = (encoder.features(images, ("fc3", "fc4")) for images in (digits.images, digits.test_images))
    ours = inception_scores(found["fc4"]) | {"fid": fid(found["fc3"], real["fc3"])}
    assert ours["inception_score"] == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert ours["inception_score_split_std"] == pytest.approx(expected["inception_score_std"], rel=1e-4, abs=1e-9)
    assert ours["fid"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
    assert ours["fid"] > 1e-3


def test_the_kernel_distance_of_a_few_points_written_out():
    """Unbiased MMD^2 with the kernel (x.y / F + 1)^3 over one subset of all points."""
    found, real = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 2.0]])

    def kernel(x: torch.Tensor, y: torch.Tensor) -> float:
        return (float(x @ y) / 2 + 1) ** 3

    def within(points: torch.Tensor) -> float:
        return sum(kernel(points[i], points[j]) for i in range(3) for j in range(3) if i != j) / 6

    between = sum(kernel(x, y) for x in found for y in real) / 9
    mean, std = kernel_distance(found, real).values()
    assert mean == pytest.approx(within(found) + within(real) - 2 * between, rel=1e-6)
    assert std == pytest.approx(0.0, abs=1e-6)  # every subset is the whole


def test_equal_distributions_are_near_and_others_far_by_kernel_distance():
    near, far = features(400, 8), features(400, 8, seed=1) + 1
    assert abs(kernel_distance(near, features(400, 8, seed=1))["kid"]) < 0.1
    assert kernel_distance(near, far)["kid"] > 1


def test_precision_and_recall_of_points_on_a_line():
    """With 3 neighbours, a ball reaches 3 steps of a line of points one step apart (at its ends, too)."""
    real = torch.arange(10.0)[:, None]
    assert precision_recall(real, real) == {"precision": 1.0, "recall": 1.0}
    half = torch.arange(4.0)[:, None]  # 0 1 2 3: each ball reaches all of them, and the last one's up to 6
    assert precision_recall(half, real) == {"precision": 1.0, "recall": pytest.approx(0.7)}
    assert precision_recall(half + 100, real) == {"precision": 0.0, "recall": 0.0}
