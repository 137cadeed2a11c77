"""The parts of a trial that MLflow shows: metrics, params, tags and files, all read from the output store."""

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Metric
from PIL import Image

from sgan.store.files import inside, is_plain
from sgan.store.local import FIGURES, GRIDS, MODELS, Store
from sgan.store.record import RECORD_FILE
from sweeps.mlflow_view.model import save_model
from sweeps.mlflow_view.runs import milliseconds
from sweeps.planning.state import State, alarm_of, records_of, scores_of

PARAMS = ("variant.", "seed", "dataset.name", "recipe.name")
"""Beginnings of the params: MLflow's pages list every param above an image. config.json has all of them."""
TAGS = ("variant", "base_variant", "seed", "cuts", "config_key", "phase", "rerun")
SHARED = ("judge", "network", "encoder")
"""Stages that many trials wait for."""
CONFIG = "config.json"


@dataclass(frozen=True)
class TrialView:
    """The parts of a trial that MLflow lacks.

    Attributes:
        metrics, params, tags: as in MLflow.
        grids: (label of the stage, images seen, PNG file).
        times: of all points (unix seconds).
        sent: images seen at each stage's last point ("level0") and last grid ("level0/grids") with these.
    """

    metrics: list[Metric]
    params: dict[str, Any]
    tags: dict[str, str]
    grids: list[tuple[str, int, Path]]
    times: list[float]
    sent: dict[str, int]


def begun(store: Store, trial: Mapping[str, Any], state: State) -> bool:
    """Whether a trial has ended, or has a point in a stage that not all trials share: it has a run from then on."""
    own = [stage["name"] for stage in trial["stages"] if stage["label"] not in SHARED]
    return state.outcome not in ("running", "interrupted") or any(
        (store.look(name) / RECORD_FILE).exists() for name in own
    )


def view(
    store: Store, manifest: Mapping[str, Any], trial: Mapping[str, Any], state: State, sent: Mapping[str, int]
) -> TrialView:
    """The parts of a trial beyond `sent`.

    Raises:
        StoreError: a file of a finished stage is damaged.
    """
    metrics, grids, now_sent, records = [], [], dict(sent), records_of(store, trial)
    for stage in trial["stages"]:
        label, name, done = stage["label"], stage["name"], store.has(stage["name"])
        folder = store.look(name)
        for line in records.get(label, ()):
            # A resumed stage repeats the points after its checkpoint: the first ones stand.
            if line["images"] > sent.get(label, -1):
                values = {f"{label}/{key}": value for key, value in line["metrics"].items()}
                metrics += as_metrics(values, line["time"], line["images"])
                now_sent[label] = line["images"]
        drawn = {line["images"] for line in records.get(label, ())}
        for path in sorted((folder / GRIDS).glob("[0-9]*.png")):
            images = int(path.stem)
            # A stage in progress adds the point after the grid is whole; a score has no points.
            whole = done or (images in drawn and is_plain(folder, f"{GRIDS}/{path.name}"))
            if whole and images > sent.get(f"{label}/grids", -1):
                grids.append((label, images, store.file(name, f"{GRIDS}/{path.name}") if done else path))
                now_sent[f"{label}/grids"] = images
    alarm = alarm_of(store, trial, state)
    tags = {name: str(trial[name]) for name in TAGS}
    tags |= {"sweep": manifest["key"], "trial": trial["name"], "alarm": alarm or "none", **shared_tags(manifest)}
    tags |= {"collapsed": "yes" if "collapse:" in alarm else "no"}
    tags |= {"mlflow.loggedImages": "True"}  # MLflow's pages look for images only then
    tags |= {"commit": state.facts[-1]["commit"] if state.facts else manifest["commit"]}
    if state.outcome == "done":
        metrics += as_metrics(scores_of(state), state.end)
        tags["fingerprint"] = json.dumps(state.facts[-1]["fingerprint"])
    params = {name: value for name, value in _flat(trial["config"]).items() if name.startswith(PARAMS)}
    times = [line["time"] for lines in records.values() for line in lines]
    return TrialView(metrics, params, tags, grids, times, now_sent)


def write_files(
    store: Store, trial: Mapping[str, Any], state: State, grids: list[tuple[str, int, Path]], start: int, folder: Path
) -> None:
    """Lay the files of a trial out as they are in its run: config.json, grids, and of a finished one figures and model.

    Args:
        start: of its run, in milliseconds.
    """
    (folder / CONFIG).write_text(json.dumps(trial["config"], indent=1))
    for label, images, path in grids:
        # MlflowClient.log_image writes the same two files under a random name. MLflow's image slider reads this name,
        # and a grid that is sent again lands on itself.
        key = f"{label}+step+{images}"
        name = f"{key}+timestamp+{start}+{uuid.uuid5(uuid.NAMESPACE_OID, key)}"
        copy = inside(folder / "images", f"{name}.png")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        with Image.open(path) as image:
            image.save(copy.with_name(f"{name}+compressed.webp"), method=0)  # fast rather than small
    if state.outcome == "done":
        with tempfile.TemporaryDirectory() as checked:
            for file in state.facts[-1]["files"]:
                if file.startswith((f"{FIGURES}/", f"{MODELS}/")):
                    root = folder if file.startswith(f"{FIGURES}/") else Path(checked)
                    copy = inside(root, file)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    os.symlink(store.file(trial["name"], file), copy)
            save_model(Path(checked, MODELS), folder / MODELS)


def shared_tags(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The tags of a sweep that its trials have too."""
    return {name: str(manifest["settings"][name]) for name in ("dataset", "recipe") if name in manifest["settings"]}


def as_metrics(values: Mapping[str, float | None], seconds: float, step: int = 0) -> list[Metric]:
    """A metric for each value that is known, at a time in unix seconds."""
    return [Metric(name, value, milliseconds(seconds), step) for name, value in values.items() if value is not None]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict -> dotted name -> value."""
    flat = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}{name}.") if isinstance(item, Mapping) else {f"{prefix}{name}": item}
    return flat
