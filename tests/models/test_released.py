"""The authors' encoder files: made-up ones in their format against a forward pass written out in NumPy."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sgan.config import IMAGE
from sgan.data.batches import to_input
from sgan.models.released import CIFAR10_MEAN, ReleasedError, load_released
from sgan.presets import DATASETS

MNIST, CIFAR10 = DATASETS["mnist"], DATASETS["cifar10"]
SHAPES = {
    "mnist": [(32, 1, 5, 5), (32,), (32, 32, 5, 5), (32,), (512, 256), (256,), (256, 10), (10,)],
    "cifar10": [(64, 3, 5, 5), (64,), (128, 64, 5, 5), (128,), (3200, 256), (256,), (256, 10), (10,)],
}


def arrays(dataset: str) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.normal(0, 0.1, shape).astype(np.float32) for shape in SHAPES[dataset]]


def save(path: Path, values: list[np.ndarray]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, *values)
    return path


def correlate(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, C, S, S), (M, C, 5, 5), (M,) -> ReLU of (n, M, S - 4, S - 4); kernels are not flipped."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (5, 5), (2, 3))
    return np.maximum(np.einsum("ncijkl,mckl->nmij", windows, w) + b[:, None, None], 0)


def pool(x: np.ndarray) -> np.ndarray:
    n, c, s, _ = x.shape
    return x.reshape(n, c, s // 2, 2, s // 2, 2).max((3, 5))


def by_hand(x: np.ndarray, values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    w1, b1, w2, b2, w3, b3, w4, b4 = (value.astype(np.float64) for value in values)
    pool2 = pool(correlate(pool(correlate(x.astype(np.float64), w1, b1)), w2, b2))
    fc3 = np.maximum(pool2.reshape(len(x), -1) @ w3 + b3, 0)
    return fc3, fc3 @ w4 + b4


@pytest.mark.parametrize("dataset", SHAPES)
def test_the_layers_are_those_of_the_file(dataset, tmp_path):
    row, values = DATASETS[dataset], arrays(dataset)
    encoder = load_released(save(tmp_path / "encoder.npz", values), row)
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    images = torch.randint(0, 256, (3, row.channels, row.size, row.size), generator=torch.Generator().manual_seed(1))
    x = to_input(images.byte(), encoder.mean)
    fc3, logits = by_hand(x.numpy(), values)
    assert np.allclose(encoder(x, IMAGE, "fc3").numpy(), fc3, atol=1e-4)
    assert np.allclose(encoder(x).numpy(), logits, atol=1e-4)


def test_the_mean_is_the_given_one_or_that_of_each_channel(tmp_path):
    path = save(tmp_path / "encoder.npz", arrays("cifar10"))
    channels = torch.tensor(CIFAR10_MEAN)[None, :, None, None].expand(1, 3, 32, 32)
    assert torch.equal(load_released(path, CIFAR10).mean, channels)
    given = torch.rand(3, 32, 32)
    assert torch.equal(load_released(str(path), CIFAR10, given).mean[0], given)
    assert not load_released(save(tmp_path / "m.npz", arrays("mnist")), MNIST).mean.any()


def refused(path: Path) -> str:
    with pytest.raises(ReleasedError) as caught:
        load_released(path, MNIST)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


def test_another_datasets_encoder_and_wrong_shapes_are_refused(tmp_path):
    said = refused(save(tmp_path / "e.npz", arrays("cifar10")))
    assert "arr_0" in said
    assert "(32, 1, 5, 5) for mnist, but has shape (64, 3, 5, 5)" in said
    values = arrays("mnist")
    values[4] = values[4].T  # torch's own layout of a dense layer
    assert "arr_4" in refused(save(tmp_path / "e.npz", values))
    values = arrays("mnist")
    values[7][3] = np.nan
    assert "finite" in refused(save(tmp_path / "e.npz", values))
    values = arrays("mnist")
    values[0] = values[0].astype(np.int64)
    assert "int64" in refused(save(tmp_path / "e.npz", values))
    assert "must hold the arrays arr_0 to arr_7" in refused(save(tmp_path / "e.npz", arrays("mnist")[:6]))
    np.savez(tmp_path / "e.npz", w0=values[0], w1=values[1])
    assert "holds w0, w1" in refused(tmp_path / "e.npz")


class Dangerous:
    def __reduce__(self):
        return Path.touch, (Path("made"),)


def test_what_is_no_npz_of_arrays_is_refused_and_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "e.npz"
    path.write_bytes(b"text")
    refused(path)
    path.write_bytes(pickle.dumps(Dangerous()))
    refused(path)
    whole = save(path, arrays("mnist")).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path)
    np.save(tmp_path / "e", arrays("mnist")[0])
    (tmp_path / "e.npy").rename(path)
    refused(path)
    objects = np.empty(1, object)
    objects[0] = Dangerous()
    with zipfile.ZipFile(path, "w") as file:
        for index in range(8):
            buffer = io.BytesIO()
            np.save(buffer, objects, allow_pickle=True)
            file.writestr(f"arr_{index}.npy", buffer.getvalue())
    refused(path)
    refused(tmp_path / "nowhere.npz")
    assert not (tmp_path / "made").exists()
