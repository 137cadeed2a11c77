"""The run of a sweep: its settings, a table of means over seeds, the report, and a search's plots."""

import statistics
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sgan.checks import ConfigError
from sgan.evaluation.measures import measure
from sgan.store.files import is_plain, sha256
from sgan.store.local import Store
from sweeps.mlflow_view import runs
from sweeps.mlflow_view.runs import View, as_metrics, as_params
from sweeps.mlflow_view.trial import HEADLINES
from sweeps.planning import config_file
from sweeps.planning import manifest as manifests
from sweeps.planning.config_file import BEST, BestConfig

REPORT, VERDICT = "report.html", "verdict.md"
"""Files of a sweep in the store, beside its record: the report, and its first sentences."""


def view(store: Store, manifest: Mapping[str, Any], experiment: str, run: str) -> View:
    """What the run of a sweep shows; the ids are those of its address in MLflow's pages."""
    folder, metrics = manifests.folder(store, manifest["key"]), {}
    for judge in filter(store.has, manifest["judges"]):  # a later one's scores stand
        facts = store.facts(judge)
        scores = {f"real/{name}": value for name, value in facts["scores"].items()}
        metrics |= {metric.key: metric for metric in as_metrics(scores, facts["finished"])}
    scores = _scores(store, manifest)
    for name, columns in scores.items():
        for score, values in columns.items():
            spread = {"std": statistics.stdev(values)} if len(values) > 1 else {}
            numbers = {"mean": statistics.fmean(values)} | spread
            means = {f"{score}/{kind}/{name}": value for kind, value in numbers.items()}
            metrics |= {metric.key: metric for metric in as_metrics(means, manifest["started"])}
    files = {REPORT: folder / REPORT} if is_plain(folder, REPORT) else {}
    files |= {BEST: store.root / BEST} if chosen(store, manifest["key"]) else {}
    plots = {f"plots/{name}": (folder / "plots" / name, digest) for name, digest in manifest.get("plotted", {}).items()}
    for name, (path, digest) in plots.items():
        if is_plain(folder, name) and sha256(path)[:16] == digest:
            files[name] = path
    verdict = (folder / VERDICT).read_text() if is_plain(folder, VERDICT) else ""
    link = f"[Report](#/experiments/{experiment}/runs/{run}/artifacts/{REPORT})" if REPORT in files else ""
    tags = {
        runs.NAME: manifest["title"],
        runs.NOTE: "\n\n".join(filter(None, [verdict, _table(manifest, scores), link])),
        **{name: str(manifest["settings"][name]) for name in ("dataset", "recipe")},
        **{f"sgan.{name}": manifest[name] for name in ("command", "machine")},
        **runs.origin(manifest, manifest["commit"]),
    }
    return View(list(metrics.values()), as_params(manifest["settings"]), tags, files=files)


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


def _table(manifest: Mapping[str, Any], scores: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Mean and standard deviation over n seeds as Markdown, the best by the first score first; "" without a score."""
    names = [name for name in HEADLINES if any(name in columns for columns in scores.values())]
    rows = []
    for variant in manifest["variants"]:
        columns = scores.get(variant["name"], {})
        cells = [_cell(columns.get(name, ()), measure(name).decimals) for name in names]
        rows.append([variant["title"], *cells, str(max(map(len, columns.values()), default=0))])
    rows.sort(key=lambda row: float(row[1].partition(" ")[0]) if row[1:2] and row[1] != "–" else float("inf"))
    head = ["Variant", *(measure(name).heading for name in names), "n"]
    lines = [head, ["---"] * len(head), *rows] if names else []
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(values: list[float] | tuple[()], decimals: int) -> str:
    """Mean ± standard deviation."""
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{decimals}f}{spread}"
