"""Brings MLflow level with the output store: one parent run a sweep, one child run a trial.

The store is the truth and MLflow a view of it, which can be made again at any time and on any tracking server:

    python sweeps/tracking.py sync STORE [--mlflow URI] [--sweep KEY] [--verify]

During a sweep a process of its own does this (`start`, `follow`), so that a slow or absent server holds up neither
training nor scheduling. Every pass is idempotent: runs are found by tag, the tag `sgan.sent` says what a run has, and
what is sent again after a crash lands on itself (MLflow keeps identical points once; artifacts overwrite).
"""

import contextlib
import hashlib
import json
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from tyro.conf import Positional

from sgan.bucket import is_bucket, open_store
from sgan.diagnostics import latest
from sgan.store import FIGURES, GRIDS, MODELS, Store, StoreError, read_json, read_record, sealed
from sweeps import served

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run, RunInfo

EXPERIMENT = "sgan"
SWEEP, TRIAL, SENT, MANIFEST = "sgan.sweep", "sgan.trial", "sgan.sent", "sgan.manifest"  # tags that runs are found by
# MLflow's pages list every param above an image: these tell a sweep's runs apart, config.json has all.
PARAMS = ("variant.", "seed", "dataset.name", "recipe.name")
JUDGING = ("scorer", "inception", "score")  # kinds of stages that train no part of a variant
STATUS = {"done": "FINISHED", "diverged": "FAILED", "failed": "FAILED", "running": "RUNNING", "interrupted": "KILLED"}
PAUSE, LONGEST_PAUSE = 3.0, 60.0  # seconds between passes; the pause doubles while MLflow cannot be reached
WRITTEN_AT = re.compile(r"\+timestamp\+\d+\+[0-9a-f-]{36}")  # in an image's name
_WRITTEN: dict[str, str] = {}  # run -> what this process last wrote into its tag SENT
METRICS_A_CALL, PARAMS_A_CALL, LONGEST_PARAM = 1000, 100, 6000  # MLflow's limits
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # at MLflow's defaults a call to an absent server takes minutes to fail
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def _mlflow():
    """The module, made quiet; imported late because that takes seconds, which the driver and --help do not have."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow
    import mlflow.entities

    return mlflow


def connect(uri: str) -> "MlflowClient":
    """A quiet client that gives up soon on a server that does not answer."""
    return _mlflow().MlflowClient(tracking_uri=uri)


def default_uri(store: Store) -> str:
    """Tracking URI of the SQLite file inside the store."""
    return f"sqlite:///{store.root / 'mlflow.db'}"


def ui_command(store: Store, uri: str) -> str:
    """The shell line that serves MLflow's pages for a database; a server's own address where `uri` is one."""
    database = shlex.quote(uri)
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {database} --port 5000 --workers 1"


def runs_of(client: "MlflowClient", sweep_key: str) -> "list[Run]":
    """All runs of a sweep: its parent's and its trials'."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs, page = [], None
    while experiment and (page is None or page.token):
        token = page.token if page else None
        query = f"tags.`{SWEEP}` = '{sweep_key}'"
        page = client.search_runs([experiment.experiment_id], query, max_results=1000, page_token=token)
        runs += page
    return runs


def find(client: "MlflowClient", sweep_key: str) -> "tuple[Run | None, dict[str, Run]]":
    """The parent run of a sweep (None before its first pass) and its child runs by trial name."""
    runs = runs_of(client, sweep_key)
    parents = [run for run in runs if TRIAL not in run.data.tags]
    return next(iter(parents), None), {run.data.tags[TRIAL]: run for run in runs if TRIAL in run.data.tags}


def sync(store: Store, sweep_key: str, uri: str, live: bool = False) -> bool:
    """One pass: send what the store has of a sweep and MLflow has not. Returns whether every trial has ended.

    Trials that have not ended become RUNNING with `live`, otherwise KILLED. Raises OSError, MlflowException or
    SQLAlchemyError where MLflow cannot be reached, StoreError where a file of the sweep is damaged; then all trials but
    those that need it have been sent.
    """
    store.fetch(store.sweep(sweep_key))
    manifest = read_json(store.sweep(sweep_key))
    client = connect(uri)
    with store.lock(f"mlflow-{sweep_key}"):  # two drivers may share a sweep; two passes at once would make runs twice
        parent, children = find(client, sweep_key)
        parent = parent or client.create_run(
            _experiment(client, store, uri),
            start_time=_milliseconds(manifest["started"]),
            tags={SWEEP: sweep_key},
            run_name=manifest["title"],
        )
        _send_sweep(client, store, manifest, parent)
        states, damage = [], None
        for trial in manifest["trials"]:
            run = children.get(trial["run"])
            try:
                state = state_of(store, trial, live)
                if run is None or run.data.tags.get("outcome") != "done":
                    _send_trial(client, store, manifest, trial, state, parent.info, run)
                states.append(state)
            except StoreError as error:
                damage = damage or error
        if damage:
            raise damage
        found = {state.outcome for state in states}
        outcome = next((outcome for outcome in ("running", "interrupted", "failed") if outcome in found), "done")
        _close(client, parent, outcome, "", max([manifest["started"], *(state.end for state in states)]))
    return outcome in ("done", "failed")


@dataclass(frozen=True)
class State:
    """Where a trial stands: a key of STATUS with its reason, stage.json of its finished stages in order, and when the
    last of them ended (unix seconds; 0 before that)."""

    outcome: str
    reason: str
    facts: list[dict[str, Any]]
    end: float


def state_of(store: Store, trial: Mapping[str, Any], live: bool) -> State:
    """Where a trial stands; one that has not ended is running with `live`, otherwise interrupted."""
    facts = [store.facts(stage["name"]) for stage in trial["stages"] if store.has(stage["name"])]
    end = max((fact["finished"] for fact in facts), default=0.0)
    for fact in facts:
        if fact["status"] == "diverged":
            return State("diverged", fact["reason"], facts, end)
    if store.has(trial["name"]):
        return State("done", "", facts, end)
    if store.failure(trial["name"]).exists():
        failure = read_json(store.failure(trial["name"]))
        return State("failed", failure["error"], facts, max(end, failure["time"]))
    return State("running" if live else "interrupted", "", facts, end)


def _send_sweep(client: "MlflowClient", store: Store, manifest: Mapping[str, Any], run: "Run") -> None:
    digest = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    if run.data.tags.get(MANIFEST) != digest:
        client.log_dict(run.info.run_id, sealed(manifest), "manifest.json")
        plots = store.root / "sweeps" / manifest.get("plots", "")
        if manifest.get("plots") and plots.is_dir():
            client.log_artifacts(run.info.run_id, str(plots), "plots")
    tags = {name: manifest[name] for name in ("command", "commit", "machine")} | _shared_tags(manifest)
    scores, fingerprint, finished = {}, {}, 0.0
    for judge in manifest["judges"]:  # a later one's scores stand
        if store.has(judge):
            facts = store.facts(judge)
            scores |= {f"real/{name}": value for name, value in facts["scores"].items()}
            fingerprint |= facts["fingerprint"]
            finished = facts["finished"]
    tags["fingerprint"] = json.dumps(fingerprint)
    scores = {name: value for name, value in scores.items() if run.data.metrics.get(name) != value}
    _log(client, run, _scores(scores, finished), manifest["settings"], {**tags, MANIFEST: digest})


@dataclass(frozen=True)
class Shown:
    """What MLflow is to show of a trial beyond what it has.

    Attributes:
        metrics, params, tags: as in MLflow.
        times: of all its points (unix seconds).
        sent: what MLflow has with these, for the tag SENT.
    """

    metrics: "list[Metric]"
    params: dict[str, Any]
    tags: dict[str, str]
    times: list[float]
    sent: dict[str, int]


def shown(
    store: Store,
    manifest: Mapping[str, Any],
    trial: Mapping[str, Any],
    state: State,
    sent: Mapping[str, int],
    staging: Path,
) -> Shown:
    """What MLflow is to show of a trial beyond `sent`; its files are laid out in `staging`."""
    metrics, times, now_sent, wrong = _news(store, trial, state, sent, staging)
    tags = {name: str(trial[name]) for name in ("variant", "seed", "cuts", "config_key", "phase", "rerun")}
    tags |= {"sweep": manifest["key"], "trial": trial["name"], **_shared_tags(manifest), "alarm": wrong or "none"}
    tags |= {"commit": state.facts[-1]["commit"] if state.facts else manifest["commit"]}
    tags |= {"collapsed": "yes" if "collapse:" in wrong else "no"}
    if "config" not in sent:
        (staging / "config.json").write_text(json.dumps(trial["config"], indent=1))
    if (staging / "images").exists():
        tags["mlflow.loggedImages"] = "True"
    if state.outcome == "done":
        seconds = sum(fact["seconds"] for fact in state.facts if fact["kind"] not in JUDGING)
        # Joint training goes on with the image level: what its generator saw is the sum.
        images = sum(fact["images"] for fact in state.facts if fact["makes_images"])
        totals = {"train_seconds": seconds, "generator_images": images}
        metrics += _scores(state.facts[-1]["scores"] | totals, state.end)
        tags["fingerprint"] = json.dumps(state.facts[-1]["fingerprint"])
        for file in state.facts[-1]["files"]:
            if file.startswith((f"{FIGURES}/", f"{MODELS}/")):
                store.file(trial["name"], file)
        shutil.copytree(store.stage(trial["name"]) / FIGURES, staging / FIGURES)
        served.write(store.stage(trial["name"]) / MODELS, staging / MODELS)
    params = {name: value for name, value in _flat(trial["config"]).items() if name.startswith(PARAMS)}
    return Shown(metrics, params, tags, times, now_sent)


def _send_trial(
    client: "MlflowClient",
    store: Store,
    manifest: Mapping[str, Any],
    trial: Mapping[str, Any],
    state: State,
    parent: "RunInfo",
    run: "Run | None",
) -> None:
    """Send one trial's points, grids, scores and status, making its run once there is something to show."""
    said = run.data.tags.get(SENT, "{}") if run else "{}"
    sent, certain = json.loads(said), run is None or _WRITTEN.get(run.info.run_id) == said
    with tempfile.TemporaryDirectory() as folder:
        what = shown(store, manifest, trial, state, sent, Path(folder))
        times = what.times
        if run is None and not (times or state.facts or state.outcome == "failed"):
            return
        end = max([state.end, *times]) if state.outcome in ("failed", "interrupted") else state.end
        run = run or client.create_run(
            parent.experiment_id,
            start_time=_milliseconds(min(times, default=end)),
            tags={SWEEP: manifest["key"], TRIAL: trial["run"], "mlflow.parentRunId": parent.run_id},
            run_name=f"{trial['variant']} seed {trial['seed']}",
        )
        store.note_run(run.info.run_id, trial["name"])
        if not certain:
            _leave_out_images(client, run, Path(folder) / "images")
        if any(Path(folder).iterdir()):
            client.log_artifacts(run.info.run_id, folder)
    metrics = what.metrics if certain else _lacking(client, run, what.metrics)
    _log(client, run, metrics, what.params, {**what.tags, SENT: json.dumps(what.sent)})
    _WRITTEN[run.info.run_id] = json.dumps(what.sent)
    _close(client, run, state.outcome, state.reason, end)


def _leave_out_images(client: "MlflowClient", run: "Run", images: Path) -> None:
    """Take away the grids that a run has under the name of another time; as for `_lacking`."""
    there = {Path(file.path).name for file in client.list_artifacts(run.info.run_id, "images")}
    plain = {WRITTEN_AT.sub("", name) for name in there}
    for path in list(images.glob("*")):
        if path.name not in there and WRITTEN_AT.sub("", path.name) in plain:
            path.unlink()


def _lacking(client: "MlflowClient", run: "Run", metrics: "list[Metric]") -> "list[Metric]":
    """The points that a run has not. Where a pass was cut off between the points and the tag that says so, a stage that
    was killed too may have made them again since, at another time: MLflow would keep both."""
    steps = {
        key: {point.step for point in client.get_metric_history(run.info.run_id, key)}
        for key in {metric.key for metric in metrics} & set(run.data.metrics)
    }
    return [metric for metric in metrics if metric.step not in steps.get(metric.key, ())]


def _news(
    store: Store, trial: Mapping[str, Any], state: State, sent: Mapping[str, int], staging: Path
) -> "tuple[list[Metric], list[float], dict[str, int], str]":
    """A trial's points beyond `sent`, the times of all its points (unix seconds), what is sent with these, and the
    alarm in words, "" where all is well.

    `sent` holds the images seen at each stage's last point ("level0") and last grid ("level0/grids"). New grids are
    laid out in the folder `staging`.
    """
    metrics, times, now_sent, records = [], [], {**sent, "config": 0}, {}
    for stage in trial["stages"]:
        label = stage["label"]
        done = store.has(stage["name"])
        folder = store.look(stage["name"])
        try:
            records[label] = read_record(folder)
        except StoreError:
            if done:
                raise
            continue  # the stage makes its record good when it goes on or ends
        for line in records[label]:
            times.append(line["time"])
            # A resumed stage repeats the points after its checkpoint, at a later time: the first ones stand.
            if line["images"] > sent.get(label, -1):
                values = {f"{label}/{name}": value for name, value in line["metrics"].items()}
                metrics += _scores(values, line["time"], line["images"])
                now_sent[label] = line["images"]
        drawn = {line["images"]: line["time"] for line in records[label]}
        for path in _grids(folder):
            images = int(path.stem)
            # In a stage in progress a grid's point follows it; a score has no points.
            when = drawn.get(images, store.facts(stage["name"])["finished"] if done else None)
            if when is not None and images > sent.get(f"{label}/grids", -1):
                if done:
                    store.file(stage["name"], f"{GRIDS}/{path.name}")
                _stage_grid(path, when, f"{label}+step+{images}", trial["name"], staging / "images")
                now_sent[f"{label}/grids"] = images
    final = state.facts[-1]["scores"] if state.outcome == "done" else None
    wrong = [f"{label}: {text}" for label, texts in latest(records, final).items() for text in texts]
    return metrics, times, now_sent, "; ".join(wrong)


def _grids(folder: Path) -> list[Path]:
    return sorted((folder / GRIDS).glob("[0-9]*.png"))


def _stage_grid(path: Path, drawn: float, key_and_step: str, trial_name: str, staging: Path) -> None:
    """Lay a grid that was drawn at some time (unix seconds) out as MlflowClient.log_image does, which is what the image
    slider reads: a PNG and a WebP.

    log_image puts a random id into the names, so a grid sent again would be there twice; this id is a hash.
    """
    from PIL import Image

    name = uuid.uuid5(uuid.NAMESPACE_OID, f"{trial_name} {key_and_step}")
    stem = f"{key_and_step}+timestamp+{_milliseconds(drawn)}+{name}"
    staging.mkdir(exist_ok=True)
    shutil.copyfile(path, staging / f"{stem}.png")
    with Image.open(path) as image:
        image.save(staging / f"{stem}+compressed.webp", method=0)  # fast rather than small


def _experiment(client: "MlflowClient", store: Store, uri: str) -> str:
    """Id of the experiment, made if it is not there; with SQLite its artifacts lie in the store."""
    location = (store.root / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        try:
            return client.create_experiment(EXPERIMENT, artifact_location=location)
        except _mlflow().MlflowException:  # another process was faster, or the server is in trouble
            experiment = client.get_experiment_by_name(EXPERIMENT)
            if experiment is None:
                raise
    return experiment.experiment_id


def _log(
    client: "MlflowClient", run: "Run", metrics: "list[Metric]", params: Mapping[str, Any], tags: Mapping[str, Any]
) -> None:
    """Log to a run: the params it lacks (they are immutable), metrics, and last the tags, which say what it has."""
    entities, run_id = _mlflow().entities, run.info.run_id
    lacking = [entities.Param(name, str(value)[:LONGEST_PARAM]) for name, value in params.items()]
    lacking = [param for param in lacking if param.key not in run.data.params]
    changed = [entities.RunTag(name, value) for name, value in tags.items() if run.data.tags.get(name) != value]
    for first in range(0, len(lacking), PARAMS_A_CALL):
        client.log_batch(run_id, params=lacking[first : first + PARAMS_A_CALL])
    for first in range(0, len(metrics), METRICS_A_CALL):
        client.log_batch(run_id, metrics=metrics[first : first + METRICS_A_CALL])
    if changed:
        client.log_batch(run_id, tags=changed)


def _close(client: "MlflowClient", run: "Run", outcome: str, reason: str, end: float) -> None:
    """Set a run's status and end (unix seconds), and last its outcome: a run that is done is not looked at again."""
    status = STATUS[outcome]
    if status == "RUNNING" != run.info.status:
        client.update_run(run.info.run_id, status=status)
    elif status != run.info.status:
        client.set_terminated(run.info.run_id, status, _milliseconds(end))
    if "reason" in run.data.tags and not reason:
        client.delete_tag(run.info.run_id, "reason")
    _log(client, run, [], {}, {**({"reason": reason[:1000]} if reason else {}), "outcome": outcome})


def _scores(values: Mapping[str, float | None], seconds: float, step: int = 0) -> "list[Metric]":
    metric, stamp = _mlflow().entities.Metric, _milliseconds(seconds)
    return [metric(name, value, stamp, step) for name, value in values.items() if value is not None]


def _shared_tags(manifest: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(manifest["settings"][name]) for name in ("dataset", "recipe") if name in manifest["settings"]}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict -> dotted name -> value."""
    flat = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}{name}.") if isinstance(item, Mapping) else {f"{prefix}{name}": item}
    return flat


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def start(store: Store, sweep_key: str, uri: str) -> "subprocess.Popen[bytes]":
    """Start the process that follows a sweep. Closing its standard input lets it finish: 0 when all is sent, else 1.

    It has a session of its own, so that Ctrl-C in the driver does not end it before its last pass; what it says goes
    to sweeps/<key>.log in the store.
    """
    command = [sys.executable, "-m", "sweeps.tracking", "follow", store.address, sweep_key, uri]
    with open(store.sweep(sweep_key).with_suffix(".log"), "a") as log:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)


def finish(uploader: "subprocess.Popen[bytes]") -> bool:
    """Let the uploader send what is left; returns whether all arrived. One that was killed has a successor."""
    if uploader.poll() is not None:
        root, sweep_key, uri = map(str, list(uploader.args)[-3:])  # pyright: ignore[reportArgumentType]
        uploader = start(open_store(root), sweep_key, uri)
    assert uploader.stdin is not None
    uploader.stdin.close()
    return uploader.wait() == 0


def unsent(store: Store, sweep_key: str, uri: str) -> str:
    """What to say where the uploader could not send all."""
    said = store.sweep(sweep_key).with_suffix(".log").read_text().strip().splitlines()
    last = said[-1] if said else f"the process that sends it was killed; {_later(store, uri)}"
    return f"\nMLflow at {uri} did not get everything; nothing is lost: it is in the store. What went wrong:\n{last}"


def follow(root: Positional[str], sweep_key: Positional[str], uri: Positional[str]) -> int:
    """Keep MLflow level with one sweep until standard input ends. The exit code is 0 when all is sent, else 1.

    Args:
        root: Address of the output store.
        sweep_key: Key of the sweep.
        uri: Tracking URI.
    """
    os.nice(19)  # Ray gives its workers 15: training comes first
    store, _ = sweeps_of(root)
    pause, trouble = 0.0, ""
    while True:
        readable = select.select([sys.stdin], [], [], pause)[0]
        ended = bool(readable) and not os.read(sys.stdin.fileno(), 4096)
        before, trouble = trouble, _attempt(store, [sweep_key], uri, live=not ended)
        if ended and trouble:
            time.sleep(PAUSE)  # the trouble may have been a short one
            trouble = _attempt(store, [sweep_key], uri, live=False)
        if ended:
            _say(trouble and f"{trouble}; {_later(store, uri)}")
            return 1 if trouble else 0
        if bool(before) != bool(trouble):
            _say(f"trying again: {trouble}" if trouble else "MLflow takes what is sent again")
        pause = min(2 * pause, LONGEST_PAUSE) if before and trouble else PAUSE


def _attempt(store: Store, sweep_keys: Iterable[str], uri: str, live: bool) -> str:
    """Send sweeps; returns what went wrong in one line, "" where nothing did."""
    from sqlalchemy.exc import SQLAlchemyError  # MLflow lets the errors of a broken database through

    try:
        for key in sweep_keys:
            sync(store, key, uri, live)
    except (_mlflow().MlflowException, SQLAlchemyError, StoreError, OSError, ValueError) as error:
        return f"MLflow did not get everything: {' '.join(str(error).split())[:200]}"
    return ""


def _later(store: Store, uri: str) -> str:
    server = "" if uri == default_uri(store) else f" --mlflow {shlex.quote(uri)}"
    return f"send it later with: python sweeps/tracking.py sync {shlex.quote(store.address)}{server}"


def _say(text: str) -> None:
    if text:
        with contextlib.suppress(OSError):  # the log may lie on a full disk
            print(text, file=sys.stderr, flush=True)


def sweeps_of(address: str) -> tuple[Store, list[str]]:
    """A store that is there already, and the keys of its sweeps; StoreError where there is none."""
    there = is_bucket(address) or Path(address).is_dir()
    store = open_store(address) if there else None
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
    trouble = _attempt(opened, chosen, uri, live=False)
    _say(f"{trouble}; {_later(opened, uri)}" if trouble else f"all is in MLflow: {ui_command(opened, uri)}")
    if trouble or not verify:
        return 1 if trouble else 0
    from sweeps import verify as comparison

    found = [line for key in chosen for line in comparison.differences(opened, key, uri)]
    for line in found:
        print(line)
    if found:
        _say(f"{len(found)} differences; a run that is deleted in MLflow is sent anew by the same command")
    else:
        _say("every value and file in MLflow is as in the store")
    return 1 if found else 0


if __name__ == "__main__":
    try:
        sys.exit(tyro.extras.subcommand_cli_from_dict({"sync": sync_command, "follow": follow}))
    except StoreError as error:
        _say(str(error))
        sys.exit(2)
