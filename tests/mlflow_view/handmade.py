"""Hand-made stores, and what MLflow holds of them."""

import collections
import functools
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from PIL import Image

from sgan.store.files import RECORD_FILE, Record, write_json
from sgan.store.local import FIGURES, GRIDS, MODELS, Store
from sweeps.mlflow_view.connection import ARTIFACTS, HOME, default_uri
from sweeps.mlflow_view.content import FINAL
from sweeps.mlflow_view.runs import find
from sweeps.mlflow_view.sync import sync as sync_sweep
from sweeps.planning import manifest as manifests

KEY = "ab12"
DATASET = {"name": "digits"}
POINTS, GRID_IMAGES = (100, 200, 300), (100, 300)
GRID_FILES = (".png", "+compressed.webp")
LABELS = {"sgan": ("encoder", "level0", "joint", "score"), "sgan-no-joint": ("encoder", "level0", "score")}


def stage_name(label: str, variant: str, seed: int) -> str:
    """Encoders and levels are shared by both variants of a seed."""
    return f"{label}-{seed}" if label in ("encoder", "level0") else f"{label}-{variant}-{seed}"


def train(store: Store, name: str, points=POINTS, grids=GRID_IMAGES, done: int = 0) -> None:
    """What a stage leaves in the work folder."""
    folder = store.begin(name)
    held = (folder / RECORD_FILE).read_text() if done else ""
    record = Record(folder, "".join(line for line in held.splitlines(True) if json.loads(line)["images"] <= done))
    for images in points:
        fid = {} if name.startswith(("encoder", "level1")) else {"fid": 1000.0 - images}
        record.add(images, {"g_adv": images / 1000, "d_adv": 0.5, **fid})
    for images in grids:
        Image.new("RGB", (20, 10), (images % 256, 0, 0)).save(folder / GRIDS / f"{images:09d}.png")


def publish(store: Store, name: str, status: str = "done", reason: str | None = None, fid: float = 10.0) -> None:
    kind = name.partition("-")[0]
    scores = {"inception_score": 9.0, "fid": fid, "diversity": 0.9} if kind in ("score", "judge") else {}
    facts = {
        "kind": kind,
        "status": status,
        "reason": reason,
        "images": POINTS[-1],
        "seconds": 2.5,
        "generator_images": POINTS[-1] if kind in ("level0", "joint") else 0,
    }
    if kind in ("score", "judge"):
        fields = {"network": "classifier", "weights": "f00d", "resize": "none", "samples": 500, "splits": 10}
        fields |= {"shuffle": "RandomState(2020)", "reference": "digits, 1,347 training images"}
        facts["fingerprint"] = {"scores": fields, "classes": fields}
    if kind == "score":
        figures, last = store.work(name) / FIGURES, store.work(name) / MODELS / "last"
        figures.mkdir()
        last.mkdir(parents=True)
        Image.new("RGB", (20, 10)).save(figures / "classes.png")
        write_json(last / "model.json", {"format": 1})
    store.publish(name, {**facts, "commit": "abc123", "machine": "two cores", "scores": scores})


def finish(store: Store, variant: str, seed: int, fid: float = 10.0) -> None:
    """Train and publish every stage of a trial that is not there yet."""
    for label in LABELS[variant]:
        name = stage_name(label, variant, seed)
        if not store.has(name):
            train(store, name, points=() if label == "score" else POINTS)
            publish(store, name, fid=fid)


def manifest(store: Store, seeds=(0,)) -> None:
    trials = []
    for variant, labels in LABELS.items():
        for seed in seeds:
            stages = [{"label": label, "name": stage_name(label, variant, seed)} for label in labels]
            row = {"cuts": ["fc3"], "weights": {"adv": 1.0, "ent": 0.0}, "joint": "joint" in labels, "labels": True}
            config = {
                "seed": seed,
                "dataset": DATASET,
                "data": "f00d",
                "variant": row,
                "recipe": {"noise": 0.1, "b": 2},
            }
            own = {"variant": variant, "seed": seed, "cuts": "fc3", "config": config, "config_key": "c0ffee"}
            own |= {"base": variant, "changes": {}, "phase": "ablation", "rerun": "--seeds 1", "base_variant": variant}
            own |= {"rank": list(LABELS).index(variant), "title": variant.upper(), "paper": ""}
            trials.append({"name": stages[-1]["name"], "run": stages[-1]["name"], **own, "stages": stages})
    value = {
        "key": KEY,
        "title": "digits, recipe tiny",
        "command": "python sweeps/ablation.py",
        "commit": "abc123-dirty",
        "machine": "two cores",
        "started": time.time() - 100,
        "settings": {"dataset": "digits", "recipe": "tiny", "budget": 0.5, "weights": None, "override": ["noise=0.1"]},
        "judges": ["judge-x"],
        "paper_real": "11.24 ± 0.12",
        "trials": trials,
    }
    manifests.write(store, value)


def sync(store: Store, live: bool = False) -> bool:
    """Send the sweep; returns whether its run has ended with all of its trials."""
    sync_sweep(store, KEY, default_uri(store), live)
    return found(store)[0].info.status in ("FINISHED", "FAILED")


@functools.cache
def empty_database() -> bytes:
    """MLflow's database without a run: its migrations run once for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mlflow.db")
        MlflowClient(f"sqlite:///{path}").search_experiments()
        return path.read_bytes()


def new(root: Path) -> Store:
    """A store with the sweep and an empty database."""
    store = Store(root)
    (root / "mlflow.db").write_bytes(empty_database())
    home = root / ARTIFACTS / HOME
    home.parent.mkdir()
    home.write_text(str(root))
    manifest(store)
    return store


def client_of(store: Store) -> MlflowClient:
    return MlflowClient(default_uri(store))


def found(store: Store, uri: str | None = None) -> Any:
    return find(MlflowClient(uri or default_uri(store)), KEY)


def trial(store: Store, variant: str, seed: int = 0, uri: str | None = None):
    return found(store, uri)[1][f"score-{variant}-{seed}"]


def points(run, uri: str) -> dict[str, list[int]]:
    """Metric -> the steps it was logged at, in order, repetitions included; stages only."""
    client = MlflowClient(uri)
    keys = [key for key in run.data.metrics if "/" in key and not key.startswith(FINAL)]
    return {key: sorted(point.step for point in client.get_metric_history(run.info.run_id, key)) for key in keys}


def grids(run, uri: str) -> dict[tuple[str, int, str], int]:
    """(label, images, file ending) -> number of files."""
    files = [Path(file.path).name for file in MlflowClient(uri).list_artifacts(run.info.run_id, "images")]
    pattern = re.compile(r"(.+)\+step\+(\d+)\+timestamp\+\d+\+[0-9a-f-]{36}(\.png|\+compressed\.webp)")
    matches = [pattern.fullmatch(name) for name in files]
    assert all(matches), files
    return collections.Counter((match[1], int(match[2]), match[3]) for match in matches if match)


def assert_complete(store: Store, variant: str, seed: int = 0, uri: str | None = None) -> None:
    """Every point and every grid of a finished trial is in MLflow once, with its scores, and its run is closed."""
    uri = uri or default_uri(store)
    run = trial(store, variant, seed, uri)
    trained = [label for label in LABELS[variant] if label != "score"]
    assert points(run, uri) == {f"{label}/{name}": [*POINTS] for label in trained for name in ("g_adv", "d_adv")}
    expected = {(label, images, end) for label in LABELS[variant] for images in GRID_IMAGES for end in GRID_FILES}
    assert grids(run, uri) == dict.fromkeys(expected, 1)
    seen = [images + before for before in (0, POINTS[-1])[: 2 if variant == "sgan" else 1] for images in POINTS]
    curve = {(each.step, each.value) for each in MlflowClient(uri).get_metric_history(run.info.run_id, "fid")}
    assert curve == {*((at, 1000.0 - (at - 1) % POINTS[-1] - 1) for at in seen), (seen[-1] + 1, 10.0)}
    assert {name: value for name, value in run.data.metrics.items() if name.partition("/")[0] not in trained} == {
        "inception_score": 9.0,
        "fid": 10.0,
        "final/diversity": 0.9,
        "final/train_seconds": 2.5 * len(trained),  # all but the score
        "final/generator_images": seen[-1],
        **dict.fromkeys((f"final/{name}" for name in ("discriminator_steps", "generator_steps", "flops")), 0),
    }
    assert run.info.status == "FINISHED"
    assert run.data.tags["outcome"] == "done"
