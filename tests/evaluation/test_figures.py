"""Figures of toy stacks that paint their condition and their noise into the pixels, so that a figure can be read back:
what each row holds fixed and what varies along it."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import PAPER, TINY
from PIL import Image
from torch import Tensor, nn

from sgan.config import IMAGE, LABEL, Codes, Level
from sgan.evaluation import grid, scores
from sgan.evaluation.figures import COLUMNS, SIDE, WORDS, Figure, class_names, neighbours, real, samples
from sgan.evaluation.judges import HELD_OUT, HeldOut, Judge
from sgan.evaluation.scores import nearest
from sgan.models.discriminator import Discriminator
from sgan.models.generator import Generator, new_generator
from sgan.models.stack import Stack, descend, label_condition, unfolded
from sgan.presets import DATASETS

K = 10
NAMES = tuple("abcdefghij")


class Toy(nn.Module):
    """Makes of a condition (n, F) and one number of noise z a vector (z, condition), or an image with these pixels."""

    def __init__(self, level: Level):
        super().__init__()
        self.level, self.classes, self.noise = level, K, 1 + (level.codes.size if level.codes else 0)
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(1, 1, 8, 8))

    def forward(self, condition: Tensor, z: Tensor) -> Tensor:
        made = torch.cat([z, condition], 1)
        if self.level.low != IMAGE:
            return made
        return nn.functional.pad(made, (0, 64 - made.shape[1])).reshape(-1, 1, 8, 8)


def stack(*taps: str, labels: bool = True, codes: Codes | None = None) -> Stack:
    """A toy generator between each two neighbouring taps."""
    return [Toy(Level(*ends, labels, codes)) for ends in pairwise(taps)]  # pyright: ignore[reportReturnType]


def cells(figure: Figure) -> np.ndarray:
    """Pixel values in [0, 1], (rows, columns, 64)."""
    images, words = figure
    return images.float().div(255).reshape(-1, len(words.columns), 64).numpy()


def constant(values: np.ndarray, axis: int) -> bool:
    return bool((values == np.take(values, [0], axis)).all())


TAPS = {1: (IMAGE, LABEL), 2: (IMAGE, "fc3", LABEL), 3: (IMAGE, "pool2", "fc3", LABEL)}


@pytest.mark.parametrize("depth", TAPS)
def test_each_figure_holds_fixed_what_its_name_says(depth):
    """Pixel i is the noise of level i, from the image up; the label follows."""
    drawn = samples(stack(*TAPS[depth]), "running", NAMES)
    label = np.eye(K)[:, None].repeat(COLUMNS, 1)
    for name, figure in drawn.items():
        found = cells(figure)
        assert found.shape == (K, COLUMNS, 64)
        assert not found[:, :, depth + K :].any()
        if name != "interpolation_labels":
            assert np.array_equal(found[:, :, depth : depth + K], label), name
    z = {name: [cells(figure)[:, :, level] for level in range(depth)] for name, figure in drawn.items()}
    assert all(len(np.unique(level)) > 50 for level in z["classes"])
    assert len(np.unique(z["fixed_condition"][0])) > 50
    assert all(constant(level, 1) and not constant(level, 0) for level in z["fixed_condition"][1:])
    if depth == 1:
        assert "fixed_noise" not in drawn
    else:
        assert constant(z["fixed_noise"][0], 1)
        assert not constant(z["fixed_noise"][0], 0)
        assert all(len(np.unique(level)) > 50 for level in z["fixed_noise"][1:])
    for level in z["interpolation_noise"]:
        assert np.abs(np.diff(level, 2, 1)).max() < 3 / 255  # straight, but for rounding to 1/255
        assert np.abs(level[:, 0] - level[:, -1]).max() > 0.1
    assert all(constant(level, 1) for level in z["interpolation_labels"])
    mixed = cells(drawn["interpolation_labels"])[:, :, depth : depth + K]
    expected = np.stack([(1 - t) * np.eye(K) + t * np.roll(np.eye(K), 1, 1) for t in np.linspace(0, 1, COLUMNS)], 1)
    assert np.abs(mixed - expected).max() < 1 / 255


def test_a_stack_without_labels_has_no_label_to_move():
    drawn = samples(stack(*TAPS[2], labels=False), "running", NAMES)
    assert set(drawn) == {"classes", "fixed_condition", "fixed_noise", "interpolation_noise"}
    assert all(not cells(figure)[:, :, 2:].any() for figure in drawn.values())
    single = samples(stack(*TAPS[1], labels=False), "running", NAMES)
    assert set(single) == {"classes", "interpolation_noise"}  # nor a condition to hold


def test_codes_are_shown_one_by_one():
    """z: one plain number, 4 values of the categorical code, 2 continuous codes."""
    drawn = samples(stack(IMAGE, LABEL, labels=False, codes=Codes(4, 2)), "running", NAMES[:4])
    rows = np.eye(4)[:, None].repeat(COLUMNS, 1)
    found = cells(drawn["codes"])
    assert np.array_equal(found[:, :, 1:5], rows)
    assert all(len(np.unique(found[:, :, place])) > 30 for place in (0, 5, 6))
    found = cells(drawn["continuous_code"])
    assert np.array_equal(found[:, :, 1:5], rows)
    assert np.abs(found[:, :, 5] - np.linspace(0, 1, COLUMNS)).max() <= 0.5 / 255 + 1e-6
    assert all(constant(found[:, :, place], 1) for place in (0, 6))
    found = cells(drawn["interpolation_noise"])
    assert constant(found[:, :, 1:5], 1)
    assert set(np.unique(found[:, :, 1:5])) == {0.0, 1.0}
    assert not constant(found[:, :, 5], 1)


def test_fewer_codes_than_classes_begin_again():
    drawn = samples(stack(IMAGE, LABEL, labels=False, codes=Codes(3, 2)), "running", NAMES[:4])
    found, words = cells(drawn["codes"]), drawn["codes"][1]
    assert np.array_equal(found[:, :, 1:4], np.eye(3)[[0, 1, 2, 0]][:, None].repeat(COLUMNS, 1))
    assert words.rows == ["code 0", "code 1", "code 2", "code 0"]


def test_a_chained_generator_is_drawn_as_its_levels():
    torch.manual_seed(0)
    level = Level(IMAGE, LABEL, through=("fc3",))
    chain = new_generator(TINY, PAPER, level)
    parts = unfolded([chain])
    assert [part.level for part in parts] == [Level(IMAGE, "fc3"), Level("fc3", LABEL)]
    ours, theirs = (samples(stack, "running", NAMES) for stack in ([chain], parts))
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name][0], theirs[name][0]) for name in ours)
    condition = label_condition(chain, torch.arange(6))
    noise = [torch.rand(6, part.noise) for part in parts]
    for part in parts:
        part.eval()
    assert torch.equal(descend([chain], condition, [torch.cat(noise, 1)]), descend(parts, condition, noise))
    assert Discriminator(TINY, PAPER, level).q.out_features == sum(part.noise for part in parts)


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_figures_depend_on_the_weights_alone_and_change_nothing(statistics):
    torch.manual_seed(1)
    generator = Generator(TINY, PAPER, Level(IMAGE, LABEL))
    before, state = {k: v.clone() for k, v in generator.state_dict().items()}, torch.get_rng_state()
    first = samples([generator], statistics, NAMES)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    second = samples([generator], statistics, NAMES)
    assert all(torch.equal(first[name][0], second[name][0]) for name in first)
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    assert generator.training


def test_neighbours_are_those_of_brute_force(digits, monkeypatch):
    monkeypatch.setattr(scores, "SUBSET", 77)
    torch.manual_seed(2)
    network, some = HeldOut(1, 8, 10), digits.images[:300]
    real, labels = network.describe(some), digits.labels[:300]
    judge = Judge(HELD_OUT, network.describe, real, labels, real, labels)
    generator = Generator(TINY, PAPER, Level(IMAGE, LABEL))
    images, words = neighbours([generator], "running", NAMES, some, judge)
    triples = images.reshape(-1, 3, 1, 8, 8)
    assert len(words.columns) == 9
    assert len(triples) == 30
    with torch.no_grad():
        views = [lambda x: x.float().flatten(1), lambda x: network(x.float() / 255).features]
        for place, view in enumerate(views, 1):
            made, candidates = view(triples[:, 0]).numpy(), view(some).numpy()
            squares = ((made[:, None] - candidates[None]) ** 2).sum(2)
            shown = [(some == image).flatten(1).all(1).nonzero()[0, 0].item() for image in triples[:, place]]
            assert np.allclose(squares[np.arange(30), shown], squares.min(1), rtol=1e-4)


def test_an_image_is_its_own_nearest_neighbour(digits):
    chosen = torch.tensor([0, 5, 500, 1346])
    assert torch.equal(nearest(digits.images[chosen], digits.images)[1], chosen)


def test_real_images_come_by_class(digits):
    images, _ = real(digits, NAMES)
    known = {image.numpy().tobytes(): int(label) for image, label in zip(digits.images, digits.labels, strict=True)}
    found = [known[image.numpy().tobytes()] for image in images]
    assert found == [label for label in range(K) for _ in range(COLUMNS)]


def test_every_figure_says_what_it_shows_and_what_to_look_for(digits, tmp_path):
    """Title, axis, captions, a heading for each column, a label for each row, and about 900 pixels."""
    words = {"unlabelled"}
    for levels in (stack(*TAPS[2]), stack(*TAPS[2], labels=False), stack(*TAPS[1], labels=False, codes=Codes(10, 2))):
        drawn = samples(levels, "running", NAMES) | {"real": real(digits, NAMES)}
        for name, (images, around) in drawn.items():
            assert all((around.title, around.along, around.caption))
            assert len(around.rows) * len(around.columns) == len(images)
            grid.save(images, tmp_path / f"{name}.png", len(around.columns), around, SIDE)
            with Image.open(tmp_path / f"{name}.png") as picture:
                assert 840 <= picture.width <= 960
        words |= set(drawn)
    assert words | {"neighbours"} == set(WORDS)
    named = samples(stack(*TAPS[2]), "running", NAMES)
    assert named["classes"][1].rows == NAMES
    assert named["interpolation_labels"][1].rows[8:] == ["i to j", "j to a"]
    unnamed = samples(stack(*TAPS[2], labels=False), "running", NAMES)["classes"][1]
    assert unnamed.rows[0] == "row 1"
    assert unnamed.title == WORDS["unlabelled"].title
    assert class_names(DATASETS["cifar10"])[9] == "truck"
    assert class_names(DATASETS["svhn"]) == tuple("0123456789")
