"""What training does to images, and the order in which it sees them."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgan.checks import ConfigError
from sgan.data.batches import Batches, Data, pixel_mean, random_flips, to_input, to_pixels


@given(st.integers(2, 60), st.integers(2, 60), st.integers(0, 2**31 - 2), st.integers(0, 500))
def test_each_epoch_visits_each_image_at_most_once(images, batch, seed, step):
    if batch > images:
        with pytest.raises(ConfigError, match=str(batch)):
            Batches(images, batch, seed)
        return
    batches, per_epoch = Batches(images, batch, seed), images // batch
    first = step // per_epoch * per_epoch
    seen = torch.cat([batches[number] for number in range(first, first + per_epoch)])
    assert len(seen) == per_epoch * batch > images - batch
    assert len(seen.unique()) == len(seen)
    assert seen.min() >= 0
    assert seen.max() < images


@given(st.integers(0, 2**31 - 2), st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_a_batch_depends_on_seed_and_step_alone(seed, steps):
    visited = Batches(30, 7, seed)
    for step in steps:
        assert torch.equal(visited[step], Batches(30, 7, seed)[step])


def test_seeds_and_epochs_have_orders_of_their_own():
    orders = {tuple(Batches(50, 50, seed)[epoch].tolist()) for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400


def test_inputs_are_pixels_over_255_minus_the_mean_image():
    images = torch.tensor([[[[0, 255]]], [[[51, 0]]]], dtype=torch.uint8)
    mean = pixel_mean(images, subtract=True)
    assert mean.tolist() == [[[[pytest.approx(0.1), pytest.approx(0.5)]]]]
    assert to_input(images, mean).flatten().tolist() == pytest.approx([-0.1, 0.5, 0.1, -0.5])
    assert pixel_mean(images, subtract=False).abs().max() == 0


def test_the_mean_image_of_many_images_is_numpys(digits):
    images = digits.images.repeat(4, 1, 1, 1)
    expected = images.numpy().mean(0) / 255
    np.testing.assert_allclose(pixel_mean(images, True)[0].numpy(), expected, rtol=1e-6)


@settings(max_examples=20)
@given(st.floats(0, 1))
def test_every_grey_level_survives_the_way_in_and_out(level):
    images, mean = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16), torch.full((1, 1, 16, 16), level)
    assert torch.equal(to_pixels(to_input(images, mean), mean), images)


def test_values_outside_of_the_range_are_clipped():
    assert to_pixels(torch.tensor([-3.0, -0.001, 0.4999 / 255, 0.5001 / 255, 7.0]), torch.zeros(5)).tolist() == [
        0,
        0,
        0,
        1,
        255,
    ]


def test_flips_mirror_about_half_of_the_images(digits):
    torch.manual_seed(0)
    images = digits.images[:1000]
    flipped = random_flips(images)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert ((flipped == images).flatten(1).all(1) | mirrored).all()
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.08)


def test_data_on_another_device_are_the_same_data(digits):
    moved = digits.to("meta")
    assert isinstance(moved, Data)
    assert moved.images.device.type == "meta"
    assert moved.digest == digits.digest


def test_processes_share_a_datasets_memory(digits):
    """As Ray pickles it: the bytes of its arrays stay out of the pickle, and come back read-only."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(digits, protocol=5, buffer_callback=buffers.append)
    assert len(pickled) < 1000
    again = pickle.loads(pickled, buffers=[memoryview(buffer).toreadonly() for buffer in buffers])
    assert again.digest == digits.digest
    for name in ("images", "labels", "test_images", "test_labels"):
        ours, theirs = getattr(again, name), getattr(digits, name)
        assert ours.data_ptr() == theirs.data_ptr()
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype
