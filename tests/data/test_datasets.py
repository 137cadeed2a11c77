"""Datasets from real files, each fault of a file one clear error."""

import hashlib
import pickle
import struct
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from sklearn.datasets import load_digits

from sgan.checks import ConfigError
from sgan.data.datasets import read
from sgan.presets import DATASETS

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Every download goes to a port of this machine on which nothing listens."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)


def idx(array: np.ndarray) -> bytes:
    """LeCun's IDX format: two zeros, 8 for bytes, the number of dimensions, each size big-endian, the bytes."""
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist(root: Path, train: int = 50, test: int = 20) -> tuple[Path, list[np.ndarray]]:
    """Real MNIST files of random images; returns their folder and what they hold."""
    raw, random = root / "MNIST" / "raw", np.random.default_rng(0)
    raw.mkdir(parents=True)
    arrays = []
    for name, count in zip(FILES, (train, train, test, test), strict=True):
        high, shape = (256, (count, 28, 28)) if "images" in name else (10, (count,))
        arrays.append(random.integers(0, high, shape, dtype=np.uint8))
        (raw / name).write_bytes(idx(arrays[-1]))
    return raw, arrays


def refused(name: str, root: Path) -> str:
    """The message with which a dataset is refused: one line."""
    with pytest.raises(ConfigError) as caught:
        read(DATASETS[name], root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_digits_are_scikit_learns_split_once(digits):
    assert digits.images.shape == (1347, 1, 8, 8)
    assert digits.test_images.shape == (450, 1, 8, 8)
    assert digits.images.dtype == digits.test_images.dtype == torch.uint8
    images, labels = load_digits(return_X_y=True)
    rows = sorted(map(tuple, np.column_stack([np.rint(images * 255 / 16), labels]).astype(int).tolist()))
    pixels = torch.cat([digits.images, digits.test_images]).flatten(1).int()
    ours = torch.cat([pixels, torch.cat([digits.labels, digits.test_labels])[:, None].int()], 1)
    assert sorted(map(tuple, ours.tolist())) == rows
    for part in (digits.labels, digits.test_labels):
        assert (part.bincount() > len(part) / 10 * 0.8).all()
        assert len(part.bincount()) == 10


def test_digits_are_the_same_each_time(digits):
    read.cache_clear()
    again = read(DATASETS["digits"], Path("elsewhere"))
    assert again is not digits
    assert again.digest == digits.digest == "b3cd7ac2ee2d2819"  # as in RESULTS.md
    assert torch.equal(again.images, digits.images)
    assert torch.equal(again.labels, digits.labels)


def test_mnist_is_what_its_files_hold(tmp_path):
    _, arrays = mnist(tmp_path)
    data = read(DATASETS["mnist"], tmp_path)
    held = (data.images, data.labels, data.test_images, data.test_labels)
    for tensor, array in zip(held, arrays, strict=True):
        assert np.array_equal(tensor.numpy(), array[:, None] if array.ndim == 3 else array)
    assert data.images.dtype == torch.uint8
    assert data.labels.dtype == torch.int64


@pytest.mark.parametrize("named", ["MNIST", "MNIST/raw"])
def test_the_folder_of_the_files_may_be_named_itself(tmp_path, named, monkeypatch):
    mnist(tmp_path)
    expected = read(DATASETS["mnist"], tmp_path).digest
    assert read(DATASETS["mnist"], tmp_path / named).digest == expected
    monkeypatch.chdir(tmp_path / named)
    read.cache_clear()
    assert read(DATASETS["mnist"], Path(".")).digest == expected
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(["MNIST", "raw", *FILES])


@pytest.mark.parametrize("file", FILES)
def test_a_changed_byte_in_any_file_is_other_data(tmp_path, file):
    raw, _ = mnist(tmp_path)
    before = read(DATASETS["mnist"], tmp_path).digest
    held = bytearray((raw / file).read_bytes())
    held[-1] = (held[-1] + 1) % 10
    (raw / file).write_bytes(held)
    read.cache_clear()
    assert read(DATASETS["mnist"], tmp_path).digest != before


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("bytes_lost", [1, 10])
def test_a_torn_mnist_file_is_refused(tmp_path, file, bytes_lost):
    raw, _ = mnist(tmp_path)
    held = (raw / file).read_bytes()
    (raw / file).write_bytes(held[:-bytes_lost])
    assert f"MNIST cannot be read from {tmp_path}" in refused("mnist", tmp_path)


@pytest.mark.parametrize("length", [0, 3, 4, 6, 8, 14])
def test_a_file_torn_inside_its_header_is_refused(tmp_path, length):
    raw, _ = mnist(tmp_path)
    (raw / FILES[0]).write_bytes((raw / FILES[0]).read_bytes()[:length])
    assert str(tmp_path) in refused("mnist", tmp_path)


@pytest.mark.parametrize("magic", [b"\x00\x00\x08\x01", b"\x00\x00\x0d\x03", b"\x1f\x8b\x08\x00", b"<htm"])
def test_a_file_with_a_wrong_magic_number_is_refused(tmp_path, magic):
    raw, _ = mnist(tmp_path)
    (raw / FILES[2]).write_bytes(magic + (raw / FILES[2]).read_bytes()[4:])
    assert str(tmp_path) in refused("mnist", tmp_path)


@pytest.mark.parametrize(
    ("file", "array", "words"),
    [
        (FILES[1], np.full(50, 10, np.uint8), "up to 10"),
        (FILES[3], np.full(20, 255, np.uint8), "up to 255"),
        (FILES[1], np.zeros(49, np.uint8), "49 labels"),
        (FILES[2], np.zeros((21, 28, 28), np.uint8), "(21, 28, 28) images"),
        (FILES[0], np.zeros((50, 32, 32), np.uint8), "(50, 32, 32) images"),
    ],
    ids=["label 10", "label 255", "a label too few", "an image too many", "wrong size"],
)
def test_files_that_do_not_belong_together_are_refused(tmp_path, file, array, words):
    raw, _ = mnist(tmp_path)
    (raw / file).write_bytes(idx(array))
    message = refused("mnist", tmp_path)
    assert str(tmp_path) in message
    assert words in message


def test_files_without_any_image_are_refused(tmp_path):
    mnist(tmp_path, train=0)
    assert str(tmp_path) in refused("mnist", tmp_path)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_mnist_file_is_refused_at_once_without_a_network(tmp_path, file):
    raw, _ = mnist(tmp_path)
    (raw / file).unlink()
    message = refused("mnist", tmp_path)
    assert str(tmp_path) in message
    assert "--data" in message


@pytest.mark.parametrize(("name", "kind"), [("mnist", "MNIST"), ("cifar10", "CIFAR10"), ("svhn", "SVHN")])
def test_absent_data_without_a_network_are_refused_at_once(tmp_path, name, kind):
    started = time.monotonic()
    message = refused(name, tmp_path)
    assert time.monotonic() - started < 20
    assert kind in message
    assert str(tmp_path) in message
    assert "--dataset digits" in message


def test_a_cifar_batch_that_is_not_the_published_one_is_refused(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(b"torn")
    assert str(tmp_path) in refused("cifar10", tmp_path)


def published(monkeypatch, kind: type, table: str, files: dict[str, Path]) -> None:
    """Let torchvision take the made files for the published ones: their checksums in its table."""

    def digest(name: str, old: str) -> str:
        return hashlib.md5(files[name].read_bytes()).hexdigest() if name in files else old

    rows = getattr(kind, table)
    if isinstance(rows, dict):
        monkeypatch.setattr(
            kind, table, {part: [url, name, digest(name, old)] for part, (url, name, old) in rows.items()}
        )
    else:
        monkeypatch.setattr(kind, table, [[name, digest(name, old)] for name, old in rows])


def svhn(root: Path, counts: dict[str, int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """SVHN's cropped digits: X (32, 32, 3, n), y (n, 1), where 10 is the digit 0."""
    random, made = np.random.default_rng(3), {}
    for part, count in counts.items():
        made[part] = random.integers(0, 256, (32, 32, 3, count), dtype=np.uint8), random.integers(1, 11, (count, 1))
        scipy.io.savemat(root / f"{part}_32x32.mat", {"X": made[part][0], "y": made[part][1].astype(np.uint8)})
    return made


def test_svhn_files_are_read_as_they_are(tmp_path, monkeypatch):
    made = svhn(tmp_path, {"train": 30, "test": 12})
    files = {path.name: path for path in tmp_path.iterdir()}
    published(monkeypatch, torchvision.datasets.SVHN, "split_list", files)
    data = read(DATASETS["svhn"], tmp_path)
    for (images, labels), part in (
        ((data.images, data.labels), "train"),
        ((data.test_images, data.test_labels), "test"),
    ):
        assert images.dtype == torch.uint8
        assert labels.dtype == torch.int64
        assert np.array_equal(images.numpy(), made[part][0].transpose(3, 2, 0, 1))
        assert np.array_equal(labels.numpy(), made[part][1][:, 0] % 10)
    read.cache_clear()
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(path.read_bytes()[:-10])
    said = refused("svhn", tmp_path)
    assert "SVHN cannot be read" in said
    assert str(tmp_path) in said


def cifar(root: Path) -> dict[str, tuple[np.ndarray, list[int]]]:
    """CIFAR-10's Python files: rows of 1024 red, 1024 green and 1024 blue pixels, and a list of labels."""
    folder, random, made = root / "cifar-10-batches-py", np.random.default_rng(4), {}
    folder.mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        made[name] = random.integers(0, 256, (4, 3072), dtype=np.uint8), random.integers(0, 10, 4).tolist()
        (folder / name).write_bytes(pickle.dumps({"data": made[name][0], "labels": made[name][1]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {number}" for number in range(10)]}))
    return made


def test_cifar_files_are_read_as_they_are(tmp_path, monkeypatch):
    made = cifar(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    files = {path.name: path for path in folder.iterdir()}
    kind = torchvision.datasets.CIFAR10
    for table in ("train_list", "test_list"):
        published(monkeypatch, kind, table, files)
    meta = hashlib.md5((folder / "batches.meta").read_bytes()).hexdigest()
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": meta})
    data = read(DATASETS["cifar10"], tmp_path)
    train = [made[f"data_batch_{number}"] for number in range(1, 6)]
    assert np.array_equal(data.images.numpy(), np.concatenate([rows for rows, _ in train]).reshape(-1, 3, 32, 32))
    assert data.labels.tolist() == [label for _, labels in train for label in labels]
    assert np.array_equal(data.test_images.numpy(), made["test_batch"][0].reshape(-1, 3, 32, 32))
    assert data.test_labels.tolist() == made["test_batch"][1]
    read.cache_clear()
