"""The judges against what they are made of, and their calibration on digits."""

import math

import pytest
import torch
from conftest import make_context, tiny_data, tiny_plan
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from sgan import calibrate
from sgan.checks import checked
from sgan.config import Seed
from sgan.evaluation import evaluate, judges, scores
from sgan.evaluation.alarms import alarms
from sgan.evaluation.judges import HELD_OUT, PIXELS, Judges
from sgan.evaluation.measures import MEASURES
from sgan.presets import DATASETS
from sgan.stages.graph import name
from sgan.stages.kinds.judge import drawn, load, warped
from sgan.store.local import Store


@pytest.fixture(scope="module")
def made(digits) -> Judges:
    return calibrate.trained(DATASETS["digits"], digits)


def test_no_image_trains_both_the_judge_and_an_encoder_and_none_that_does_is_held_out(digits):
    (own, own_labels), (held, held_labels) = judges.parts(digits)
    assert len(own) + len(held) == len(digits.test_images)
    for label in range(10):
        assert 0 <= int((own_labels == label).sum()) - int((held_labels == label).sum()) <= 1
    seen = {image.numpy().tobytes() for image in own}
    assert not seen & {image.numpy().tobytes() for image in (*held, *digits.images)}


def test_the_judge_is_no_encoder_and_knows_the_digits(made, digits):
    kinds = {type(module).__name__ for module in judges.HeldOut(1, 8, 10).modules()}
    assert {"GroupNorm", "_Block"} <= kinds
    assert not {"ReLU", "MaxPool2d"} & kinds
    found = made.rows[HELD_OUT].describe(digits.images)
    assert found.features.shape == (1347, 96)
    assert scores.accuracy(found.logits, digits.labels) > 0.93


def test_principal_components_keep_the_distances_of_small_images(digits):
    axes = judges.components(digits.images)
    assert axes["axes"].shape == (64, 64)
    found = judges.by_components(axes)(digits.images[:50]).features
    pixels = digits.images[:50].flatten(1).double() / 255
    expected = scores.distances(pixels, pixels)
    torch.testing.assert_close(scores.distances(found, found).double(), expected, atol=1e-4, rtol=0)
    large = torch.randint(0, 256, (40, 3, 12, 12), generator=torch.Generator().manual_seed(0)).byte()
    few = judges.components(large)
    points = large.flatten(1).double() / 255
    singular = torch.linalg.svdvals(points - points.mean(0))[:5]
    torch.testing.assert_close(judges.by_components(few)(large).features[:, :5].double().norm(dim=0), singular)


def test_large_images_are_seen_at_a_side_of_32():
    small = torch.randint(0, 256, (40, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    axes = judges.components(large)
    assert axes["axes"].shape == (3 * 32 * 32, 64)
    see = judges.by_components(axes)
    torch.testing.assert_close(see(large).features, see(small).features)


@pytest.mark.parametrize(("count", "total"), [(7, 5), (7, 7), (7, 30)])
def test_real_images_are_drawn_equally_often(count: int, total: int):
    times = drawn(count, total).bincount(minlength=count)
    assert times.sum() == total
    assert times.max() - times.min() <= 1


def test_warping_without_strength_changes_nothing(digits, monkeypatch):
    for strength in ("DEGREES", "STRETCH", "SHIFT"):
        monkeypatch.setattr(f"sgan.stages.kinds.judge.{strength}", 0.0)
    images, generator = digits.images[:40].float() / 255, torch.Generator().manual_seed(0)
    torch.testing.assert_close(warped(images, False, generator), images, atol=1e-5, rtol=0)
    mirrored = warped(images, True, generator)
    same, other = ((mirrored - each).abs().amax((1, 2, 3)) < 1e-5 for each in (images, images.flip(-1)))
    assert (same | other).all()
    assert 5 < other.sum() < 35


def test_all_measures_are_finite_and_have_a_row(made, digits):
    labels = torch.arange(1000) % 10
    flat = torch.full((1000, 1, 8, 8), 60, dtype=torch.uint8)
    noise = torch.randint(0, 256, flat.shape, generator=torch.Generator().manual_seed(0)).byte()
    for images in (flat, noise, digits.images[:1000]):
        found = made.scores(images, labels)
        assert set(found) - {"inception_score_split_std"} == set(MEASURES) - {"accuracy"}
        assert all(map(math.isfinite, found.values()))
    assert any("collapse" in text for text in alarms(made.scores(flat, None)))
    assert made.scores(flat, labels)["fid"] > 1
    assert MEASURES["pixels/kid"].better == "lower"


def test_scores_do_not_depend_on_the_threads_and_the_order_of_labels_matters_where_it_should(made, digits):
    images, labels = digits.images[:600], digits.labels[:600]
    first, threads = made.scores(images, labels), torch.get_num_threads()
    torch.set_num_threads(2)
    assert made.scores(images, labels) == first
    torch.set_num_threads(threads)
    other = made.scores(images, labels.roll(1))
    changed = {each for each in first if first[each] != other[each]}
    assert changed == {"judge_accuracy", "train_on_generated", "pixels/train_on_generated"}
    assert other["train_on_generated"] < 0.3 < 0.9 < first["train_on_generated"]


def test_train_on_generated_is_scikit_learns_nearest_neighbour(made, digits):
    images, labels = digits.images[:300], digits.labels[:300]
    for row, prefix in ((HELD_OUT, ""), (PIXELS, "pixels/")):
        judge = made.rows[row]
        model = KNeighborsClassifier(1).fit(judge.describe(images).features.numpy(), labels.numpy())
        expected = model.score(judge.held.features.numpy(), judge.held_labels.numpy())
        assert made.scores(images, labels)[f"{prefix}train_on_generated"] == pytest.approx(expected, abs=0.01)


def test_coverage_by_class_has_their_mean_and_sees_a_missing_one(made, digits):
    judge = made.rows[HELD_OUT]
    some = judge.describe(digits.test_images[digits.test_labels != 3]).features
    by_class = [each or 0.0 for each in judge.class_coverage(some)]
    sizes = torch.bincount(judge.labels)
    assert by_class[3] < 0.1 < min(by_class[:3])
    whole = (torch.tensor(by_class) * sizes).sum() / sizes.sum()
    assert whole.item() == pytest.approx(judge.neighbourhoods.scores(some)["coverage"])


@given(st.integers(0, 2**31 - 2))
def test_no_seed_of_a_trial_shares_noise_with_the_choice_of_the_best(seed):
    """torch's generator on the CPU looks at 32 bits: seeds that differ in higher ones alone have the same noise."""
    choice = torch.rand(8, generator=torch.Generator().manual_seed(evaluate.GRID_SEED))
    for each in (seed, evaluate.GRID_SEED % 2**31):
        checked(Seed, each, "seed")
        assert not torch.equal(torch.rand(8, generator=torch.Generator().manual_seed(each)), choice)


def test_alarms_fire_on_known_sets_and_never_on_held_out_images(made, digits):
    """Over three draws: copying on up to 20 prototypes a class, collapse on up to 5 and on a missing class."""
    for draw in range(3):
        for title, sample in calibrate.sets(digits, draw, 300).items():
            if not title.startswith(("held-out", "1 ", "2 ", "3 ", "5 ", "20 ", "without")):
                continue
            said = " ".join(alarms(made.scores(*sample)))
            if title == "held-out":
                assert said == "", draw
            if title[0].isdigit():
                assert "copies" in said, (draw, title)
            if title[:2] in ("1 ", "2 ", "3 ", "5 ") or title.startswith("without"):
                assert "collapse" in said, (draw, title)


def test_the_judges_of_a_store_are_those_that_its_stage_scored_real_data_with(root):
    trial, context = tiny_plan(), make_context(root)
    facts = Store(root).facts(name(trial.score.judge))
    made = load(trial.score.judge, None, context)
    held, labels = judges.parts(tiny_data())[1]
    found = made.scores(held, labels)
    for key in ("kid", "precision", "coverage", "pixels/recall", "copied", "judge_accuracy", "diversity"):
        assert facts["scores"][key] == pytest.approx(found[key]), key
    assert facts["scores"]["train/copied"] == 1
    assert "train_on_generated" not in facts["scores"]
