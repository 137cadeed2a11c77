"""Image folders made by the tests: what is read from them, and each fault one clear error that names the file."""

import itertools
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import named_recipe
from PIL import Image
from torch import nn

from sgan import metrics
from sgan.checks import ConfigError
from sgan.config import IMAGE, INNER_TAPS, LABEL, Level
from sgan.data import datasets, image_folder
from sgan.data.image_folder import class_names
from sgan.evaluation.scores import Features
from sgan.models.discriminator import Discriminator
from sgan.models.encoder import Encoder
from sgan.models.generator import Generator
from sgan.presets import folder_row
from sgan.store.local import Store
from sweeps.planning.ablation import plan_ablation
from sweeps.planning.options import Sweep

BATCHES = tuple(f"{part}.batch=8" for part in ("gan", "joint", "encoder", "judge"))


def picture(mode: str = "RGB", size: tuple[int, int] = (32, 32), seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


@pytest.fixture
def root(tmp_path) -> Path:
    """Two classes of ten images."""
    for label in ("cats", "dogs"):
        (tmp_path / label).mkdir()
        for index in range(10):
            picture(seed=index + 100 * (label == "dogs")).save(tmp_path / label / f"{index}.png")
    return tmp_path


def read(root: Path, size: int, channels: int) -> tuple[np.ndarray, ...]:
    """`image_folder.read` as arrays."""
    return tuple(part.numpy() for part in image_folder.read(root, size, channels))


def refused(root: Path, size: int = 32, channels: int = 3) -> str:
    with pytest.raises(ConfigError) as caught:
        read(root, size, channels)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows(*arrays: np.ndarray) -> list[bytes]:
    return sorted(image.tobytes() for images in arrays for image in images)


def test_images_of_their_size_come_back_pixel_by_pixel_and_one_in_five_tests(root):
    images, labels, test_images, test_labels = read(root, 32, 3)
    assert images.shape == (16, 3, 32, 32)
    assert test_images.shape == (4, 3, 32, 32)
    assert images.dtype == test_images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [8, 8]
    assert np.bincount(test_labels).tolist() == [2, 2]
    expected = [np.asarray(picture(seed=seed)).transpose(2, 0, 1).tobytes() for seed in (*range(10), *range(100, 110))]
    assert rows(images, test_images) == sorted(expected)
    cats = [np.asarray(picture(seed=seed)).transpose(2, 0, 1).tobytes() for seed in range(10)]
    assert all((image.tobytes() in cats) == (label == 0) for image, label in zip(images, labels, strict=True))
    assert set(labels[:8].tolist()) == set(test_labels.tolist()) == {0, 1}  # shuffled
    again = read(root, 32, 3)
    assert all(np.array_equal(one, other) for one, other in zip((images, labels, test_images), again, strict=False))


def test_train_and_test_folders_are_the_parts(root, tmp_path_factory):
    both = tmp_path_factory.mktemp("both")
    (root).rename(both / "train")
    (both / "train").joinpath().mkdir(exist_ok=True)
    for label in ("cats", "dogs"):
        (both / "test" / label).mkdir(parents=True)
        picture(seed=7).save(both / "test" / label / "x.png")
    found = read(both, 32, 3)
    assert [len(part) for part in found] == [20, 20, 2, 2]
    (both / "test" / "birds").mkdir()
    assert "only one has birds" in refused(both)


def split(root: Path, place: Path, *names: str) -> Path:
    """The two classes of `root` in folders of these names."""
    for name in names:
        for label in ("cats", "dogs"):
            (place / name / label).mkdir(parents=True)
            for index in range(5):
                picture(seed=index).save(place / name / label / f"{index}.png")
    return place


@pytest.mark.parametrize(
    "names", [("train", "val"), ("training", "validation"), ("Train", "Test"), ("train", "valid"), ("train", "dev")]
)
def test_the_folders_of_a_split_are_parts_whatever_their_names(root, names, tmp_path_factory):
    place = split(root, tmp_path_factory.mktemp("split"), *names)
    assert class_names(place) == ("cats", "dogs")
    assert [len(part) for part in read(place, 8, 1)] == [10, 10, 10, 10]


def test_of_three_parts_two_are_used_and_the_third_is_told(root, tmp_path_factory):
    place = split(root, tmp_path_factory.mktemp("split"), "train", "val", "test")
    (place / "labels.csv").write_text("about")
    words = "20 images of 2 classes (cats, dogs); left out: 2 beside train and test (labels.csv, val)"
    assert image_folder.describe(place) == words


@pytest.mark.parametrize("names", [("val", "test"), ("train", "training"), ("train",)])
def test_the_folders_of_half_a_split_are_no_classes(root, names, tmp_path_factory):
    place = split(root, tmp_path_factory.mktemp("split"), *names)
    assert f"{place} holds only one part of a train/test split, {', '.join(sorted(names))}; it needs" in refused(place)


def test_a_class_may_be_called_train(root):
    (root / "cats").rename(root / "train")
    assert class_names(root) == ("dogs", "train")


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "RGBA"])
def test_every_mode_becomes_the_channels_asked_for(root, mode):
    picture(mode).save(root / "cats" / ("odd.jpg" if mode == "CMYK" else "odd.png"))
    for channels in (1, 3):
        images = read(root, 16, channels)[0]
        assert images.shape[1:] == (channels, 16, 16)
    if mode == "L":  # grey among colour: three equal channels
        grey = [image for image in np.concatenate(read(root, 32, 3)[::2]) if (image == image[:1]).all()]
        assert len(grey) == 1
        assert np.array_equal(grey[0][0], np.asarray(picture("L")))


def test_odd_sizes_are_cut_around_their_middle_and_resized(root):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200  # just the middle square
    Image.fromarray(wide).save(root / "cats" / "wide.png")
    found = np.concatenate(read(root, 32, 3)[::2])
    assert (found == 200).all((1, 2, 3)).sum() == 1
    picture(size=(1, 1)).save(root / "cats" / "dot.png")
    read(root, 32, 3)


def test_transparency_is_white_and_exif_turns_the_image(root):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(root / "cats" / "clear.png")
    assert (np.concatenate(read(root, 8, 3)[::2]) == 255).all((1, 2, 3)).sum() == 1
    dark_left = np.full((16, 16, 3), 255, np.uint8)
    dark_left[:, :8] = 0
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees to the right": the dark side comes to the top
    Image.fromarray(dark_left).save(root / "dogs" / "turned.png", exif=exif)
    found = np.concatenate(read(root, 16, 3)[::2])
    assert any(image[:, :8].max() == 0 and image[:, 8:].min() == 255 for image in found)


def test_hidden_files_are_passed_over(root):
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png"):
        (root / "cats" / name).write_text("no image")
    for name in (".git", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "@eaDir"):
        (root / name).mkdir()
        (root / "dogs" / name).mkdir()
    (root / "README.txt").write_text("about")
    assert class_names(root) == ("cats", "dogs")
    assert len(read(root, 32, 3)[0]) == 16


def test_what_is_not_used_is_counted_and_named(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    picture().save(elsewhere / "linked.png")
    (root / "cats" / "gone.png").symlink_to(root / "nothing")
    (root / "cats" / "good.png").symlink_to(elsewhere / "linked.png")
    (root / "dogs" / "more").symlink_to(elsewhere)
    (root / "dogs" / "up").symlink_to(root)
    os.mkfifo(root / "dogs" / "pipe")
    (root / "dogs" / ".hidden").touch()
    (root / "README.txt").touch()
    assert image_folder.describe(root) == (
        "21 images of 2 classes (cats, dogs); left out: 1 beside the class folders (README.txt); "
        "2 links to nothing, pipes or sockets (gone.png, pipe); 1 hidden or left by a system (.hidden); "
        "2 links to folders (more, up)"
    )
    images, _, test_images, _ = read(root, 32, 3)
    assert len(images) + len(test_images) == 21
    for number in range(30):
        (root / "cats" / f".{number:02}").touch()
    assert "31 hidden or left by a system (.00, .01, " in image_folder.describe(root)
    assert "and 21 more)" in image_folder.describe(root)


def test_a_class_behind_a_link_is_one(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (root / "cats").rename(elsewhere / "cats")
    (root / "cats").symlink_to(elsewhere / "cats")
    assert len(read(root, 32, 3)[0]) == 16


def test_a_folder_that_cannot_be_read_is_named(root, monkeypatch):
    def fail(path: Path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", fail)
    assert f"{root} cannot be read (Permission denied)" in refused(root)


def test_a_store_in_the_folder_is_no_class(root, monkeypatch):
    monkeypatch.chdir(root)
    Store("runs")
    Store("cats/other")
    sweep = Sweep(dataset="folder", data=Path("."), override=BATCHES)
    assert class_names(Path(".")) == ("cats", "dogs")
    ablation = plan_ablation(sweep, gpus=0)
    line = "\n  data    20 images of 2 classes (cats, dogs); left out: 2 output stores (runs, other)"
    assert line in ablation.basis.why


def test_a_phones_photo_of_several_pictures_is_its_first(root):
    photo = picture()
    photo.save(root / "cats" / "photo.jpg", format="MPO", save_all=True, append_images=[picture(seed=1)], quality=95)
    with Image.open(root / "cats" / "photo.jpg") as image:
        assert (image.format, getattr(image, "n_frames", 1)) == ("MPO", 2)
        assert np.array_equal(np.asarray(image_folder.read_image(root / "cats" / "photo.jpg", 3)), np.asarray(image))
    assert len(read(root, 32, 3)[0]) == 17


def deep_colours() -> bytes:
    """A PNG of 2x2 pixels with 16 bits a channel, which Pillow cannot write: the PNG specification, section 5."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(2 * (b"\0" + 12 * b"\x80"))
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_each_broken_or_odd_file_is_named(root):
    path = root / "dogs" / "3.png"
    whole = path.read_bytes()
    for bad in (whole[: len(whole) // 2], b"", b"text", whole[:8] + b"?" * 50):
        path.write_bytes(bad)
        assert f"{path} cannot be read as an image" in refused(root)
    path.write_bytes(whole)
    odd = root / "cats" / "odd"
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(odd.with_suffix(".png"))
    assert "pixels of mode I;16" in refused(root)
    odd.with_suffix(".png").unlink()
    Image.fromarray(np.zeros((32, 32), np.float32)).save(odd.with_suffix(".tif"))
    assert "pixels of mode F" in refused(root)
    odd.with_suffix(".tif").unlink()
    picture().save(odd.with_suffix(".gif"), save_all=True, append_images=[picture(seed=1)])
    assert "an animation of 2 frames" in refused(root)
    odd.with_suffix(".gif").unlink()
    (root / "cats" / "notes.txt").write_text("not an image")
    assert "notes.txt cannot be read as an image" in refused(root)


def test_images_without_any_difference_are_refused(root):
    for path in root.glob("*/*.png"):
        picture().save(path)
    with pytest.raises(ConfigError, match=rf"the 16 training images of folder in {root} are all the same"):
        datasets.read(folder_row(32, 3, 2), root)
    same = metrics.Source("same", torch.full((12, 3, 4, 4), 7, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="the images of same are all the same to the network"):
        metrics.describe(same, lambda images: Features(images.flatten(1).float(), images.flatten(1).float()))


def test_a_folder_without_an_image_to_test_with_is_refused(root):
    for path in root.glob("*/[1-9].png"):
        path.unlink()
    assert "no class of" in refused(root)
    picture(seed=1).save(root / "cats" / "1.png")
    assert [len(part) for part in read(root, 32, 3)] == [2, 2, 1, 1]


def test_a_folder_that_is_no_set_of_classes_is_refused(root):
    picture().save(root / "loose.png")
    assert "loose.png lies beside the class folders" in refused(root)
    (root / "loose.png").unlink()
    (root / "empty").mkdir()
    assert "empty holds no images" in refused(root)
    (root / "empty").rmdir()
    for path in (root / "dogs").iterdir():
        path.unlink()
    (root / "dogs").rmdir()
    assert "at least two sub-folders" in refused(root)


def test_the_same_pixels_have_the_same_digest_whatever_their_file(root):
    row = folder_row(32, 3, 2)
    before = datasets.read(row, root).digest
    datasets.read.cache_clear()
    picture(seed=0).save(root / "cats" / "0.bmp")
    (root / "cats" / "0.png").unlink()
    assert datasets.read(row, root).digest == before
    datasets.read.cache_clear()
    picture(seed=99).save(root / "cats" / "0.bmp")
    assert datasets.read(row, root).digest != before
    datasets.read.cache_clear()


@pytest.mark.parametrize("size", [8, 12, 16, 28, 32, 48, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_networks_of_every_size_fit_together(size, channels):
    row = folder_row(size, channels, 5).scaled(0.1)
    recipe = named_recipe("released", "cifar10" if channels == 3 else "mnist").gan
    for taps in ((IMAGE, LABEL), (IMAGE, "fc3", LABEL), (IMAGE, *INNER_TAPS, LABEL)):
        h = torch.rand(2, channels, size, size)
        features = Encoder(row, 0.1).taps(h) | {LABEL: torch.eye(5)[:2]}
        for low, high in itertools.pairwise(taps):
            level = Level(low, high)
            generator = Generator(row, recipe, level)
            made = generator(features[high], torch.rand(2, generator.noise))
            assert made.shape == features[low].shape
            logits, recovered = Discriminator(row, recipe, level)(made)
            assert logits.shape == (2, 5 if channels == 3 else 1)
            assert recovered.shape == (2, generator.noise)
            assert isinstance(generator, nn.Module)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": 30}, "multiple of 4 from 8 to 128"),
        ({"image_size": 4}, "multiple of 4 from 8 to 128"),
        ({"image_size": 132}, "but got 132"),
        ({"channels": 2}, "1 (grey) or 3 (colour)"),
    ],
)
def test_sizes_and_channels_that_cannot_be_are_refused(root, options, words):
    with pytest.raises(ConfigError) as caught:
        Sweep(dataset="folder", data=root, **options)
    assert words in str(caught.value)


def test_a_sweep_over_a_folder_says_what_it_is(root):
    sweep = Sweep(dataset="folder", data=root, image_size=12, channels=1, seeds=1, override=("gan.batch=8",))
    with pytest.raises(ConfigError) as caught:
        plan_ablation(sweep, gpus=0)
    assert str(caught.value) == (
        "a batch must be at most the 16 training images, but got encoder.batch=64, judge.batch=64, joint.batch=64; "
        "give --override encoder.batch=16 judge.batch=16 joint.batch=16, or more images"
    )
    resolved = plan_ablation(Sweep(dataset="folder", data=root, image_size=12, channels=1, override=BATCHES), gpus=0)
    assert resolved.title.startswith(f"folder {root.name} (16 training images, 12x12), recipe laptop")
    assert resolved.trials[0].config.dataset == folder_row(12, 1, 2)
    bad: dict[str, Any]
    for bad in ({"dataset": "folder"}, {"dataset": "mnist", "image_size": 32}, {"channels": 3}):
        with pytest.raises(ConfigError, match=r"--data|for --dataset folder alone"):
            Sweep(**bad)


def odd_files(folder: Path) -> dict[str, tuple[bool, bytes]]:
    """Odd files by name: whether each can be read as an image, and its bytes."""
    for mode in ("L", "P", "1", "RGBA", "LA"):
        picture(mode).save(folder / f"{mode}.png")
    picture("CMYK").save(folder / "cmyk.jpg")
    picture().save(folder / "frames.gif", save_all=True, append_images=[picture(seed=1)])
    picture().save(folder / "frame.gif")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / "deep.png")
    Image.fromarray(np.zeros((8, 8), np.float32)).save(folder / "float.tif")
    (folder / "colours.png").write_bytes(deep_colours())
    (folder / "torn.png").write_bytes((folder / "L.png").read_bytes()[:80])
    (folder / "notes.txt").write_text("no image")
    refused = ("frames.gif", "deep.png", "colours.png", "float.tif", "torn.png", "notes.txt")
    return {path.name: (path.name not in refused, path.read_bytes()) for path in folder.iterdir()}


def fault(use: Callable[[], object]) -> str:
    try:
        use()
    except ConfigError as error:
        return str(error)
    return ""


def test_scores_of_a_folder_take_and_refuse_the_files_that_training_does(root, tmp_path_factory):
    """Each odd file alone among images that can be read."""
    expected = odd_files(tmp_path_factory.mktemp("odd"))
    assert (len(expected), sum(fine for fine, _ in expected.values())) == (13, 7)
    for name, (fine, content) in expected.items():
        victim = root / "cats" / name
        victim.write_bytes(content)
        trained = fault(lambda: read(root, 32, 3))
        assert trained == fault(lambda: metrics.find(str(root / "cats"), "train", root, None)), name
        assert (trained == "") == fine, name
        assert fine or str(victim) in trained
        victim.unlink()


def test_scores_see_the_pixels_that_training_sees_at_each_images_own_size(root):
    (root / "cats" / ".hidden").mkdir()
    (root / "cats" / ".hidden" / "x.png").write_text("no image")
    (root / "cats" / "Thumbs.db").write_text("no image")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(size=(32, 20)).save(root / "cats" / "turned.png", exif=exif)
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(root / "cats" / "clear.png")
    found = metrics.find(str(root / "cats"), "train", root, None)
    images = [image for batch in metrics.batches(found.images) for image in batch]
    assert len(images) == 12
    assert [tuple(image.shape) for image in images if image.shape[1:] != (32, 32)] == [(3, 32, 20)]
    square = rows(*(image[None].numpy() for image in images if image.shape[1:] == (32, 32)))
    trained, _, tested, _ = read(root, 32, 3)
    assert set(square) <= set(rows(trained, tested))


def test_scores_of_fewer_images_than_asked_for_are_refused(root):
    with pytest.raises(ConfigError) as caught:
        metrics.find(str(root / "cats"), "train", root, 1000)
    assert str(caught.value).startswith(f"{root / 'cats'} holds 10 images; ")
    assert "--samples needs the number that it names" in str(caught.value)
    assert len(metrics.find(str(root), "train", root, 12).images) == 12


def test_scores_say_what_is_left_out(root, capsys):
    (root / "cats" / "gone.png").symlink_to(root / "nothing")
    metrics.find(str(root), "train", root, None)
    assert capsys.readouterr().err == f"{root}: left out: 1 links to nothing, pipes or sockets (gone.png)\n"
