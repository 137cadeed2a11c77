"""DINOv2 as a judge, with random weights: against the network and the transform that dgm-eval uses."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import run_trial
from PIL import Image
from safetensors.torch import save_file
from torchvision import transforms

import sgan
from sgan.checks import ConfigError
from sgan.evaluation import dinov2, scores
from sgan.stages.context import Context
from sgan.store.local import Store
from sweeps.planning import manifest
from sweeps.planning.ablation import plan_ablation
from sweeps.planning.options import Sweep
from sweeps.reporting import document, results


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A file of random weights of the small network, in the names and at the size of those that are published."""
    torch.manual_seed(0)
    network = timm.create_model("vit_small_patch14_dinov2", num_classes=0, init_values=1.0)
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(tensors, path)
    save_file(tensors, path.with_suffix(".safetensors"))
    return path


def test_features_are_those_of_the_class_token_after_dgm_evals_transform(weights: Path):
    network = timm.create_model("vit_small_patch14_dinov2", num_classes=0, init_values=1.0, dynamic_img_size=True)
    network.load_state_dict(torch.load(weights, weights_only=True))
    prepare = transforms.Compose(
        [
            transforms.Resize((224, 224), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    coarse = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    images = [Image.fromarray(each).resize((32, 32), Image.Resampling.BICUBIC) for each in coarse]
    inputs: list[torch.Tensor] = [prepare(image) for image in images]  # pyright: ignore[reportAssignmentType]
    with torch.no_grad():
        tokens = network.eval().forward_features(torch.stack(inputs))  # pyright: ignore[reportCallIssue]
    arrays = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    found = dinov2.load(weights, "cpu").describe(arrays)
    assert found.logits.shape == (3, 0)
    spread = tokens[:, 0].std(0).mean()
    assert (found.features - tokens[:, 0]).abs().mean() < 0.02 * spread  # Pillow rounds the resized pixels otherwise


def test_grey_images_are_seen_as_colour_ones(weights: Path):
    grey = torch.randint(256, (2, 1, 16, 16), dtype=torch.uint8)
    see = dinov2.load(weights, "cpu").describe
    assert torch.equal(see(grey).features, see(grey.expand(-1, 3, -1, -1)).features)


def test_both_formats_of_files_give_the_same(weights: Path):
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    first = dinov2.DinoV2(weights, "cpu").describe(images)
    second = dinov2.DinoV2(weights.with_suffix(".safetensors"), "cpu").describe(images)
    assert torch.equal(first.features, second.features)


class Harmful:
    def __reduce__(self):
        return pytest.fail, ("a weights file has run code",)


def test_other_files_are_refused(weights: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="--judge-weights"):
        dinov2.find_weights(None)
    with pytest.raises(ConfigError, match=r"absent\.pth; --judge-weights"):
        dinov2.find_weights(tmp_path / "absent.pth")
    other, harmful = tmp_path / "other.pth", tmp_path / "harmful.pth"
    torch.save({"cls_token": torch.zeros(1, 1, 192)}, other)
    harmful.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(ConfigError, match="another network"):
        dinov2.check_weights(other)
    with pytest.raises(ConfigError, match="holds no weights"):
        dinov2.check_weights(harmful)
    torn = torch.load(weights, weights_only=True)
    del torn["blocks.0.attn.qkv.weight"]
    torch.save(torn, other)
    with pytest.raises(ConfigError, match="does not fit"):
        dinov2.load(other, "cpu")


@pytest.mark.slow
def test_a_trial_is_scored_by_it_and_the_report_says_so(weights: Path, tmp_path: Path):
    random = np.random.default_rng(0)
    for label in ("one", "two"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for index in range(15):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{index}.png")
    batches = [f"{part}.batch=8" for part in ("gan", "joint", "encoder", "judge")]
    sweep = Sweep(
        dataset="folder",
        data=tmp_path / "data",
        image_size=8,
        width=0.1,
        budget=0.001,
        seeds=1,
        variants=("dcgan-adv",),
        judge="dinov2",
        judge_weights=weights.with_suffix(".safetensors"),  # which a store keeps under another name
        override=("samples=100", "evaluations=1", "encoder.images=80", "judge.images=80", *batches),
    )
    planned, store = plan_ablation(sweep, gpus=0), Store(tmp_path / "store")
    assert planned.basis.judge_weights is not None
    store.keep_weights(planned.basis.judge_weights, planned.basis.judge_digest)
    trial, images = planned.trials[0].plan, planned.basis.data
    for _ in run_trial(trial, Context(store, images, "cpu", "test")):
        pass
    found = store.facts(trial.name)["scores"]
    see = dinov2.load(weights, "cpu").describe
    made = see(sgan.load(store.stage(trial.name)).sample(100, trial.score.levels[0].seed))
    expected = scores.frechet_distance(made.features, scores.statistics(see(images.images).features))
    assert found["fid"] == pytest.approx(expected, rel=1e-5)
    assert found["inception_score"] >= 1  # by the held-out judge, since this network has no classes
    manifest.write(store, planned.record({"command": "test", "commit": "abc", "machine": "here"}))
    section = document.markdown(results.read(store, planned.key))
    assert "Judge of scores: network DINOv2" in section
