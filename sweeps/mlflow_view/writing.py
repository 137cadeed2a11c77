"""Writes to one MLflow run: points, params, tags, files and status, so that what is sent again after a crash lands on
itself."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from sgan.store.files import sync
from sweeps.mlflow_view.connection import LONGEST_PARAM, STATUS, module
from sweeps.mlflow_view.trial_view import WRITTEN_AT, Point, milliseconds

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ENTITIES_A_CALL, PARAMS_A_CALL = 1000, 100  # MLflow's limits


def settle(run: "Run", sent: Path) -> None:
    """Have files that were sent to a folder of this machine on the disk itself, before a tag says that they are there:
    a power cut would leave them empty."""
    place = urlsplit(str(run.info.artifact_uri))
    if place.scheme == "file":
        root = Path(url2pathname(place.path))
        for path in sent.rglob("*"):
            if path.is_file():
                sync(root / path.relative_to(sent))


def leave_out_images(client: "MlflowClient", run: "Run", images: Path) -> None:
    """Take away the grids that a run has under the name of another time; as for `lacking`."""
    there = {Path(file.path).name for file in client.list_artifacts(run.info.run_id, "images")}
    plain = {WRITTEN_AT.sub("", name) for name in there}
    for path in list(images.glob("*")):
        if path.name not in there and WRITTEN_AT.sub("", path.name) in plain:
            path.unlink()


def lacking(client: "MlflowClient", run: "Run", points: list[Point]) -> list[Point]:
    """The points that a run has not. Where a pass was cut off between the points and the tag that says so, a stage that
    was killed too may have made them again since, at another time: MLflow would keep both."""
    steps = {
        key: {point.step for point in client.get_metric_history(run.info.run_id, key)}
        for key in {point.metric for point in points} & set(run.data.metrics)
    }
    return [point for point in points if point.step not in steps.get(point.metric, ())]


def log(
    client: "MlflowClient", run: "Run", points: list[Point], params: Mapping[str, Any], tags: Mapping[str, Any]
) -> None:
    """Log to a run, in as few calls as MLflow takes: the params it lacks (they are immutable), points, and last the
    tags, which say what it has: within a call too MLflow writes them in this order. `run` then has the tags."""
    entities, run_id = module().entities, run.info.run_id
    new = [entities.Param(name, str(value)[:LONGEST_PARAM]) for name, value in params.items()]
    new = [param for param in new if param.key not in run.data.params]
    changed = [entities.RunTag(name, value) for name, value in tags.items() if run.data.tags.get(name) != value]
    # The newest first: else MLflow writes what is newest of a metric anew with every point.
    newest = sorted(points, key=lambda point: (point.step, point.seconds), reverse=True)
    metrics = [entities.Metric(each.metric, each.value, milliseconds(each.seconds), each.step) for each in newest]
    while len(new) > PARAMS_A_CALL:
        client.log_batch(run_id, params=new[:PARAMS_A_CALL])
        del new[:PARAMS_A_CALL]
    while len(new) + len(changed) + len(metrics) > ENTITIES_A_CALL:
        client.log_batch(run_id, metrics=metrics[:ENTITIES_A_CALL])
        del metrics[:ENTITIES_A_CALL]
    if new or changed or metrics:
        client.log_batch(run_id, metrics, new, changed)
    run.data.tags.update({tag.key: tag.value for tag in changed})


def set_status(client: "MlflowClient", run: "Run", outcome: str, end: float) -> None:
    """Set the status that a run of this outcome has, and its end (unix seconds)."""
    status = STATUS[outcome]
    if status == "RUNNING" != run.info.status:
        client.update_run(run.info.run_id, status=status)
    elif status != run.info.status:
        client.set_terminated(run.info.run_id, status, milliseconds(end))
