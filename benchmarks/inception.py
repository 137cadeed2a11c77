"""What exact Inception scores cost end to end: samples of CIFAR-10's generator are drawn, seen by the network, and
scored against as many training images.

    python benchmarks/inception.py [--samples 50000] [--weights FILE] [--device cuda] [--seconds 500] [--json FILE]

Without a weights file the network has random weights, and without data the training images are random: neither changes
time or memory. Prints seconds and images a second for each part, and the peak of memory. Where the network would take
more than --seconds it sees fewer images, and the row says how many.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from sgan.config import IMAGE, LABEL, Level
from sgan.evaluation import inception
from sgan.evaluation.scores import Features, join, network_scores
from sgan.models.generator import new_generator
from sgan.models.stack import balanced_labels, label_condition, sample
from sgan.presets import DATASETS, RECIPES, TRAINING_IMAGES

CHUNK = 1000  # Images between two looks at the clock


class _Unfilled(FeatureExtractorInceptionV3):
    """The network as it is before it has weights."""

    def load_state_dict(self, *_: Any, **__: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        pass


def write_random_weights(path: Path) -> Path:
    """A file of random weights for the network, with the names and shapes of the real ones."""
    torch.save({}, path)
    network = _Unfilled(inception.NETWORK, ["2048"], feature_extractor_weights_path=str(path))
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)  # or activations vanish on the way up
    torch.save(network.state_dict(), path)
    return path


def draw(samples: int, device: str) -> torch.Tensor:
    """So many uint8 images of an untrained DCGAN of CIFAR-10's size."""
    dataset = DATASETS["cifar10"]
    recipe = RECIPES["released"](dataset, TRAINING_IMAGES["cifar10"]).gan
    generator = new_generator(dataset, recipe, Level(IMAGE, LABEL)).to(device)
    conditions = label_condition(generator, balanced_labels(samples, dataset.classes).to(device))
    return sample([generator], conditions, "batch", 0).cpu()


def see(network: inception.Inception, images: torch.Tensor, until: float) -> Features:
    """What the network sees of as many of the images as there is time for, two chunks at least."""
    seen = []
    for part in images.split(CHUNK):
        if len(seen) > 1 and time.monotonic() > until:
            break
        seen.append(network.describe(part))
    return join(seen)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=500.0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows = []

    def timed(what: str, run: Callable[[], Any], count: Callable[[Any], int]) -> Any:
        began = time.monotonic()
        found = run()
        seconds, images = time.monotonic() - began, count(found)
        rows.append({"measure": what, "value": seconds, "unit": f"s for {images:,} images"})
        print(f"{what:24}{seconds:10.1f} s {images:10,} images {images / seconds:10.0f} images/s", flush=True)
        return found

    with tempfile.TemporaryDirectory() as folder:
        weights = asked.weights or write_random_weights(Path(folder) / "random.pth")
        network = inception.Inception(weights, asked.device)
    made = timed("samples drawn", lambda: draw(asked.samples, asked.device), len)
    shape = (asked.samples, *made.shape[1:])
    real = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    half = asked.seconds / 2

    def seen(found: Features) -> int:
        return len(found.features)

    known = timed("training images seen", lambda: see(network, real, time.monotonic() + half), seen)
    found = timed("samples seen", lambda: see(network, made, time.monotonic() + half), seen)
    timed("scored", lambda: network_scores(found, known), lambda _: seen(found))
    peak = torch.cuda.max_memory_allocated() / 2**30 if asked.device == "cuda" else 0.0
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    for what, value in (("memory of the GPU", peak), ("memory of the process", host)):
        rows.append({"measure": what, "value": value, "unit": "GiB"})
        print(f"{what:24}{value:10.1f} GiB", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
