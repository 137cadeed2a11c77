"""Brings MLflow level with the output store: one parent run a sweep, one child run a trial.

The store is the truth and MLflow a view of it, which can be made again at any time and on any tracking server:

    python sweeps/tracking.py sync STORE [--mlflow URI] [--sweep KEY] [--verify]

During a sweep a process of its own does this (`sweeps.uploader`). Every pass is idempotent: runs are found by tag, the
tag `sgan.sent` says what a run has, and what is sent again after a crash lands on itself (MLflow keeps identical points
once; artifacts overwrite).
"""

import contextlib
import functools
import hashlib
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from tyro.conf import Positional

from sgan.bucket import find_store
from sgan.checks import ConfigError
from sgan.files import StoreError, inside, sealed
from sgan.store import Store
from sweeps.connection import (
    MANIFEST,
    MANIFEST_FILE,
    SENT,
    SWEEP,
    TRIAL,
    advice,
    connect,
    default_uri,
    experiment,
    find,
    find_some,
    in_short,
    manifest_of,
    module,
    pages,
    reading,
)
from sweeps.shown import (
    State,
    begun,
    look,
    milliseconds,
    points_of,
    shared_tags,
    shown,
    state_of,
    written,
    wrong_scores,
)
from sweeps.writing import lacking, leave_out_images, log, set_status, settle

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run, RunInfo

_WRITTEN: dict[str, str] = {}  # run -> what this process last wrote into its tag SENT
ASKED_ONE_BY_ONE = 10
"""Of so many trials the runs are asked for one by one, of more all runs of the sweep at once."""


@dataclass
class _Left:
    """How the last pass of this process left a sweep.

    Attributes:
        digest: of its manifest.
        parent: id of its run.
        trials: by trial, what the store had of it, where it stood, and its run.
        news: by trial, since when (monotonic) the store has more of it than was sent.
    """

    digest: str
    parent: str
    trials: "dict[str, tuple[object, State, Run | None]]" = field(default_factory=dict)
    news: dict[str, float] = field(default_factory=dict)

    def due(self, store: Store, trial: Mapping[str, Any], every: float, seen: dict[str, object]) -> bool:
        """Whether a trial is to be sent: the store has more of it, and it has ended or that was `every` seconds ago."""
        if trial["run"] not in self.trials:
            return True
        there, _, run = self.trials[trial["run"]]
        if _there(store, trial, run, seen) == there:
            return False
        since = self.news.setdefault(trial["run"], time.monotonic())
        ended = store.has(trial["name"]) or store.failure(trial["name"]).exists()
        return ended or time.monotonic() - since >= every


_LEFT: dict[tuple[str, str], _Left] = {}  # by address and sweep


def sync(store: Store, sweep_key: str, uri: str, live: bool = False, every: float = 0.0) -> bool:
    """One pass: send what the store has of a sweep and MLflow has not. Returns whether every trial has ended.

    Trials that have not ended become RUNNING with `live`, otherwise KILLED. Raises OSError, MlflowException or
    SQLAlchemyError where MLflow cannot be reached, StoreError where a file of the sweep is damaged; then all trials but
    those that need it have been sent.

    Args:
        live: the sweep runs. Then trials of which the store has no more than when this process sent them last are not
            looked at in MLflow; the last pass of a sweep looks at everything.
        every: seconds between two times that a trial in progress is sent, with `live`.
    """
    if not live:
        store.renew()
    store.fetch(store.sweep(sweep_key))
    manifest, digest = _manifest(store, sweep_key, written(store.sweep(sweep_key)))
    left = _LEFT.pop((uri, sweep_key), None)  # what a pass that fails leaves is not known
    if not live or (left and left.digest != digest):
        left = None
    seen: dict[str, object] = {}
    todo = [trial for trial in manifest["trials"] if left is None or left.due(store, trial, every, seen)]
    if todo or left is None:
        client = connect(uri)
        with store.lock(f"mlflow-{sweep_key}"):  # two drivers may share a sweep; two passes at once make runs twice
            left = _send(client, store, manifest, digest, todo, left, uri, live)
    if live:
        _LEFT[uri, sweep_key] = left
    return _outcome_of(left) in ("done", "failed")


@functools.lru_cache(maxsize=4)
def _manifest(store: Store, sweep_key: str, when: tuple[int, int] | None) -> tuple[dict[str, Any], str]:
    """A sweep's manifest and its digest, as it was when it was written: reading it takes longer than a pass with
    nothing to send."""
    manifest = store.manifest(sweep_key)
    return manifest, hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


def _outcome_of(left: _Left) -> str:
    """Where a sweep stands, as a key of STATUS."""
    found = {state.outcome for _, state, _ in left.trials.values()}
    return next((outcome for outcome in ("running", "interrupted", "failed") if outcome in found), "done")


def _send(
    client: "MlflowClient",
    store: Store,
    manifest: Mapping[str, Any],
    digest: str,
    todo: list[dict[str, Any]],
    left: _Left | None,
    uri: str,
    live: bool,
) -> _Left:
    """Send the sweep itself and the trials `todo`; returns how MLflow then stands."""
    parent, children = None, {}
    if left and len(todo) <= ASKED_ONE_BY_ONE:
        parent, children = find_some(client, manifest["key"], left.parent, [trial["run"] for trial in todo])
    if parent is None:
        parent, children = find(client, manifest["key"])
    parent = parent or client.create_run(
        experiment(client, store, uri),
        start_time=milliseconds(manifest["started"]),
        tags={SWEEP: manifest["key"]},
        run_name=manifest["title"],
    )
    _send_sweep(client, store, manifest, parent, digest, check=not live)
    left = _Left(digest, parent.info.run_id, left.trials if left else {}, left.news if left else {})
    damage = None
    for trial in todo:
        run = children.get(trial["run"])
        if run:
            store.note_run(run.info.run_id, trial["name"])
        try:
            there = _there(store, trial, run, {})
            state = state_of(store, trial, live)
            if run and _done(run) and state.outcome == "done" and wrong_scores(state, run.data.metrics):
                client.delete_run(run.info.run_id)  # of a stage that was made again since, or altered by hand
                run = None
            if not _done(run):
                run = _send_trial(client, store, manifest, trial, state, parent.info, run)
                there = _there(store, trial, run, {}) if _done(run) else there
            left.trials[trial["run"]] = there, state, run
            left.news.pop(trial["run"], None)
        except StoreError as error:
            damage = damage or error
    if damage:
        raise damage
    end = max([manifest["started"], *(state.end for _, state, _ in left.trials.values())])
    outcome = _outcome_of(left)
    set_status(client, parent, outcome, end)
    log(client, parent, [], {}, {"outcome": outcome})
    return left


def _has_manifest(client: "MlflowClient", run: "Run", manifest: Mapping[str, Any]) -> bool:
    try:
        return manifest_of(client, run) == manifest
    except StoreError:
        return False


def _done(run: "Run | None") -> bool:
    return run is not None and run.data.tags.get("outcome") == "done"


def _there(store: Store, trial: Mapping[str, Any], run: "Run | None", seen: dict[str, object]) -> list[object]:
    """What tells whether a trial has changed; of one whose run is done only its last stage counts."""
    return [store.has(trial["name"])] if _done(run) else look(store, trial, seen)


def _send_sweep(
    client: "MlflowClient", store: Store, manifest: Mapping[str, Any], run: "Run", digest: str, check: bool
) -> None:
    """Send what is new of the sweep itself.

    Args:
        digest: of its manifest.
        check: look whether the manifest is there, whatever the run's tag says: the table is made from it.
    """
    if run.data.tags.get(MANIFEST) != digest or (check and not _has_manifest(client, run, manifest)):
        client.log_dict(run.info.run_id, sealed(manifest), MANIFEST_FILE)
        if manifest.get("plots"):
            plots = inside(store.root / "sweeps", manifest["plots"], f"the manifest of the sweep {manifest['key']}")
            if plots.is_dir():
                client.log_artifacts(run.info.run_id, str(plots), "plots")
    tags = {name: manifest[name] for name in ("command", "commit", "machine")} | shared_tags(manifest)
    scores, fingerprint, finished = {}, {}, 0.0
    for judge in manifest["judges"]:  # a later one's scores stand
        if store.has(judge):
            facts = store.facts(judge)
            scores |= {f"real/{name}": value for name, value in facts["scores"].items()}
            fingerprint |= facts["fingerprint"]
            finished = facts["finished"]
    tags["fingerprint"] = json.dumps(fingerprint)
    scores = {name: value for name, value in scores.items() if run.data.metrics.get(name) != value}
    log(client, run, points_of(scores, finished), manifest["settings"], {**tags, MANIFEST: digest})


def _send_trial(
    client: "MlflowClient",
    store: Store,
    manifest: Mapping[str, Any],
    trial: Mapping[str, Any],
    state: State,
    parent: "RunInfo",
    run: "Run | None",
) -> "Run | None":
    """Send one trial's points, grids, scores and status, making its run once it has begun; returns the run, as MLflow
    then has it."""
    if run is None and not begun(store, trial, state):
        return None
    said = run.data.tags.get(SENT, "{}") if run else "{}"
    sent, certain = json.loads(said), run is None or _WRITTEN.get(run.info.run_id) == said
    with tempfile.TemporaryDirectory() as folder:
        what = shown(store, manifest, trial, state, sent, Path(folder))
        times = what.times
        end = max([state.end, *times]) if state.outcome in ("failed", "interrupted") else state.end
        run = run or client.create_run(
            parent.experiment_id,
            start_time=milliseconds(min(times, default=end)),
            tags={SWEEP: manifest["key"], TRIAL: trial["run"], "mlflow.parentRunId": parent.run_id},
            run_name=f"{trial['variant']} seed {trial['seed']}",
        )
        store.note_run(run.info.run_id, trial["name"])
        if not certain:
            leave_out_images(client, run, Path(folder) / "images")
        if any(Path(folder).iterdir()):
            client.log_artifacts(run.info.run_id, folder)
            settle(run, Path(folder))
    points = what.points if certain else lacking(client, run, what.points)
    set_status(client, run, state.outcome, end)
    if "reason" in run.data.tags and not state.reason:
        client.delete_tag(run.info.run_id, "reason")
    reason = {"reason": state.reason[:1000]} if state.reason else {}
    # Last the outcome: a run that is done is not looked at again.
    tags = {**what.tags, **reason, SENT: json.dumps(what.sent), "outcome": state.outcome}
    log(client, run, points, what.params, tags)
    _WRITTEN[run.info.run_id] = json.dumps(what.sent)
    return run


def attempt(store: Store, sweep_keys: Iterable[str], uri: str, live: bool, every: float = 0.0) -> str:
    """Send sweeps, as `sync` does; returns what went wrong in one line, "" where nothing did."""
    from sqlalchemy.exc import SQLAlchemyError  # MLflow lets the errors of a broken database through

    trouble = ""
    try:
        for key in sweep_keys:
            try:
                sync(store, key, uri, live, every)
            except StoreError as error:  # one that is damaged holds no other up
                trouble = trouble or str(error)
    except (module().MlflowException, SQLAlchemyError, OSError, KeyError, ValueError, TypeError) as error:
        trouble = f"{in_short(error)}{advice(uri, error)}"
    return trouble and f"MLflow did not get everything: {trouble}"


def later(store: Store, uri: str) -> str:
    """How to send what is left."""
    server = "" if uri == default_uri(store) else f" --mlflow {shlex.quote(uri)}"
    return f"send it later with: python sweeps/tracking.py sync {shlex.quote(store.address)}{server}"


def say(text: str) -> None:
    """Print a line, unless it is empty, where errors go."""
    if text:
        with contextlib.suppress(OSError):  # the log may lie on a full disk
            print(text, file=sys.stderr, flush=True)


def sweeps_of(address: str) -> tuple[Store, list[str]]:
    """A store that is there already, and the keys of its sweeps; StoreError where there is none."""
    store = find_store(address)
    keys = store.sweeps() if store else []
    if store is None or not keys:
        raise StoreError(f"{address} holds no sweep; name the folder that the sweep was given as --store")
    return store, keys


def sync_command(
    store: Positional[str], mlflow: str | None = None, sweep: str | None = None, verify: bool = False
) -> int:
    """Send what MLflow lacks of the sweeps in a store. Trials that have not ended are marked as killed.

    Args:
        store: The output store.
        mlflow: Tracking URI; by default $MLFLOW_TRACKING_URI or the SQLite file inside the store.
        sweep: Key of one sweep; by default all of the store's.
        verify: Then compare every value, param, tag, image, figure and model in MLflow with the store, and print what
            differs.
    """
    opened, keys = sweeps_of(store)
    if sweep and sweep not in keys:
        raise StoreError(f"{store} holds no sweep {sweep}; it holds {', '.join(keys)}")
    uri = mlflow or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(opened)
    chosen = [sweep] if sweep else keys
    trouble = attempt(opened, chosen, uri, live=False)
    say(f"{trouble}; {later(opened, uri)}" if trouble else f"all is in MLflow: {pages(uri)}")
    if trouble or not verify:
        return 1 if trouble else 0
    from sweeps import verify as comparison

    with reading(uri):
        found = [line for key in chosen for line in comparison.differences(opened, key, uri)]
    for line in found:
        print(line)
    if found:
        say(f"{len(found)} differences; a run that is deleted in MLflow is sent anew by the same command")
    else:
        say("every value and file in MLflow is as in the store")
    return 1 if found else 0


if __name__ == "__main__":
    try:
        sys.exit(tyro.extras.subcommand_cli_from_dict({"sync": sync_command}))
    except ConfigError as error:
        say(f"error: {error}")
        sys.exit(2)
