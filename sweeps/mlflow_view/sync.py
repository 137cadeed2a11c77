"""Sends to MLflow what it lacks of the output store. A pass may be interrupted anywhere, and repeated at any time."""

import json
import shlex
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Run

from sgan.addresses import masked
from sgan.checks import content_key
from sgan.command_line import python
from sgan.store.files import StoreError, sha256, umask_of
from sgan.store.local import MODELS, Store
from sweeps.mlflow_view import content, runs
from sweeps.mlflow_view.connection import VARIABLE, default_uri, error_line, experiment_id, limited, prepare
from sweeps.mlflow_view.content import Trials, begun, lacking, lay_out, log_dataset
from sweeps.planning import manifest as manifests
from sweeps.planning.trials import State, state_of


def sync(store: Store, sweep_key: str, uri: str, live: bool = False) -> None:
    """One pass: send what the store has of a sweep and MLflow lacks.

    Args:
        live: whether the sweep is running. Trials that have not ended are then RUNNING, otherwise KILLED. Files that
            were sent are not checked again in a running sweep.
    Raises:
        StoreError: a file of the sweep is damaged. All trials but those that need it have been sent.
        Exception: MLflow cannot be reached, answers nonsense, or takes too long.
    """
    if not live:
        store.renew()
    prepare(store, uri)
    # Two passes at once, of two drivers, would create runs twice.
    with umask_of(store.root), store.lock(f"mlflow-{sweep_key}"):
        manifest = manifests.read(store, sweep_key)
        _Pass(MlflowClient(uri), store, manifest, Trials(store, manifest), live).send()


@dataclass(frozen=True)
class _Pass:
    client: MlflowClient
    store: Store
    manifest: dict[str, Any]
    trials: Trials
    live: bool

    def send(self) -> None:
        client, store, key, started = self.client, self.store, self.manifest["key"], self.manifest["started"]
        experiment = experiment_id(client)
        parent, children = runs.find(client, key)
        if parent is None:
            tags, title = {runs.SWEEP: key}, self.manifest["title"][: runs.LONGEST_NAME]
            parent = client.create_run(experiment, runs.milliseconds(started), tags, title)
        content.write_views(client, experiment, self.manifest)
        outcomes, end, damage = set(), started, None
        for trial in self.manifest["trials"]:
            run = children.get(trial["run"])
            try:
                if run and store.has(trial["name"]) and self.has_all(run, trial, parent):
                    end = max(end, (run.info.end_time or 0) / 1000)
                    continue
                state = state_of(store, trial, self.live)
                if run or begun(store, trial, state):
                    run = self.send_trial(trial, state, parent, run)
                    store.note_run(run.info.run_id, trial["name"])
                outcomes.add(state.outcome)
                end = max(end, state.end)
            except StoreError as error:
                damage = damage or error
        outcome = next((name for name in ("interrupted", "failed") if name in outcomes), "done")
        self.send_sweep(parent, "running" if self.live else outcome, end)
        self.register(parent)
        if damage:
            raise damage

    def has_all(self, run: Run, trial: Mapping[str, Any], parent: Run) -> bool:
        """Whether the run of a finished trial has all of it."""
        tags = run.data.tags
        sent = json.loads(tags.get(runs.SENT, "{}")).get("about") == self.trials.key(trial)
        whole = sent and tags.get("outcome") == "done" and tags.get(runs.PARENT) == parent.info.run_id
        return whole and (self.live or not lacking(self.client, run, self.store, self.trials.files(trial)))

    def register(self, parent: Run) -> None:
        """Register the model of the trial that best.yaml names, and mark its run and no other, unless it is so."""
        best = content.chosen(self.store, self.manifest["key"])
        run = runs.find(self.client, self.manifest["key"])[1].get(best.provenance.get("run", "")) if best else None
        model = runs.logged_model(self.client, run) if run else None
        if run is None or model is None:  # without a model the trial is damaged, and `send` says so
            return
        name = f"sgan-{self.manifest['settings']['dataset']}"
        marked = self.client.search_runs([parent.info.experiment_id], f"tags.best LIKE '{name}, %'")
        mark = f"{name}, version {runs.register(self.client, run, model, name)}"
        for other in (each for each in marked if each.info.run_id != run.info.run_id):
            self.client.delete_tag(other.info.run_id, "best")
        if run.data.tags.get("best") != mark:
            self.client.set_tag(run.info.run_id, "best", mark)

    def send_sweep(self, run: Run, outcome: str, end: float) -> None:
        view, files = content.sweep_view(self.store, self.manifest, run), content.sweep_files(self.store, self.manifest)
        sent = content_key({name: sha256(path) for name, path in files.items()})
        if run.data.tags.get(runs.SENT) != sent:
            for path in files.values():
                self.client.log_artifact(run.info.run_id, str(path))
        runs.set_status(self.client, run, outcome, end)
        metrics = [metric for metric in view.metrics if run.data.metrics.get(metric.key) != metric.value]
        runs.log(self.client, run, metrics, view, {"outcome": outcome, runs.SENT: sent})

    def send_trial(self, trial: Mapping[str, Any], state: State, parent: Run, run: Run | None) -> Run:
        """Send to MLflow what it lacks of a trial; returns its run, which is created if there is none."""
        client, store, view, files = self.client, self.store, self.trials.view(trial, state), self.trials.files(trial)
        held, done = run.data.tags if run else {}, state.outcome == "done"
        # A run that was done before differs from the store now: everything is sent.
        sent = {} if held.get("outcome") == "done" else json.loads(held.get(runs.SENT, "{}"))
        # A resumed stage repeats the points after its checkpoint: the first ones are kept.
        metrics = [metric for metric in view.metrics if metric.step > sent.get(_group(metric), -1)]
        times = [metric.timestamp / 1000 for metric in view.metrics]
        end = max([state.end, *times]) or time.time()
        changed = done or not sent or bool(metrics)
        new = {} if not changed else lacking(client, run, store, files) if run and sent else files
        models = {name: source for name, source in files.items() if name.startswith(f"{MODELS}/")}
        with tempfile.TemporaryDirectory() as folder:
            its_run, its_models = Path(folder, "run"), Path(folder, MODELS)
            lay_out(store, trial, new | models, its_run)
            if run is None:
                tags = {runs.SWEEP: self.manifest["key"], runs.TRIAL: trial["run"]}
                begin = runs.milliseconds(min(times, default=end))
                run = client.create_run(parent.info.experiment_id, begin, tags, view.tags[runs.NAME])
            if models:
                (its_run / MODELS).rename(its_models)
            if changed:
                client.log_artifacts(run.info.run_id, str(its_run))
            if done:
                made = runs.log_model(client, run, its_models, view.params)
                metrics += [Metric(each.key, each.value, each.timestamp, each.step, made) for each in view.scores]
        log_dataset(client, run, trial)
        runs.set_status(client, run, state.outcome, end)
        last = {_group(metric): metric.step for metric in sorted(view.metrics, key=lambda metric: metric.step)}
        now = json.dumps({**sent, **last, "about": self.trials.key(trial)})
        tags = {runs.PARENT: parent.info.run_id, runs.SENT: now}
        if state.reason or "reason" in held:
            tags["reason"] = state.reason[:1000]
        runs.log(client, run, metrics, view, tags)
        return run


def _group(metric: Metric) -> str:
    """The group of a metric, whose values come at the same points: those of a stage's level, or one score."""
    return metric.key.rpartition("/")[0] or metric.key


def attempt(store: Store, sweep_keys: Iterable[str], uri: str, live: bool = False) -> str:
    """Send sweeps as `sync` does; returns one line with the error and what to do, or "" if everything was sent."""
    trouble = ""
    for key in sweep_keys:
        try:
            with limited():
                sync(store, key, uri, live)
        except StoreError as error:  # a damaged sweep does not stop the others
            trouble = trouble or str(error)
        except Exception as error:  # MLflow's client raises many types
            trouble = error_line(error)
            break
    return trouble and later(store, uri, trouble)


def send_rest(store: Store, sweep_key: str, uri: str) -> str:
    """The last pass of a command; returns as `attempt`. The store's own database also gets all sweeps that it lacks: it
    is made anew where it was deleted, or the store was moved."""
    trouble = attempt(store, [sweep_key], uri)
    if trouble or uri != default_uri(store):
        return trouble
    try:
        client = MlflowClient(uri)
        lacks = [key for key in manifests.keys(store) if runs.find(client, key)[0] is None]
    except Exception as error:  # as above, and StoreError
        return later(store, uri, error_line(error))
    return attempt(store, lacks, uri)


def later(store: Store, uri: str, trouble: str) -> str:
    """A line that says why MLflow did not get everything, and how to send the rest."""
    command = f"{python('sweeps/tracking.py')} sync {shlex.quote(masked(store.address))}"
    if uri == default_uri(store):
        command += " (if mlflow.db is damaged, delete it first)"
    elif masked(uri) != uri:
        command += f" (with ${VARIABLE}, whose password is not shown here)"
    else:
        command += f" --mlflow {shlex.quote(uri)}"
    return f"MLflow did not get everything: {masked(trouble)}; send it later with: {command}"
