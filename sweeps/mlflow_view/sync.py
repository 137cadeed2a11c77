"""Brings MLflow level with the output store. Each pass may be cut off anywhere, and be made again at any time."""

import json
import shlex
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from sgan.checks import content_key
from sgan.store.files import StoreError, is_plain, sha256
from sgan.store.local import Store
from sweeps.mlflow_view import runs
from sweeps.mlflow_view.connection import ERRORS, default_uri, error_line, experiment_id
from sweeps.mlflow_view.trial import as_metrics, begun, shared_tags, view, write_files
from sweeps.planning import manifest as manifests
from sweeps.planning.state import State, state_of


def sync(store: Store, sweep_key: str, uri: str, live: bool = False) -> bool:
    """One pass: send what the store has of a sweep and MLflow lacks; returns whether every trial has ended.

    Args:
        live: the sweep runs. Trials that have not ended are RUNNING then, otherwise KILLED.
    Raises:
        StoreError: a file of the sweep is damaged. All trials but those that need it have been sent.
        OSError, MlflowException, SQLAlchemyError: MLflow cannot be reached.
    """
    if not live:
        store.renew()
    update = _Pass(MlflowClient(uri), store, manifests.read(store, sweep_key))
    with store.lock(f"mlflow-{sweep_key}"):  # two passes at once, of two drivers, would make runs twice
        return update.send(uri, live)


@dataclass(frozen=True)
class _Pass:
    client: MlflowClient
    store: Store
    manifest: dict[str, Any]

    def send(self, uri: str, live: bool) -> bool:
        """As `sync`."""
        client, store, key, started = self.client, self.store, self.manifest["key"], self.manifest["started"]
        experiment = experiment_id(client, store, uri)
        parent, children = runs.find(client, key)
        if parent is None:
            tags, title = {runs.SWEEP: key}, self.manifest["title"]
            parent = client.create_run(experiment, runs.milliseconds(started), tags, title)
        current = {runs.PARENT: parent.info.run_id, "outcome": "done"}.items()
        self.send_sweep(parent)
        outcomes, end, damage = set(), started, None
        for trial in self.manifest["trials"]:
            run = children.get(trial["run"])
            if run and current <= run.data.tags.items() and store.has(trial["name"]):
                end = max(end, (run.info.end_time or 0) / 1000)
                continue
            try:
                state = state_of(store, trial, live)
                if run or begun(store, trial, state):
                    run = self.send_trial(trial, state, parent, run)
                    store.note_run(run.info.run_id, trial["name"])
                outcomes.add(state.outcome)
                end = max(end, state.end)
            except StoreError as error:
                damage = damage or error
        if damage:
            raise damage
        outcome = next((name for name in ("running", "interrupted", "failed") if name in outcomes), "done")
        runs.set_status(client, parent, "running" if live else outcome, end)
        runs.log(client, parent, [], {}, {"outcome": "running" if live else outcome})
        return outcome in ("done", "failed")

    def send_sweep(self, run: Run) -> None:
        """Send what is new of the sweep itself: its settings, the scores of real images, and a search's plots."""
        manifest, metrics = self.manifest, {}
        folder = manifests.folder(self.store, manifest["key"]) / "plots"
        plots = [path for path in sorted(folder.glob("*.png")) if is_plain(folder, path.name)]
        sent = content_key([manifest, {path.name: sha256(path) for path in plots}])
        for path in plots if run.data.tags.get(runs.SENT) != sent else ():
            self.client.log_artifact(run.info.run_id, str(path), "plots")
        for judge in filter(self.store.has, manifest["judges"]):  # a later one's scores stand
            facts = self.store.facts(judge)
            scores = {f"real/{name}": value for name, value in facts["scores"].items()}
            metrics |= {metric.key: metric for metric in as_metrics(scores, facts["finished"])}
        new = [metric for metric in metrics.values() if run.data.metrics.get(metric.key) != metric.value]
        tags = {name: manifest[name] for name in ("command", "commit", "machine")} | shared_tags(manifest)
        runs.log(self.client, run, new, manifest["settings"], {**tags, runs.SENT: sent})

    def send_trial(self, trial: Mapping[str, Any], state: State, parent: Run, run: Run | None) -> Run:
        """Send what is new of a trial; returns its run, which is made if there is none."""
        sent = json.loads(run.data.tags.get(runs.SENT, "{}")) if run else {}
        new = view(self.store, self.manifest, trial, state, sent)
        end = max([state.end, *new.times]) or time.time()
        if run is None:
            tags = {runs.SWEEP: self.manifest["key"], runs.TRIAL: trial["run"]}
            begin, title = runs.milliseconds(min(new.times, default=end)), f"{trial['variant']} seed {trial['seed']}"
            run = self.client.create_run(parent.info.experiment_id, begin, tags, title)
        if new.grids or state.outcome == "done" or not sent:
            with tempfile.TemporaryDirectory() as folder:
                write_files(self.store, trial, state, new.grids, run.info.start_time, Path(folder))
                self.client.log_artifacts(run.info.run_id, folder)
        runs.set_status(self.client, run, state.outcome, end)
        tags = {**new.tags, runs.PARENT: parent.info.run_id, runs.SENT: json.dumps(new.sent)}
        tags["outcome"] = state.outcome
        if state.reason or "reason" in run.data.tags:
            tags["reason"] = state.reason[:1000]
        runs.log(self.client, run, new.metrics, new.params, tags)
        return run


def attempt(store: Store, sweep_keys: Iterable[str], uri: str, live: bool = False) -> str:
    """Send sweeps as `sync` does; returns one line that says what went wrong and what to do, "" where all was sent."""
    trouble = ""
    for key in sweep_keys:
        try:
            sync(store, key, uri, live)
        except StoreError as error:  # a sweep that is damaged holds no other up
            trouble = trouble or str(error)
        except ERRORS as error:
            trouble = error_line(error)
            break
    where = (
        " (if mlflow.db is damaged, delete it first)" if uri == default_uri(store) else f" --mlflow {shlex.quote(uri)}"
    )
    command = f"python sweeps/tracking.py sync {shlex.quote(store.address)}{where}"
    return trouble and f"MLflow did not get everything: {trouble}; send it later with: {command}"
