"""The authors' files: made-up ones in their format against forward passes written out in NumPy."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sgan import released
from sgan.checks import ConfigError
from sgan.config import IMAGE
from sgan.data.batches import to_input
from sgan.evaluation.grid import GAP, unlabelled
from sgan.evaluation.scores import inception_scores
from sgan.models.released import load_generator, load_mean, load_released
from sgan.models.stack import balanced_labels, sample
from sgan.presets import DATASETS
from sgan.store.files import sha256

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


def test_the_mean_is_the_given_one_or_none(tmp_path):
    path, given = save(tmp_path / "encoder.npz", arrays("cifar10")), torch.rand(3, 32, 32)
    assert torch.equal(load_released(str(path), CIFAR10, given).mean[0], given)
    assert not load_released(save(tmp_path / "m.npz", arrays("mnist")), MNIST).mean.any()


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
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


def normed(units: int) -> list[tuple[int, ...]]:
    """beta, gamma, running mean and running variance."""
    return [(units,)] * 4


DECONVOLUTIONS = [(256, 256, 5, 5), (256, 128, 5, 5), (128, 128, 5, 5), (128, 3, 5, 5)]
G1_SHAPES = [
    *((50, 256), *normed(256), (10, 512), *normed(512), (768, 512), *normed(512), (512, 512), *normed(512)),
    *((512, 256), (256,)),
]
G0_SHAPES = [
    *((16, 128), *normed(128), (128, 128), *normed(128), (384, 6400), *normed(6400)),
    *(DECONVOLUTIONS[0], *normed(256), DECONVOLUTIONS[1], *normed(128), DECONVOLUTIONS[2], *normed(128)),
    *(DECONVOLUTIONS[3], (3,)),
]
"""sampling.py and nn.py of the released code: the order of lasagne.layers.get_all_param_values(gen0_layers[-1])."""


def generator_arrays() -> list[np.ndarray]:
    """Weights that keep the size of what passes; every running variance is positive."""
    random, found = np.random.default_rng(1), []
    for shape in (*G1_SHAPES, *G0_SHAPES):
        inputs = shape[0] * (1 if len(shape) == 2 else 25 / 2)
        values = random.normal(0, 1.4 / np.sqrt(inputs), shape) if len(shape) > 1 else random.uniform(0.5, 1.5, shape)
        found.append(values.astype(np.float32))
    return found


class ByHand:
    """The released G1 and G0 in NumPy, which take their arrays in turn."""

    def __init__(self, values: list[np.ndarray]):
        self.values = iter([value.astype(np.float64) for value in values])

    def norm_relu(self, h: np.ndarray) -> np.ndarray:
        beta, gamma, mean, variance = (next(self.values).reshape(-1, *[1] * (h.ndim - 2)) for _ in range(4))
        return np.maximum((h - mean) / np.sqrt(1e-6 + variance) * gamma + beta, 0)

    def dense(self, h: np.ndarray) -> np.ndarray:
        return self.norm_relu(h @ next(self.values))

    def deconvolution(self, h: np.ndarray, size: int, stride: int, padding: int) -> np.ndarray:
        """The gradient, with respect to its input, of a convolution (with flipped kernels) of this stride and padding:
        y[k, i, j] = sum over c, u, v of w[k, c, 4 - u, 4 - v] x[c, stride i + u - padding, stride j + v - padding]."""
        w = next(self.values)
        x = np.zeros((len(h), w.shape[1], size + 2 * padding, size + 2 * padding))
        reach = stride * (h.shape[2] - 1) + 1
        for u in range(5):
            for v in range(5):
                part = np.einsum("nkij,kc->ncij", h, w[:, :, 4 - u, 4 - v])
                x[:, :, u : u + reach : stride, v : v + reach : stride] += part
        return x[:, :, padding : padding + size, padding : padding + size]

    def g1(self, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        embedded = self.dense(z)
        h = np.concatenate([embedded, self.dense(y)], 1)
        h = self.dense(self.dense(h))
        return np.maximum(h @ next(self.values) + next(self.values), 0)

    def g0(self, fc3: np.ndarray, z: np.ndarray, mean: np.ndarray) -> np.ndarray:
        h = np.concatenate([fc3, self.dense(self.dense(z))], 1)
        h = self.dense(h).reshape(len(h), 256, 5, 5)
        for size, stride, padding in ((10, 2, 2), (14, 1, 0), (28, 2, 2)):
            h = self.norm_relu(self.deconvolution(h, size, stride, padding))
        h = self.deconvolution(h, 32, 1, 0) + next(self.values)[:, None, None]
        return 1 / (1 + np.exp(-h)) - mean


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path, Path]:
    """generator.npz, encoder.npz and meanimg.npy."""
    folder = tmp_path_factory.mktemp("released")
    mean = folder / "meanimg.npy"
    np.save(mean, np.random.default_rng(2).uniform(0.4, 0.55, (3, 32, 32)).astype(np.float32))
    encoder = save(folder / "encoder.npz", arrays("cifar10"))
    return save(folder / "generator.npz", generator_arrays()), encoder, mean


def test_the_generators_are_those_of_the_file(files):
    mean = load_mean(files[2], CIFAR10)
    image, features = load_generator(files[0], CIFAR10, mean)
    assert not any(part.requires_grad for each in (image, features) for part in each.parameters())
    random, hand = torch.Generator().manual_seed(0), ByHand(generator_arrays())
    y, z1, z0 = torch.eye(10)[[3, 0, 9]], torch.rand(3, 50, generator=random), torch.rand(3, 16, generator=random)
    fc3 = features(y, z1)
    wanted = hand.g1(y.numpy(), z1.numpy())
    assert 0.1 < (wanted > 0).mean() < 0.9
    np.testing.assert_allclose(fc3.numpy(), wanted, atol=1e-4)
    made = image(fc3, z0)
    wanted = hand.g0(wanted, z0.numpy(), mean.numpy())
    assert wanted.std() > 0.1
    np.testing.assert_allclose(made.numpy(), wanted, atol=1e-4)
    assert next(hand.values, None) is None


def test_the_command_scores_samples_and_draws_a_row_of_each_class(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(released, "DEVICE", "cpu")
    out = tmp_path / "grid.png"
    released.main(released.Options(*files, judge="encoder", samples=120, seed=4, out=out))
    mean, labels = load_mean(files[2], CIFAR10), balanced_labels(120, 10)
    made = sample(load_generator(files[0], CIFAR10, mean), torch.eye(10)[labels], "running", 4)
    _, logits = by_hand(made.numpy() / 255 - mean.numpy(), arrays("cifar10"))
    scores = inception_scores(torch.from_numpy(logits).float())
    said = dict(line.strip().rsplit("  ", 1) for line in capsys.readouterr().out.splitlines()[1:-1])
    said = {name.strip(): value for name, value in said.items()}
    assert float(said.pop("accuracy")) == pytest.approx((logits.argmax(1) == labels.numpy()).mean(), abs=1e-4)
    for name in ("inception_score", "inception_score_split_std"):
        assert float(said.pop(name)) == pytest.approx(scores[name], abs=2e-4)
    assert said == {
        "network": "the authors' encoder",
        "weights": sha256(files[1]),
        "resize": "none",
        "samples": "120",
        "reference": "none",
        "splits": "10",
        "shuffle": "NumPy RandomState(2020)",
        "subset": "2000",
    }
    drawn, step = np.asarray(unlabelled(out)), 2 * 32 + GAP  # small images are drawn twice as large
    for label in range(10):
        for column, image in enumerate(made[labels == label][:10].permute(0, 2, 3, 1).numpy()):
            found = drawn[label * step :, column * step :][:64:2, :64:2]
            assert np.array_equal(found, image), (label, column)


@pytest.mark.parametrize("place", [0, 8, 27, 53])
def test_a_generator_file_of_other_shapes_is_refused(place, tmp_path):
    values = generator_arrays()
    values[place] = values[place][..., :-1]
    with pytest.raises(ConfigError, match=rf"arr_{place} of .*g\.npz must hold finite numbers of shape"):
        load_generator(save(tmp_path / "g.npz", values), CIFAR10, torch.zeros(3, 32, 32))
    with pytest.raises(ConfigError, match=r"arr_0 to arr_53 of the cifar10 generator, but holds arr_0"):
        load_generator(save(tmp_path / "g.npz", values[:-1]), CIFAR10, torch.zeros(3, 32, 32))
    with pytest.raises(ConfigError, match=r"g\.npz must hold finite numbers of shape \(3, 32, 32\)"):
        load_mean(tmp_path / "g.npz", CIFAR10)
