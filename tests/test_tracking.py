"""What MLflow holds after passes over hand-made stores, through real SQLite files and a real tracking server."""

import collections
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from mlflow import MlflowClient
from PIL import Image
from waiting import wait_for

from sgan.checks import ConfigError
from sgan.files import StoreError, read_json, write_json
from sgan.record import RECORD_FILE, Record
from sgan.store import FIGURES, GRIDS, MODELS, Store
from sweeps import connection, report, results, tracking, uploader
from sweeps.verify import differences

KEY = "ab12"
POINTS, GRID_IMAGES = (100, 200, 300), (100, 300)
GRID_FILES = (".png", "+compressed.webp")
LABELS = {"sgan": ("encoder", "level1", "joint", "score"), "sgan-no-joint": ("encoder", "level1", "score")}


def stage_name(label: str, variant: str, seed: int) -> str:
    """Encoders and levels are shared by both variants of a seed."""
    return f"{label}-{seed}" if label in ("encoder", "level1") else f"{label}-{variant}-{seed}"


def train(store: Store, name: str, points=POINTS, grids=GRID_IMAGES, done: int = 0) -> None:
    """What a stage leaves in the work folder."""
    folder = store.begin(name)
    held = (folder / RECORD_FILE).read_text() if done else ""
    record = Record(folder, "".join(line for line in held.splitlines(True) if json.loads(line)["images"] <= done))
    for images in points:
        record.add(images, {"g_adv": images / 1000, "d_adv": 0.5})
    for images in grids:
        Image.new("RGB", (20, 10), (images % 256, 0, 0)).save(folder / GRIDS / f"{images:09d}.png")


def publish(store: Store, name: str, status: str = "done", reason: str | None = None, fid: float = 10.0) -> None:
    kind = name.partition("-")[0]
    scores = {"inception_score": 9.0, "fid": fid, "diversity": 0.9} if kind in ("score", "scorer") else {}
    facts = {
        "kind": kind,
        "status": status,
        "reason": reason,
        "images": POINTS[-1],
        "seconds": 2.5,
        "makes_images": kind == "joint",
    }
    if kind in ("score", "scorer"):
        fields = {"network": "classifier", "weights": "f00d", "resize": "none", "samples": 500, "splits": 10}
        fields |= {"shuffle": "RandomState(2020)", "reference": "digits, 1,347 training images"}
        facts["fingerprint"] = {"scores": fields, "classes": fields}
    if kind == "score":
        figures, last = store.work(name) / FIGURES, store.work(name) / MODELS / "last"
        figures.mkdir()
        last.mkdir(parents=True)
        Image.new("RGB", (20, 10)).save(figures / "classes.png")
        write_json(last / "model.json", {"format": 1})
    store.publish(name, {**facts, "commit": "abc123", "machine": "two cores", "scores": scores})


def finish(store: Store, variant: str, seed: int) -> None:
    """Train and publish every stage of a trial that is not there yet."""
    for label in LABELS[variant]:
        name = stage_name(label, variant, seed)
        if not store.has(name):
            train(store, name, points=() if label == "score" else POINTS)
            publish(store, name)


def manifest(store: Store, seeds=(0,)) -> None:
    trials = []
    for variant, labels in LABELS.items():
        for seed in seeds:
            stages = [{"label": label, "name": stage_name(label, variant, seed)} for label in labels]
            config = {"seed": seed, "variant": {"name": variant, "weights": {"adv": 1.0, "ent": None}}}
            own = {"variant": variant, "seed": seed, "cuts": "fc3", "config": config, "config_key": "c0ffee"}
            own |= {"phase": "ablation", "rerun": "--seeds 1"}
            trials.append({"name": stages[-1]["name"], "run": stages[-1]["name"], **own, "stages": stages})
    value = {
        "key": KEY,
        "title": "digits, recipe tiny",
        "command": "python sweeps/ablation.py",
        "commit": "abc123-dirty",
        "machine": "two cores",
        "started": time.time() - 100,
        "settings": {"dataset": "digits", "recipe": "tiny", "budget": 1.0, "weights": None},
        "judges": ["scorer-x"],
        "paper_real": "11.24 ± 0.12",
        "variants": [{"name": name, "title": name.upper(), "paper": None} for name in LABELS],
        "trials": trials,
    }
    write_json(store.sweep(KEY), value)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory) -> Path:
    """An empty MLflow database: its migrations run once for all tests."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connection.connect(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(tmp_path, migrated) -> Store:
    made = Store(tmp_path / "a store")
    shutil.copyfile(migrated, made.root / "mlflow.db")
    manifest(made)
    return made


def sync(store: Store, live: bool = False) -> bool:
    return tracking.sync(store, KEY, connection.default_uri(store), live)


def found(store: Store, uri: str | None = None) -> Any:
    return connection.find(connection.connect(uri or connection.default_uri(store)), KEY)


def trial(store: Store, variant: str, seed: int = 0, uri: str | None = None):
    return found(store, uri)[1][f"score-{variant}-{seed}"]


def points(run, uri: str) -> dict[str, list[int]]:
    """Metric -> the steps it was logged at, in order, repetitions included; stages only."""
    client = connection.connect(uri)
    keys = [key for key in run.data.metrics if "/" in key]
    return {key: sorted(point.step for point in client.get_metric_history(run.info.run_id, key)) for key in keys}


def grids(run, uri: str) -> dict[tuple[str, int, str], int]:
    """(label, images, file ending) -> number of files."""
    files = [Path(file.path).name for file in connection.connect(uri).list_artifacts(run.info.run_id, "images")]
    pattern = re.compile(r"(.+)\+step\+(\d+)\+timestamp\+\d+\+[0-9a-f-]{36}(\.png|\+compressed\.webp)")
    matches = [pattern.fullmatch(name) for name in files]
    assert all(matches), files
    return collections.Counter((match[1], int(match[2]), match[3]) for match in matches if match)


def assert_complete(store: Store, variant: str, seed: int = 0, uri: str | None = None) -> None:
    """Every point and every grid of a finished trial is in MLflow once, with its scores, and its run is closed."""
    uri = uri or connection.default_uri(store)
    run = trial(store, variant, seed, uri)
    trained = [label for label in LABELS[variant] if label != "score"]
    assert points(run, uri) == {f"{label}/{name}": [*POINTS] for label in trained for name in ("g_adv", "d_adv")}
    expected = {(label, images, end) for label in LABELS[variant] for images in GRID_IMAGES for end in GRID_FILES}
    assert grids(run, uri) == dict.fromkeys(expected, 1)
    assert {name: value for name, value in run.data.metrics.items() if "/" not in name} == {
        "inception_score": 9.0,
        "fid": 10.0,
        "diversity": 0.9,
        "train_seconds": 2.5 * (len(LABELS[variant]) - 1),  # all but the score
        "generator_images": POINTS[-1] if variant == "sgan" else 0,
    }
    assert run.info.status == "FINISHED"
    assert run.data.tags["outcome"] == "done"


@pytest.mark.parametrize("hostile", ["plots", "label", "stage"])
def test_a_manifest_whose_names_lead_elsewhere_sends_and_writes_nothing_there(hostile, store, tmp_path):
    for variant in LABELS:
        finish(store, variant, 0)
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "secret").write_text("secret")
    held = read_json(store.sweep(KEY))
    if hostile == "plots":
        held["plots"] = named = "../../plots"
    elif hostile == "label":
        held["trials"][0]["stages"][0]["label"] = named = "../../taken/taken"
        (tmp_path / "taken").mkdir()
    else:
        held["trials"][0]["stages"][0]["name"] = named = "../../taken"
    write_json(store.sweep(KEY), held)
    with pytest.raises(StoreError, match=rf"has the name '[^']*{re.escape(named)}.* which is none of a file"):
        sync(store)
    assert len(list(tmp_path.rglob("secret"))) == 1
    assert not list(tmp_path.rglob("taken?*"))


def test_every_point_and_grid_is_there_once_after_two_passes(store):
    train(store, "scorer-x", (), ())
    publish(store, "scorer-x", fid=0.5)
    finish(store, "sgan", 0)
    finish(store, "sgan-no-joint", 0)
    assert sync(store)
    assert sync(store)
    assert_complete(store, "sgan")
    assert_complete(store, "sgan-no-joint")  # the shared stages are in both runs
    parent, children = found(store)
    assert len(children) == 2
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == {"real/inception_score": 9.0, "real/fid": 0.5, "real/diversity": 0.9}
    assert parent.data.params == {"dataset": "digits", "recipe": "tiny", "budget": "1.0", "weights": "None"}
    run = trial(store, "sgan")
    assert run.data.params == {
        "seed": "0",
        "variant.name": "sgan",
        "variant.weights.adv": "1.0",
        "variant.weights.ent": "None",
    }
    tags = {"variant": "sgan", "seed": "0", "cuts": "fc3", "dataset": "digits", "recipe": "tiny", "commit": "abc123"}
    assert tags.items() <= run.data.tags.items()
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.info.start_time < run.info.end_time
    artifacts = {
        file.path for file in connection.connect(connection.default_uri(store)).list_artifacts(run.info.run_id)
    }
    assert artifacts == {"config.json", "figures", "model", "images"}


def test_a_stage_with_more_points_than_a_call_takes_is_sent_whole(store):
    train(store, "encoder-0", range(1, 1201))
    publish(store, "encoder-0")
    finish(store, "sgan", 0)
    sync(store)
    assert [
        line for line in differences(store, KEY, connection.default_uri(store)) if line.startswith("sgan seed")
    ] == []
    assert trial(store, "sgan").data.metrics["encoder/g_adv"] == 1.2  # the newest is the run's value


def test_a_trial_that_has_not_changed_is_neither_read_nor_sent_again(store, monkeypatch):
    finish(store, "sgan", 0)
    sync(store, live=True)
    client = type(connection.connect(connection.default_uri(store)))

    def refused(*args, **kwargs):
        raise AssertionError("nothing is new")

    with monkeypatch.context() as patch:
        for name in ("create_run", "log_batch", "log_artifacts", "update_run", "set_terminated"):
            patch.setattr(client, name, refused)
        patch.setattr(tracking, "shown", refused)
        patch.setattr(tracking, "state_of", refused)
        sync(store, live=True)
    finish(store, "sgan-no-joint", 0)
    sync(store, live=True)
    assert_complete(store, "sgan-no-joint")
    client.delete_run(connection.connect(connection.default_uri(store)), trial(store, "sgan").info.run_id)
    sync(store)
    assert_complete(store, "sgan")


def test_a_trial_in_progress_is_sent_now_and_then_and_one_that_ended_at_once(store):
    uri = connection.default_uri(store)

    def sent(every: float = 3600.0) -> list[int]:
        tracking.sync(store, KEY, uri, live=True, every=every)
        return points(trial(store, "sgan"), uri)["level1/g_adv"]

    train(store, "level1-0", POINTS[:1], ())
    assert sent() == [POINTS[0]]  # the first pass sends what there is
    train(store, "level1-0", POINTS[1:2], (), done=POINTS[0])
    assert sent() == [POINTS[0]]
    assert sent(every=0.0) == [*POINTS[:2]]
    train(store, "level1-0", POINTS[2:], GRID_IMAGES, done=POINTS[1])
    publish(store, "level1-0")
    finish(store, "sgan", 0)
    assert sent() == [*POINTS]
    assert_complete(store, "sgan")


def test_runs_of_many_trials_are_found_at_once_and_of_few_one_by_one(store, monkeypatch):
    seeds = range(tracking.ASKED_ONE_BY_ONE // 2)
    manifest(store, seeds)
    sync(store, live=True)
    asked = []
    search = MlflowClient.search_runs

    def spied(self, experiments, query, **options):
        asked.append(query.rpartition(" = ")[2].strip("'"))
        return search(self, experiments, query, **options)

    monkeypatch.setattr(MlflowClient, "search_runs", spied)
    for variant in LABELS:
        finish(store, variant, 0)
    sync(store, live=True)
    assert sorted(asked) == ["score-sgan-0", "score-sgan-no-joint-0"]
    asked.clear()
    manifest(store, [*seeds, seeds[-1] + 1])
    sync(store, live=True)
    assert asked == [KEY]
    assert_complete(store, "sgan")
    assert_complete(store, "sgan-no-joint")


def test_a_pass_that_forgot_what_it_sent_adds_nothing(store):
    finish(store, "sgan", 0)
    sync(store)
    client = connection.connect(connection.default_uri(store))
    for tag in (connection.SENT, "outcome"):
        client.delete_tag(trial(store, "sgan").info.run_id, tag)
    sync(store)
    assert_complete(store, "sgan")


def test_points_that_a_resumed_stage_repeats_are_kept_once(store):
    train(store, "level1-0", POINTS[:2], GRID_IMAGES[:1])
    sync(store, live=True)
    train(store, "level1-0", POINTS[1:], GRID_IMAGES, done=POINTS[0])  # killed after the checkpoint at POINTS[0]
    publish(store, "level1-0")
    finish(store, "sgan", 0)
    sync(store)
    assert_complete(store, "sgan")


def test_grids_are_named_as_log_image_names_them(store):
    """MLflow's image slider reads keys and steps from file names."""
    finish(store, "sgan", 0)
    sync(store)
    uri, run = connection.default_uri(store), trial(store, "sgan")
    before = grids(run, uri)
    client = connection.connect(uri)
    client.log_image(run.info.run_id, Image.new("RGB", (4, 4)), key="other", step=7, synchronous=True)
    assert grids(run, uri) == before | {("other", 7, end): 1 for end in GRID_FILES}
    assert trial(store, "sgan").data.tags["mlflow.loggedImages"] == run.data.tags["mlflow.loggedImages"]


def test_a_trial_has_a_run_once_more_of_it_has_begun_than_what_many_share(store):
    assert not sync(store, live=True)
    assert found(store)[0].info.status == "RUNNING"
    train(store, "encoder-0", POINTS[:1], ())
    sync(store, live=True)
    assert found(store)[1] == {}
    assert list(differences(store, KEY, connection.default_uri(store))) == []
    train(store, "level1-0", POINTS[:2], ())
    sync(store, live=True)
    assert {run.info.status for run in found(store)[1].values()} == {"RUNNING"}
    assert points(trial(store, "sgan"), connection.default_uri(store)) == {
        "encoder/g_adv": [100],
        "encoder/d_adv": [100],
        "level1/g_adv": [100, 200],
        "level1/d_adv": [100, 200],
    }


def test_an_interrupted_sweep_is_killed_and_runs_again_when_it_resumes(store):
    train(store, "level1-0", POINTS[:1], ())
    sync(store, live=True)
    assert not sync(store, live=False)
    parent, children = found(store)
    assert {run.info.status for run in (parent, *children.values())} == {"KILLED"}
    assert {run.data.tags["outcome"] for run in (parent, *children.values())} == {"interrupted"}
    sync(store, live=True)
    parent, children = found(store)
    assert {run.info.status for run in (parent, *children.values())} == {"RUNNING"}


def test_diverged_and_failed_trials_say_why(store):
    reason = "joint-sgan-0: step 12: g_adv is nan"
    for label in ("encoder", "level1", "joint"):
        train(store, stage_name(label, "sgan", 0))
        diverged = label == "joint"
        publish(store, stage_name(label, "sgan", 0), "diverged" if diverged else "done", reason if diverged else None)
    lost = {"trial": "score-sgan-no-joint-0", "error": "OutOfMemoryError: 3 GB", "time": time.time()}
    write_json(store.failure("score-sgan-no-joint-0"), lost)
    assert sync(store)
    diverged, failed = trial(store, "sgan"), trial(store, "sgan-no-joint")
    assert (diverged.info.status, failed.info.status) == ("FAILED", "FAILED")
    assert (diverged.data.tags["outcome"], diverged.data.tags["reason"]) == ("diverged", reason)
    assert (failed.data.tags["outcome"], failed.data.tags["reason"]) == ("failed", "OutOfMemoryError: 3 GB")
    assert points(diverged, connection.default_uri(store))["joint/g_adv"] == [*POINTS]
    finish(store, "sgan-no-joint", 0)  # a second try succeeds
    store.failure("score-sgan-no-joint-0").unlink()
    assert sync(store)
    assert_complete(store, "sgan-no-joint")
    assert "reason" not in trial(store, "sgan-no-joint").data.tags
    assert found(store)[0].info.status == "FINISHED"


def test_nan_and_infinity_are_sent_once(store):
    folder = store.begin("level1-0")
    Record(folder).add(100, {"g_adv": float("nan"), "d_adv": float("inf")})
    sync(store)
    client = connection.connect(connection.default_uri(store))
    client.delete_tag(trial(store, "sgan").info.run_id, connection.SENT)
    sync(store)
    assert set(map(tuple, points(trial(store, "sgan"), connection.default_uri(store)).values())) == {(100,)}


def test_more_seeds_extend_the_same_parent(store):
    finish(store, "sgan", 0)
    finish(store, "sgan-no-joint", 0)
    assert sync(store)
    first = found(store)[0].info.run_id
    manifest(store, seeds=(0, 1))
    assert not sync(store, live=True)
    assert found(store)[0].info.status == "RUNNING"
    finish(store, "sgan", 1)
    finish(store, "sgan-no-joint", 1)
    assert sync(store)
    parent, children = found(store)
    assert (parent.info.run_id, parent.info.status, len(children)) == (first, "FINISHED", 4)
    assert_complete(store, "sgan", 1)


def test_a_pass_cut_off_after_any_call_leaves_nothing_twice(store, monkeypatch):
    finish(store, "sgan", 0)
    finish(store, "sgan-no-joint", 0)
    mlflow_client = type(connection.connect(connection.default_uri(store)))
    calls_left = 0

    def cut_off_after(call):
        def wrapped(*args, **kwargs):
            nonlocal calls_left
            result = call(*args, **kwargs)
            calls_left -= 1
            if calls_left == 0:
                raise ConnectionError("cut off")
            return result

        return wrapped

    with monkeypatch.context() as patch:
        for name in ("create_run", "log_batch", "log_artifacts", "log_dict", "set_terminated"):
            patch.setattr(mlflow_client, name, cut_off_after(getattr(mlflow_client, name)))
        calls, closed = 0, False
        while not closed:
            calls_left = calls = calls + 1
            with contextlib.suppress(ConnectionError):
                closed = sync(store)
    assert calls > 5
    assert_complete(store, "sgan")
    assert_complete(store, "sgan-no-joint")
    assert len(found(store)[1]) == 2


def test_a_follower_killed_in_the_middle_leaves_nothing_twice(store):
    uri = connection.default_uri(store)
    finish(store, "sgan", 0)
    finish(store, "sgan-no-joint", 0)
    store.begin("score-sgan-0")
    with uploader.start(store, KEY, uri) as follower:
        wait_for(lambda: found(store)[0] is not None)
        follower.kill()
    assert follower.returncode == -signal.SIGKILL
    assert sync(store)
    assert_complete(store, "sgan")
    assert_complete(store, "sgan-no-joint")


PATIENT = "import sys; from sweeps import uploader; uploader.FIRST_STAGE = 1e6; sys.exit(uploader.main(*sys.argv[1:]))"
"""A follower that would wait for its sweep's first stage for ever."""


def patient(store: Store) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", PATIENT, store.address, KEY, connection.default_uri(store)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)


def test_the_follower_leaves_the_processor_to_workers_until_a_stage_of_its_sweep_begins(store):
    follower = patient(store)
    store.begin("level1-of another sweep")
    time.sleep(4)
    assert found(store)[0] is None
    store.begin("level1-0")
    wait_for(lambda: found(store)[0] is not None)
    assert uploader.finish(follower) == (uploader.SENT, "")


def test_the_follower_waits_for_no_stage_where_the_sweep_ends(store):
    assert uploader.finish(patient(store)) == (uploader.SENT, "")
    assert found(store)[0] is not None


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="Linux has it")
def test_the_follower_runs_where_nothing_else_wants_to(store):
    store.begin("level1-0")
    follower = uploader.start(store, KEY, connection.default_uri(store))
    group = Path(f"/proc/{follower.pid}/autogroup")

    def idle() -> bool:
        threads = map(int, os.listdir(f"/proc/{follower.pid}/task"))
        return any(os.sched_getscheduler(thread) == os.SCHED_IDLE for thread in threads)

    try:
        wait_for(lambda: idle() and (not group.exists() or group.read_text().endswith(f"nice {uploader.NICENESS}\n")))
        assert os.sched_getscheduler(follower.pid) == os.SCHED_OTHER  # the last pass is waited for
    finally:
        assert uploader.finish(follower) == (uploader.SENT, "")


@pytest.mark.skipif(not uploader.GROUP.exists(), reason="Linux has it, where it is configured so")
@pytest.mark.parametrize(("own", "expected"), [(True, [19, 0]), (False, [0, 0])])
def test_only_a_session_of_its_own_gives_way_to_others_and_it_comes_back(own, expected):
    code = (
        "from sweeps import uploader\n"
        "for niceness in (19, 0):\n"
        "    uploader._give_way_to_sessions(niceness)\n"
        "    print(uploader.GROUP.read_text().split()[-1])\n"
    )
    shell = [sys.executable, "-c", "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])", code]
    command = [sys.executable, "-c", code] if own else shell  # a child of what leads the session
    said = subprocess.run(command, start_new_session=True, capture_output=True, text=True, check=True).stdout
    assert list(map(int, said.split())) == expected


def test_the_follower_writes_the_table_of_what_it_has_sent(store):
    train(store, "scorer-x", (), ())
    publish(store, "scorer-x", fid=0.5)
    finish(store, "sgan", 0)
    finish(store, "sgan-no-joint", 0)
    uri = connection.default_uri(store)
    asked = uploader.Table(["sgan"], [0])
    ended, table = uploader.finish(uploader.start(store, KEY, uri), asked)
    assert (ended, table) == (uploader.SENT, report.markdown(results.read(uri, KEY, ["sgan"], [0])))
    client = connection.connect(uri)
    client.log_metric(trial(store, "sgan").info.run_id, "fid", 3.0, step=1)
    assert uploader.finish(uploader.start(store, KEY, uri), asked) == (uploader.SENT, table)  # sent anew


def test_a_dead_driver_leaves_nothing_running(store):
    """The driver is killed with SIGKILL: nobody closes the follower's standard input but the kernel."""
    train(store, "level1-0", POINTS[:1], ())
    uri = connection.default_uri(store)
    code = (
        "import sys, time; from sgan.store import Store; from sweeps import uploader;"
        f"print(uploader.start(Store({str(store.root)!r}), {KEY!r}, {uri!r}).pid, flush=True);"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        follower = int(driver.stdout.readline())
        wait_for(lambda: found(store)[1])
        assert {run.info.status for run in found(store)[1].values()} == {"RUNNING"}
        driver.kill()
    wait_for(lambda: found(store)[0].info.status == "KILLED")
    assert {run.info.status for run in found(store)[1].values()} == {"KILLED"}
    wait_for(lambda: not Path(f"/proc/{follower}").exists() or " Z " in Path(f"/proc/{follower}/stat").read_text())
    assert store.sweep(KEY).with_suffix(".log").read_text() == ""


class Server:
    """A real tracking server, which can be killed and started again."""

    def __init__(self, folder: Path, migrated: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        database = shutil.copyfile(migrated, folder / "server.db")
        self.command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database}"]
        self.command += ["--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        command = [*self.command, "--port", str(self.port)]
        nowhere = subprocess.DEVNULL
        self.process = subprocess.Popen(
            command, env=environment, stdout=nowhere, stderr=nowhere, start_new_session=True
        )

    def kill(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(20)
            self.process = None


@pytest.fixture
def server(tmp_path, migrated):
    made = Server(tmp_path, migrated)
    yield made
    made.kill()


def test_a_server_that_is_down_at_first_and_killed_in_the_middle_gets_everything(store, server):
    log = store.sweep(KEY).with_suffix(".log")
    train(store, "level1-0", POINTS[:2], GRID_IMAGES[:1])

    follower = uploader.start(store, KEY, server.uri)
    wait_for(lambda: "trying again" in log.read_text())
    server.start()
    wait_for(lambda: "takes what is sent again" in log.read_text())
    assert {run.info.status for run in found(store, server.uri)[1].values()} == {"RUNNING"}
    server.kill()
    train(store, "level1-0", POINTS[1:], GRID_IMAGES, done=POINTS[0])
    publish(store, "level1-0")
    finish(store, "sgan", 0)
    finish(store, "sgan-no-joint", 0)
    wait_for(lambda: log.read_text().count("trying again") == 2)
    server.start()
    wait_for(lambda: log.read_text().count("takes what is sent again") == 2)
    assert follower.stdin is not None
    follower.stdin.close()
    assert follower.wait(60) == 0
    assert log.read_text().count("\n") == 4
    assert_complete(store, "sgan", uri=server.uri)
    assert_complete(store, "sgan-no-joint", uri=server.uri)
    assert list(differences(store, KEY, server.uri)) == []
    client = connection.connect(server.uri)
    client.delete_tag(trial(store, "sgan", uri=server.uri).info.run_id, connection.SENT)
    client.delete_tag(trial(store, "sgan", uri=server.uri).info.run_id, "outcome")
    tracking.sync(store, KEY, server.uri)
    assert_complete(store, "sgan", uri=server.uri)
    assert list(differences(store, KEY, server.uri)) == []


def test_the_page_of_the_runs_is_told_by_the_experiments_own_id(tmp_path, server):
    database = f"sqlite:///{tmp_path / 'a folder%' / 'mlflow.db'}"
    (tmp_path / "a folder%").mkdir()
    assert connection.pages(database).endswith(
        "\nand then http://127.0.0.1:5000/#/experiments?workflowType=machine_learning"
    )
    assert connection.pages(server.uri) == f"{server.uri}/#/experiments?workflowType=machine_learning"
    server.start()
    wait_for(lambda: answers(server.uri))
    for uri, address in ((database, "http://127.0.0.1:5000"), (server.uri, server.uri)):
        client = connection.connect(uri)
        client.create_experiment("another one")
        made = client.create_experiment(connection.EXPERIMENT)
        assert made == "2"
        assert connection.pages(uri).endswith(f"{address}/#/experiments/{made}?workflowType=machine_learning")


def answers(uri: str) -> bool:
    with contextlib.suppress(OSError), urlopen(f"{uri}/health", timeout=5) as answer:
        return answer.status == 200
    return False


def test_an_uploader_that_was_killed_has_a_successor_at_the_end(store):
    finish(store, "sgan", 0)
    finish(store, "sgan-no-joint", 0)
    follower = uploader.start(store, KEY, connection.default_uri(store))
    follower.kill()
    follower.wait(20)
    assert uploader.finish(follower) == (uploader.SENT, "")
    assert_complete(store, "sgan")


def test_an_uploader_whose_database_was_deleted_has_a_successor_at_the_end(store):
    finish(store, "sgan", 0)
    finish(store, "sgan-no-joint", 0)
    store.begin("score-sgan-0")
    follower = uploader.start(store, KEY, connection.default_uri(store))
    wait_for(lambda: len(found(store)[1]) == 2)
    (store.root / "mlflow.db").unlink()
    assert uploader.finish(follower) == (uploader.SENT, "")
    assert_complete(store, "sgan")


def test_a_run_of_which_a_stage_was_deleted_keeps_its_seconds_until_it_is_made_again(store):
    finish(store, "sgan", 0)
    finish(store, "sgan-no-joint", 0)
    sync(store)
    shutil.rmtree(store.stage("level1-0"))
    assert not sync(store, live=True)
    assert_complete(store, "sgan")
    connection.connect(connection.default_uri(store)).delete_run(trial(store, "sgan").info.run_id)
    sync(store)
    assert "train_seconds" not in trial(store, "sgan").data.metrics
    finish(store, "sgan", 0)
    assert sync(store)
    assert_complete(store, "sgan")


def test_a_finished_run_with_other_scores_than_the_store_is_sent_anew(store):
    """As after a stage that was deleted and made again, which takes other seconds."""
    finish(store, "sgan", 0)
    finish(store, "sgan-no-joint", 0)
    sync(store)
    before = trial(store, "sgan").info.run_id
    connection.connect(connection.default_uri(store)).log_metric(before, "train_seconds", 99.0, step=5)
    sync(store)
    assert trial(store, "sgan").info.run_id != before
    assert_complete(store, "sgan")
    assert list(differences(store, KEY, connection.default_uri(store))) == []


def test_a_database_whose_making_was_killed_is_made_by_the_next_process(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    making = "import sys; from sweeps import connection; connection.connect(sys.argv[1]).search_experiments()"
    maker = subprocess.Popen([sys.executable, "-c", making, uri])
    wait_for(lambda: any(path.stat().st_size > 300_000 for path in tmp_path.rglob("*.db")), 90)
    maker.kill()
    maker.wait(20)
    assert not (tmp_path / "mlflow.db").exists()
    assert [experiment.name for experiment in connection.connect(uri).search_experiments()] == ["Default"]


@pytest.mark.parametrize("lost", [Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_text("{}")])
def test_a_manifest_that_mlflow_has_lost_is_sent_again(lost, store):
    sync(store)
    lost(artifact(found(store)[0], "manifest.json"))
    with pytest.raises(ConfigError, match=r"is damaged; send it again: python sweeps/tracking\.py sync STORE"):
        results.read(connection.default_uri(store), KEY)
    sync(store)
    assert list(differences(store, KEY, connection.default_uri(store))) == []


def artifact(run, pattern: str) -> Path:
    return sorted(Path(run.info.artifact_uri.removeprefix("file://").replace("%20", " ")).glob(pattern))[0]


def test_verify_finds_whatever_was_altered_by_hand(store, capsys):
    finish(store, "sgan", 0)
    finish(store, "sgan-no-joint", 0)
    assert tracking.sync_command(store.address, verify=True) == 0
    assert "every value and file in MLflow is as in the store" in capsys.readouterr().err
    run, client = trial(store, "sgan"), connection.connect(connection.default_uri(store))

    def altered(sql: str) -> None:
        with contextlib.closing(sqlite3.connect(store.root / "mlflow.db")) as database, database:
            assert database.execute(sql.format(run=f"run_uuid = '{run.info.run_id}'")).rowcount > 0

    altered("delete from metrics where {run} and key = 'encoder/g_adv' and step = 200")
    altered("update metrics set value = 0.25 where {run} and key = 'level1/d_adv' and step = 300")
    altered("update params set value = '2.0' where {run} and key = 'variant.weights.adv'")
    altered("delete from tags where {run} and key = 'alarm'")
    altered("update tags set value = '7' where {run} and key = 'seed'")
    altered("update runs set status = 'RUNNING' where {run}")
    client.log_metric(run.info.run_id, "encoder/d_adv", 0.5, step=150)
    client.log_metric(run.info.run_id, "mine", 1.0)
    image = artifact(run, "images/joint+step+300*.png")
    image.write_bytes(image.read_bytes()[:-30] + bytes(30))
    artifact(run, "images/level1+step+100*.webp").unlink()
    artifact(run, "figures/classes.png").unlink()
    artifact(run, "model/data/model/last/model.json").write_text("{}")
    assert tracking.sync_command(store.address, verify=True) == 1
    said = capsys.readouterr()
    assert "12 differences" in said.err
    for line, words in zip(
        sorted(said.out.splitlines()),
        (
            "file figures/classes.png is missing",
            "file images/joint+step+300.png is '",
            "file images/level1+step+100+compressed.webp is missing",
            "file model/data/model/last/model.json is '",
            "metric encoder/d_adv at 150 is 0.5, and nothing in the store",
            "metric encoder/g_adv has no point at 200, and 0.2 in the store",
            "metric level1/d_adv at 300 is 0.25, and 0.5 in the store",
            "metric mine is not in the store",
            "param variant.weights.adv is '2.0', and '1.0' in the store",
            "state status is 'RUNNING', and 'FINISHED' in the store",
            "tag alarm is missing",
            "tag seed is '7', and '0' in the store",
        ),
        strict=True,
    ):
        assert line.startswith(f"sgan seed 0: {words}"), line
    client.delete_run(run.info.run_id)
    assert tracking.sync_command(store.address, verify=True) == 0


def test_damage_in_one_trial_holds_no_other_up_and_is_named(store):
    finish(store, "sgan", 0)
    finish(store, "sgan-no-joint", 0)
    path = store.stage("joint-sgan-0") / GRIDS / "000000300.png"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"joint-sgan-0/grids/000000300\.png is missing or damaged"):
        sync(store)
    assert_complete(store, "sgan-no-joint")
    assert "score-sgan-0" not in found(store)[1]


def test_without_a_server_the_last_pass_says_how_to_send_it_later(store):
    finish(store, "sgan", 0)
    follower = uploader.start(store, KEY, "http://127.0.0.1:9")
    follower.communicate(timeout=120)
    assert follower.returncode == 1
    *_, last = store.sweep(KEY).with_suffix(".log").read_text().splitlines()
    assert f"sync '{store.root}' --mlflow http://127.0.0.1:9" in last


def test_a_missing_store_is_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "sweeps.tracking", "sync", str(tmp_path / "none")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "holds no sweep" in done.stderr
    assert not (tmp_path / "none").exists()


def test_a_missing_sweep_is_named_with_those_that_are_there(store):
    with pytest.raises(StoreError, match=f"holds no sweep zz99; it holds {KEY}"):
        tracking.sync_command(store.address, sweep="zz99")


def test_a_damaged_database_is_one_line_and_exit_code_1(store, capsys):
    Path(store.root, "mlflow.db").write_bytes(b"not a database" * 100)
    assert tracking.sync_command(store.address) == 1
    assert "send it later with: python sweeps/tracking.py sync" in capsys.readouterr().err


def test_the_command_line_sends_a_store(store):
    finish(store, "sgan", 0)
    finish(store, "sgan-no-joint", 0)
    command = [sys.executable, "-m", "sweeps.tracking", "sync", str(store.root)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
    assert connection.pages(connection.default_uri(store)) in done.stderr
    assert_complete(store, "sgan")
