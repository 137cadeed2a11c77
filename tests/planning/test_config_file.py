"""The config file of a search: what is written is what is read, and a damaged one is one error or means the same."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sgan.checks import ConfigError, as_json
from sgan.config import Weights
from sgan.presets import VARIANTS
from sgan.store.local import Store
from sweeps import ablation
from sweeps.planning import config_file
from sweeps.planning.ablation import Ablation, plan_ablation
from sweeps.planning.basis import prepare
from sweeps.planning.options import Sweep

CUTS, WEIGHTS, BASE, VARIED = (
    ("pool1", "fc3"),
    (2.0, 0.5, 3.0),
    ("samples=500",),
    ("samples=500", "gan.image_noise=0.1"),
)
CHOSEN = Sweep(dataset="digits", recipe="laptop", cuts=CUTS, weights=WEIGHTS, override=VARIED, judge="held-out")


def write(folder: Path) -> Path:
    basis = prepare(CHOSEN, 0)
    config = basis.config(VARIANTS["sgan"].variant, 7, Weights(*WEIGHTS), CUTS)
    provenance = {"study": "sgan-0123", "trial": 3, "commit": "abc", "confirmed": {"seeds": [7, 8]}}
    return config_file.write(Store(folder), "sgan", CHOSEN, config, provenance)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("tuned"))


@pytest.fixture(scope="module")
def good(written: Path) -> Ablation:
    return planned(written)


def planned(path: Path) -> Ablation:
    return plan_ablation(Sweep(**vars(config_file.read(path).options), config=path), 0)


def test_the_config_of_an_image_folder_goes_with_the_folder_of_the_command_line(tmp_path, monkeypatch):
    images = tmp_path / "images"
    for number in range(40):
        path = images / f"class {number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 6 * number).save(path)
    batches = ("encoder.batch=8", "judge.batch=8", "gan.batch=8", "joint.batch=8")
    sizes: Any = {"image_size": 8, "channels": 1, "recipe": "laptop", "judge": "held-out", "override": batches}
    chosen = Sweep(dataset="folder", data=images, **sizes)
    config = prepare(chosen, 0).config(VARIANTS["sgan"].variant, 7)
    path = config_file.write(Store(tmp_path / "store"), "sgan", chosen, config, {"study": "a study"})
    monkeypatch.setattr("sys.argv", ["ablation.py", "--config", str(path), "--data", str(images)])
    found = ablation.options_of()
    assert dataclasses.replace(found, config=None) == chosen
    assert "tuned by search a study" in plan_ablation(found, 0).title


def test_the_ablation_runs_what_the_file_says(written: Path):
    found = planned(written)
    expected = plan_ablation(CHOSEN, 0)
    assert [trial.config for trial in found.trials] == [trial.config for trial in expected.trials]
    assert found.key == expected.key
    assert "tuned by search sgan-0123" in found.title


def test_an_option_beside_the_file_makes_it_another_sweep(written: Path):
    same = Sweep(**vars(config_file.read(written).options), config=written)
    other = dataclasses.replace(same, weights=(1.0, 1.0, 10.0))
    assert "tuned by" not in plan_ablation(other, 0).title


def test_a_file_of_another_version_is_named_with_its_commit(written: Path, tmp_path: Path):
    path, content = tmp_path / "other.yaml", yaml.safe_load(written.read_text())
    content["config"]["recipe"]["gan"]["later"] = 1
    path.write_text(yaml.safe_dump(content))
    words = (
        "config.recipe.gan.later is not a known field; it was written by commit abc: use that commit, or search again"
    )
    with pytest.raises(ConfigError) as caught:
        config_file.read(path)
    assert str(caught.value) == f"{path} cannot be read as the config file of a search: {words}"
    content = yaml.safe_load(written.read_text())
    content["config"]["data"] = "other"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"other\.yaml means another config here: data is other .*commit \(abc\)"):
        planned(path)


def leaves(value: Any, path: tuple = ()) -> list[tuple]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for name, item in items for found in leaves(item, (*path, name)))]


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), st.text(max_size=5), st.just([]),
    st.just({}), st.dictionaries(st.integers() | st.text(max_size=3), st.integers(), max_size=2), st.dates(),
    st.sampled_from(["sgan-no-joint", "fc3", "paper", "mnist", "released", "held-out", "samples=100"]),
)  # fmt: skip


def means_the_same_or_is_one_error(path: Path, good: Ablation) -> None:
    try:
        found = planned(path)
    except ConfigError:
        return
    assert [trial.config for trial in found.trials] == [trial.config for trial in good.trials]
    assert as_json(found.options.override) == list(VARIED)


@given(st.data())
def test_any_value_in_any_place(written: Path, good: Ablation, data: st.DataObject):
    content = yaml.safe_load(written.read_text())
    path = data.draw(st.sampled_from([each for each in leaves(content) if each != ("options", "judge")]))
    odd = data.draw(ODD)
    if path:
        inside = content
        for name in path[:-1]:
            inside = inside[name]
        inside[path[-1]] = odd
    damaged = written.with_name("damaged.yaml")
    damaged.write_text(yaml.dump(content if path else odd))
    means_the_same_or_is_one_error(damaged, good)


@given(st.data())
def test_any_bytes_cut_or_put_anywhere(written: Path, good: Ablation, data: st.DataObject):
    whole = written.read_bytes()
    first = data.draw(st.integers(0, len(whole)))
    last = data.draw(st.integers(first, min(len(whole), first + 60)) | st.just(len(whole)))
    damaged = written.with_name("damaged.yaml")
    damaged.write_bytes(whole[:first] + data.draw(st.binary(max_size=4) | st.just(b"&a [*a]")) + whole[last:])
    means_the_same_or_is_one_error(damaged, good)


def test_no_file_at_all():
    with pytest.raises(ConfigError, match="nowhere"):
        config_file.read(Path("nowhere/best.yaml"))


@pytest.mark.parametrize("text", ["&a [*a]", "2001-99-99", "- " * 2000, "\x00", "a: 2001-01-01", ".nan", ""])
def test_text_that_is_no_such_file(text: str, tmp_path: Path):
    (tmp_path / "best.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"best\.yaml"):
        config_file.read(tmp_path / "best.yaml")
