"""The scorer: a classifier that is a judge, since it also says what the real images score."""

import functools
from pathlib import Path

from sgan.evaluation import scores as metrics
from sgan.models.encoder import Encoder
from sgan.stages.context import MODEL_FILE, REFERENCE_FILE, Context, Evaluator, Running
from sgan.stages.graph import ClassifierStage
from sgan.stages.kinds import classifier
from sgan.store.files import sha256, write_tensors


def run(stage: ClassifierStage, context: Context, folder: Path, evaluator: Evaluator | None) -> Running:
    """Train the classifier, and keep its features and logits of the training images."""
    encoder, data = (yield from classifier.train(stage, context, folder)), context.data
    train, test = metrics.classify(encoder, data.images), metrics.classify(encoder, data.test_images)
    reference = metrics.Reference(train)
    on_train = metrics.scores(train, reference, data.labels.cpu())
    on_test = metrics.scores(test, reference, data.test_labels.cpu())
    write_tensors(folder / REFERENCE_FILE, {"features": train.features, "logits": train.logits})
    # As in the paper, the ceiling is the Inception score of the training images; their FID would be 0, so FID and
    # diversity are the test images' against the training images.
    scores = on_test | {key: on_train[key] for key in on_train if key.startswith("inception")}
    judged = fingerprint(stage, sha256(folder / MODEL_FILE), len(data.images))
    return {"scores": scores, "fingerprint": {"scores": judged, "classes": judged}}


def fingerprint(stage: ClassifierStage, weights: str, samples: int) -> dict[str, str | int]:
    """What the scorer's scores of `samples` images are computed with; `weights`: SHA-256 of the scorer's."""
    reference = f"{stage.dataset.name}, training images ({stage.data})"
    return metrics.fingerprint("the dataset's own classifier", weights, "none", samples, reference)


@functools.lru_cache(maxsize=1)
def load(stage: ClassifierStage, context: Context) -> tuple[Encoder, metrics.Reference]:
    """The trained scorer and its reference; kept, since every stage in a process needs it."""
    tensors = context.tensors(stage, REFERENCE_FILE)
    reference = metrics.Reference(metrics.Features(tensors["features"], tensors["logits"]))
    return classifier.load(stage, context), reference
