"""Grids, read back from the PNG file pixel by pixel."""

import numpy as np
import pytest
import torch
from PIL import Image

from sgan.evaluation import grid, scores

SCALES = {8: 10, 28: 3, 32: 2, 128: 1}
WORDS = grid.Words("Title", "along", "Look for this. " * 9, ("one", "two", "three"), ("first", "second"))


@pytest.mark.parametrize("words", [grid.NO_WORDS, WORDS])
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32), (3, 128)])
def test_every_image_stands_in_its_place_with_its_own_pixels(tmp_path, channels, size, words):
    images = torch.randint(0, 256, (5, channels, size, size), generator=torch.Generator().manual_seed(0)).byte()
    grid.save(images, tmp_path / "grids" / "made.png", 3, words, side=80)
    picture = np.asarray(grid.unlabelled(tmp_path / "grids" / "made.png")).reshape(
        -1, 3 * size * SCALES[size] + 8, channels
    )
    scale, step = SCALES[size], size * SCALES[size] + 4
    for index, image in enumerate(images):
        top, left = (place * step for place in divmod(index, 3))
        cell = picture[top : top + size * scale, left : left + size * scale].reshape(size, scale, size, scale, channels)
        assert (cell == image.permute(1, 2, 0).numpy()[:, None, :, None]).all()
    assert (picture[step:, 2 * step :] == 255).all()  # no sixth image
    assert [path.name for path in (tmp_path / "grids").iterdir()] == ["made.png"]


def test_words_change_nothing_else_and_each_is_drawn(tmp_path):
    """Ink outside the images: none without words, more with each of them, none that is cut off at an edge."""
    images = torch.zeros(6, 1, 8, 8, dtype=torch.uint8)
    ink, fields = [], ("title", "along", "columns", "rows", "caption")
    for number in range(len(fields) + 1):
        words = grid.Words(**{field: getattr(WORDS, field) for field in fields[:number]})
        grid.save(images, tmp_path / "made.png", 3, words)
        with Image.open(tmp_path / "made.png") as picture:
            pixels = np.asarray(picture)
        assert (np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]) == 255).all()
        ink.append(int((pixels < 255).sum()) - 6 * 48**2)
    assert ink[0] == 0
    assert sorted(set(ink)) == ink


def test_a_grid_is_written_over_an_older_one(tmp_path):
    for value in (0, 200):
        grid.save(torch.full((1, 1, 32, 32), value, dtype=torch.uint8), tmp_path / "made.png", columns=1)
    assert set(np.asarray(grid.unlabelled(tmp_path / "made.png")).flat) == {200}


def test_the_nearest_candidate_is_the_one_with_the_nearest_features():
    candidates = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 5.0]])
    features = torch.tensor([[0.1, 4.0], [0.9, 0.3], [-7.0, -7.0]])
    assert scores.nearest(features, candidates)[1].tolist() == [2, 1, 0]
