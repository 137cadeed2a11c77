"""The Inception network as a judge: its features of the real images, made once for all trials."""

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sgan.evaluation import inception
from sgan.evaluation import scores as metrics
from sgan.stages.context import REFERENCE_FILE, Context, Evaluator, Running
from sgan.stages.graph import InceptionStage
from sgan.store.files import write_tensors
from sgan.training.loop import Progress

PART = 256
"""Real images between two reports of progress."""


def run(stage: InceptionStage, context: Context, folder: Path, evaluator: Evaluator | None) -> Running:
    """Keep the network's features and logits of the training images, and score the test images against them."""
    network, data = inception.load(context.store.weights(stage.weights), context.device), context.data
    total, parts = len(data.images), []
    for part in data.images.split(PART):
        yield Progress(sum(len(each.logits) for each in parts), total)
        parts.append(network.describe(part))
    real = metrics.join(parts)
    statistics = metrics.statistics(real.features)
    on_test = metrics.network_scores(network.describe(data.test_images), real, statistics)
    tensors = {"features": real.features, "logits": real.logits}
    tensors |= {key: torch.from_numpy(value) for key, value in statistics.items()}
    write_tensors(folder / REFERENCE_FILE, tensors)
    yield Progress(total, total)
    scores = on_test | metrics.inception_scores(real.logits)
    return {"scores": scores, "fingerprint": {"scores": fingerprint(stage, total)}}


def fingerprint(stage: InceptionStage, samples: int) -> dict[str, str | int]:
    """What the network's scores of `samples` images are computed with."""
    reference = f"{stage.dataset}, training images ({stage.data})"
    return metrics.fingerprint(inception.NETWORK, stage.weights, inception.RESIZE, samples, reference)


@functools.lru_cache(maxsize=1)
def load(stage: InceptionStage, context: Context) -> Callable[[Tensor], dict[str, float]]:
    """A function from uint8 images (n, channels, size, size) to their `network_scores` against the training images;
    kept, since every score in a process needs it."""
    tensors = context.tensors(stage, REFERENCE_FILE)
    real = metrics.Features(tensors["features"], tensors["logits"])
    statistics = {key: tensors[key].numpy() for key in ("mu", "root")}
    network = inception.load(context.store.weights(stage.weights), context.device)
    return lambda images: metrics.network_scores(network.describe(images), real, statistics)
