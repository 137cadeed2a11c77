"""Generated bad input: every one ends in one typed error, or in exactly what was asked for."""

import ast
import functools
import json
import os
import pickle
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
import yaml
from conftest import TINY, released_recipe, tiny_recipe
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sgan.checks import ConfigError, as_json, from_json
from sgan.command_line import status
from sgan.config import Codes, Config, Variant, Weights
from sgan.data import image_folder as folder
from sgan.evaluation.inception import check_weights
from sgan.models import export as model
from sgan.models.tensors import read_tensors, write_tensors
from sgan.presets import DATASETS, RECIPES, TRAINING_IMAGES
from sgan.store.files import Record, StoreError, read_json, read_record, write_json
from sgan.store.local import Store
from sgan.training.checkpoint import HEAD_FILE, STATE_FILE, Checkpoint, Checkpoints
from sweeps import ablation
from sweeps.planning import config_file
from sweeps.planning.options import Sweep
from sweeps.search import Search

ROOT = Path(__file__).parents[2]
WORDS = st.sampled_from(["", "0", "-1", "1e999", "nan", "none", "True", "[]", "{}", "fc3", "../..", "é", "1" * 400])
NUMBERS = st.one_of(st.integers(-3, 3), st.integers(), st.floats())
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.text(max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=2)),
    max_leaves=4,
)
CONFIGS = [
    Config(TINY, "0f", tiny_recipe(), Variant(("pool2", "fc3"), Weights(), joint=True), 0),
    Config(TINY, "0f", released_recipe(), Variant((), Weights(1, 0, 1), joint=False, codes=Codes()), 3),
    *(
        Config(DATASETS[name], "0f", RECIPES[recipe](DATASETS[name], 1000), CONFIGURED, 7)
        for CONFIGURED in [Variant(("fc3",), Weights(), joint=True)]
        for name in DATASETS
        for recipe in RECIPES
    ),
]


def named(error: BaseException, words: str = "") -> None:
    """The error says something, and these words."""
    assert str(error)
    assert words in str(error)


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in [(value, key), *places(item)]]


@given(st.data())
def test_a_config_of_any_json_is_refused_or_is_that_config(data):
    """No field is made up, left out, rounded or ignored."""
    plain = json.loads(json.dumps(as_json(data.draw(st.sampled_from(CONFIGS)))))
    for _ in range(data.draw(st.integers(1, 2))):
        container, key = data.draw(st.sampled_from(places(plain)))
        if data.draw(st.booleans()) or isinstance(container, list):
            container[key] = data.draw(JSON)
        elif data.draw(st.booleans()):
            del container[key]
        else:
            container[data.draw(st.text(max_size=5))] = data.draw(JSON)
    try:
        config = from_json(Config, plain)
    except ConfigError as error:
        return named(error)
    assert as_json(config) == plain


FIELDS = [".".join(path) for path in [("gan", "adam", "beta1"), ("samples",), ("gan", "generator_steps"), ("name",)]]
PATHS = st.one_of(
    st.sampled_from([*FIELDS, "gan", "joint.batch", "encoder.objective", "feedback", "gan.adam", "", ".", "gan."]),
    st.text(max_size=8),
)
VALUES = st.one_of(WORDS, JSON.map(json.dumps), st.text(max_size=8))


@given(PATHS, VALUES, st.sampled_from(["digits", "mnist", "cifar10"]), st.sampled_from(list(RECIPES)))
def test_an_override_of_anything_is_refused_or_sets_that_field(path, text, dataset, recipe):
    try:
        options = Sweep(dataset=dataset, recipe=recipe, override=(f"{path}={text}",))
    except ConfigError as error:
        return named(error)
    row = options.build_recipe(DATASETS[dataset], recipe, TRAINING_IMAGES[dataset])
    field = functools.reduce(getattr, path.split("."), row)
    try:
        asked = json.loads(text)
    except ValueError:
        asked = text
    assert as_json(field) == asked


OPTIONS = {
    Sweep: ["--variants", "--seeds", "--first-seed", "--cuts", "--weights", "--config"],
    Search: [
        "--variant",
        "--splits",
        "--adversarial",
        "--zeros",
        "--vary",
        "--objective",
        "--trials",
        "--seed",
    ],
}
SHARED = ["--dataset", "--data", "--image-size", "--channels", "--recipe", "--budget", "--width", "--override"]
SHARED += ["--judge", "--judge-weights", "--mlflow", "--slots", "--trials-per-gpu", "--deterministic", "--nothing"]
GIVEN = st.one_of(
    WORDS,
    st.sampled_from(["sgan", "digits", "folder", "paper", "tpe", "2", "0.5", "1e308", "-7", "conv1", "a=1:2:log", "/"]),
    NUMBERS.map(str),
    st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=6),
)


@pytest.mark.parametrize("kind", OPTIONS)
def test_any_command_line_is_options_or_one_error(kind, capsys):
    @given(st.lists(st.tuples(st.sampled_from([*OPTIONS[kind], *SHARED]), st.lists(GIVEN, max_size=3)), max_size=4))
    def check(words: list[tuple[str, list[str]]]) -> None:
        try:
            made = tyro.cli(kind, args=[word for option, values in words for word in (option, *values)])
            assert isinstance(made, kind)
        except ConfigError as error:
            named(error)
        except SystemExit as end:  # tyro's own, of what is no value of a type, and of --help
            named(end, "2" if end.code else "0")
        capsys.readouterr()

    check()


def damaged(held: bytes, data: st.DataObject) -> bytes:
    """Bytes with some flipped, cut off, or with others put in."""
    changed = bytearray(held)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(0, len(changed) - 1)))
        kind = data.draw(st.sampled_from(["flip", "cut", "put"]))
        if kind == "flip" and changed:
            changed[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "cut":
            del changed[at:]
        else:
            changed[at:at] = data.draw(st.binary(max_size=8))
    return bytes(changed)


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "bmp", "tiff", "webp", "ppm"])
def test_an_image_damaged_anywhere_is_read_or_named(kind, tmp_path):
    Image.effect_mandelbrot((40, 30), (-2, -1.5, 1, 1.5), 20).convert("RGB").save(tmp_path / f"whole.{kind}")
    held = (tmp_path / f"whole.{kind}").read_bytes()
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "set" / name / f"{number}.{kind}").write_bytes(held)
    victim = tmp_path / "set" / "a" / f"1.{kind}"

    @given(st.data())
    def check(data: st.DataObject) -> None:
        victim.write_bytes(damaged(held, data))
        try:
            images = folder.read(tmp_path / "set", 8, 3)[0]
        except ConfigError as error:
            return named(error, str(victim))
        assert images.shape[1:] == (3, 8, 8)

    check()


def test_a_best_yaml_damaged_anywhere_is_options_or_named(tmp_path):
    options = Sweep(dataset="digits", recipe="laptop", weights=(1.0, 1.0, 5.0))
    path = config_file.write(Store(tmp_path), "sgan", options, CONFIGS[0], {"study": "s", "commit": "c"})
    held = path.read_bytes()
    assert Sweep(**vars(config_file.read(path).options)).weights == (1.0, 1.0, 5.0)

    @given(st.data())
    def check(data: st.DataObject) -> None:
        path.write_bytes(damaged(held, data))
        try:
            Sweep(**vars(config_file.read(path).options))
        except ConfigError as error:
            named(error)

    check()


def test_judge_weights_damaged_anywhere_are_no_weights(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.zeros(3, 4), "Conv2d_1a_3x3.conv.weight": torch.zeros(2)}, path)
    held = path.read_bytes()

    @given(st.data())
    def check(data: st.DataObject) -> None:
        path.write_bytes(damaged(held, data))
        with pytest.raises(ConfigError, match=r"weights\.pth"):
            check_weights(path)

    check()


class Harmful:
    """Pickled, it makes a file where it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_pickle_in_place_of_any_file_of_a_store_is_not_run(tmp_path):
    store, mark = Store(tmp_path / "store"), tmp_path / "mark"
    work = store.begin("level-1")
    write_tensors(work / "model.safetensors", {"a": torch.ones(2)})
    Record(work).add(1, {"loss": 1.0})
    Checkpoints(work).save(Checkpoint(1, tensors={"a": torch.ones(2)}))
    store.publish("level-1", {"status": "diverged"})  # which keeps its checkpoints
    sweep = store.root / "sweeps" / "ab" / "sweep.json"
    write_json(sweep, {"key": "ab"})
    stage = store.stage("level-1")
    (checkpoint,) = (stage / "checkpoints").iterdir()
    options = Sweep(dataset="digits", recipe="laptop", weights=(1.0, 1.0, 5.0))
    config_file.write(Store(tmp_path), "sgan", options, CONFIGS[0], {"study": "s", "commit": "c"})
    readers = {
        stage / "stage.json": read_json,
        stage / "model.safetensors": read_tensors,
        stage / "record.jsonl": lambda path: read_record(path.parent),
        sweep: read_json,
        tmp_path / "best.yaml": config_file.read,
        checkpoint / HEAD_FILE: read_json,
        checkpoint / STATE_FILE: read_tensors,
    }
    (tmp_path / "model").mkdir()
    readers[tmp_path / "model" / "model.json"] = lambda path: model.load(path.parent)
    for path, read in readers.items():
        for protocol in (0, 2, 5):
            path.write_bytes(pickle.dumps(Harmful(mark), protocol))
            with pytest.raises((StoreError, ConfigError)):
                read(path)
            assert not mark.exists()
    assert Checkpoints(stage).load() == Checkpoint()
    for text in ("!!python/object/apply:os.mkdir ['{mark}']", "variant: !!python/object/apply:os.mkdir ['{mark}']"):
        (tmp_path / "best.yaml").write_text(text.replace("{mark}", str(mark)))
        with pytest.raises(ConfigError):
            config_file.read(tmp_path / "best.yaml")
        assert not mark.exists()
    pickle.loads(pickle.dumps(Harmful(mark)))
    assert mark.exists()  # it would have
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load("!!python/object/apply:os.mkdir ['x']")


def test_the_only_file_that_is_unpickled_holds_tensors_alone():
    """Every call in the product that could run what a file says: one, and it is told to take tensors only."""
    found = []
    for path in sorted([*(ROOT / "sgan").rglob("*.py"), *(ROOT / "sweeps").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name = f"{ast.unparse(node.func.value)}.{node.func.attr}"
                loads = node.func.attr.endswith(("load", "loads", "load_all")) or node.func.attr == "read_pickle"
                if loads and name.split(".")[0] in ("torch", "pickle", "np", "numpy", "joblib", "yaml", "pd", "dill"):
                    found.append((path.name, name, {each.arg: ast.unparse(each.value) for each in node.keywords}))
    safe = {"np.load": ("allow_pickle", "False"), "torch.load": ("weights_only", "True"), "yaml.safe_load": None}
    assert {name for _, name, _ in found} == set(safe)
    for path, name, options in found:
        assert safe[name] is None or options[safe[name][0]] == safe[name][1], path


def test_a_full_disk_and_a_wish_to_stop_end_in_one_line(capsys):
    def full() -> int:
        with open("/dev/full", "w") as file:
            file.write("a stage")
        return 0

    def interrupted() -> int:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
        return 0

    def broken() -> int:
        raise FileNotFoundError("planted")

    assert status(full) == 2
    assert capsys.readouterr().err.startswith("error: [Errno 28] No space left on device; make room")
    assert status(interrupted) == 130
    assert capsys.readouterr().out == "\nStopped; the same command goes on where it was.\n"
    assert status(broken) == 2
    assert capsys.readouterr().err == "error: planted\n"


@pytest.mark.parametrize("option", ["--config", "--data"])
def test_an_option_without_its_value_is_one_error(option, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ablation.py", option])
    with pytest.raises(ConfigError, match=option):
        ablation.options_of()
