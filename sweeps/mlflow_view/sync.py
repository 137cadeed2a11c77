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
from sgan.store.files import StoreError, sha256
from sgan.store.local import Store
from sweeps.mlflow_view import runs
from sweeps.mlflow_view.connection import ERRORS, connect, default_uri, error_line, experiment_id
from sweeps.mlflow_view.trial import as_metrics, begun, has_scores, shared_tags, view, write_files
from sweeps.planning import manifest as manifests
from sweeps.planning.state import State, state_of

CUT_OFF = "cut off"
"""Entry of the tag SENT while a pass sends metrics and files."""


def sync(store: Store, sweep_key: str, uri: str, live: bool = False) -> bool:
    """One pass: send what the store has of a sweep and MLflow lacks; returns whether every trial has ended.

    Args:
        live: the sweep runs. Trials that have not ended are RUNNING then, otherwise KILLED; and runs of finished trials
            are not compared with the store.
    Raises:
        StoreError: a file of the sweep is damaged. All trials but those that need it have been sent.
        OSError, MlflowException, SQLAlchemyError: MLflow cannot be reached.
    """
    update = _Pass(connect(uri), store, manifests.read(store, sweep_key))
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
        parent, children = runs.find(client, key)
        if parent is None:
            experiment = experiment_id(client, store, uri)
            times = {"start_time": runs.milliseconds(started)}
            parent = client.create_run(experiment, **times, tags={runs.SWEEP: key}, run_name=self.manifest["title"])
        self.send_sweep(parent)
        outcomes, end, damage = set(), started, None
        for trial in self.manifest["trials"]:
            run = children.get(trial["run"])
            finished = run is not None and run.data.tags.get("outcome") == "done"
            if finished and live and all(store.has(stage["name"]) for stage in trial["stages"]):
                continue
            try:
                state = state_of(store, trial, live)
                if run and finished and state.outcome == "done" and not has_scores(state, run.data.metrics):
                    client.delete_run(run.info.run_id)  # a stage was made again since, or a score altered by hand
                    run, finished = None, False
                if not finished and (run or begun(store, trial, state)):
                    run = self.send_trial(trial, state, parent, run)
                if run:
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
        manifest, metrics, fingerprint = self.manifest, {}, {}
        plots = manifests.folder(self.store, manifest["key"]) / "plots"
        sent = content_key([manifest, {path.name: sha256(path) for path in plots.glob("*")}])
        if run.data.tags.get(runs.SENT) != sent and plots.is_dir():
            self.client.log_artifacts(run.info.run_id, str(plots), "plots")
        for judge in filter(self.store.has, manifest["judges"]):  # a later one's scores stand
            facts = self.store.facts(judge)
            fingerprint |= facts["fingerprint"]
            scores = {f"real/{name}": value for name, value in facts["scores"].items()}
            metrics |= {metric.key: metric for metric in as_metrics(scores, facts["finished"])}
        new = [metric for metric in metrics.values() if run.data.metrics.get(metric.key) != metric.value]
        tags = {name: manifest[name] for name in ("command", "commit", "machine")} | shared_tags(manifest)
        tags |= {"fingerprint": json.dumps(fingerprint), runs.SENT: sent}
        runs.log(self.client, run, new, manifest["settings"], tags)

    def send_trial(self, trial: Mapping[str, Any], state: State, parent: Run, run: Run | None) -> Run:
        """Send what is new of a trial; returns its run, which is made if there is none."""
        sent = json.loads(run.data.tags.get(runs.SENT, f'{{"{CUT_OFF}": 1}}')) if run else {}
        cut_off = sent.pop(CUT_OFF, 0)
        new = view(self.store, self.manifest, trial, state, sent)
        begin = {runs.SENT: json.dumps({**sent, CUT_OFF: 1})}
        times = [metric.timestamp for metric in new.metrics] or [runs.milliseconds(state.end or time.time())]
        if run is None:
            tags = {runs.SWEEP: self.manifest["key"], runs.TRIAL: trial["run"], **begin}
            tags |= {"mlflow.parentRunId": parent.info.run_id}
            title = f"{trial['variant']} seed {trial['seed']}"
            run = self.client.create_run(parent.info.experiment_id, min(times), tags, title)
        if new.metrics:
            runs.log(self.client, run, [], {}, begin)
        if new.grids or state.outcome == "done" or not sent:
            with tempfile.TemporaryDirectory() as folder:
                write_files(self.store, trial, state, new.grids, run.info.start_time, Path(folder))
                self.client.log_artifacts(run.info.run_id, folder)
        # A trial that failed or was stopped ends with its last point, which may come after its last finished stage.
        last = max(times) / 1000 if state.outcome in ("failed", "interrupted") else 0.0
        runs.set_status(self.client, run, state.outcome, max(state.end, last))
        if "reason" in run.data.tags and not state.reason:
            self.client.delete_tag(run.info.run_id, "reason")
        reason = {"reason": state.reason[:1000]} if state.reason else {}
        tags = {**new.tags, **reason, runs.SENT: json.dumps(new.sent), "outcome": state.outcome}
        metrics = runs.without_repeats(self.client, run, new.metrics) if cut_off else new.metrics
        runs.log(self.client, run, metrics, new.params, tags)
        return run


def attempt(store: Store, sweep_keys: Iterable[str], uri: str, live: bool = False) -> str:
    """Send sweeps as `sync` does; returns one line that says what went wrong, "" where all was sent."""
    trouble = ""
    for key in sweep_keys:
        try:
            sync(store, key, uri, live)
        except StoreError as error:  # a sweep that is damaged holds no other up
            trouble = trouble or str(error)
        except ERRORS as error:
            trouble = error_line(uri, error)
            break
    return trouble and f"MLflow did not get everything: {trouble}"


def later(store: Store, uri: str) -> str:
    """How to send what is left."""
    server = "" if uri == default_uri(store) else f" --mlflow {shlex.quote(uri)}"
    return f"send it later with: python sweeps/tracking.py sync {shlex.quote(store.address)}{server}"
