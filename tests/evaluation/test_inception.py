"""The exact scores against torch-fidelity's own, on the same images and weights, and against theory."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_fidelity
from command import ended
from conftest import run_trial
from PIL import Image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

import sgan
from benchmarks.inception import write_random_weights
from sgan import metrics as command
from sgan.checks import ConfigError
from sgan.evaluation import inception
from sgan.evaluation import scores as metrics
from sgan.stages.context import Context
from sgan.stages.graph import name
from sgan.store.files import sha256
from sgan.store.local import Store
from sweeps.planning import manifest
from sweeps.planning.ablation import plan_ablation
from sweeps.planning.options import Sweep
from sweeps.reporting import document, results, tables


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """A file of random weights for the network, with the names and shapes of the real ones."""
    return write_random_weights(tmp_path_factory.mktemp("weights") / "random.pth")


def draw(folder: Path, count: int, seed: int, sizes=((32, 32),), modes=("RGB",)) -> Path:
    """A folder of smooth random images."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    for index in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.convert(modes[index % len(modes)]).resize(sizes[index % len(sizes)]).save(folder / f"{index:03}.png")
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("images")
    return draw(root / "one", 12, 0), draw(root / "two", 15, 1)


def run(*words: str | Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "sgan.metrics", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


@pytest.mark.slow
def test_the_command_agrees_with_torch_fidelity(folders, weights, tmp_path):
    done = run(
        folders[0],
        "--against",
        folders[1],
        "--judge-weights",
        weights,
        "--json",
        tmp_path / "out",
    )
    assert done.returncode == 0, done.stderr
    ours = json.loads((tmp_path / "out").read_text())
    theirs = torch_fidelity.calculate_metrics(
        input1=str(folders[0]),
        input2=str(folders[1]),
        cuda=False,
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        kid_subset_size=12,
        feature_extractor=inception.NETWORK,
        feature_layer_prc="2048",
        feature_extractor_weights_path=str(weights),
        verbose=False,
        cache=False,
        save_cpu_ram=True,
    )
    pairs = {
        "inception_score": "inception_score_mean",
        "inception_score_split_std": "inception_score_std",
        "fid": "frechet_inception_distance",
        "kid": "kernel_inception_distance_mean",
        "kid_std": "kernel_inception_distance_std",
        "precision": "precision",
        "recall": "recall",
    }
    assert set(ours["scores"]) == set(pairs)
    for key, other in pairs.items():  # of 2,000 directions without spread, theirs adds up the rounding
        close = 1e-4 if key == "fid" else 1e-6
        assert ours["scores"][key] == pytest.approx(theirs[other], rel=close, abs=1e-6), key
    assert ours["scores"]["fid"] > 0.1
    assert ours["fingerprint"]["samples"] == 12
    assert ours["fingerprint"]["splits"] == 10
    assert ours["fingerprint"]["network"] == "inception-v3-compat"
    assert "15 images" in ours["fingerprint"]["reference"]


@pytest.mark.slow
def test_images_keep_their_own_sizes_and_grey_ones_are_repeated(weights, tmp_path):
    folder = draw(tmp_path / "odd", 12, 2, sizes=((20, 30), (20, 30), (41, 17)), modes=("RGB", "L"))
    source = command.find(str(folder), "train", tmp_path, None)
    found = command.describe(source, inception.load(weights, "cpu").describe)
    theirs = torch_fidelity.calculate_metrics(
        input1=str(folder),
        batch_size=1,
        cuda=False,
        isc=True,
        feature_extractor_weights_path=str(weights),
        verbose=False,
        cache=False,
        save_cpu_ram=True,
    )
    assert metrics.inception_scores(found.logits)["inception_score"] == pytest.approx(
        theirs["inception_score_mean"], rel=1e-6
    )
    grey = torch.arange(0, 256, 4, dtype=torch.uint8).reshape(1, 1, 8, 8)
    network = inception.load(weights, "cpu")
    assert torch.equal(network.describe(grey).logits, network.describe(grey.expand(-1, 3, -1, -1)).logits)


def refused(source: str | Path, **options) -> str:
    with pytest.raises(ConfigError) as caught:
        command.main(command.Options(str(source), **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_broken_image_is_named_before_the_network_runs(folders, weights, tmp_path):
    folder = draw(tmp_path / "images", 11, 3)
    (folder / "007.png").write_bytes((folder / "007.png").read_bytes()[:60])
    assert "007.png cannot be read as an image" in refused(folder, judge_weights=weights)


def test_what_cannot_be_scored_is_refused(folders, tmp_path):
    assert "neither a folder nor one of the datasets digits, mnist" in refused("nowhere")
    (tmp_path / "empty").mkdir()
    assert "empty holds 0 images" in refused(tmp_path / "empty")
    assert "holds 3 images; an Inception score of 10 splits needs at least 10" in refused(draw(tmp_path / "few", 3, 0))
    assert "--samples must be at least 10" in refused(folders[0], samples=9)
    assert "digits would be compared with itself" in refused("digits", part="test")
    assert f"{folders[0]} would be compared with itself" in refused(folders[0], against=str(folders[0]))


def test_without_weights_and_network_the_error_says_what_to_get(folders, tmp_path, monkeypatch, capsys):
    for variable in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert ended("sgan/metrics.py", folders[0]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    for word in ("weights-inception-2015-12-05-6726825d.pth", "--judge-weights", "another --judge where there is one"):
        assert word in said
    assert not list(tmp_path.rglob("*.pth"))
    assert "there are no Inception weights at" in refused(folders[0], judge_weights=tmp_path / "none.pth")


class Dangerous:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_weights_file_that_would_run_code_is_refused_and_not_run(tmp_path):
    file, made = tmp_path / "bad.pth", tmp_path / "made"
    torch.save({"fc.weight": Dangerous(made)}, file)
    with pytest.raises(ConfigError, match=r"bad\.pth holds no weights"):
        inception.Inception(file, "cpu")
    file.write_bytes(pickle.dumps(Dangerous(made)))
    with pytest.raises(ConfigError, match=r"bad\.pth holds no weights"):
        inception.Inception(file, "cpu")
    assert not made.exists()


def test_weights_in_torchs_older_file_format_are_read(weights, tmp_path):
    """As those that torch-fidelity publishes may be."""
    file = tmp_path / "old.pth"
    torch.save(torch.load(weights, weights_only=True), file, _use_new_zipfile_serialization=False)
    images = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    ours, theirs = (inception.Inception(path, "cpu").describe(images).logits for path in (file, weights))
    assert torch.equal(ours, theirs)


def test_torn_and_other_weights_are_refused(weights, tmp_path):
    file = tmp_path / "w.pth"
    file.write_bytes(weights.read_bytes()[:1_000_000])
    with pytest.raises(ConfigError, match="holds no weights"):
        inception.Inception(file, "cpu")
    torch.save({"fc.weight": torch.zeros(10, 4)}, file)
    with pytest.raises(ConfigError, match="another network"):
        inception.Inception(file, "cpu")
    state = torch.load(weights, weights_only=True)
    del state["Mixed_7c.branch1x1.conv.weight"]
    torch.save(state, file)
    with pytest.raises(ConfigError, match="does not fit the network"):
        inception.Inception(file, "cpu")


@pytest.mark.slow
def test_a_trial_is_scored_by_the_network_and_real_data_by_the_same(weights, tmp_path, monkeypatch):
    """A whole trial on a small image folder: its scores are those of its samples, and the table says by what."""
    # A sixteenth of the work; the test above has the true size.
    monkeypatch.setattr(FeatureExtractorInceptionV3, "INPUT_IMAGE_SIZE", 75)
    data = tmp_path / "data"
    data.mkdir()
    for label in ("one", "two"):
        draw(data / label, 15, seed=len(label) * ord(label[0]))
    batches = [f"{part}.batch=8" for part in ("gan", "joint", "encoder", "judge")]
    changes = ["samples=100", "evaluations=1", "encoder.images=80", "judge.images=80", *batches]
    options: dict[str, Any] = {
        "dataset": "folder",
        "data": data,
        "image_size": 8,
        "width": 0.1,
        "budget": 0.001,
        "seeds": 1,
    }
    sweep = Sweep(**options, variants=("dcgan-adv",), judge_weights=weights, override=tuple(changes))
    resolved, store = plan_ablation(sweep, gpus=0), Store(tmp_path / "store")
    store.keep_weights(weights, resolved.basis.judge_digest)
    plan = resolved.trials[0].plan
    data = resolved.basis.data
    for _ in run_trial(plan, Context(store, data, "cpu", "test")):
        pass
    facts, judge = store.facts(plan.name), store.facts(name(plan.judges[1]))
    network = inception.load(weights, "cpu")
    real = network.describe(data.images)
    made = network.describe(sgan.load(store.stage(plan.name)).sample(100, plan.score.levels[0].seed))
    expected = metrics.network_scores(made, real)
    del expected["kid_std"]
    for key, value in expected.items():
        assert facts["scores"][key] == pytest.approx(value, rel=1e-5, abs=1e-5), key
    assert facts["scores"]["diversity"] >= 0  # by the held-out judge
    assert judge["scores"]["train/precision"] == judge["scores"]["train/recall"] == 1
    said = facts["fingerprint"]["scores"]
    assert (said["network"], said["samples"]) == ("inception-v3-compat", 100)
    assert said["weights"] == judge["fingerprint"]["scores"]["weights"] == sha256(weights)
    assert facts["fingerprint"]["classes"]["network"] == "held-out judge"

    manifest.write(store, resolved.record({"command": "test", "commit": "abc", "machine": "here"}))
    sweep_results = results.read(store, resolved.key)
    section = document.markdown(sweep_results)
    assert "Judge of scores: network inception-v3-compat" in section
    assert "Judge of classes: network held-out judge" in section
    (heading, *_) = tables.everything(sweep_results)
    assert {"FID ↓", "KID ↓", "Precision ↑", "Recall ↑", "Inception score ↑", "FID (pixels) ↓"} <= {*heading}
