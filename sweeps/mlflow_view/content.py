"""The content of the MLflow runs of a sweep and its trials: metrics, params, tags and files, all from the output store.
Also the saved views of MLflow's page that the link to a sweep opens."""

import base64
import json
import shlex
import shutil
import statistics
import uuid
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Run
from PIL import Image

from sgan.checks import ConfigError, content_key, flat
from sgan.evaluation.measures import LEADING, MEASURES
from sgan.store import votes
from sgan.store.files import RECORD_FILE, inside, is_plain
from sgan.store.local import FIGURES, GRIDS, MODELS, Store
from sweeps.mlflow_view import runs
from sweeps.mlflow_view.connection import VIEW
from sweeps.mlflow_view.runs import View, as_metrics, as_params, logged_model
from sweeps.planning import config_file
from sweeps.planning import manifest as manifests
from sweeps.planning.config_file import BEST, BestConfig
from sweeps.planning.manifest import REPORT, TEXT
from sweeps.planning.trials import State, alarm_of, of_real_features, records_of, scores_of

HEADLINES = (LEADING, "recall", "inception_score", "kid")
"""Scores that are curves over all images that the image generator has seen; other scores are in groups."""
FINAL = "final/"  # Group of the other scores of a finished trial
TAGS = ("variant", "seed", "cuts", "phase")
CHARTS = "-charts"  # Suffix of the key of the view with charts
RUN_NAME = "attributes.`Run Name`"
COLUMNS = (*HEADLINES, f"{FINAL}diversity")
SHARED = ("judge", "network", "encoder")  # Labels of stages that many trials share
CONFIG, IMAGES, SMALL = "config.json", "images", "+compressed.webp"
Files = dict[str, tuple[str, str]]
"""Path in a run -> (name of a stage, path of a file in the stage's folder)."""


def sweep_view(store: Store, manifest: Mapping[str, Any], run: Run) -> View:
    """The content of a sweep's run except for its files: settings, means over seeds, the verdict and the tables."""
    folder, metrics = manifests.folder(store, manifest["key"]), {}
    for judge in filter(store.has, manifest["judges"]):  # a later judge's scores replace earlier ones
        facts = store.facts(judge)
        scores = {f"real/{name}": value for name, value in facts["scores"].items()}
        metrics |= {metric.key: metric for metric in as_metrics(scores, facts["finished"])}
    # Scores of the finished seeds that did not choose the config.
    found: dict[tuple[str, str], list[float]] = {}
    for trial in manifest["trials"]:
        known = trial["phase"] != "explore" and store.has(trial["name"])
        for name, value in (store.facts(trial["name"])["scores"] if known else {}).items():
            if name in HEADLINES and value is not None:
                found.setdefault((trial["variant"], name), []).append(value)
    for (variant, score), values in found.items():
        means = {f"{score}/mean/{variant}": statistics.fmean(values)}
        means |= {f"{score}/std/{variant}": statistics.stdev(values)} if len(values) > 1 else {}
        # A step is a number of seeds: MLflow shows the value at the last step, which is the mean over the most.
        metrics |= {metric.key: metric for metric in as_metrics(means, manifest["started"], len(values))}
    text = (folder / TEXT).read_text() if is_plain(folder, TEXT) else manifest["title"]
    runs_page = f"#/experiments/{run.info.experiment_id}/runs"
    link = f"[Report]({runs_page}/{run.info.run_id}/artifacts/{REPORT}), " if is_plain(folder, REPORT) else ""
    shown = f"workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey={manifest['key']}{CHARTS}"
    link += f"[charts]({runs_page}?{shown})"
    tags = {
        runs.NAME: manifest["title"][: runs.LONGEST_NAME],
        runs.NOTE: f"{link}\n\n{text}",
        **{name: str(manifest["settings"][name]) for name in ("dataset", "recipe")},
        **{f"sgan.{name}": manifest[name] for name in ("command", "machine")},
        **_origin(manifest, manifest["commit"]),
    }
    return View(list(metrics.values()), as_params(manifest["settings"]), tags)


def sweep_files(store: Store, manifest: Mapping[str, Any]) -> dict[str, Path]:
    """The report and the chosen config of a sweep, by their paths in its run."""
    folder = manifests.folder(store, manifest["key"])
    found = {REPORT: folder / REPORT} if is_plain(folder, REPORT) else {}
    return found | ({BEST: store.root / BEST} if chosen(store, manifest["key"]) else {})


def chosen(store: Store, sweep_key: str) -> BestConfig | None:
    """The store's best.yaml, if it is from this sweep and undamaged; otherwise None."""
    store.fetch(store.root / BEST)
    with suppress(ConfigError):
        best = config_file.read(store.root / BEST) if is_plain(store.root, BEST) else None
        return best if best and best.provenance.get("sweep") == sweep_key else None
    return None


def _origin(manifest: Mapping[str, Any], commit: str) -> dict[str, str]:
    """The tags of a run that MLflow's pages show as its source."""
    script = next((word for word in manifest["command"].split() if word.endswith(".py")), "")
    return {"mlflow.source.name": script, "mlflow.source.type": "LOCAL", "mlflow.source.git.commit": commit}


def begun(store: Store, trial: Mapping[str, Any], state: State) -> bool:
    """Whether a trial has an MLflow run: it has ended, or has a point in a stage of its own (not in SHARED)."""
    own = [stage["name"] for stage in trial["stages"] if stage["label"] not in SHARED]
    return state.outcome not in ("running", "interrupted") or any(
        (store.look(name) / RECORD_FILE).exists() for name in own
    )


class Trials:
    """The content of the MLflow runs of a sweep's trials."""

    def __init__(self, store: Store, manifest: Mapping[str, Any]):
        self.store, self.manifest, self.votes = store, manifest, votes.results(store)
        configs = [flat(trial["config"]) for trial in manifest["trials"]]
        names = {name for config in configs for name in config}
        first = configs[0] if configs else {}
        self.varied = {name for name in names if any(config.get(name) != first.get(name) for config in configs)}

    def about(self, trial: Mapping[str, Any]) -> tuple[dict[str, str], str]:
        """The params and the note of a trial, which may change after it has ended.

        Params are the options of its sweep, its variant, and the fields that --override names or in which the sweep's
        trials differ; config.json has the whole config. The note (Markdown) describes the trial, the votes of people on
        its images, and the command that runs it again.
        """
        config, settings, variant = flat(trial["config"]), self.manifest["settings"], trial["config"]["variant"]
        shown = self.varied | {f"recipe.{change.partition('=')[0]}" for change in settings.get("override", ())}
        own = {name: value for name, value in config.items() if name in shown or name.startswith("variant.")}
        shared = {name: value for name, value in settings.items() if name not in ("override", "cuts", "weights")}
        cuts, losses = variant["cuts"], [f"{name} x {value:g}" for name, value in variant["weights"].items() if value]
        parts = [f"A stack of {len(cuts) + 1} GANs, cut at {', '.join(cuts)}" if cuts else "One GAN"]
        parts += ["trained one by one and then jointly"] if variant["joint"] else []
        parts += [f"losses {', '.join(losses)}", *([] if variant["labels"] else ["without labels"])]
        parts += [f"{name} = {value} (against {trial['base']})" for name, value in trial["changes"].items()]
        tally, seed = self.votes.get(trial["name"]), trial["seed"]
        seen = f"Visual Turing test: {tally}.\n\n" if tally else ""
        command = f"python sweeps/ablation.py {trial['rerun']} --seeds 1 --first-seed {seed}"
        again = f"Run it again:\n\n    {command} --store {shlex.quote(self.store.address)}"
        note = f"**{trial['title']}**, seed {seed}. {', '.join(parts)}.\n\n{seen}{again}"
        return as_params({**shared, **own, "seed": seed}), note

    def key(self, trial: Mapping[str, Any]) -> str:
        return content_key(self.about(trial))

    def view(self, trial: Mapping[str, Any], state: State) -> View:
        """The content of a trial's run except for its files.

        Raises:
            StoreError: the record of a finished stage is damaged.
        """
        store, metrics, records = self.store, list[Metric](), records_of(self.store, trial)
        before = 0  # images of earlier stages that make images: those of all seeds, so that means of curves are smooth
        for stage in trial["stages"]:
            label, done = stage["label"], store.has(stage["name"])
            curves = () if of_real_features(trial, label) else HEADLINES
            for line in records.get(label, ()):
                images = line["images"]
                for key, value in line["metrics"].items():
                    name, step = (key, before + images) if key in curves else (f"{label}/{key}", images)
                    metrics += as_metrics({name: value}, line["time"], step)
            if not done and label not in SHARED:
                break  # the stage was deleted: the first step of the next one is unknown
            facts = store.facts(stage["name"]) if done else {}
            before += facts["images"] if facts.get("generator_images") else 0
        params, note = self.about(trial)
        tags = {name: str(trial[name]) for name in TAGS}
        tags |= {name: str(self.manifest["settings"][name]) for name in ("dataset", "recipe")}
        tags |= {runs.NAME: f"{trial['variant']} seed {trial['seed']}", runs.NOTE: note, "outcome": state.outcome}
        tags |= {"alarm": alarm_of(store, trial, state) or "none", "mlflow.loggedImages": "True"}  # shows the images
        tags |= _origin(self.manifest, state.facts[-1]["commit"] if state.facts else self.manifest["commit"])
        scores = []
        # Final scores are one image after the last evaluation, which has fewer samples.
        for key, value in (scores_of(state) if state.outcome == "done" else {}).items():
            name, step = (key, before + 1) if key in HEADLINES else (f"{FINAL}{key}", 0)
            scores += as_metrics({name: value}, state.end, step)
        return View(metrics, params, tags, scores)

    def files(self, trial: Mapping[str, Any]) -> Files:
        """The sample grids of a trial, and the figures and models of its finished stages."""
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
        """The grids of a stage in progress, each of which is there as a whole or not at all."""
        folder = self.store.look(name)
        found = [f"{GRIDS}/{path.name}" for path in (folder / GRIDS).glob("*.png") if path.stem.isdecimal()]
        return [file for file in found if is_plain(folder, file)]


def image_file(label: str, images: int) -> str:
    """Path in a run of the grid that a stage drew after this number of images. MLflow's image slider reads this form of
    name. `MlflowClient.log_image` writes a random part into it; here a grid that is sent again replaces itself."""
    key = f"{label}+step+{images}"
    return f"{IMAGES}/{key}+timestamp+0+{uuid.uuid5(uuid.NAMESPACE_OID, key)}.png"


def lay_out(store: Store, trial: Mapping[str, Any], files: Files, folder: Path) -> None:
    """Copy files of a trial into `folder`, under their paths in its run, with its config.json.

    Raises:
        StoreError: a file of a finished stage is damaged.
    """
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(trial["config"], indent=1))
    for name, (stage, file) in files.items():
        copy = inside(folder, name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(store.file(stage, file) if store.has(stage) else store.look(stage) / file, copy)
        if name.startswith(f"{IMAGES}/"):
            with Image.open(copy) as image:
                image.save(copy.with_name(f"{copy.stem}{SMALL}"), method=0)  # fast rather than small


def lacking(client: MlflowClient, run: Run, store: Store, files: Files) -> Files:
    """The files that MLflow does not list, or lists with another size."""
    listed = [file for part in (IMAGES, FIGURES) for file in client.list_artifacts(run.info.run_id, part)]
    there, model = {file.path: file.file_size for file in listed}, logged_model(client, run)
    if model:
        folders = [f"data/{MODELS}/{which}" for which in ("last", "best")]
        stacks = [file for each in folders for file in client.list_logged_model_artifacts(model.model_id, each)]
        there |= {file.path.removeprefix("data/"): file.file_size for file in stacks}

    def shown(name: str, stage: str, file: str) -> bool:
        path = store.look(stage) / file
        size = path.stat().st_size if path.exists() else None  # a bucket's weights are not fetched to compare
        small = f"{name.removesuffix('.png')}{SMALL}"
        return name in there and size in (None, there[name]) and (not name.startswith(IMAGES) or small in there)

    return {name: source for name, source in files.items() if not shown(name, *source)}


def log_dataset(client: MlflowClient, run: Run, trial: Mapping[str, Any]) -> None:
    """Log the dataset of a trial to its run, unless the run has one."""
    if not (run.inputs and run.inputs.dataset_inputs):
        name, source = trial["config"]["dataset"]["name"], json.dumps({"digest": trial["config"]["data"]})
        dataset = Dataset(name, trial["config"]["data"][:36], "local", source)
        client.log_inputs(run.info.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def write_views(client: MlflowClient, experiment: str, manifest: Mapping[str, Any]) -> None:
    """Save the views of a sweep, unless the experiment already has them unchanged.

    Each view is a tag of the experiment, in the form that the button "Save view" of MLflow's page writes. A version of
    MLflow that does not know this form shows all runs.
    """
    held = client.get_experiment(experiment).tags
    for end, name in (("", manifest["title"]), (CHARTS, f"{manifest['title']}: charts")):
        when = runs.milliseconds(manifest["started"])
        state = json.dumps(_state(manifest, bool(end)), separators=(",", ":")).encode()
        packed = f"deflate;{base64.b64encode(zlib.compress(state, 9)).decode()}"
        value = json.dumps({"name": name, "createdAt": when, "updatedAt": when, "state": packed})
        if held.get(f"{VIEW}{manifest['key']}{end}") != value:
            client.set_experiment_tag(experiment, f"{VIEW}{manifest['key']}{end}", value)


def _state(manifest: Mapping[str, Any], charts: bool) -> dict[str, Any]:
    """The state of the page for a sweep: a group per variant, means over seeds, the best by the leading score first.
    For fields that are not here, the page takes its defaults."""
    leading = manifest.get("score", LEADING)
    confirmed = "" if all(row["phase"] == "explore" for row in manifest["trials"]) else " AND tags.phase != 'explore'"
    return {
        "searchFilter": f"tags.`{runs.SWEEP}` = '{manifest['key']}' AND tags.`{runs.TRIAL}` != ''{confirmed}",
        "orderByKey": f"metrics.`{leading}`",
        "orderByAsc": MEASURES[leading].better == "lower",
        "selectedColumns": [f"metrics.`{name}`" for name in COLUMNS],
        "columnOrder": [RUN_NAME, *(f"metrics.`{name}`" for name in COLUMNS)],
        "columnWidths": {RUN_NAME: 260},
        "runsHiddenMode": "SHOW_ALL",
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "variant"}]},
        "groupsExpanded": {f"tag.variant.{each['name']}": False for each in manifest["variants"]},
        **(_charts("Over training images", "At the end") if charts else {}),
    }


def _charts(curves: str, values: str) -> dict[str, Any]:
    """Curves of the headline scores over the training images of all stages that make images, their last values, and
    diversity against the leading score; in two sections."""
    axes = {place: {"key": name, "type": "METRIC"} for place, name in (("xaxis", LEADING), ("yaxis", COLUMNS[-1]))}

    def plain(name: str) -> dict[str, Any]:  # not smoothed; a few bad early scores do not press the rest to one line
        return {"lineSmoothness": 0, "scaleType": "log" if name == LEADING else "linear"}

    charts: list[dict[str, Any]] = [
        *({"type": "LINE", "metricKey": name, "metricSectionId": curves, **plain(name)} for name in HEADLINES),
        *({"type": "BAR", "metricKey": name, "metricSectionId": values} for name in COLUMNS),
        {"type": "SCATTER", **axes, "metricSectionId": values},
    ]
    shared = {"deleted": False, "isGenerated": False, "runsCountToCompare": 100}
    return {
        "compareRunCharts": [shared | chart | {"uuid": f"chart{place}"} for place, chart in enumerate(charts)],
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "isReordered": True, "deleted": False, "isGenerated": False}
            for name in (curves, values)
        ],
        "isAccordionReordered": True,
    }
