"""What MLflow holds after passes over hand-made stores, through real SQLite files."""

import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import ended
from handmade import (
    GRID_FILES,
    GRID_IMAGES,
    KEY,
    LABELS,
    POINTS,
    assert_complete,
    client_of,
    finish,
    found,
    grids,
    manifest,
    new,
    points,
    publish,
    stage_name,
    sync,
    train,
    trial,
)
from mlflow import MlflowClient
from PIL import Image
from waiting import wait_for

from sgan.command_line import python
from sgan.store import votes
from sgan.store.files import Record, StoreError, write_json
from sgan.store.local import FIGURES, GRIDS, MODELS, Store
from sweeps import tracking
from sweeps.mlflow_view import follow
from sweeps.mlflow_view.connection import default_uri, pages
from sweeps.mlflow_view.runs import SENT, find, logged_model
from sweeps.mlflow_view.sync import send_rest
from sweeps.mlflow_view.verify import differences
from sweeps.planning import manifest as manifests


@pytest.fixture
def store(tmp_path) -> Store:
    return new(tmp_path / "a store")


def test_every_point_and_grid_is_there_once_after_two_passes(store):
    train(store, "judge-x", (), ())
    publish(store, "judge-x", fid=0.5)
    finish(store, "sgan", 0)
    finish(store, "sgan-no-joint", 0)
    assert sync(store)
    assert sync(store)
    assert_complete(store, "sgan")
    assert_complete(store, "sgan-no-joint")  # the shared stages are in both runs
    parent, children = found(store)
    assert len(children) == 2
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == {
        **{"real/inception_score": 9.0, "real/fid": 0.5, "real/diversity": 0.9},
        **{f"inception_score/mean/{variant}": 9.0 for variant in ("sgan", "sgan-no-joint")},
        **{f"fid/mean/{variant}": 10.0 for variant in ("sgan", "sgan-no-joint")},
    }
    assert parent.data.params == {"dataset": "digits", "recipe": "tiny", "budget": "0.5", "override": "noise=0.1"}
    run = trial(store, "sgan")
    assert run.data.params == {
        **{"dataset": "digits", "recipe": "tiny", "budget": "0.5", "recipe.noise": "0.1", "seed": "0"},
        **{"variant.cuts": "fc3", "variant.joint": "True", "variant.labels": "True"},
        **{"variant.weights.adv": "1.0", "variant.weights.ent": "0.0"},
    }
    tags = {"variant": "sgan", "seed": "0", "cuts": "fc3", "dataset": "digits", "recipe": "tiny"}
    tags |= {"mlflow.source.name": "sweeps/ablation.py", "mlflow.source.git.commit": "abc123"}
    assert tags.items() <= run.data.tags.items()
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("digits", "f00d")
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.info.start_time < run.info.end_time
    artifacts = {file.path for file in client_of(store).list_artifacts(run.info.run_id)}
    assert artifacts == {"config.json", "figures", "images"}
    model = logged_model(client_of(store), run)
    assert model
    assert model.metrics


def test_a_stage_with_more_points_than_a_call_takes_is_sent_whole(store):
    train(store, "encoder-0", range(1, 1201))
    publish(store, "encoder-0")
    finish(store, "sgan", 0)
    sync(store)
    assert [line for line in differences(store, KEY, default_uri(store)) if line.startswith("sgan seed")] == []
    assert trial(store, "sgan").data.metrics["encoder/g_adv"] == 1.2  # the newest is the run's value


def test_a_trial_that_has_not_changed_is_neither_read_nor_sent_again(store, monkeypatch):
    finish(store, "sgan", 0)
    sync(store, live=True)
    client = MlflowClient

    def refused(*args, **kwargs):
        raise AssertionError("nothing is new")

    with monkeypatch.context() as patch:
        for name in ("create_run", "log_batch", "log_artifacts", "update_run", "set_terminated"):
            patch.setattr(client, name, refused)
        sync(store, live=True)
    finish(store, "sgan-no-joint", 0)
    sync(store, live=True)
    assert_complete(store, "sgan-no-joint")
    client.delete_run(client_of(store), trial(store, "sgan").info.run_id)
    sync(store)
    assert_complete(store, "sgan")


def test_a_pass_that_forgot_what_it_sent_adds_nothing(store):
    finish(store, "sgan", 0)
    sync(store)
    client = client_of(store)
    for tag in (SENT, "outcome"):
        client.delete_tag(trial(store, "sgan").info.run_id, tag)
    sync(store)
    assert_complete(store, "sgan")


def test_points_that_a_resumed_stage_repeats_are_kept_once(store):
    train(store, "level0-0", POINTS[:2], GRID_IMAGES[:1])
    sync(store, live=True)
    train(store, "level0-0", POINTS[1:], GRID_IMAGES, done=POINTS[0])  # killed after the checkpoint at POINTS[0]
    publish(store, "level0-0")
    finish(store, "sgan", 0)
    sync(store)
    assert_complete(store, "sgan")


def test_grids_are_named_as_log_image_names_them(store):
    """MLflow's image slider reads keys and steps from file names."""
    finish(store, "sgan", 0)
    sync(store)
    uri, run = default_uri(store), trial(store, "sgan")
    before = grids(run, uri)
    client = MlflowClient(uri)
    client.log_image(run.info.run_id, Image.new("RGB", (4, 4)), key="other", step=7, synchronous=True)
    assert grids(run, uri) == before | {("other", 7, end): 1 for end in GRID_FILES}
    assert trial(store, "sgan").data.tags["mlflow.loggedImages"] == run.data.tags["mlflow.loggedImages"]


def test_a_run_has_the_votes_of_the_turing_test_in_its_note(store):
    finish(store, "sgan", 0)
    finish(store, "sgan-no-joint", 0)
    stage, cast = stage_name("score", "sgan", 0), []
    for answers in ((True, False), (False,)):
        cast += [{"time": 1e9 + len(cast), "stage": stage, "real": True, "answer": answer} for answer in answers]
        votes.keep(store, "voter", cast)
        sync(store)
        note = trial(store, "sgan").data.tags["mlflow.note.content"]
        errors = sum(not vote["answer"] for vote in cast) / len(cast)
        assert f"Visual Turing test: error {errors:.3f} (95 % interval " in note
        assert f"{len(cast)} votes" in note
    assert "Turing" not in trial(store, "sgan-no-joint").data.tags["mlflow.note.content"]
    assert list(differences(store, KEY, default_uri(store))) == []


def test_a_trial_has_a_run_once_more_of_it_has_begun_than_what_many_share(store):
    assert not sync(store, live=True)
    assert found(store)[0].info.status == "RUNNING"
    train(store, "encoder-0", POINTS[:1], ())
    sync(store, live=True)
    assert found(store)[1] == {}
    assert list(differences(store, KEY, default_uri(store))) == []
    train(store, "level0-0", POINTS[:2], ())
    sync(store, live=True)
    assert {run.info.status for run in found(store)[1].values()} == {"RUNNING"}
    assert points(trial(store, "sgan"), default_uri(store)) == {
        "encoder/g_adv": [100],
        "encoder/d_adv": [100],
        "level0/g_adv": [100, 200],
        "level0/d_adv": [100, 200],
    }


def test_an_interrupted_sweep_is_killed_and_runs_again_when_it_resumes(store):
    train(store, "level0-0", POINTS[:1], ())
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
    for label in ("encoder", "level0", "joint"):
        train(store, stage_name(label, "sgan", 0))
        diverged = label == "joint"
        publish(store, stage_name(label, "sgan", 0), "diverged" if diverged else "done", reason if diverged else None)
    lost = {"trial": "score-sgan-no-joint-0", "error": "OutOfMemoryError: 3 GB", "time": time.time()}
    write_json(store.failure("score-sgan-no-joint-0"), lost)
    assert sync(store)
    diverged, failed = trial(store, "sgan"), trial(store, "sgan-no-joint")
    assert (diverged.info.status, failed.info.status) == ("FAILED", "FAILED")
    assert (diverged.data.tags["outcome"], diverged.data.tags["reason"]) == ("diverged", f"joint: {reason}")
    assert (failed.data.tags["outcome"], failed.data.tags["reason"]) == ("failed", "OutOfMemoryError: 3 GB")
    assert points(diverged, default_uri(store))["joint/g_adv"] == [*POINTS]
    finish(store, "sgan-no-joint", 0)  # a second try succeeds
    store.failure("score-sgan-no-joint-0").unlink()
    assert sync(store)
    assert_complete(store, "sgan-no-joint")
    assert trial(store, "sgan-no-joint").data.tags["reason"] == ""
    assert found(store)[0].info.status == "FINISHED"


def test_nan_and_infinity_are_sent_once(store):
    folder = store.begin("level0-0")
    Record(folder).add(100, {"g_adv": float("nan"), "d_adv": float("inf")})
    sync(store)
    client = client_of(store)
    client.delete_tag(trial(store, "sgan").info.run_id, SENT)
    sync(store)
    assert set(map(tuple, points(trial(store, "sgan"), default_uri(store)).values())) == {(100,)}


def test_more_seeds_extend_the_same_parent(store):
    finish(store, "sgan", 0)
    finish(store, "sgan-no-joint", 0)
    assert sync(store)
    first = found(store)[0].info.run_id
    manifest(store, seeds=(0, 1))
    assert not sync(store, live=True)
    assert found(store)[0].info.status == "RUNNING"
    finish(store, "sgan", 1, fid=4.0)
    finish(store, "sgan-no-joint", 1, fid=12.0)
    assert sync(store)
    parent, children = found(store)
    assert (parent.info.run_id, parent.info.status, len(children)) == (first, "FINISHED", 4)
    assert_complete(store, "sgan", 0)
    means = {name: parent.data.metrics[f"fid/mean/{name}"] for name in ("sgan", "sgan-no-joint")}
    assert means == {"sgan": 7.0, "sgan-no-joint": 11.0}
    assert list(differences(store, KEY, default_uri(store))) == []


def test_a_pass_cut_off_after_any_call_leaves_nothing_twice(store, monkeypatch):
    finish(store, "sgan", 0)
    finish(store, "sgan-no-joint", 0)
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
        for name in ("create_run", "log_batch", "log_artifacts", "set_terminated"):
            patch.setattr(MlflowClient, name, cut_off_after(getattr(MlflowClient, name)))
        calls, closed = 0, False
        while not closed:
            calls_left = calls = calls + 1
            with contextlib.suppress(ConnectionError):
                closed = sync(store)
    assert calls >= 5
    assert_complete(store, "sgan")
    assert_complete(store, "sgan-no-joint")
    assert len(found(store)[1]) == 2


def test_a_run_of_which_a_stage_was_deleted_keeps_its_seconds_until_it_is_made_again(store):
    finish(store, "sgan", 0)
    finish(store, "sgan-no-joint", 0)
    sync(store)
    shutil.rmtree(store.stage("level0-0"))
    sync(store)
    assert_complete(store, "sgan")
    client_of(store).delete_run(trial(store, "sgan").info.run_id)
    sync(store)
    assert "train_seconds" not in trial(store, "sgan").data.metrics
    finish(store, "sgan", 0)
    assert sync(store)
    assert_complete(store, "sgan")


def artifact(run, pattern: str) -> Path:
    return sorted(Path(run.info.artifact_uri.removeprefix("file://").replace("%20", " ")).glob(pattern))[0]


def test_verify_finds_whatever_was_altered_by_hand(store, capsys):
    finish(store, "sgan", 0)
    finish(store, "sgan-no-joint", 0)
    assert tracking.sync(store.address, verify=True) == 0
    assert "every value and file in MLflow is as in the store" in capsys.readouterr().err
    run, client = trial(store, "sgan"), client_of(store)

    def altered(sql: str) -> None:
        with contextlib.closing(sqlite3.connect(store.root / "mlflow.db")) as database, database:
            assert database.execute(sql.format(run=f"run_uuid = '{run.info.run_id}'")).rowcount > 0

    altered("delete from metrics where {run} and key = 'encoder/g_adv' and step = 200")
    altered("update metrics set value = 0.25 where {run} and key = 'level0/d_adv' and step = 300")
    altered("update params set value = '2.0' where {run} and key = 'variant.weights.adv'")
    altered("delete from tags where {run} and key = 'alarm'")
    altered("update tags set value = '7' where {run} and key = 'seed'")
    altered("update runs set status = 'RUNNING' where {run}")
    client.log_metric(run.info.run_id, "encoder/d_adv", 0.5, step=150)
    client.log_metric(run.info.run_id, "mine", 1.0)
    image = artifact(run, "images/joint+step+300*.png")
    image.write_bytes(image.read_bytes()[:-30] + bytes(30))
    artifact(run, "images/level0+step+100*.webp").unlink()
    artifact(run, "figures/classes.png").unlink()
    logged = logged_model(client, run)
    assert logged
    (model,) = (store.root / "mlartifacts" / "models").glob(f"{logged.model_id}/**/last/model.json")
    model.write_text("{}")
    found = differences(store, KEY, default_uri(store))
    for line, words in zip(
        sorted(re.sub(r"\+timestamp[^.]*?(?=[.]|\+comp)", "", line) for line in found),
        (
            "file figures/classes.png is missing",
            "file images/joint+step+300.png is ",
            "file images/level0+step+100+compressed.webp is missing",
            "file model/last/model.json is ",
            "metric encoder/d_adv at 150 is 0.5, and nothing in the store",
            "metric encoder/g_adv at 200 is missing",
            "metric level0/d_adv at 300 is 0.25, and 0.5 in the store",
            "metric mine at 0 is 1.0, and nothing in the store",
            "param variant.weights.adv is 2.0, and 1.0 in the store",
            "tag alarm is missing",
            "tag seed is 7, and 0 in the store",
            "tag status is RUNNING, and FINISHED in the store",
        ),
        strict=True,
    ):
        assert line.startswith(f"sgan seed 0: {words}"), line
    # Since files are missing, all is sent again; what cannot be changed or taken back in MLflow stays.
    assert tracking.sync(store.address, verify=True) == 1
    said = capsys.readouterr()
    assert "4 differences" in said.err
    assert [line.partition(" is ")[0] for line in said.out.splitlines()] == [
        f"sgan seed 0: {name}"
        for name in (
            "metric encoder/d_adv at 150",
            "metric level0/d_adv at 300",
            "metric mine at 0",
            "param variant.weights.adv",
        )
    ]
    client.delete_run(run.info.run_id)
    assert tracking.sync(store.address, verify=True) == 0


def test_damage_in_one_trial_holds_no_other_up_and_is_named(store):
    finish(store, "sgan", 0)
    finish(store, "sgan-no-joint", 0)
    path = store.stage("joint-sgan-0") / GRIDS / "000000300.png"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"joint-sgan-0/grids/000000300\.png is missing or damaged"):
        sync(store)
    assert_complete(store, "sgan-no-joint")
    assert "score-sgan-0" not in found(store)[1]


@pytest.mark.parametrize("hostile", ["label", "stage"])
def test_a_record_whose_names_lead_elsewhere_is_an_error_and_writes_nothing_there(hostile, store, tmp_path):
    finish(store, "sgan", 0)
    (tmp_path / "taken").mkdir()
    row = manifests.read(store, KEY)["trials"][0]
    if hostile == "label":
        row["stages"][0]["label"] = name = "../../taken/taken"
    else:
        row["stages"][0]["name"] = name = "../../taken"
    manifests.write_trial(store, KEY, row)
    with pytest.raises(StoreError, match=rf"{re.escape(name)}.* is no name of a file"):
        sync(store)
    assert not list(tmp_path.rglob("taken?*"))


def test_symbolic_links_in_a_store_are_never_followed(store, tmp_path):
    """Nothing of the machine that sends goes to MLflow, whoever may write the store."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "secret").write_text("secret")
    Image.new("RGB", (20, 10)).save(home / "000000200.png")
    train(store, "level0-0")
    (store.work("level0-0") / GRIDS / "000000200.png").symlink_to(home / "000000200.png")
    sync(store, live=True)
    assert ("level0", 200, ".png") not in grids(trial(store, "sgan"), default_uri(store))
    finish(store, "sgan", 0)
    stage, plots = store.stage(stage_name("score", "sgan", 0)), manifests.folder(store, KEY) / "plots"
    plots.mkdir()
    for folder in (stage / FIGURES, stage / MODELS, stage / MODELS / "last", plots):
        (folder / "secret.png").symlink_to(home / "secret")
        (folder / "folder").symlink_to(home)
    sync(store)
    assert_complete(store, "sgan")
    sent = [path for path in (store.root / "mlartifacts").rglob("*") if path.is_file()]
    assert any(path.name == "model.json" for path in sent)
    assert not [path for path in sent if path.name.startswith("secret") or path.read_bytes() == b"secret"]
    shutil.move(stage / FIGURES, tmp_path / FIGURES)
    (stage / FIGURES).symlink_to(tmp_path / FIGURES)
    client_of(store).delete_run(trial(store, "sgan").info.run_id)
    with pytest.raises(StoreError, match="lies behind a symbolic link"):
        sync(store)


def test_what_mlflow_writes_into_a_groups_store_is_the_groups(store):
    """Whatever the umask of the user who sends, another one of the group can send more, with the same log."""
    finish(store, "sgan", 0)
    for path in (store.root, *store.root.rglob("*")):
        path.chmod(0o2770 if path.is_dir() else 0o660)
    own = os.umask(0o077)
    try:
        sync(store)
        assert os.umask(0o077) == 0o077
        with follow.start(store, KEY, default_uri(store)) as follower:
            follower.communicate(timeout=60)
    finally:
        os.umask(own)
    artifacts = list((store.root / "mlartifacts").rglob("*"))  # some are copies, with the rights of what they copy
    narrow = [path for path in artifacts if ~path.stat().st_mode & (0o70 if path.is_dir() else 0o40)]
    assert not narrow, narrow[:5]
    assert (store.root / "sweeps" / KEY / follow.LOG).stat().st_mode & 0o60 == 0o60


def test_a_missing_store_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert ended("sweeps/tracking.py", "sync", tmp_path / "none") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds no sweep" in line
    assert not (tmp_path / "none").exists()


def test_a_damaged_database_is_one_line_and_exit_code_1(store, capsys):
    Path(store.root, "mlflow.db").write_bytes(b"not a database" * 100)
    assert tracking.sync(store.address) == 1
    assert f"send it later with: {python()} sweeps/tracking.py sync" in capsys.readouterr().err


def test_the_command_line_sends_a_store(store, capsys):
    finish(store, "sgan", 0)
    finish(store, "sgan-no-joint", 0)
    assert ended("sweeps/tracking.py", "sync", store.root) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert pages(default_uri(store), KEY) in said.err
    assert_complete(store, "sgan")


@pytest.mark.slow
def test_a_deleted_database_and_deleted_files_are_made_again_by_the_same_command(store, tmp_path):
    """In a new process: MLflow keeps in memory what it knows of a database."""
    other = new(tmp_path / "other")
    for each in (store, other):
        finish(each, "sgan", 0)
        sync(each)
    before = images_open(other)
    Path(store.root, "mlflow.db").unlink()
    shutil.rmtree(other.root / "mlartifacts")
    code = "import sys; from sweeps import tracking; sys.exit(max(map(tracking.sync, sys.argv[1:])))"
    subprocess.run([sys.executable, "-c", code, store.address, other.address], check=True, timeout=200)
    assert images_open(other) == before
    for each in (store, other):
        assert_complete(each, "sgan")
        assert list(differences(each, KEY, default_uri(each))) == []


def test_a_curve_of_a_stack_has_no_score_of_its_image_level_given_features_of_real_images(store, monkeypatch):
    monkeypatch.setitem(LABELS, "sgan", ("encoder", "level1", "level0", "joint", "score"))
    manifest(store)
    finish(store, "sgan", 0)
    sync(store)
    run, client = trial(store, "sgan"), client_of(store)
    steps = {key: [each.step for each in client.get_metric_history(run.info.run_id, key)] for key in run.data.metrics}
    assert sorted(steps["level0/fid"]) == [*POINTS]
    assert sorted(steps["fid"]) == [*(POINTS[-1] + images for images in POINTS), 2 * POINTS[-1] + 1]


def test_an_experiment_that_was_deleted_in_mlflow_comes_back_with_its_runs(store):
    finish(store, "sgan", 0)
    sync(store)
    before, client = trial(store, "sgan").info.run_id, client_of(store)
    client.delete_experiment(trial(store, "sgan").info.experiment_id)
    assert tracking.sync(store.address, verify=True) == 0
    assert trial(store, "sgan").info.run_id == before
    assert_complete(store, "sgan")


def test_a_sweeps_run_that_was_deleted_is_made_again_above_those_of_its_trials(store):
    finish(store, "sgan", 0)
    sync(store)
    client_of(store).delete_run(found(store)[0].info.run_id)
    assert tracking.sync(store.address, verify=True) == 0
    assert trial(store, "sgan").data.tags["mlflow.parentRunId"] == found(store)[0].info.run_id
    assert_complete(store, "sgan")


def images_open(store: Store) -> int:
    """How many grids MLflow opens by the addresses that it has of them."""
    client, opened = client_of(store), 0
    for run in found(store)[1].values():
        for file in client.list_artifacts(run.info.run_id, "images"):
            with Image.open(client.download_artifacts(run.info.run_id, file.path)) as image:
                image.load()
            opened += 1
    return opened


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_store_in_another_place_shows_all_of_it_after_the_next_pass(how, store, tmp_path):
    finish(store, "sgan", 0)
    sync(store)
    before = images_open(store)
    place = tmp_path / "elsewhere"
    if how == "moved":
        store.root.rename(place)
    else:
        shutil.copytree(store.root, place)
    other = Store(place)
    assert tracking.sync(str(place), verify=True) == 0
    assert_complete(other, "sgan")
    run = trial(other, "sgan")
    assert images_open(other) == before > 0
    assert str(place) in run.info.artifact_uri
    assert other.shown(run.info.run_id) == "score-sgan-0"
    if how == "copied":
        assert images_open(store) == before  # the first one is as it was


def test_the_last_pass_sends_every_sweep_of_a_store_that_was_moved(store, tmp_path):
    finish(store, "sgan", 0)
    sync(store)
    store.root.rename(tmp_path / "elsewhere")
    moved, server = Store(tmp_path / "elsewhere"), f"sqlite:///{tmp_path / 'server.db'}"
    manifests.write(moved, manifests.read(moved, KEY) | {"key": "cd34"})
    for uri, others in ((default_uri(moved), 1), (server, 0)):  # a server gets what it was named for
        assert send_rest(moved, "cd34", uri) == ""
        runs = [find(MlflowClient(uri), key) for key in ("cd34", KEY)]
        assert [bool(parent) + len(trials) for parent, trials in runs] == [3, 3 * others]
    assert_complete(moved, "sgan")


def test_an_image_that_mlflow_has_lost_is_sent_again(store):
    finish(store, "sgan", 0)
    sync(store)
    before = images_open(store)
    artifact(trial(store, "sgan"), "images/joint*.png").write_bytes(b"cut off")
    sync(store)
    assert images_open(store) == before
    assert_complete(store, "sgan")


def test_a_model_that_was_deleted_in_mlflow_is_sent_again(store):
    finish(store, "sgan", 0)
    sync(store)
    client = client_of(store)
    (model,) = client.search_logged_models([trial(store, "sgan").info.experiment_id])
    client.delete_logged_model(model.model_id)
    assert tracking.sync(store.address, verify=True) == 0
    assert_complete(store, "sgan")


def test_verify_names_what_a_stage_did_not_write(store, tmp_path, capsys):
    finish(store, "sgan", 0)
    (tmp_path / "secret").write_text("secret")
    stage = store.stage("joint-sgan-0")
    (stage / "notes.txt").write_text("mine")
    (stage / GRIDS / "link.png").symlink_to(tmp_path / "secret")
    assert tracking.sync(store.address, verify=True) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{stage}/grids/link.png is a symbolic link that its stage did not write",
        f"{stage}/notes.txt is a file that its stage did not write",
    ]


def test_verify_compares_the_tag_that_names_the_parent(store):
    finish(store, "sgan", 0)
    sync(store)
    client, uri = client_of(store), default_uri(store)
    client.set_tag(trial(store, "sgan").info.run_id, "mlflow.parentRunId", "gone")
    parent = found(store)[0].info.run_id
    line = f"sgan seed 0: tag mlflow.parentRunId is gone, and {parent} in the store"
    assert list(differences(store, KEY, uri)) == [line]
    client.set_tag(parent, "mlflow.runName", "renamed")
    assert "sweep: tag mlflow.runName is renamed, and digits, recipe tiny in the store" in differences(store, KEY, uri)


def test_the_command_and_the_process_that_follows_hold_no_address(store):
    """Every user of a machine can read its command lines, and others the log."""
    uri = "http://me:S3CRET@127.0.0.1:9/x"
    follower = follow.start(store, KEY, uri)
    words = wait_for(lambda: Path(f"/proc/{follower.pid}/cmdline").read_text())  # empty until it is executed
    assert KEY in words
    assert "S3CRET" not in words
    assert "127.0.0.1" not in words
    line = follow.finish(follower, store, KEY, uri)
    told = line + (manifests.folder(store, KEY) / follow.LOG).read_text()
    assert "$MLFLOW_TRACKING_URI" in line
    assert "S3CRET" not in told
    assert "S3CRET" not in pages(uri)
