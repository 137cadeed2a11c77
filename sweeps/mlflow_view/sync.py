"""Brings MLflow level with the output store. Each pass may be cut off anywhere, and be made again at any time."""

import json
import shlex
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Run

from sgan.addresses import masked
from sgan.checks import content_key
from sgan.store.files import StoreError, sha256
from sgan.store.local import FIGURES, MODELS, Store
from sgan.store.votes import curves
from sweeps.mlflow_view import model, runs, sweep, views
from sweeps.mlflow_view.connection import VARIABLE, default_uri, error_line, experiment_id, limited, prepare
from sweeps.mlflow_view.trial import (
    Votes,
    begun,
    files_of,
    is_shown,
    link,
    log_dataset,
    note_of,
    params_of,
    people,
    varied,
    view,
    write_files,
)
from sweeps.planning import manifest as manifests
from sweeps.planning.state import State, state_of


def sync(store: Store, sweep_key: str, uri: str, live: bool = False) -> bool:
    """One pass: send what the store has of a sweep and MLflow lacks; returns whether every trial has ended.

    Args:
        live: the sweep runs. Trials that have not ended are RUNNING then, otherwise KILLED; and files that were sent
            are not looked for again.
    Raises:
        StoreError: a file of the sweep is damaged. All trials but those that need it have been sent.
        Exception: MLflow cannot be reached, answers nonsense, or takes too long.
    """
    if not live:
        store.renew()
    prepare(store, uri)
    with store.lock(f"mlflow-{sweep_key}"):  # two passes at once, of two drivers, would make runs twice
        return _Pass(MlflowClient(uri), store, manifests.read(store, sweep_key), live).send(uri)


@dataclass(frozen=True)
class _Pass:
    client: MlflowClient
    store: Store
    manifest: dict[str, Any]
    live: bool

    def send(self, uri: str) -> bool:
        """As `sync`."""
        client, store, key, started = self.client, self.store, self.manifest["key"], self.manifest["started"]
        experiment = experiment_id(client, uri)
        parent, children = runs.find(client, key)
        if parent is None:
            tags, title = {runs.SWEEP: key}, self.manifest["title"]
            parent = client.create_run(experiment, runs.milliseconds(started), tags, title)
        views.write(client, experiment, self.manifest)
        names, votes = varied(self.manifest["trials"]), curves(store)
        outcomes, end, damage = set(), started, None
        for trial in self.manifest["trials"]:
            run, about = children.get(trial["run"]), self.about(trial, names, votes.get(trial["name"], ()))
            try:
                if run and store.has(trial["name"]) and self.has_all(run, trial, about, parent):
                    end = max(end, (run.info.end_time or 0) / 1000)
                    continue
                state = state_of(store, trial, self.live)
                if run or begun(store, trial, state):
                    run = self.send_trial(trial, state, parent, run, about)
                    store.note_run(run.info.run_id, trial["name"])
                outcomes.add(state.outcome)
                end = max(end, state.end)
            except StoreError as error:
                damage = damage or error
        outcome = next((name for name in ("running", "interrupted", "failed") if name in outcomes), "done")
        self.send_sweep(parent, "running" if self.live else outcome, end)
        self.register(parent)
        if damage:
            raise damage
        return outcome in ("done", "failed")

    def about(self, trial: Mapping[str, Any], names: set[str], votes: Votes) -> dict[str, Any]:
        """The params, the note and the votes of a trial's run, and their key: what may change after it has ended."""
        params, note = params_of(self.manifest, trial, names), note_of(self.store, trial, votes)
        return {"params": params, "note": note, "votes": people(votes), "key": content_key([params, note])}

    def has_all(self, run: Run, trial: Mapping[str, Any], about: Mapping[str, Any], parent: Run) -> bool:
        """Whether the run of a trial that is done has all of it."""
        tags = run.data.tags
        sent = json.loads(tags.get(runs.SENT, "{}")).get("about") == about["key"]
        whole = sent and tags.get("outcome") == "done" and tags.get(runs.PARENT) == parent.info.run_id
        return whole and (self.live or is_shown(self.client, run, self.store, trial))

    def register(self, parent: Run) -> None:
        """Register the model of the trial that best.yaml names, and mark its run, if that has not been done."""
        best = sweep.chosen(self.store, self.manifest["key"])
        query = f"tags.`{runs.TRIAL}` = '{best.provenance.get('run')}'" if best else ""
        for run in self.client.search_runs([parent.info.experiment_id], query) if best else ():
            if "best" not in run.data.tags:
                name = f"sgan-{self.manifest['settings']['dataset']}"
                version = model.register(self.client, run, name)
                self.client.set_tag(run.info.run_id, "best", f"{name}, version {version}")

    def send_sweep(self, run: Run, outcome: str, end: float) -> None:
        """Send what is new of the sweep itself."""
        new = sweep.view(self.store, self.manifest, run.info.experiment_id, run.info.run_id)
        sent = content_key({name: sha256(path) for name, path in new.files.items()})
        if new.files and run.data.tags.get(runs.SENT) != sent:
            with tempfile.TemporaryDirectory() as folder:
                link(new.files, Path(folder))
                self.client.log_artifacts(run.info.run_id, folder)
        runs.set_status(self.client, run, outcome, end)
        metrics = [metric for metric in new.metrics if run.data.metrics.get(metric.key) != metric.value]
        runs.log(self.client, run, metrics, replace(new, tags={**new.tags, "outcome": outcome, runs.SENT: sent}))

    def send_trial(
        self, trial: Mapping[str, Any], state: State, parent: Run, run: Run | None, about: Mapping[str, Any]
    ) -> Run:
        """Send what is new of a trial; returns its run, which is made if there is none."""
        done = state.outcome == "done"
        held = run.data.tags if run else {}  # of one that was done before, something is not as it was: all is sent
        sent = {} if held.get("outcome") == "done" else json.loads(held.get(runs.SENT, "{}"))
        new = view(self.store, self.manifest, trial, state, sent)
        end = max([state.end, *new.times]) or time.time()
        if run is None:
            tags = {runs.SWEEP: self.manifest["key"], runs.TRIAL: trial["run"]}
            begin = runs.milliseconds(min(new.times, default=end))
            run = self.client.create_run(parent.info.experiment_id, begin, tags, new.tags[runs.NAME])
        if new.grids or done or not sent:
            figures = files_of(self.store, trial, FIGURES) if done else {}
            with tempfile.TemporaryDirectory() as folder:
                write_files(trial, new.grids, figures, run.info.start_time, Path(folder))
                self.client.log_artifacts(run.info.run_id, folder)
        metrics = [*new.metrics, *about["votes"]]
        if done:
            with tempfile.TemporaryDirectory() as folder:
                link(files_of(self.store, trial, MODELS), Path(folder))
                made = model.log_model(self.client, run, Path(folder, MODELS), about["params"])
            metrics += [Metric(each.key, each.value, each.timestamp, each.step, made) for each in new.scores]
        log_dataset(self.client, run, trial)
        runs.set_status(self.client, run, state.outcome, end)
        tags = {**new.tags, runs.PARENT: parent.info.run_id, runs.NOTE: about["note"]}
        tags[runs.SENT] = json.dumps({**new.sent, "about": about["key"]})
        if state.reason or "reason" in run.data.tags:
            tags["reason"] = state.reason[:1000]
        runs.log(self.client, run, metrics, replace(new, params=about["params"], tags=tags))
        return run


def attempt(store: Store, sweep_keys: Iterable[str], uri: str, live: bool = False) -> str:
    """Send sweeps as `sync` does; returns one line that says what went wrong and what to do, "" where all was sent."""
    trouble = ""
    for key in sweep_keys:
        try:
            with limited():
                sync(store, key, uri, live)
        except StoreError as error:  # a sweep that is damaged holds no other up
            trouble = trouble or str(error)
        except Exception as error:  # whatever MLflow's client makes of an answer
            trouble = error_line(error)
            break
    return trouble and later(store, uri, trouble)


def later(store: Store, uri: str, trouble: str) -> str:
    """A line that says why MLflow did not get everything, and how to send the rest."""
    command = f"python sweeps/tracking.py sync {shlex.quote(masked(store.address))}"
    if uri == default_uri(store):
        command += " (if mlflow.db is damaged, delete it first)"
    elif masked(uri) != uri:
        command += f" (with ${VARIABLE}, whose password is not shown here)"
    else:
        command += f" --mlflow {shlex.quote(uri)}"
    return f"MLflow did not get everything: {masked(trouble)}; send it later with: {command}"
