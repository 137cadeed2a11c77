"""The runs of trials: metrics, params, tags, files and models, all read from the output store."""

import json
import os
import shlex
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Run
from PIL import Image

from sgan.checks import content_key
from sgan.evaluation.measures import LEADING
from sgan.store.files import StoreError, inside, is_plain
from sgan.store.local import FIGURES, GRIDS, MODELS, Store
from sgan.store.record import RECORD_FILE, grid_file, read_record
from sgan.store.votes import curves
from sweeps.mlflow_view import runs
from sweeps.mlflow_view.model import DATA, logged_model
from sweeps.mlflow_view.runs import View, as_metrics, as_params
from sweeps.planning.manifest import flat
from sweeps.planning.trials import State, alarm_of, records_of, scores_of

HEADLINES = (LEADING, "recall", "inception_score", "kid")
"""Scores that are curves over all images that the generator of images has seen; the rest stands in groups."""
FINAL = "final/"
"""Group of the other scores of a finished trial."""
TAGS = ("variant", "seed", "cuts", "phase")
SHARED = ("judge", "network", "encoder")
"""Stages that many trials wait for."""
CONFIG, IMAGES, SMALL = "config.json", "images", "+compressed.webp"
Files = dict[str, tuple[str, str]]
"""Path in a run -> stage, and file in it."""


def begun(store: Store, trial: Mapping[str, Any], state: State) -> bool:
    """Whether a trial has ended, or has a point in a stage that not all trials share: it has a run from then on."""
    own = [stage["name"] for stage in trial["stages"] if stage["label"] not in SHARED]
    return state.outcome not in ("running", "interrupted") or any(
        (store.look(name) / RECORD_FILE).exists() for name in own
    )


class Trials:
    """What the runs of a sweep's trials show."""

    def __init__(self, store: Store, manifest: Mapping[str, Any]):
        self.store, self.manifest, self.votes = store, manifest, curves(store)
        configs = [flat(trial["config"]) for trial in manifest["trials"]]
        names = {name for config in configs for name in config}
        first = configs[0] if configs else {}
        self.varied = {name for name in names if any(config.get(name) != first.get(name) for config in configs)}

    def about(self, trial: Mapping[str, Any]) -> tuple[dict[str, str], str]:
        """The params and the note of a trial: what may change after it has ended.

        Params are the options of its sweep, its variant, and what the sweep's --override or another trial has
        otherwise; config.json has the whole config. The note says in Markdown what it is, what people said of its
        images, and the command that runs it again.
        """
        config, settings, variant = flat(trial["config"]), self.manifest["settings"], trial["config"]["variant"]
        shown = self.varied | {f"recipe.{change.partition('=')[0]}" for change in settings.get("override", ())}
        own = {name: value for name, value in config.items() if name in shown or name.startswith("variant.")}
        shared = {name: value for name, value in settings.items() if name not in ("override", "cuts", "weights")}
        cuts, weights = variant["cuts"], variant["weights"]
        parts = [f"A stack of {len(cuts) + 1} GANs, cut at {', '.join(cuts)}" if cuts else "One GAN"]
        parts += ["trained one by one and then jointly"] if variant["joint"] else []
        parts += [f"losses {', '.join(f'{name} x {value:g}' for name, value in weights.items() if value)}"]
        parts += [] if variant["labels"] else ["without labels"]
        parts += [f"{name} = {value} (against {trial['base']})" for name, value in trial["changes"].items()]
        votes, seed = self.votes.get(trial["name"], ()), trial["seed"]
        seen = f"Visual Turing test: {votes[-1][1]}.\n\n" if votes else ""
        command = f"python sweeps/ablation.py {trial['rerun']} --seeds 1 --first-seed {seed}"
        again = f"Run it again:\n\n    {command} --store {shlex.quote(self.store.address)}"
        note = f"**{trial['title']}**, seed {seed}. {', '.join(parts)}.\n\n{seen}{again}"
        return as_params({**shared, **own, "seed": seed}), note

    def key(self, trial: Mapping[str, Any]) -> str:
        """Of `about`."""
        return content_key(self.about(trial))

    def view(self, trial: Mapping[str, Any], state: State) -> View:
        """All that the run of a trial shows, but for its files.

        Raises:
            StoreError: the record of a finished stage is damaged.
        """
        store, metrics, records = self.store, list[Metric](), records_of(self.store, trial)
        before = 0  # images that the generator of images saw in earlier stages
        for stage in trial["stages"]:
            label, done = stage["label"], store.has(stage["name"])
            for line in records.get(label, ()):
                images = line["images"]
                for key, value in line["metrics"].items():
                    if key not in HEADLINES:
                        metrics += as_metrics({f"{label}/{key}": value}, line["time"], images)
                    elif images or not before:  # else the last point of the stage before says it
                        metrics += as_metrics({key: value}, line["time"], before + images)
            if not done and label not in SHARED:
                break  # a stage that was deleted: where the next one begins is not known
            before += store.facts(stage["name"]).get("generator_images", 0) if done else 0
        for seconds, tally in self.votes.get(trial["name"], ()):
            errors = {"turing_error": tally.errors / tally.votes, "turing_votes": tally.votes}
            metrics += as_metrics(errors, seconds, tally.votes)
        params, note = self.about(trial)
        tags = {name: str(trial[name]) for name in TAGS}
        tags |= {name: str(self.manifest["settings"][name]) for name in ("dataset", "recipe")}
        tags |= {runs.NAME: f"{trial['variant']} seed {trial['seed']}", runs.NOTE: note, "outcome": state.outcome}
        tags |= {"alarm": alarm_of(store, trial, state) or "none", "mlflow.loggedImages": "True"}  # or none is shown
        tags |= runs.origin(self.manifest, state.facts[-1]["commit"] if state.facts else self.manifest["commit"])
        scores = []
        # The last values stand one image further: those of the last evaluation are of fewer samples.
        for key, value in (scores_of(state) if state.outcome == "done" else {}).items():
            name, step = (key, before + 1) if key in HEADLINES else (f"{FINAL}{key}", 0)
            scores += as_metrics({name: value}, state.end, step)
        times = [line["time"] for lines in records.values() for line in lines]
        return View(metrics, params, tags, scores, times)

    def files(self, trial: Mapping[str, Any]) -> Files:
        """The grids of a trial, and of a finished one the figures and models."""
        found = {}
        for stage in trial["stages"]:
            label, name = stage["label"], stage["name"]
            for file in self.store.facts(name)["files"] if self.store.has(name) else self._whole(name):
                kind, _, rest = file.partition("/")
                if kind == GRIDS:
                    found[image_file(label, int(Path(rest).stem))] = name, file
                elif kind in (FIGURES, MODELS):
                    found[file] = name, file
        return found

    def _whole(self, name: str) -> list[str]:
        """The grids of a stage in progress that are whole: it adds a point after each."""
        folder, points = self.store.look(name), []
        with suppress(StoreError):
            points = read_record(folder)
        found = [grid_file(folder, point["images"]).relative_to(folder).as_posix() for point in points]
        return [file for file in dict.fromkeys(found) if is_plain(folder, file)]


def image_file(label: str, images: int) -> str:
    """Path in a run of the grid that a stage drew after so many images. `MlflowClient.log_image` writes the same files
    under a random name; MLflow's image slider reads this name, and a grid that is sent again lands on itself."""
    key = f"{label}+step+{images}"
    return f"{IMAGES}/{key}+timestamp+0+{uuid.uuid5(uuid.NAMESPACE_OID, key)}.png"


def lay_out(store: Store, trial: Mapping[str, Any], files: Files, folder: Path) -> None:
    """Lay files of a trial out as they are in its run, and beside them its config.json; a model's lie in the folder
    model/data/, as MLflow has them.

    Raises:
        StoreError: one of a finished stage is damaged.
    """
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(trial["config"], indent=1))
    for name, (stage, file) in files.items():
        copy = inside(folder / MODELS / "data" if name.startswith(f"{MODELS}/") else folder, name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if store.has(stage):
            os.symlink(store.file(stage, file), copy)
        else:
            shutil.copyfile(store.look(stage) / file, copy)
        if name.startswith(f"{IMAGES}/"):
            with Image.open(copy) as image:
                image.save(copy.with_name(f"{copy.stem}{SMALL}"), method=0)  # fast rather than small


def lacking(client: MlflowClient, run: Run, store: Store, files: Files) -> Files:
    """Those of the files that MLflow does not list, or with another size."""
    listed = [file for part in (IMAGES, FIGURES) for file in client.list_artifacts(run.info.run_id, part)]
    there, model = {file.path: file.file_size for file in listed}, logged_model(client, run)
    if model:
        parts = [client.list_logged_model_artifacts(model.model_id, f"{DATA}/{which}") for which in ("last", "best")]
        there |= {file.path.removeprefix("data/"): file.file_size for part in parts for file in part}

    def shown(name: str, stage: str, file: str) -> bool:
        path = store.look(stage) / file
        size = path.stat().st_size if path.exists() else None  # a bucket's weights are not fetched for that
        small = f"{name.removesuffix('.png')}{SMALL}"
        return name in there and size in (None, there[name]) and (not name.startswith(IMAGES) or small in there)

    return {name: source for name, source in files.items() if not shown(name, *source)}


def log_dataset(client: MlflowClient, run: Run, trial: Mapping[str, Any]) -> None:
    """Say what a trial was trained on, if its run does not say it yet."""
    if not (run.inputs and run.inputs.dataset_inputs):
        name, source = trial["config"]["dataset"]["name"], json.dumps({"digest": trial["config"]["data"]})
        dataset = Dataset(name, trial["config"]["data"][:36], "local", source)
        client.log_inputs(run.info.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
