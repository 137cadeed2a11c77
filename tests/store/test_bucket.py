"""The store in a bucket, on a real S3 API: several hosts, killed processes, a server in trouble."""

import dataclasses
import hashlib
import itertools
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
from conftest import CLASSIFIER, TINY, finish, make_context, run_trial, tiny_plan, tiny_recipe
from optuna.distributions import BaseDistribution, FloatDistribution
from s3 import Api, serve
from waiting import wait_for

from sgan.checks import ConfigError
from sgan.config import JudgeRecipe
from sgan.models.tensors import read_tensors, write_tensors
from sgan.presets import VARIANTS
from sgan.stages.context import Context
from sgan.stages.graph import LevelStage, name
from sgan.store import claims as lease
from sgan.store import s3 as bucket
from sgan.store.claims import swap
from sgan.store.files import Record, StoreError, read_json, read_record, sealed, sha256, write_json
from sgan.store.local import LostClaim, Store
from sgan.store.s3 import BucketStore, open_store
from sweeps.execution.progress import Progress
from sweeps.optimization.study import StudyFile
from sweeps.run import only_one

TENSORS = {"a/weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2]).byte()}
SPACE: dict[str, BaseDistribution] = {"x": FloatDistribution(0.0, 1.0)}
HERE = Path(__file__).parents[1]
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with serve() as found:
        yield found


@pytest.fixture
def address(api: Api) -> Iterator[str]:
    yield api.bucket(f"bucket-{next(NUMBERS)}")
    api.faults.share = api.faults.delay = 0.0


@pytest.fixture
def host(address: str, tmp_path: Path, monkeypatch) -> Callable[[str], BucketStore]:
    """Opens the store as a host with this name does."""

    def open_there(name: str) -> BucketStore:
        monkeypatch.setenv("SGAN_CACHE", str(tmp_path / name))
        return BucketStore(address)

    return open_there


def publish(store: Store, name: str = "stage") -> None:
    folder = store.begin(name)
    write_tensors(folder / "model.safetensors", TENSORS)
    (folder / "grids" / "000000010.png").write_bytes(b"picture")
    Record(folder).add(10, {"loss": 1.0})
    store.publish(name, {"status": "done"})


def test_a_stage_that_one_host_finished_is_whole_on_another(host):
    one, other = host("one"), host("other")
    assert not other.has("stage")
    publish(one)
    end = time.monotonic() + 60  # a listing counts the longer, the longer it took
    while not other.has("stage"):
        assert time.monotonic() < end
        time.sleep(0.2)
    assert other.facts("stage")["status"] == "done"
    assert torch.equal(read_tensors(other.file("stage", "model.safetensors"))["a/weight"], TENSORS["a/weight"])
    assert read_record(other.look("stage"))[0]["metrics"] == {"loss": 1.0}
    files = {str(path.relative_to(other.stage("stage"))) for path in other.stage("stage").rglob("*") if path.is_file()}
    assert files == {"model.safetensors", "record.jsonl", "grids/000000010.png"}
    assert not one.fs.find(f"{one.base}/work")
    assert not (one.root / "work" / "stage").exists()


def test_a_driver_that_hears_of_an_end_sees_what_another_host_finished(host, monkeypatch):
    monkeypatch.setattr(bucket, "FRESH", 1000.0)
    one, other = host("one"), host("other")
    plan = tiny_plan(dataset=TINY)
    trial: Any = SimpleNamespace(id="trial", title="sgan seed 0", variant="sgan", plan=plan)
    source: Any = SimpleNamespace(ahead=(), finished=(), expected=1)
    progress = Progress(other, source)
    assert not other.has(plan.name)
    one.begin(plan.name)
    one.publish(plan.name, {"status": "done", "scores": {"inception_score": 1.0, "fid": 2.0}})
    assert not other.has(plan.name)
    progress.end(trial, "done", "", {})
    assert other.has(plan.name)


def test_the_ledger_has_the_events_of_all_hosts(host):
    one, other = host("one"), host("other")
    other.begin("stage")
    publish(one)
    other.publish("stage", {"status": "done"})
    other.uploads.submit(lambda: None).result()
    one.uploads.submit(lambda: None).result()
    events = ["stage begun", "stage begun", "stage published", "stage published", "stage discarded"]
    assert [event["event"] for event in host("third").events()] == events


def test_looking_at_a_stage_brings_no_weights(host):
    publish(host("one"))
    other = host("other")
    assert {path.name for path in other.look("stage").rglob("*") if path.is_file()} == {
        "record.jsonl",
        "000000010.png",
    }


def test_a_damaged_file_is_named_and_never_read(host, address):
    one = host("one")
    publish(one)
    path = next(path for path in one.fs.find(f"{one.base}/stages") if path.endswith("model.safetensors"))
    whole = one.fs.cat_file(path)
    one.fs.pipe_file(path, whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StoreError, match=r"model\.safetensors in s3://.* is missing or damaged; delete done/stage"):
        read_tensors(host("other").file("stage", "model.safetensors"))
    assert not list((host("other").root / "stages").rglob("*.safetensors"))


def test_what_an_interrupted_upload_left_is_no_stage_and_is_sent_the_next_time(host, monkeypatch):
    one, other = host("one"), host("other")
    monkeypatch.setattr(one, "_put", lambda path, name: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        publish(one)
    other.listings.clear()
    assert not other.has("stage")
    again = host("one")  # the process that comes after it
    with again.claim("stage") as mine:
        assert not mine  # there is nothing left to train
    other.listings.clear()
    assert torch.equal(read_tensors(other.file("stage", "model.safetensors"))["b"], TENSORS["b"])


def test_where_two_hosts_finished_one_stage_the_first_is_the_one(host):
    one, other = host("one"), host("other")
    folder = other.begin("stage")
    write_tensors(folder / "model.safetensors", {"a/weight": torch.zeros(1)})
    publish(one)
    other.publish("stage", {"status": "done"})
    for store in (one, other, host("third")):
        assert torch.equal(read_tensors(store.file("stage", "model.safetensors"))["a/weight"], TENSORS["a/weight"])
    assert len([path for path in one.fs.find(f"{one.base}/stages") if path.endswith("model.safetensors")]) == 1


def test_what_a_dead_host_had_finished_gives_way_to_what_another_one_sent(host, monkeypatch):
    one, other = host("one"), host("other")
    monkeypatch.setattr(one, "_put", lambda path, name: (_ for _ in ()).throw(KeyboardInterrupt))
    folder = one.begin("stage")
    write_tensors(folder / "model.safetensors", {"a/weight": torch.zeros(1)})
    with pytest.raises(KeyboardInterrupt):
        one.publish("stage", {"status": "done"})
    publish(other)
    again = host("one")
    assert torch.equal(read_tensors(again.file("stage", "model.safetensors"))["a/weight"], TENSORS["a/weight"])
    assert not (again.root / "stages" / "stage" / "stage.json").exists()


def test_the_upload_of_a_lost_stage_ends_before_the_next_stage_begins(host, monkeypatch):
    """Otherwise its files would count as the next stage's, and be removed from the bucket with them."""
    monkeypatch.setattr(bucket, "SYNC", 0.0)
    one, other = host("one"), host("other")
    put, answers = one.fs.put_file, threading.Event()
    monkeypatch.setattr(one.fs, "put_file", lambda *names: (answers.wait(60), put(*names)))
    write_json(one.begin("lost") / "checkpoints" / "000000010" / "checkpoint.json", {})
    time.sleep(0.01)
    one.keep("lost")
    one.leases.lost.add("lost")
    with pytest.raises(LostClaim):
        one.keep("lost")
    threading.Timer(0.5, answers.set).start()
    one.begin("next")
    shutil.rmtree(one.work("lost"))
    one.keep("next", now=True)
    assert other.checkpoint("lost") == "000000010"


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def outside(store: BucketStore, tmp_path: Path) -> dict[str, bytes]:
    """The files that are not in a store's mirror."""
    return {path: held for path, held in everything(tmp_path).items() if not path.startswith(f"{store.root}/")}


def test_a_key_that_leads_out_of_the_mirror_is_named_and_writes_nothing(host, tmp_path):
    one, other = host("one"), host("other")
    one.fs.pipe_file(f"{one.base}/sweeps/../../../taken", b"hostile")
    before = everything(tmp_path)
    with pytest.raises(StoreError, match=r"taken' is no name of a file"):
        other.fetch(other.root / "sweeps")
    assert everything(tmp_path) == before


def test_a_stage_in_progress_whose_files_lead_out_of_the_mirror_is_named_and_writes_nothing(host, tmp_path):
    one, other = host("one"), host("other")
    one.fs.pipe_file("/".join((one.base, "work", "stage", "../../../taken.json")), b"hostile")
    before = everything(tmp_path)
    for read in (other.begin, other.look):
        with pytest.raises(StoreError, match=r"taken\.json' is no name of a file"):
            read("stage")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("absolute", [False, True])
def test_a_finished_stage_whose_files_lead_out_of_the_mirror_is_named_and_writes_nothing(host, absolute, tmp_path):
    one, other = host("one"), host("other")
    publish(one)
    file = str(tmp_path / "taken.png") if absolute else "../../../../taken.png"
    facts = one.facts("stage")
    one.fs.pipe_file(f"{one.base}/stages/stage/{facts['upload']}/{file}", b"hostile")
    facts["files"] = {file: hashlib.sha256(b"hostile").hexdigest()}
    one.fs.pipe_file(f"{one.base}/done/stage.json", json.dumps(sealed(facts)).encode())
    before = outside(other, tmp_path)
    for read in (other.stage, other.look, lambda stage: other.file(stage, file)):
        with pytest.raises(StoreError, match=r"taken\.png' is no name of a file"):
            read("stage")
    assert outside(other, tmp_path) == before


def test_no_file_outside_the_mirror_is_uploaded(host, tmp_path):
    one = host("one")
    (tmp_path / "secret").write_text("secret")
    facts = {"name": "stage", "status": "done", "finished": 1.0}
    for secret in ("../../../../secret", str(tmp_path / "secret")):
        write_json(one.root / "stages" / "stage" / "stage.json", facts | {"files": {secret: ""}})
        with pytest.raises(StoreError, match=r"secret' is no name of a file"), one.claim("stage"):
            pass
    assert not one.fs.find(f"{one.base}/stages")


def test_files_last_as_long_as_the_store(host):
    one, other = host("one"), host("other")
    folder = Path("sweeps", "key")
    write_json(one.root / folder / "sweep.json", {"key": "key"})
    (one.root / folder / "plots").mkdir()
    (one.root / folder / "plots" / "a.png").write_bytes(b"a")
    for file in ("sweep.json", "plots/a.png"):
        one.save(one.root / folder / file)
    other.fetch(other.root / folder)
    assert read_json(other.root / folder / "sweep.json") == {"key": "key"}
    assert (other.root / folder / "plots" / "a.png").read_bytes() == b"a"
    for key in ("new", "newer"):  # what changed in the bucket, or here, is brought again
        write_json(one.root / folder / "sweep.json", {"key": key})
        one.save(one.root / folder / "sweep.json")
        other.fetch(other.root / folder)
        assert read_json(other.root / folder / "sweep.json") == {"key": key}
        write_json(other.root / folder / "sweep.json", {"key": "not saved"})
    other.fetch(other.root / folder)
    assert read_json(other.root / folder / "sweep.json") == {"key": "newer"}
    weights = one.root / "given"
    weights.write_bytes(b"weights")
    one.keep_weights(weights, sha256(weights))
    assert other.weights(sha256(weights)).read_bytes() == b"weights"
    one.note_run("run", "score-1")
    assert (other.shown("run"), other.shown("another")) == ("score-1", "")


def test_a_copy_that_a_killed_process_never_sent_is_sent_the_next_time(host, tmp_path):
    one, other, given = host("one"), host("other"), tmp_path / "given"
    given.write_bytes(b"weights")
    digest = sha256(given)
    one.weights(digest).parent.mkdir()
    shutil.copyfile(given, one.weights(digest))
    one.keep_weights(given, digest)
    assert other.weights(digest).read_bytes() == b"weights"


HOLD = """
import sys, time
from sgan.store import claims as lease
lease.BEAT, lease.EXPIRY = 0.2, 2.0
from sgan.store.s3 import open_store
with open_store(sys.argv[1]).claim("stage") as mine:
    print(mine, flush=True)
    time.sleep(60 if mine else 0)
"""


def holder(address: str, cache: Path) -> subprocess.Popen[str]:
    """Another process, on the host with this cache, that holds the claim if it gets it."""
    environment = os.environ | {"SGAN_CACHE": str(cache)}
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, address], stdout=subprocess.PIPE, text=True, env=environment, cwd=HERE.parent
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def taken(store: Store, name: str = "stage") -> bool:
    with store.claim(name) as mine:
        return mine


def test_a_claim_excludes_every_host_until_its_holder_dies(host, address, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.2)
    monkeypatch.setattr(lease, "EXPIRY", 2.0)
    same, other = host("one"), host("other")
    first = holder(address, tmp_path / "one")
    try:
        assert said(first) == "True"
        for _ in range(30):  # longer than a claim lasts that is not renewed
            assert not taken(same)
            assert not taken(other)
            assert same.held("stage")
            assert other.held("stage")
            time.sleep(0.1)
        assert taken(other, "another")
        assert not other.held("another")
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        assert not same.held("stage")
        assert other.held("stage")  # as far as it can know
        assert taken(same)  # the kernel says on the same host that it is dead
        assert taken(other)  # it was released
        second = holder(address, tmp_path / "one")
        assert said(second) == "True"
        assert not taken(other)
        os.kill(second.pid, signal.SIGKILL)
        second.wait()
        died = time.monotonic()
        wait_for(lambda: taken(other))
        assert time.monotonic() - died > lease.EXPIRY - 2 * lease.BEAT - 0.5
    finally:
        first.kill()
        first.communicate()


def test_a_checkpoint_counts_in_the_bucket_once_it_is_whole(host, monkeypatch):
    one, other = host("one"), host("other")
    folder = one.begin("stage") / "checkpoints"
    (folder / "000000010").mkdir(parents=True)
    put, sent = one.fs.put_file, []

    def watched(source: str, target: str) -> None:
        put(source, target)
        other.listings.clear()
        sent.append((Path(target).name, other.checkpoint("stage")))

    monkeypatch.setattr(one.fs, "put_file", watched)
    write_json(folder / "000000010" / "digests.json", {})
    write_tensors(folder / "000000010" / "weights.safetensors", TENSORS)
    (folder / ".000000020.half").mkdir()
    (folder / ".000000020.half" / "weights.safetensors").write_bytes(b"half")
    one.keep("stage", now=True)
    assert [each for each in sent if not each[0].endswith(".jsonl")] == [
        ("weights.safetensors", ""),
        ("digests.json", "000000010"),
    ]
    assert sorted(path.name for path in other.begin("stage").glob("checkpoints/*/*")) == [
        "digests.json",
        "weights.safetensors",
    ]


def test_an_outage_kills_nobody(host, monkeypatch):
    """Where nobody could look for longer than a claim lasts unrenewed, its holder could not renew it either."""
    one, other = host("one"), host("other")
    assert one.leases.take("name") is not None
    monkeypatch.setattr(lease, "EXPIRY", 0.4)
    monkeypatch.setattr(lease, "APART", 0.2)
    assert other.leases.take("name") is None
    time.sleep(0.5)
    assert other.leases.take("name") is None
    began = time.monotonic()
    while other.leases.take("name") is None:
        time.sleep(0.05)
    assert time.monotonic() - began > 0.3


def test_one_of_many_hosts_gets_a_claim(host, monkeypatch):
    monkeypatch.setattr(lease, "EXPIRY", 0.0)
    stores = [host(f"host-{number}") for number in range(8)]
    with ThreadPoolExecutor(len(stores)) as pool:
        for round_number in range(6):
            together = threading.Barrier(len(stores))

            def take(store: BucketStore, together: threading.Barrier = together) -> bool:
                together.wait()
                return store.leases.take("contended") is not None

            got = list(pool.map(take, stores))
            # The claims of the rounds before are held and never renewed: all hosts see them expire at the same time.
            assert sum(got) <= 1
            assert sum(got) == 1 or round_number > 0
        assert len(stores[0].fs.find(f"{stores[0].base}/claims")) == 1


def test_a_holder_that_was_silent_for_too_long_gives_up(host, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.1)
    one, other = host("one"), host("other")
    token = one.leases.take("name")
    assert token is not None
    monkeypatch.setattr(lease, "EXPIRY", 0.0)
    assert other.leases.take("name") is None  # seen for the first time
    time.sleep(0.05)
    next_token = other.leases.take("name")
    assert next_token is not None
    with one.leases.kept("name", token):  # wakes up
        time.sleep(0.3)
    assert other.leases._read("name")[1]["token"] == next_token
    with pytest.raises(LostClaim, match="another host has taken over the claim of name"):
        one.keep("name")
    with other.leases.kept("name", next_token):
        monkeypatch.setattr(lease, "EXPIRY", 60.0)
        assert one.leases.take("name") is None
    assert one.leases.take("name") is not None


def test_one_host_waits_for_the_end_of_a_dead_claim_and_no_other_has_to(host, monkeypatch):
    dead, one, other = host("dead"), host("one"), host("other")
    assert dead.leases.take("name")
    monkeypatch.setattr(lease, "EXPIRY", 0.3)
    assert one.held("name")
    wait_for(lambda: not one.held("name"))
    assert other.leases.take("name")  # which has not seen it before
    assert one.held("name")


def test_a_mirror_that_was_copied_to_another_host_is_not_the_same_host(host, tmp_path, monkeypatch):
    one = host("one")
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    monkeypatch.setattr(platform, "node", lambda: "another")
    copy = host("copy")
    with one.claim("stage") as first, copy.claim("stage") as second:
        assert (first, second) == (True, False)


@pytest.mark.slow
def test_a_search_waits_out_the_claim_of_a_host_that_died_and_refuses_that_of_a_living_one(host, monkeypatch, capsys):
    monkeypatch.setattr(lease, "BEAT", 0.2)
    monkeypatch.setattr(lease, "EXPIRY", 1.5)
    monkeypatch.setattr(BucketStore, "expiry", 4.0)
    one, other = host("one"), host("other")
    with one.alone("search"), only_one(other, "search") as alone:
        assert not alone
    with only_one(other, "search") as alone:
        assert alone
    assert one.leases.take("search")  # and dies
    with only_one(other, "search") as alone:
        assert alone
    assert capsys.readouterr().out.count("waiting 4 s in case its host has died") == 2


def test_an_object_is_swapped_by_the_writer_that_read_it_last(host):
    store = host("one")
    path = f"{store.base}/object"
    assert not swap(store.fs, path, b"absent", etag='"0"')
    assert swap(store.fs, path, b"first")
    assert not swap(store.fs, path, b"second")
    etag = store.fs.info(path)["ETag"]
    assert swap(store.fs, path, b"second", etag)
    assert not swap(store.fs, path, b"stale", etag)
    assert store.fs.cat_file(path) == b"second"


@pytest.mark.parametrize("etag", [False, True])
def test_a_write_whose_answer_was_lost_is_known_for_ones_own(host, api, etag):
    """The server writes and answers 503; the client's own second try is refused."""
    store = host("one")
    path = f"{store.base}/object"
    if etag:
        store.fs.pipe_file(path, b"before")
    tag = store.fs.info(path)["ETag"] if etag else ""
    api.faults.lost = 1
    assert swap(store.fs, path, b"mine", tag)
    assert api.faults.lost == 0
    assert store.fs.cat_file(path) == b"mine"


def test_a_stage_whose_last_answer_was_lost_is_published(host, api):
    one, other = host("one"), host("other")
    folder = one.begin("stage")
    write_tensors(folder / "model.safetensors", TENSORS)
    Store.publish(one, "stage", {"status": "done"})
    put, upload = one._put, []

    def then_lose(path: Path, name: str) -> None:
        put(path, name)
        upload.append(name)
        api.faults.lost = 1

    one._put = then_lose
    one._finish("stage")
    assert api.faults.lost == 0
    assert torch.equal(read_tensors(other.file("stage", "model.safetensors"))["b"], TENSORS["b"])


TRAIN = """
import sys
import time
sys.path[:0] = [{here!r}, {here!r} + '/store']
from sgan.store import s3 as bucket
bucket.SYNC = 0.0
from sgan.store.s3 import open_store
from conftest import run_trial
from test_bucket import context, long_plan
import sgan.training.checkpoint as checkpoint
checkpoint.SPARSE, checkpoint.SECONDS = 0, 0.0
for label, progress in run_trial(long_plan(), context(open_store(sys.argv[1]))):
    print(label, progress.images, flush=True)
    if label == "level0" and progress.images > 200:
        time.sleep(1)  # so that it is killed before the stage ends
"""


def long_plan():
    return tiny_plan(tiny_recipe(steps=60), dataset=TINY)


def context(store: Store) -> Context:
    return dataclasses.replace(make_context(store.root), store=store)


@pytest.mark.slow
def test_a_trial_goes_on_on_another_host_and_ends_as_if_it_had_never_moved(host, address, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "EXPIRY", 1.0)
    trial = long_plan()
    finish(trial, tmp_path / "folder")
    quiet = Store(tmp_path / "folder")
    environment = os.environ | {"SGAN_CACHE": str(tmp_path / "one"), "PYTHONUNBUFFERED": "1"}
    script = TRAIN.format(here=str(HERE))
    level = name(trial.score.levels[0])
    first = subprocess.Popen(
        [sys.executable, "-c", script, address], stdout=subprocess.PIPE, text=True, env=environment, cwd=HERE.parent
    )
    assert first.stdout is not None
    other = host("other")
    try:
        for line in first.stdout:
            label, images = line.split()
            if label == "level0" and int(images) > 200:
                break
        wait_for(lambda: (other.renew(), other.checkpoint(level))[1])
    finally:
        first.kill()
        first.communicate()
    watched = other.look(level)
    assert read_record(watched)  # as tracking sees it
    assert not list(watched.glob("*.safetensors"))
    trained = {}
    for label, progress in run_trial(trial, context(other)):
        trained.setdefault(label, progress.images)
    assert trained["level0"] > 0  # where the other host was killed
    assert "encoder" not in trained
    for _, stage in trial.stages:
        for file in quiet.facts(name(stage))["files"]:
            if file.endswith("model.safetensors"):
                mine = read_tensors(other.stage(name(stage)) / file)
                theirs = read_tensors(quiet.stage(name(stage)) / file)
                assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert other.facts(trial.name)["scores"] == quiet.facts(trial.name)["scores"]
    assert isinstance(trial.score.levels[0], LevelStage)


def test_a_copy_of_a_study_in_a_bucket_is_found_on_another_host(host):
    study = optuna.create_study()
    for value in (1.0, 2.0):
        study.tell(study.ask(SPACE), value)
    path = "optuna.log"
    one, other = host("one"), host("other")
    StudyFile(study, "toy", "fid", one.root / path)
    one.save(one.root / path)
    other.fetch(other.root / path)
    assert (other.root / path).read_bytes() == (one.root / path).read_bytes()


def test_a_server_in_trouble_loses_nothing(host, api, monkeypatch):
    monkeypatch.setattr(bucket, "PAUSES", (0.1,) * 40)
    monkeypatch.setattr("random.random", lambda: 0.0)  # the client's own retries wait as long as this says
    store = host("one")
    api.faults.share, api.faults.delay = 0.15, 0.001
    short = JudgeRecipe(images=320, batch=32)
    small = tiny_recipe(steps=2, encoder=dataclasses.replace(CLASSIFIER, images=320), judge=short)
    trial = tiny_plan(small, VARIANTS["dcgan-adv-cond-ent"].variant)
    list(run_trial(trial, context(store)))
    assert api.faults.failed > 5
    api.faults.share = api.faults.delay = 0.0
    other = host("other")
    for _, stage in trial.stages:
        assert other.facts(name(stage))["status"] == "done"
        other.stage(name(stage))


def test_a_server_that_is_gone_is_waited_for_and_then_ends_in_one_error(host, api, monkeypatch, capsys):
    store = host("one")
    monkeypatch.setattr(bucket, "PAUSES", (0.0,) * 3)
    monkeypatch.setattr("random.random", lambda: 0.0)  # the client's own retries wait as long as this says
    monkeypatch.setattr(store.fs, "retries", 1)
    api.faults.share = 1.0
    with pytest.raises(StoreError, match=r"the output store s3://.* does not answer"):
        store.has("stage")
    said = capsys.readouterr().err
    assert said.startswith(f"the output store {store.address} does not answer")
    assert said.count("waiting for it") == 1


NOTES = """
import sys
from sgan.store.s3 import BucketStore
store = BucketStore(sys.argv[1])
print("open", flush=True)
sys.stdin.readline()
for number in range(3):
    store.note("sweep ended", sweep=str(number))
"""


def test_a_bucket_that_hangs_does_not_hold_a_process_that_ends(api, address, tmp_path):
    command = [sys.executable, "-c", NOTES, address]
    environment = os.environ | {"SGAN_CACHE": str(tmp_path)}
    process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment, cwd=HERE.parent)
    assert said(process) == "open"
    api.faults.delay = 60.0
    began = time.monotonic()
    process.communicate("\n", timeout=50)
    assert process.returncode == 0
    assert time.monotonic() - began < 40


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("s3://no-such-bucket/folder", r"no-such-bucket/folder cannot be written .*--store"),
        ("s3:///folder", "s3:///folder cannot be opened"),
        ("ftq://host/folder", r"store ftq://host/folder cannot be opened"),
    ],
)
def test_an_address_that_is_none_is_named(api, given, message, tmp_path, monkeypatch):
    monkeypatch.setenv("SGAN_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=message):
        open_store(given)
