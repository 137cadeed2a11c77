"""The run of a trial: metrics, params, tags, files and model, all read from the output store."""

import json
import os
import shlex
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Run
from PIL import Image

from sgan.evaluation.measures import LEADING
from sgan.store.files import inside, is_plain
from sgan.store.local import FIGURES, GRIDS, MODELS, Store
from sgan.store.record import RECORD_FILE
from sgan.store.votes import Tally
from sweeps.mlflow_view import runs
from sweeps.mlflow_view.model import DATA, logged_model
from sweeps.mlflow_view.runs import View, as_metrics, as_params
from sweeps.planning.state import State, alarm_of, records_of, scores_of

HEADLINES = (LEADING, "recall", "inception_score", "kid")
"""Scores that are curves over all images that the generator of images has seen; the rest stands in groups."""
FINAL = "final/"
"""Group of the other scores of a finished trial."""
TAGS = ("variant", "seed", "cuts", "phase")
SHARED = ("judge", "network", "encoder")
"""Stages that many trials wait for."""
Votes = Sequence[tuple[float, Tally]]
"""Of the visual Turing test on a trial's images: as in `sgan.store.votes.curves`."""
CONFIG, IMAGES, SMALL = "config.json", "images", "+compressed.webp"


def begun(store: Store, trial: Mapping[str, Any], state: State) -> bool:
    """Whether a trial has ended, or has a point in a stage that not all trials share: it has a run from then on."""
    own = [stage["name"] for stage in trial["stages"] if stage["label"] not in SHARED]
    return state.outcome not in ("running", "interrupted") or any(
        (store.look(name) / RECORD_FILE).exists() for name in own
    )


def varied(trials: Sequence[Mapping[str, Any]]) -> set[str]:
    """Dotted names of the fields in which the configs of trials differ."""
    held: dict[str, Any] = {}
    names = set()
    for config in (_flat(trial["config"]) for trial in trials):
        names |= {name for name in config.keys() ^ held.keys() if held}
        names |= {name for name, value in config.items() if held.setdefault(name, value) != value}
    return names


def params_of(manifest: Mapping[str, Any], trial: Mapping[str, Any], names: set[str]) -> dict[str, str]:
    """The params of a trial: the options of its sweep, its variant, and what the sweep's --override or another trial
    has otherwise. config.json has the whole config.

    Args:
        names: the fields in which trials of the sweep differ.
    """
    config, settings = _flat(trial["config"]), manifest["settings"]
    changed = {f"recipe.{change.partition('=')[0]}" for change in settings.get("override", ())}
    shown = {name: value for name, value in config.items() if name in names | changed or name.startswith("variant.")}
    shared = {name: value for name, value in settings.items() if name not in ("override", "cuts", "weights", "seed")}
    return as_params({**shared, **shown, "seed": trial["seed"]})


def note_of(store: Store, trial: Mapping[str, Any], votes: Votes) -> str:
    """What a trial is, what people said of its images, and the command that runs it again, as Markdown."""
    variant = trial["config"]["variant"]
    cuts, weights = variant["cuts"], variant["weights"]
    shape = f"A stack of {len(cuts) + 1} GANs, cut at {', '.join(cuts)}" if cuts else "One GAN"
    parts = [shape, *(["trained one by one and then jointly"] if variant["joint"] else [])]
    parts += [f"losses {', '.join(f'{name} x {value:g}' for name, value in weights.items() if value)}"]
    parts += [] if variant["labels"] else ["without labels"]
    parts += [f"{name} = {value} (against {trial['base']})" for name, value in trial["changes"].items()]
    command = f"python sweeps/ablation.py {trial['rerun']} --seeds 1 --first-seed {trial['seed']}"
    again = f"Run it again:\n\n    {command} --store {shlex.quote(store.address)}"
    seen = f"Visual Turing test: {votes[-1][1]}.\n\n" if votes else ""
    return f"**{trial['title']}**, seed {trial['seed']}. {', '.join(parts)}.\n\n{seen}{again}"


def people(votes: Votes) -> list[Metric]:
    """The share of errors of those who were asked about a trial's images, over the number of votes."""
    values = [
        (seconds, {"turing_error": tally.errors / tally.votes, "turing_votes": tally.votes}, tally.votes)
        for seconds, tally in votes
    ]
    return [metric for seconds, each, count in values for metric in as_metrics(each, seconds, count)]


def view(
    store: Store, manifest: Mapping[str, Any], trial: Mapping[str, Any], state: State, sent: Mapping[str, int]
) -> View:
    """The parts of a trial beyond `sent`, without its params and note.

    Raises:
        StoreError: a file of a finished stage is damaged.
    """
    metrics, grids, now_sent, records = [], [], dict(sent), records_of(store, trial)
    before, waits = 0, False  # images that the generator of images saw in earlier stages
    for stage in trial["stages"]:
        label, name, done = stage["label"], stage["name"], store.has(stage["name"])
        if waits:
            break
        waits = not done and label not in SHARED  # a stage that was deleted: where the next one begins is not known
        folder = store.look(name)
        for line in records.get(label, ()):
            # A resumed stage repeats the points after its checkpoint: the first ones stand.
            images, seen = line["images"], before + line["images"]
            if images > sent.get(label, -1):
                for key, value in line["metrics"].items():
                    if key not in HEADLINES:
                        metrics += as_metrics({f"{label}/{key}": value}, line["time"], images)
                    elif images or not before:  # else the last point of the stage before says it
                        metrics += as_metrics({key: value}, line["time"], seen)
                now_sent[label] = images
        drawn = {line["images"] for line in records.get(label, ())}
        for path in sorted((folder / GRIDS).glob("[0-9]*.png")):
            images = int(path.stem)
            # A stage in progress adds the point after the grid is whole; a score has no points.
            whole = done or (images in drawn and is_plain(folder, f"{GRIDS}/{path.name}"))
            if whole and images > sent.get(f"{label}/grids", -1):
                grids.append((label, images, store.file(name, f"{GRIDS}/{path.name}") if done else path))
                now_sent[f"{label}/grids"] = images
        before += store.facts(name).get("generator_images", 0) if done else 0
    settings = {name: str(manifest["settings"][name]) for name in ("dataset", "recipe")}
    tags = {name: str(trial[name]) for name in TAGS} | settings
    tags |= {runs.NAME: f"{trial['variant']} seed {trial['seed']}", "outcome": state.outcome}
    tags |= {"alarm": alarm_of(store, trial, state) or "none", "mlflow.loggedImages": "True"}  # or no image is shown
    tags |= runs.origin(manifest, state.facts[-1]["commit"] if state.facts else manifest["commit"])
    scores = []
    # The last values stand one image further: those of the last evaluation are of fewer samples.
    for key, value in (scores_of(state) if state.outcome == "done" else {}).items():
        name, step = (key, before + 1) if key in HEADLINES else (f"{FINAL}{key}", 0)
        scores += as_metrics({name: value}, state.end, step)
    times = [line["time"] for lines in records.values() for line in lines]
    return View(metrics, {}, tags, scores, {}, grids, times, now_sent)


def image_file(label: str, images: int, start: int) -> str:
    """Path in a run, without its ending, of the grid that a stage drew after so many images. `MlflowClient.log_image`
    writes the same two files under a random name; MLflow's image slider reads this name, and a grid that is sent again
    lands on itself.

    Args:
        start: of the run, in milliseconds.
    """
    key = f"{label}+step+{images}"
    return f"{IMAGES}/{key}+timestamp+{start}+{uuid.uuid5(uuid.NAMESPACE_OID, key)}"


def write_files(
    trial: Mapping[str, Any], grids: list[tuple[str, int, Path]], figures: Mapping[str, Path], start: int, folder: Path
) -> None:
    """Lay the files of a trial out as they are in its run: config.json, grids, and of a finished one its figures.

    Args:
        start: of its run, in milliseconds.
    """
    (folder / CONFIG).write_text(json.dumps(trial["config"], indent=1))
    for label, images, path in grids:
        copy = inside(folder, f"{image_file(label, images, start)}.png")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        with Image.open(path) as image:
            image.save(copy.with_name(f"{copy.stem}{SMALL}"), method=0)  # fast rather than small
    link(figures, folder)


def link(files: Mapping[str, Path], folder: Path) -> None:
    """Lay files out in a folder by their paths there."""
    for name, path in files.items():
        copy = inside(folder, name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(path, copy)


def files_of(store: Store, trial: Mapping[str, Any], part: str) -> dict[str, Path]:
    """The files of a finished trial's figures or models, each checked: path in its last stage -> path.

    Raises:
        StoreError: one is damaged.
    """
    names = store.facts(trial["name"])["files"]
    return {name: store.file(trial["name"], name) for name in names if name.startswith(f"{part}/")}


def is_shown(client: MlflowClient, run: Run, store: Store, trial: Mapping[str, Any]) -> bool:
    """Whether MLflow lists every file of a finished trial, those that it does not convert with their size."""
    listed = [file for part in ("", IMAGES, FIGURES) for file in client.list_artifacts(run.info.run_id, part)]
    there, model = {file.path: file.file_size for file in listed}, logged_model(client, run)
    if model:
        for which in ("last", "best"):
            listed = client.list_logged_model_artifacts(model.model_id, f"{DATA}/{which}")
            there |= {file.path.removeprefix("data/"): file.file_size for file in listed}
    expected: dict[str, int | None] = {CONFIG: None}
    for stage in (each for each in trial["stages"] if store.has(each["name"])):
        for name in store.facts(stage["name"])["files"]:
            path = store.look(stage["name"]) / name
            size = path.stat().st_size if path.exists() else None  # a bucket's weights are not fetched for that
            if name.startswith(f"{GRIDS}/"):
                shown = image_file(stage["label"], int(path.stem), run.info.start_time)
                expected |= {f"{shown}.png": size, f"{shown}{SMALL}": None}
            elif name.startswith((f"{FIGURES}/", f"{MODELS}/")):
                expected[name] = size
    return all(name in there and size in (None, there[name]) for name, size in expected.items())


def log_dataset(client: MlflowClient, run: Run, trial: Mapping[str, Any]) -> None:
    """Say what a trial was trained on, if its run does not say it yet."""
    if not (run.inputs and run.inputs.dataset_inputs):
        name, source = trial["config"]["dataset"]["name"], json.dumps({"digest": trial["config"]["data"]})
        dataset = Dataset(name, trial["config"]["data"][:36], "local", source)
        client.log_inputs(run.info.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict -> dotted name -> value."""
    flat = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}{name}.") if isinstance(item, Mapping) else {f"{prefix}{name}": item}
    return flat
