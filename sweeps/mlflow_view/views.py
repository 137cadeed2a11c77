"""Saved views of MLflow's page: what a sweep's link opens. Each is a tag of the experiment that MLflow's page reads, in
the form in which its button "Save view" writes it; another version of MLflow that does not know it shows all runs."""

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient

from sgan.evaluation.measures import LEADING, measure
from sweeps.mlflow_view.connection import VIEW
from sweeps.mlflow_view.content import FINAL, HEADLINES
from sweeps.mlflow_view.runs import SWEEP, TRIAL, milliseconds

CHARTS = "-charts"
"""End of the key of the view with charts."""
RUN_NAME = "attributes.`Run Name`"
COLUMNS = (*HEADLINES, f"{FINAL}diversity")


def write(client: MlflowClient, experiment: str, manifest: Mapping[str, Any]) -> None:
    """Save the views of a sweep, unless the experiment has them as they are."""
    held = client.get_experiment(experiment).tags
    for end, name in (("", manifest["title"]), (CHARTS, f"{manifest['title']}: charts")):
        when = milliseconds(manifest["started"])
        state = json.dumps(_state(manifest, bool(end)), separators=(",", ":")).encode()
        packed = f"deflate;{base64.b64encode(zlib.compress(state, 9)).decode()}"
        value = json.dumps({"name": name, "createdAt": when, "updatedAt": when, "state": packed})
        if held.get(f"{VIEW}{manifest['key']}{end}") != value:
            client.set_experiment_tag(experiment, f"{VIEW}{manifest['key']}{end}", value)


def _state(manifest: Mapping[str, Any], charts: bool) -> dict[str, Any]:
    """The trials of a sweep, a group a variant: means over seeds, the best by the leading score first."""
    confirmed = "" if all(row["phase"] == "explore" for row in manifest["trials"]) else " AND tags.phase != 'explore'"
    return {
        "searchFilter": f"tags.`{SWEEP}` = '{manifest['key']}' AND tags.`{TRIAL}` != ''{confirmed}",
        "orderByKey": f"metrics.`{LEADING}`",
        "orderByAsc": measure(LEADING).better == "lower",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [f"metrics.`{name}`" for name in COLUMNS],
        "columnOrder": [RUN_NAME, *(f"metrics.`{name}`" for name in COLUMNS)],
        "columnWidths": {RUN_NAME: 260},
        "runsHiddenMode": "SHOW_ALL",
        "viewMaximized": False,
        "runListHidden": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "variant"}]},
        "groupsExpanded": {f"tag.variant.{each['name']}": False for each in manifest["variants"]},
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        **(_charts("Over generator images", "At the end") if charts else {}),
    }


def _charts(curves: str, values: str) -> dict[str, Any]:
    """Curves of the headline scores over the images that the generator has seen, their last values, and diversity
    against the leading score; in two sections."""
    axes = {place: {"key": name, "type": "METRIC"} for place, name in (("xaxis", LEADING), ("yaxis", COLUMNS[-1]))}
    charts: list[dict[str, Any]] = [
        *({"type": "LINE", "metricKey": name, "metricSectionId": curves} for name in HEADLINES),
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
