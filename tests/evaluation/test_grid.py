"""Grids, read back from the PNG file pixel by pixel."""

import numpy as np
import pytest
import torch
from PIL import Image

from sgan.evaluation import grid


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32)])
def test_every_image_stands_in_its_place_with_its_own_pixels(tmp_path, channels, size):
    images = torch.randint(0, 256, (6, channels, size, size), generator=torch.Generator().manual_seed(0)).byte()
    grid.save(images, tmp_path / "grids" / "made.png", columns=3)
    picture = np.asarray(Image.open(tmp_path / "grids" / "made.png"))
    scale = 4 if size == 8 else 1
    side, gap = size * scale, 2
    assert picture.shape == (2 * side + 3 * gap, 3 * side + 4 * gap, 3)
    for index, image in enumerate(images):
        top, left = (gap + place * (side + gap) for place in divmod(index, 3))
        cell = picture[top : top + side : scale, left : left + side : scale]
        assert np.array_equal(cell, image.expand(3, -1, -1).permute(1, 2, 0).numpy())
    assert [path.name for path in (tmp_path / "grids").iterdir()] == ["made.png"]


def test_a_grid_is_written_over_an_older_one(tmp_path):
    for value in (0, 200):
        grid.save(torch.full((1, 1, 32, 32), value, dtype=torch.uint8), tmp_path / "made.png", columns=1)
    assert np.asarray(Image.open(tmp_path / "made.png"))[10, 10].tolist() == [200, 200, 200]


def test_the_nearest_candidate_is_the_one_with_the_nearest_features():
    candidates = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 5.0]])
    features = torch.tensor([[0.1, 4.0], [0.9, 0.3], [-7.0, -7.0]])
    assert grid.nearest(features, candidates).tolist() == [2, 1, 0]
