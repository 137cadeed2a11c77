"""Models that last: what is saved samples the same images, in this process and through MLflow, and damage is named."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from command import ended
from conftest import PAPER, RELEASED, TINY, named_recipe
from PIL import Image

import sgan
from sgan.checks import ConfigError, as_json, content_key, from_json
from sgan.config import IMAGE, LABEL, Codes, Config, Level
from sgan.evaluation.grid import unlabelled
from sgan.models import export as model
from sgan.models.export import save
from sgan.models.generator import new_generator
from sgan.models.stack import Stack, balanced_labels, label_condition, sample
from sgan.presets import DATASETS, RECIPES, VARIANTS, configure
from sgan.store.files import StoreError, write_json
from sgan.store.local import STAGE_FILE, Store
from sweeps.mlflow_view.sgan_sampler import Sampler

STACKS = {
    "sgan": [Level(IMAGE, "fc3"), Level("fc3", LABEL)],
    "deep": [Level(IMAGE, "pool1"), Level("pool1", "fc3"), Level("fc3", LABEL)],
    "dcgan": [Level(IMAGE, LABEL)],
    "unlabelled": [Level(IMAGE, LABEL, labels=False)],
    "chain": [Level(IMAGE, LABEL, through=("fc3",))],
    "infogan": [Level(IMAGE, LABEL, labels=False, codes=Codes(10, 2))],
    "unsupervised": [Level(IMAGE, "fc3", labels=False), Level("fc3", LABEL, labels=False)],
}


WIDE = dataclasses.replace(PAPER, init_std=0.7)  # images that show the noise
WIDE_RELEASED = dataclasses.replace(RELEASED, init_std=0.7)


def build(levels: list[Level], recipe=WIDE) -> Stack:
    """Generators with random weights and running averages that are not those of a fresh network."""
    torch.manual_seed(3)
    stack = [new_generator(TINY, recipe, level) for level in levels]
    for generator in stack:
        for name, buffer in generator.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)
    return stack


def drawn(stack: Stack, labels: torch.Tensor, statistics: str, seed: int) -> torch.Tensor:
    return sample(stack, label_condition(stack[-1], labels), statistics, seed)


@pytest.mark.parametrize("statistics", ["running", "batch"])
@pytest.mark.parametrize("name", STACKS)
def test_a_saved_stack_samples_the_same_images(name, statistics, tmp_path):
    recipe = WIDE_RELEASED if name == "sgan" else WIDE
    stack = build(STACKS[name], recipe)
    save(tmp_path / "m", stack, TINY, recipe, statistics, {"seed": 7})
    state = torch.get_rng_state()
    loaded = sgan.load(tmp_path / "m")
    assert torch.equal(torch.get_rng_state(), state)
    labels = [3, 1, 4, 1, 5, 9, 2, 6]
    found = loaded.sample(labels, seed=11)
    assert found.dtype == torch.uint8
    assert torch.equal(found, drawn(stack, torch.tensor(labels), statistics, 11))
    assert torch.equal(loaded.sample(23), drawn(stack, balanced_labels(23, 10), statistics, 0))
    assert not torch.equal(loaded.sample(labels, 12), found)
    assert (loaded.classes, loaded.about) == (10, {"seed": 7})
    assert {path.suffix for path in (tmp_path / "m").iterdir()} == {".json", ".safetensors"}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A finished score stage's folder, as far as models go."""
    for which, seed in (("last", 0), ("best", 1)):
        stack = build(STACKS["sgan"])
        torch.nn.init.normal_(next(stack[0].parameters()), std=0.5 + seed)
        save(tmp_path / "stages" / "score-0123456789abcdef" / "model" / which, stack, TINY, WIDE, "running", {})
    write_json(tmp_path / "stages" / "score-0123456789abcdef" / STAGE_FILE, {})
    return tmp_path / "stages" / "score-0123456789abcdef"


def test_last_and_best(folder):
    last, best = (sgan.load(folder, which=which).sample(4) for which in ("last", "best"))
    assert not torch.equal(last, best)
    assert torch.equal(sgan.load(folder).sample(4), last)
    assert torch.equal(sgan.load(folder / "model").sample(4), last)
    assert torch.equal(sgan.load(folder / "model" / "best").sample(4), best)
    with pytest.raises(ConfigError, match="'last' or 'best', but got 'worst'"):
        sgan.load(folder, which="worst")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([10], "label 10 is no class of this model; its classes are 0 to 9"),
        ([-1], "label -1"),
        ([], "at least one"),
        (0, "at least one"),
        (-3, "at least one whole number in a row, but got -3"),
        ("3", "whole numbers, but got '3'"),
        (None, "whole numbers, but got None"),
        ([1.5], "whole number"),
        ([[1]], "in a row"),
    ],
)
def test_labels_that_the_model_does_not_have_are_refused(folder, labels, words):
    with pytest.raises(ConfigError) as caught:
        sgan.load(folder).sample(labels)
    assert words in str(caught.value)


def test_seeds_devices_and_weights_that_are_not_there_are_refused(folder):
    found = sgan.load(folder)
    for seed in ("x", 1.5, 2**64, None):
        with pytest.raises(ConfigError, match="whole numbers"):
            found.sample([1], seed)
    for device in ["nonsense", *([] if torch.cuda.is_available() else ["cuda", "cuda:7"])]:
        with pytest.raises(ConfigError, match=rf"device '{device}' cannot be used here \(.*\); use 'cpu'") as caught:
            sgan.load(folder, device=device)
        assert "\n" not in str(caught.value)
    sampler = Sampler({"last": found})
    images = sampler.predict(pandas.DataFrame({"label": [3]}), {"which": "last"})
    assert np.array_equal(images[0].transpose(2, 0, 1), found.sample([3])[0].numpy())
    with pytest.raises(ConfigError, match="which must be one of last, but got 'foo'"):
        sampler.predict(pandas.DataFrame({"label": [3]}), {"which": "foo"})


def test_damage_is_named(folder, tmp_path):
    place = folder / "model" / "last"
    with pytest.raises(ConfigError, match="there is no model at"):
        sgan.load(tmp_path)
    weights, facts = (place / name for name in (model.WEIGHTS_FILE, model.MODEL_FILE))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ConfigError, match=r"generator\.safetensors is missing or damaged"):
        sgan.load(folder)
    weights.write_bytes(whole)
    said = json.loads(facts.read_text())
    for change, words in (
        ({"format": 2}, "no model of format 1"),
        ({"levels": said["levels"][:1]}, "do not fit"),
        ({"dataset": None}, "dataset must be an object"),
        ({"sampling": 3}, "sampling must be a valid string, but got 3"),
    ):
        write_json(facts, said | change)
        with pytest.raises(ConfigError, match=words):
            sgan.load(folder)
    facts.write_text(facts.read_text()[:50])
    with pytest.raises(StoreError, match="cannot be read"):
        sgan.load(folder)


def test_importing_the_package_does_not_import_torch():
    script = "import sys, sgan; assert 'torch' not in sys.modules; sgan.load; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=100)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = sgan.lod  # pyright: ignore[reportAttributeAccessIssue]


def test_the_command_draws_the_class_asked_for(folder, tmp_path):
    Store(tmp_path).note_run("0a1b2c3d", "score-0123456789abcdef")
    expected = sgan.load(folder).sample([3] * 6, 5)
    for number, source in enumerate((folder, "score-0123456789abcdef", "0a1b2c3d")):
        out = tmp_path / f"{number}.png"
        options = ("--class", 3, "--n", 6, "--seed", 5, "--columns", 3, "--out", out, "--store", tmp_path)
        assert ended("sgan/sample.py", source, *options) == 0
        images = unlabelled(out)
        assert images.size == (3 * 52 - 4, 2 * 52 - 4)
        first = images.crop((0, 0, 48, 48)).resize((8, 8), Image.Resampling.NEAREST)
        assert list(first.tobytes()) == expected[0].flatten().tolist()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing",), "'nothing' is no folder, and no run or stage in the store"),
        ((".", "--n", "0"), "--n must be greater than 0, but got 0"),
        ((".", "--out", "x.jpg"), "--out must be a .png file"),
        ((".",), "there is no model at"),
    ],
)
def test_the_command_refuses_in_one_line(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert ended("sgan/sample.py", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


SERVED = """
import sys, pandas, mlflow
from mlflow import MlflowClient
mlflow.set_tracking_uri(sys.argv[1])
found = mlflow.pyfunc.load_model(f"runs:/{sys.argv[2]}/model")
import sgan.models.export
print(sgan.models.export.__file__)
for params in ({"seed": 5}, {"seed": 5, "which": "best"}):
    images = found.predict(pandas.DataFrame({"label": [3, 1, 4]}), params=params)
    print(images.dtype, images.shape, images.tobytes().hex())
"""


@pytest.mark.slow
def test_mlflow_samples_from_the_model_without_this_repository(folder, tmp_path):
    root = Path(sgan.__file__).parent.parent
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    script = (
        "import sys; from pathlib import Path; from mlflow import MlflowClient; from sweeps.mlflow_view import runs\n"
        "client = MlflowClient(sys.argv[1])\n"
        "run = client.create_run(client.create_experiment('x', artifact_location=Path(sys.argv[2]).as_uri()))\n"
        "runs.log_model(client, run, Path(sys.argv[3]), {}); print(run.info.run_id)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c"]
    words = [uri, str(tmp_path / "made"), str(folder / "model")]
    made = subprocess.run([*command, script, *words], capture_output=True, text=True, check=True, timeout=200, cwd=root)
    kinds = {path.suffix for path in (tmp_path / "made").rglob("*") if path.is_file()}
    assert kinds == {"", ".py", ".html", ".yaml", ".txt", ".json", ".safetensors"}
    # -I -S: without the editable install; the packages are put back
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    command = [sys.executable, "-W", "ignore", "-I", "-S", "-c", f"import sys; sys.path.append({packages!r})\n{SERVED}"]
    words = [uri, made.stdout.split()[-1]]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[-3:]
    assert lines[0].endswith("code/sgan/models/export.py")
    assert not lines[0].startswith(str(root))
    for line, which in zip(lines[1:], ("last", "best"), strict=True):
        expected = sgan.load(folder, which=which).sample([3, 1, 4], 5).permute(0, 2, 3, 1).numpy()
        assert line == f"uint8 (3, 8, 8, 1) {expected.tobytes().hex()}"


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_config_comes_back_from_json(variant, recipe, dataset):
    base = DATASETS[dataset]
    chosen = VARIANTS[variant].variant
    config = configure(base.scaled(0.5), "d", named_recipe(recipe, dataset), chosen, 3, None, ("pool1", "fc3"))
    again = from_json(Config, json.loads(json.dumps(as_json(config))))
    assert again == config
    assert content_key(again) == content_key(config)


def test_json_that_is_no_config_is_refused_by_name():
    base = DATASETS["digits"]
    config = configure(base, "", named_recipe("laptop", "digits"), VARIANTS["sgan"].variant, 0, None, ("fc3",))
    plain = as_json(config)
    for path, value, words in (
        (("recipe", "gan", "batch"), "64", "recipe.gan.batch must be a valid integer, but got '64'"),
        (("recipe", "gan", "adversarial"), "x", "recipe.gan.adversarial must be 'non-saturating' or 'saturating'"),
        (("recipe", "gan", "adam"), 3, "recipe.gan.adam must be an object"),
        (("variant", "cuts"), "fc3", "variant.cuts must be a valid array"),
        (("variant", "cuts"), ["fc9"], "variant.cuts: unknown tap 'fc9'"),
        (("dataset", "encoder", "maps"), [1], "dataset.encoder.maps.1 is missing"),
        (("recipe", "gan", "odd"), 1, "recipe.gan.odd is not a known field"),
        (("seed",), 1.5, "seed must be a valid integer"),
        (("seed",), True, "seed must be a valid integer"),
    ):
        broken = json.loads(json.dumps(plain))
        inner = broken
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = value
        with pytest.raises(ConfigError) as caught:
            from_json(Config, broken)
        assert words in str(caught.value)
    assert dataclasses.is_dataclass(config)
