"""The run of a sweep: its settings, means over seeds, and the report."""

import statistics
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlflow.entities import Run

from sgan.checks import ConfigError
from sgan.store.files import is_plain
from sgan.store.local import Store
from sweeps.mlflow_view import runs
from sweeps.mlflow_view.runs import View, as_metrics, as_params
from sweeps.mlflow_view.trial import HEADLINES
from sweeps.planning import config_file
from sweeps.planning import manifest as manifests
from sweeps.planning.config_file import BEST, BestConfig

REPORT, TEXT = "report.html", "report.md"
"""Files of a sweep in the store, beside its record: the report, and its verdict and tables alone."""


def view(store: Store, manifest: Mapping[str, Any], run: Run) -> View:
    """What the run of a sweep shows, but for its files."""
    folder, metrics = manifests.folder(store, manifest["key"]), {}
    for judge in filter(store.has, manifest["judges"]):  # a later one's scores stand
        facts = store.facts(judge)
        scores = {f"real/{name}": value for name, value in facts["scores"].items()}
        metrics |= {metric.key: metric for metric in as_metrics(scores, facts["finished"])}
    for name, columns in _scores(store, manifest).items():
        for score, values in columns.items():
            spread = {"std": statistics.stdev(values)} if len(values) > 1 else {}
            numbers = {"mean": statistics.fmean(values)} | spread
            means = {f"{score}/{kind}/{name}": value for kind, value in numbers.items()}
            # A step is a number of seeds: MLflow shows the value at the last step, which is the mean over the most.
            metrics |= {metric.key: metric for metric in as_metrics(means, manifest["started"], len(values))}
    text = (folder / TEXT).read_text() if is_plain(folder, TEXT) else manifest["title"]
    page = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}/artifacts/{REPORT}"
    link = f"[Report]({page})" if is_plain(folder, REPORT) else ""
    tags = {
        runs.NAME: manifest["title"],
        runs.NOTE: f"{link}\n\n{text}",
        **{name: str(manifest["settings"][name]) for name in ("dataset", "recipe")},
        **{f"sgan.{name}": manifest[name] for name in ("command", "machine")},
        **runs.origin(manifest, manifest["commit"]),
    }
    return View(list(metrics.values()), as_params(manifest["settings"]), tags)


def files(store: Store, manifest: Mapping[str, Any]) -> dict[str, Path]:
    """The report and the chosen config of a sweep, by their paths in its run."""
    folder = manifests.folder(store, manifest["key"])
    found = {REPORT: folder / REPORT} if is_plain(folder, REPORT) else {}
    return found | ({BEST: store.root / BEST} if chosen(store, manifest["key"]) else {})


def chosen(store: Store, sweep_key: str) -> BestConfig | None:
    """The store's best.yaml, if it is of this sweep, and whole."""
    store.fetch(store.root / BEST)
    with suppress(ConfigError):
        best = config_file.read(store.root / BEST) if is_plain(store.root, BEST) else None
        return best if best and best.provenance.get("sweep") == sweep_key else None
    return None


def _scores(store: Store, manifest: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Variant -> score -> its values over the finished seeds that did not choose the config."""
    found: dict[str, dict[str, list[float]]] = {}
    for trial in manifest["trials"]:
        if trial["phase"] != "explore" and store.has(trial["name"]):
            for name in HEADLINES:
                value = store.facts(trial["name"])["scores"].get(name)
                if value is not None:
                    found.setdefault(trial["variant"], {}).setdefault(name, []).append(value)
    return found
