"""What is to be shown of a trial, from what the output store has of it: its state, and its points, params, tags and
files, laid out as MLflow has them."""

import functools
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sgan.diagnostics import latest
from sgan.files import StoreError, inside, read_json
from sgan.record import RECORD_FILE, read_record
from sgan.store import FIGURES, GRIDS, MODELS, Store
from sweeps import served

# MLflow's pages list every param above an image: these tell a sweep's runs apart, config.json has all.
PARAMS = ("variant.", "seed", "dataset.name", "recipe.name")
JUDGING = ("scorer", "inception", "score")  # kinds of stages that train no part of a variant
SHARED = ("scorer", "inception", "encoder")  # those that many trials of a sweep wait for
WRITTEN_AT = re.compile(r"\+timestamp\+\d+\+[0-9a-f-]{36}")
"""The part of an image's name that differs between two that show the same."""


class Point(NamedTuple):
    """A value of a metric, `seconds` (unix) after which it was known, at a step."""

    metric: str
    value: float
    seconds: float
    step: int


@dataclass(frozen=True)
class State:
    """Where a trial stands: a key of STATUS with its reason, stage.json of its finished stages in order, and when the
    last of them ended (unix seconds; 0 before that)."""

    outcome: str
    reason: str
    facts: list[dict[str, Any]]
    end: float


def look(store: Store, trial: Mapping[str, Any], seen: dict[str, object]) -> list[object]:
    """What tells whether the store has more of a trial than before, without reading it.

    Args:
        seen: stage -> what was found of it. Trials share stages: those looked at in one pass share this too.
    """
    for stage in trial["stages"]:
        if stage["name"] not in seen:
            folder = store.look(stage["name"])
            seen[stage["name"]] = folder.exists() and (folder, written(folder / RECORD_FILE), len(_grids(folder)))
    return [*(seen[stage["name"]] for stage in trial["stages"]), written(store.failure(trial["name"]))]


def written(path: Path) -> tuple[int, int] | None:
    """When a file was written (nanoseconds), and its size; None where it is not there."""
    try:
        there = path.stat()
    except OSError:
        return None
    return there.st_mtime_ns, there.st_size


@functools.lru_cache(maxsize=256)
def _record(folder: Path, when: tuple[int, int] | None) -> list[dict[str, Any]]:
    """A stage's record, which several trials share, as it was when it was written."""
    return read_record(folder)


def state_of(store: Store, trial: Mapping[str, Any], live: bool) -> State:
    """Where a trial stands; one that has not ended is running with `live`, otherwise interrupted. As in
    `sweeps.trials.ended`, one of whose stages was deleted has not: its seconds and images would be too few."""
    facts = [store.facts(stage["name"]) for stage in trial["stages"] if store.has(stage["name"])]
    end = max((fact["finished"] for fact in facts), default=0.0)
    for fact in facts:
        if fact["status"] == "diverged":
            return State("diverged", fact["reason"], facts, end)
    if len(facts) == len(trial["stages"]):
        return State("done", "", facts, end)
    if store.failure(trial["name"]).exists():
        failure = read_json(store.failure(trial["name"]), trial=trial["name"])
        return State("failed", failure["error"], facts, max(end, failure["time"]))
    return State("running" if live else "interrupted", "", facts, end)


def begun(store: Store, trial: Mapping[str, Any], state: State) -> bool:
    """Whether a trial has a point of what tells it from others, or has ended: a run for each that waits for the one
    scorer of the sweep would show nothing, and takes as long to send as one that has ended."""
    own = [stage["name"] for stage in trial["stages"] if stage["label"] not in SHARED]
    return state.outcome not in ("running", "interrupted") or any(
        store.has(name) or (store.work(name) / RECORD_FILE).exists() for name in own
    )


@dataclass(frozen=True)
class Shown:
    """What MLflow is to show of a trial beyond what it has.

    Attributes:
        points, params, tags: as in MLflow.
        times: of all its points (unix seconds).
        sent: what MLflow has with these, for the tag SENT.
    """

    points: list[Point]
    params: dict[str, Any]
    tags: dict[str, str]
    times: list[float]
    sent: dict[str, int]


def shown(
    store: Store,
    manifest: Mapping[str, Any],
    trial: Mapping[str, Any],
    state: State,
    sent: Mapping[str, int],
    staging: Path,
) -> Shown:
    """What MLflow is to show of a trial beyond `sent`; its files are laid out in `staging`."""
    points, times, now_sent, wrong = _news(store, trial, state, sent, staging)
    tags = {name: str(trial[name]) for name in ("variant", "seed", "cuts", "config_key", "phase", "rerun")}
    tags |= {"sweep": manifest["key"], "trial": trial["name"], **shared_tags(manifest), "alarm": wrong or "none"}
    tags |= {"commit": state.facts[-1]["commit"] if state.facts else manifest["commit"]}
    tags |= {"collapsed": "yes" if "collapse:" in wrong else "no"}
    if "config" not in sent:
        (staging / "config.json").write_text(json.dumps(trial["config"], indent=1))
    if (staging / "images").exists():
        tags["mlflow.loggedImages"] = "True"
    if state.outcome == "done":
        points += points_of(scores_of(state), state.end)
        tags["fingerprint"] = json.dumps(state.facts[-1]["fingerprint"])
        for file in state.facts[-1]["files"]:
            if file.startswith((f"{FIGURES}/", f"{MODELS}/")):
                store.file(trial["name"], file)
        stage = store.stage(trial["name"]).resolve()
        shutil.copytree(stage / FIGURES, staging / FIGURES, copy_function=os.symlink)
        served.write(stage / MODELS, staging / MODELS)
    params = {name: value for name, value in _flat(trial["config"]).items() if name.startswith(PARAMS)}
    return Shown(points, params, tags, times, now_sent)


def _news(
    store: Store, trial: Mapping[str, Any], state: State, sent: Mapping[str, int], staging: Path
) -> tuple[list[Point], list[float], dict[str, int], str]:
    """A trial's points beyond `sent`, the times of all its points (unix seconds), what is sent with these, and the
    alarm in words, "" where all is well.

    `sent` holds the images seen at each stage's last point ("level0") and last grid ("level0/grids"). New grids are
    laid out in the folder `staging`.
    """
    points, times, now_sent, records = [], [], {**sent, "config": 0}, {}
    for stage in trial["stages"]:
        label = stage["label"]
        done = store.has(stage["name"])
        folder = store.look(stage["name"])
        facts = store.facts(stage["name"]) if done else {}
        if RECORD_FILE in facts.get("files", ()):
            store.file(stage["name"], RECORD_FILE)
        try:
            records[label] = _record(folder, written(folder / RECORD_FILE))
        except StoreError:
            if done:
                raise
            continue  # the stage makes its record good when it goes on or ends
        for line in records[label]:
            times.append(line["time"])
            # A resumed stage repeats the points after its checkpoint, at a later time: the first ones stand.
            if line["images"] > sent.get(label, -1):
                values = {f"{label}/{name}": value for name, value in line["metrics"].items()}
                points += points_of(values, line["time"], line["images"])
                now_sent[label] = line["images"]
        drawn = {line["images"]: line["time"] for line in records[label]}
        for path in _grids(folder):
            images = int(path.stem)
            # In a stage in progress a grid's point follows it; a score has no points.
            when = drawn.get(images, facts.get("finished"))
            if when is not None and images > sent.get(f"{label}/grids", -1):
                if done:
                    store.file(stage["name"], f"{GRIDS}/{path.name}")
                _stage_grid(path, when, f"{label}+step+{images}", trial["name"], staging / "images")
                now_sent[f"{label}/grids"] = images
    final = state.facts[-1]["scores"] if state.outcome == "done" else None
    wrong = [f"{label}: {text}" for label, texts in latest(records, final).items() for text in texts]
    return points, times, now_sent, "; ".join(wrong)


def _grids(folder: Path) -> list[Path]:
    return sorted((folder / GRIDS).glob("[0-9]*.png"))


def _stage_grid(path: Path, drawn: float, key_and_step: str, trial_name: str, staging: Path) -> None:
    """Lay a grid that was drawn at some time (unix seconds) out as MlflowClient.log_image does, which is what the image
    slider reads: a PNG and a WebP.

    log_image puts a random id into the names, so a grid sent again would be there twice; this id is a hash.
    """
    from PIL import Image

    name = uuid.uuid5(uuid.NAMESPACE_OID, f"{trial_name} {key_and_step}")
    stem = inside(staging, f"{key_and_step}+timestamp+{milliseconds(drawn)}+{name}", f"the trial {trial_name}")
    staging.mkdir(exist_ok=True)
    shutil.copyfile(path, f"{stem}.png")
    with Image.open(path) as image:
        image.save(f"{stem}+compressed.webp", method=0)  # fast rather than small


def shared_tags(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The tags of a sweep that its trials have too."""
    return {name: str(manifest["settings"][name]) for name in ("dataset", "recipe") if name in manifest["settings"]}


def scores_of(state: State) -> dict[str, float | None]:
    """The scores of a finished trial, the seconds that it trained, and the images that its generator has seen."""
    seconds = sum(fact["seconds"] for fact in state.facts if fact["kind"] not in JUDGING)
    # Joint training goes on with the image level: what its generator saw is the sum.
    images = sum(fact["images"] for fact in state.facts if fact["makes_images"])
    return state.facts[-1]["scores"] | {"train_seconds": seconds, "generator_images": images}


def wrong_scores(state: State, found: Mapping[str, float]) -> list[tuple[str, float | None, float]]:
    """The scores of a finished trial that its run has not among its metrics: name, what it has, what is right."""
    right = [(name, value) for name, value in scores_of(state).items() if value is not None and math.isfinite(value)]
    return [(name, found.get(name), value) for name, value in right if found.get(name) != value]


def points_of(values: Mapping[str, float | None], seconds: float, step: int = 0) -> list[Point]:
    """A point for every value that is known."""
    return [Point(name, value, seconds, step) for name, value in values.items() if value is not None]


def milliseconds(seconds: float) -> int:
    """MLflow's time stamps."""
    return round(seconds * 1000)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict -> dotted name -> value."""
    flat = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}{name}.") if isinstance(item, Mapping) else {f"{prefix}{name}": item}
    return flat
