"""The store: whole stages or none, torn files named, one claim whoever asks."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgan.models.tensors import read_tensors, write_tensors
from sgan.store.files import Record, StoreError, inside, is_plain, read_json, read_record, sha256, write_json
from sgan.store.local import CHECKPOINTS, GRIDS, STAGE_FILE, LostClaim, Store, grid_file
from sgan.store.s3 import find_store
from sgan.training.checkpoint import Checkpoint, Checkpoints

TENSORS = {"a/weight": torch.arange(6.0).reshape(2, 3), "a/step": torch.tensor(7), "b": torch.tensor([1, 2]).byte()}
NAMES = ("one", "other")
HOLD = """
import sys, time
from sgan.store.local import Store
with Store(sys.argv[1]).claim('stage') as mine:
    print(mine, flush=True)
    time.sleep(60 if mine else 0)
"""


def publish(store: Store, name: str = "stage") -> Path:
    """A finished stage with one file of tensors; returns that file."""
    write_tensors(store.begin(name) / "model.safetensors", TENSORS)
    store.publish(name, {"status": "done"})
    return store.stage(name) / "model.safetensors"


def claimer(store: Store) -> subprocess.Popen:
    """Another process that tries to claim the stage, says whether it got it, and then holds it."""
    return subprocess.Popen([sys.executable, "-c", HOLD, str(store.root)], stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_names_from_outside_stay_inside(tmp_path):
    store = Store(tmp_path / "store")
    assert inside(tmp_path, "a/b.png") == tmp_path / "a" / "b.png"
    for name in ("../a", "a/../../b", "/etc/passwd", "", ".", "..", "a\0b", None, 7):
        with pytest.raises(StoreError, match="is no name of a file or folder below"):
            inside(tmp_path, name)
    publish(store)
    for use in (store.stage, store.work, store.has, store.failure, store.weights, store.shown, store.held, store.begin):
        with pytest.raises(StoreError, match="no name of"):
            use("../../other")
    (tmp_path / "other.json").write_text("{}")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    calls: list[Callable[[], Any]] = [
        lambda: store.file("stage", "../../../other.json"),
        lambda: store.file("stage", str(tmp_path / "other.json")),
        lambda: store.note_run("../../other", "stage"),
        lambda: store.publish("../../other", {"status": "done"}),
        lambda: store.claim("../../other").__enter__(),
        lambda: store.lock("../../other").__enter__(),
    ]
    for call in calls:
        with pytest.raises(StoreError, match="no name of"):
            call()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_symbolic_links_in_a_work_folder_are_removed_and_never_followed(tmp_path):
    store, home = Store(tmp_path / "store"), tmp_path / "home"
    home.mkdir()
    for name in ("secret", ".hidden"):
        (home / name).write_text(name)
    store.work("stage").symlink_to(home)
    folder = store.begin("stage")
    assert not folder.is_symlink()
    (folder / "figures").symlink_to(home)
    (folder / GRIDS / "1.png").symlink_to(home / "secret")
    assert store.begin("stage") == folder
    assert [path.name for path in folder.rglob("*")] == [GRIDS]
    (folder / "figures").symlink_to(home)
    (folder / GRIDS / "1.png").symlink_to(home / "secret")
    publish(store)
    assert list(store.facts("stage")["files"]) == ["model.safetensors"]
    assert {path.name: path.read_text() for path in home.iterdir()} == {"secret": "secret", ".hidden": ".hidden"}


@pytest.mark.parametrize("place", ["model.safetensors", "model"])
def test_a_symbolic_link_in_the_place_of_a_file_or_folder_is_damage(place, tmp_path):
    """Also to the same bytes: whoever may write the store could have them read from anywhere."""
    store = Store(tmp_path / "linked" / "store")
    (tmp_path / "disk").mkdir()
    shutil.move(store.root, tmp_path / "disk" / "store")
    store.root.symlink_to(tmp_path / "disk" / "store")  # the store itself may lie behind one
    (store.begin("stage") / "model").mkdir()
    (store.work("stage") / "model" / "model.json").write_text("{}")
    file = publish(store)
    assert is_plain(store.root, "stages/stage/model.safetensors")
    assert store.file("stage", "model.safetensors") == file
    assert store.file("stage", "model/model.json").read_text() == "{}"
    shutil.move(store.stage("stage") / place, tmp_path / place)
    (store.stage("stage") / place).symlink_to(tmp_path / place)
    with pytest.raises(StoreError, match="lies behind a symbolic link"):
        store.file("stage", "model/model.json" if place == "model" else place)


def test_another_user_may_read_what_the_umask_lets_them(tmp_path):
    before = os.umask(0o027)
    try:
        store = Store(tmp_path / "store")
        publish(store)
        (tmp_path / "given").write_bytes(b"weights")
        store.keep_weights(tmp_path / "given", sha256(tmp_path / "given"))
        store.note_run("run", "score-1")
        with store.claim("other"):
            pass
    finally:
        os.umask(before)
    paths = [path for path in store.root.rglob("*") if path.is_file()]
    assert len(paths) == 6
    assert {path.stat().st_mode & 0o777 for path in paths} == {0o640}


@contextmanager
def as_user(number: int, umask: int, group: int = 2000) -> Iterator[None]:
    """Have the rights of another user."""
    before = os.umask(umask)
    os.setegid(group)
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.umask(before)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder of a group, which others may not enter."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    os.chown(folder, 0, 2000)
    folder.chmod(0o2770)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("umasks", [(0o077, 0o022), (0o022, 0o077), (0o002, 0o027)])
def test_two_users_share_a_store_whatever_their_umasks(umasks, shared):
    """Each reads, goes on with and replaces what the other one made."""
    with as_user(1001, umasks[0]):
        store = Store(shared / "store")
        publish(store, "one")
        with store.claim("two"):
            work = store.begin("two")
            Record(work).add(1, {"loss": 1.0})
            Checkpoints(work).save(Checkpoint(1, record=Record(work).text, tensors=TENSORS))
        write_json(store.failure("three"), {"a": 1})
        write_json(shared / "store" / "sweeps" / "key" / "trials" / "sgan-0.json", {"a": 1})
        store.note_run("run", "one")
    with as_user(1002, umasks[1]):
        store = Store(shared / "store")
        assert read_tensors(store.file("one", "model.safetensors")).keys() == TENSORS.keys()
        with store.claim("two") as mine:
            assert mine
            work = store.begin("two")
            assert Checkpoints(work).load().tensors.keys() == TENSORS.keys()
            Record(work).add(1, {"loss": 1.0})
            Checkpoints(work).save(Checkpoint(2, tensors=TENSORS))
            store.publish("two", {"status": "done"})
        store.failure("three").unlink()
        write_json(shared / "store" / "sweeps" / "key" / "trials" / "sgan-0.json", {"a": 2})
        assert store.shown("run") == "one"
        assert [event["event"] for event in store.events()][-1] == "stage published"
    with as_user(1001, umasks[0]):
        assert read_record(store.stage("two"))
        assert store.facts("two")["status"] == "done"
        shutil.rmtree(store.stage("two"))


def test_who_has_no_rights_is_told_so_and_never_to_delete(shared):
    store = Store(shared / "store")
    file = publish(store)
    for path in (shared, store.root, *store.root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o600)
    calls: list[Callable[[], Any]] = [
        lambda: Store(shared / "store"),
        lambda: store.facts("stage"),
        lambda: read_tensors(file),
        lambda: store.file("stage", file.name),
        lambda: read_record(store.stage("stage")),
    ]
    (store.stage("stage") / "record.jsonl").write_text("")
    (store.stage("stage") / "record.jsonl").chmod(0o600)
    for number, call in enumerate(calls):
        if number == 3:
            (store.stage("stage") / STAGE_FILE).chmod(0o644)
        with as_user(1001, 0o022), pytest.raises(StoreError) as caught:
            call()
        assert "Permission denied" in str(caught.value)
        assert "rights" in str(caught.value) or "name a writable folder" in str(caught.value)
        assert "delete" not in str(caught.value)


def test_who_may_only_read_a_store_reads_it(shared):
    publish(Store(shared / "store"))
    for path in (shared, shared / "store", *(shared / "store").rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    with as_user(1001, 0o022):
        store = find_store(str(shared / "store"))
        assert store
        assert read_tensors(store.file("stage", "model.safetensors")).keys() == TENSORS.keys()
        assert [event["event"] for event in store.events()] == ["stage begun", "stage published"]


def test_a_claim_that_was_deleted_is_lost_and_damages_nothing(tmp_path):
    """Another process takes it, while the first one still runs."""
    store, other = Store(tmp_path), Store(tmp_path)
    with store.claim("stage") as mine:
        assert mine
        write_tensors(store.begin("stage") / "model.safetensors", TENSORS)
        store.keep("stage")
        shutil.rmtree(tmp_path / "claims")
        with other.claim("stage") as theirs:
            assert theirs
            for use in (store.keep, lambda name: store.publish(name, {"status": "done"})):
                with pytest.raises(LostClaim, match="was deleted; the stage goes on from its checkpoint"):
                    use("stage")
            other.keep("stage")
            publish(other)
    assert read_tensors(store.file("stage", "model.safetensors")).keys() == TENSORS.keys()
    with store.claim("stage") as mine:
        assert not mine


def test_any_folder_may_be_deleted_while_a_stage_trains(tmp_path):
    store = Store(tmp_path)
    with store.claim("stage"):
        work = store.begin("stage")
        write_tensors(work / "model.safetensors", TENSORS)
        for folder in ("stages", "failures", "sweeps", "ledger"):
            shutil.rmtree(tmp_path / folder)
        write_json(store.failure("trial"), {})
        store.note("told")
        store.publish("stage", {"status": "done"})
    assert [event["event"] for event in store.events()] == ["told", "stage published"]
    assert store.file("stage", "model.safetensors").exists()


def test_the_newest_checkpoint_names_itself(tmp_path):
    store = Store(tmp_path)
    assert store.checkpoint("stage") == ""
    checkpoints = store.begin("stage") / CHECKPOINTS
    assert store.checkpoint("stage") == ""
    for step in ("000000009", "000000100", "100000000"):
        write_json(checkpoints / step / "digests.json", {})
        (checkpoints / f".{int(step) + 1}.half").mkdir()
        assert store.checkpoint("stage") == step
    store.begin("stage")
    assert not list(checkpoints.glob(".*"))


def test_a_stage_that_cannot_be_renamed_keeps_its_checkpoints(tmp_path, monkeypatch):
    store = Store(tmp_path)
    write_json(store.begin("stage") / CHECKPOINTS / "000000009" / "checkpoint.json", {})
    with monkeypatch.context() as full:
        full.setattr(os, "rename", lambda *paths: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        with pytest.raises(OSError, match="No space"):
            store.publish("stage", {"status": "done"})
    assert store.checkpoint("stage") == "000000009"
    store.publish("stage", {"status": "done"})
    assert store.facts("stage")["files"] == {}
    assert not (store.stage("stage") / CHECKPOINTS).exists()


@pytest.mark.parametrize("there", [False, True])
def test_a_file_is_no_store(there, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file cannot be written .Not a directory.; name a writable folder"):
        Store(tmp_path / "file", there)


def test_tensors_come_back_bit_for_bit(tmp_path):
    odd = {
        "nan": torch.tensor([float("nan"), -0.0, 1e-45]),
        "last": torch.rand(4, 3, 2, 2).to(memory_format=torch.channels_last),
    }
    write_tensors(tmp_path / "x.safetensors", TENSORS | odd)
    tensors = read_tensors(tmp_path / "x.safetensors")
    assert set(tensors) == set(TENSORS | odd)
    for name, tensor in (TENSORS | odd).items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].contiguous().numpy().tobytes() == tensor.contiguous().numpy().tobytes()


@given(st.binary(max_size=40))
def test_bytes_that_nobody_wrote_are_named(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "torn.json"
    path.write_bytes(text)
    with pytest.raises(StoreError, match=r"torn\.json cannot be read"):
        read_json(path)


@pytest.mark.parametrize("kept", [0, 1, 10, 40])
def test_a_torn_stage_file_is_named(tmp_path, kept):
    store = Store(tmp_path)
    publish(store)
    path = store.stage("stage") / STAGE_FILE
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(StoreError, match=r"stages/stage/stage\.json cannot be read"):
        store.facts("stage")


@pytest.mark.parametrize("kept", [0, 4, 8, 60, -1])
def test_a_torn_file_of_tensors_is_named(tmp_path, kept):
    path = publish(Store(tmp_path))
    path.write_bytes(path.read_bytes()[:kept])
    for read in (lambda: read_tensors(path), lambda: read_tensors(Store(tmp_path).file("stage", path.name))):
        with pytest.raises(StoreError, match=r"stages/stage/model\.safetensors"):
            read()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_in_a_file_of_tensors_is_noticed(tmp_path, place, bit):
    store = Store(tmp_path)
    path = store.stage("stage") / "model.safetensors"
    path = path if path.exists() else publish(store)
    held = path.read_bytes()
    flipped = bytearray(held)
    flipped[int(place * len(held))] ^= 1 << bit
    path.write_bytes(flipped)
    with pytest.raises(StoreError, match=r"model\.safetensors is missing or damaged"):
        read_tensors(store.file("stage", path.name))
    path.write_bytes(held)
    assert torch.equal(read_tensors(store.file("stage", path.name))["a/weight"], TENSORS["a/weight"])


@pytest.mark.parametrize("file", ["model.safetensors", "other.safetensors"])
def test_a_missing_file_of_tensors_is_named(tmp_path, file):
    store = Store(tmp_path)
    publish(store).unlink()
    with pytest.raises(StoreError, match=file):
        read_tensors(store.file("stage", file))


def test_a_stage_is_there_once_it_is_whole(tmp_path):
    store = Store(tmp_path)
    folder = store.begin("stage")
    write_tensors(folder / "model.safetensors", TENSORS)
    write_tensors(folder / "checkpoints" / "1.safetensors", TENSORS)
    Record(folder).add(10, {"loss": 1.0})
    (folder / GRIDS / "000000010.png").write_bytes(b"an image")
    assert not store.has("stage")
    assert not store.stage("stage").exists()
    store.publish("stage", {"status": "done", "reason": None})
    assert store.has("stage")
    assert not folder.exists()
    assert {path.name for path in store.stage("stage").iterdir()} == {
        "grids",
        "model.safetensors",
        "record.jsonl",
        STAGE_FILE,
    }
    facts = store.facts("stage")
    assert facts["status"] == "done"
    files = ("grids/000000010.png", "model.safetensors", "record.jsonl")
    assert facts["files"] == {file: sha256(store.stage("stage") / file) for file in files}
    assert all(store.file("stage", file).exists() for file in files)


def test_a_reader_never_sees_half_a_stage(tmp_path):
    """While stages are published one after the other, whoever finds one can read all of it."""
    store, names, stop = Store(tmp_path), [f"stage{number}" for number in range(30)], threading.Event()

    def write() -> None:
        for name in names:
            publish(store, name)
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    found = set()
    while not stop.is_set() or len(found) < len(names):
        for name in set(names) - found:
            if store.has(name):
                assert torch.equal(read_tensors(store.file(name, "model.safetensors"))["a/weight"], TENSORS["a/weight"])
                found.add(name)
    writer.join()


def test_a_stage_that_lost_its_stage_file_can_be_published_again(tmp_path):
    store = Store(tmp_path)
    publish(store)
    (store.stage("stage") / STAGE_FILE).unlink()
    assert not store.has("stage")
    publish(store)
    assert store.has("stage")


def test_a_whole_file_of_another_stage_or_run_is_refused(tmp_path):
    store = Store(tmp_path)
    for name in NAMES:
        publish(store, name)
        store.note_run(name, f"score-{name}")
    assert (store.facts("one")["name"], store.shown("one")) == ("one", "score-one")
    pairs = [(store.stage(name) / STAGE_FILE, tmp_path / "runs" / f"{name}.json") for name in NAMES]
    for (one, other), read in zip(zip(*pairs, strict=True), (store.facts, store.shown), strict=True):
        shutil.copyfile(other, one)
        with pytest.raises(StoreError, match=f"{one} cannot be read .*something else"):
            read("one")


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "facts.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": 2, "b": object()})
    assert read_json(path) == {"a": 1}
    assert [file.name for file in path.parent.iterdir()] == ["facts.json"]


def test_a_claim_excludes_other_processes_until_its_holder_is_killed(tmp_path):
    store = Store(tmp_path)
    holder, late = claimer(store), None
    try:
        assert said(holder) == "True"
        late = claimer(store)
        assert said(late) == "False"
        with store.claim("stage") as mine:
            assert not mine
        assert store.held("stage")
        assert not store.held("other")
        assert not (store.root / "claims" / "other.lock").exists()  # a question leaves nothing
        with store.claim("other") as mine:
            assert mine
        assert not store.held("other")
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        assert not store.held("stage")
        with store.claim("stage") as mine:
            assert mine
            last = claimer(store)
            assert said(last) == "False"
            last.wait()
    finally:
        for process in filter(None, (holder, late)):
            process.kill()
            process.communicate()


def test_a_claim_excludes_a_second_one_in_the_same_process(tmp_path):
    store = Store(tmp_path)
    with store.claim("stage") as mine, store.claim("stage") as again:
        assert (mine, again) == (True, False)
    with pytest.raises(RuntimeError, match="stop"), store.claim("stage") as mine:
        raise RuntimeError("stop")
    with store.claim("stage") as mine:
        assert mine


def test_a_finished_stage_is_nobodys(tmp_path):
    store = Store(tmp_path)
    publish(store)
    with store.claim("stage") as mine:
        assert not mine


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE])
def test_a_disk_in_trouble_is_one_clear_error(number, tmp_path, monkeypatch):
    def fail(**arguments):
        raise OSError(number, os.strerror(number))

    publish(Store(tmp_path))
    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    with pytest.raises(StoreError, match=rf"cannot be written \({os.strerror(number)}\); name a writable folder"):
        Store(tmp_path)


@pytest.mark.parametrize("place", ["file/store", "file"])
def test_a_store_that_cannot_be_written_is_refused_and_named(tmp_path, place):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match=r"output store .*file.* cannot be written .*--store"):
        Store(tmp_path / place)


def test_a_record_has_each_point_once_after_a_resume(tmp_path):
    record = Record(tmp_path)
    for images in (10, 20):
        record.add(images, {"loss": images / 10})
    checkpoint = record.text
    record.add(30, {"loss": 3.0})
    with open(record.path, "a") as file:
        file.write('{"images": 40, "met')  # killed while writing
    assert [line["images"] for line in read_record(tmp_path)] == [10, 20, 30]
    resumed = Record(tmp_path, checkpoint)
    resumed.add(30, {"loss": 3.5})
    assert [(line["images"], line["metrics"]) for line in read_record(tmp_path)] == [
        (10, {"loss": 1.0}),
        (20, {"loss": 2.0}),
        (30, {"loss": 3.5}),
    ]
    assert resumed.points == read_record(tmp_path)
    Record(tmp_path)
    assert read_record(tmp_path) == []
    assert read_record(tmp_path / "absent") == []


def damaged(held: bytes, place: float, bit: int, kind: str) -> bytes:
    """The bytes with one bit of another value, cut off, or with garbage in them."""
    at = int(place * len(held))
    if kind == "flip":
        return held[:at] + bytes([held[at] ^ 1 << bit]) + held[at + 1 :]
    return held[:at] if kind == "cut" else held[:at] + os.urandom(3 + bit) + held[at:]


def tried(read: Callable[[], Any]) -> Any:
    """What is read, or the error that the store has for it."""
    try:
        return read()
    except StoreError as error:
        return error


KINDS = st.sampled_from(["flip", "cut", "garbage"])
ANYWHERE = {"place": st.floats(0, 1, exclude_max=True), "bit": st.integers(0, 7), "kind": KINDS}


@given(**ANYWHERE)
def test_json_that_was_damaged_anywhere_is_what_was_written_or_named(tmp_path_factory, place, bit, kind):
    """White space and the like may change, what it says may not."""
    path = tmp_path_factory.getbasetemp() / "facts.json"
    value = {"scores": {"fid": 12.345, "kid": float("inf")}, "status": "done", "files": {"ä": "0f"}, "none": [None, 1]}
    write_json(path, value)
    path.write_bytes(damaged(path.read_bytes(), place, bit, kind))
    found = tried(lambda: read_json(path))
    assert found == value or str(path) in str(found)


def test_grids_sort_by_the_images_seen(tmp_path):
    files = [grid_file(tmp_path, images) for images in (5, 60_000, 10_000_000)]
    assert sorted(files) == files
    assert files[1].name == "000060000.png"
