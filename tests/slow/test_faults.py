"""A machine in trouble: a full or read-only disk, no memory left, and GPUs that are to be deterministic."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest
import ray
import torch
from conftest import FILLER, contents, fill, finish, make_context, mount, run_trial, tiny_data, tiny_plan, tiny_recipe
from test_ablation import complete, start, table, titles, trains
from waiting import wait_for

from sgan.stages.graph import Plan, name
from sgan.stages.run import be_deterministic
from sgan.store.files import StoreError
from sgan.store.local import LostClaim, Store
from sweeps.execution import worker
from sweeps.execution.cluster import Slots, leave_mark
from sweeps.execution.worker import Job, run_stage_under_claim
from sweeps.mlflow_view.connection import default_uri
from sweeps.mlflow_view.verify import differences
from sweeps.planning import manifest

GIB = 2**30


def error_of(trial: Plan, store: Path, label: str, break_down: Callable[[], Any]) -> int | None:
    """Run a trial whose disk breaks down in a stage; returns the number of the error."""
    try:
        for reached, _ in run_trial(trial, make_context(store)):
            if reached == label:
                break_down()
    except OSError as error:
        return error.errno


@pytest.mark.parametrize("label", ["encoder", "level0", "score"])
def test_a_trial_whose_disk_fills_up_goes_on_when_there_is_room(label, small_disk, tmp_path):
    """Then it ends as if nothing had been, in every kind of stage."""
    trial, store = tiny_plan(tiny_recipe(steps=12)), small_disk / "store"
    finish(trial, tmp_path / "quiet")
    assert error_of(trial, store, label, lambda: fill(small_disk)) == errno.ENOSPC
    (small_disk / FILLER).unlink()
    finish(trial, store)
    whole, through = contents(trial, tmp_path / "quiet"), contents(trial, store)
    for each in whole:
        assert through[each] == whole[each], each


class Ext4:
    """A small disk of its own, in the file `image`, that becomes read-only by an error, as a real one does."""

    def __init__(self, folder: Path):
        self.image, self.place = folder / "image", folder / "disk"
        self.place.mkdir()
        with open(self.image, "wb") as file:
            file.truncate(48 * 2**20)
        made = shutil.which("mkfs.ext4", path=os.environ["PATH"] + ":/sbin:/usr/sbin")
        quiet = {"check": False, "capture_output": True, "timeout": 20}
        formatted = made and subprocess.run([made, "-q", str(self.image)], **quiet)
        if os.geteuid() != 0 or not formatted or not self._mount():
            pytest.skip("only root can mount a disk")
        found = subprocess.run(["findmnt", "-no", "SOURCE", str(self.place)], **quiet, text=True).stdout.strip()
        self.error = Path("/sys/fs/ext4") / found.rpartition("/")[2] / "trigger_fs_error"
        if not self.error.exists():
            self.close()
            pytest.skip("this kernel cannot be asked for an error of a disk")

    def _mount(self) -> bool:
        return mount("-o", "loop,errors=remount-ro", str(self.image), str(self.place))

    def break_down(self) -> None:
        """What was not yet on the disk itself is lost."""
        self.error.write_text("asked for")
        shutil.copyfile(self.image, self.image.with_suffix(".new"))

    def repair(self) -> None:
        self.close()
        self.image = self.image.with_suffix(".new")
        assert self._mount()

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.place)], check=False, timeout=20)


@pytest.fixture
def ext4(tmp_path) -> Iterator[Ext4]:
    made = Ext4(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("label", ["encoder", "level0"])
def test_a_trial_whose_disk_becomes_read_only_goes_on_when_it_is_repaired(label, ext4, tmp_path):
    """What is published before is on the disk, whole."""
    trial, store, broken = tiny_plan(tiny_recipe(steps=12)), ext4.place / "store", []
    finish(trial, tmp_path / "quiet")

    def break_down() -> None:
        if not broken:
            broken.append(True)
            ext4.break_down()

    assert error_of(trial, store, label, break_down) == errno.EROFS
    ext4.repair()
    finish(trial, store)
    whole, through = contents(trial, tmp_path / "quiet"), contents(trial, store)
    for each in whole:
        assert through[each] == whole[each], each


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_whole_sweep_waits_for_its_disk(fault, ext4):
    """Driver, worker and follower: the command ends with the whole table, and so does the same command again. The disk
    breaks down while the level trains and after MLflow has the trial's run."""
    store, options = ext4.place / "runs", ("--seeds", "1", "--variants", "dcgan-adv", "--budget", "1")
    driver = start(store, *options)
    assert driver.stdout is not None
    wait_for(lambda: any(path.stat().st_size for path in store.glob("work/level-*/record.jsonl")))
    workers = trains(driver)
    assert workers
    for process in workers:
        os.kill(process, signal.SIGSTOP)
    wait_for(lambda: any(store.glob("runs/*.json")))
    filler = fill(ext4.place) if fault == "full" else ext4.break_down()
    for process in workers:
        os.kill(process, signal.SIGCONT)
    assert any("waiting for the store" in line for line in driver.stdout)
    filler.unlink() if filler else ext4.repair()
    rest, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, rest
    assert titles(rest) == ["Variant", "DCGAN (adv)", "Real, held out", "Real, training"]
    assert table(complete(store, *options)) == table(rest)
    (key,) = manifest.keys(Store(store))
    assert not list(differences(Store(store), key, default_uri(Store(store))))


def test_a_read_only_disk_is_refused_before_anything_starts(small_disk):
    if not mount("-o", "remount,ro", str(small_disk)):
        pytest.skip("only root can remount a disk")
    with pytest.raises(StoreError, match=r"cannot be written \(Read-only file system\); name a writable folder"):
        Store(small_disk / "store")


def test_a_gpu_is_shared_by_as_many_as_fit_it(monkeypatch):
    """The calls that a GPU would get; on this machine there may be none."""
    got: list[float] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (70 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", got.append)
    for share in (0.0, 1.0, 0.5, 0.25):
        worker.cap_memory(share)
    assert got == [0.5 - 0.5 / 80, 0.25 - 0.5 / 80]
    assert sum(0.25 * 80 * GIB for _ in range(4)) == 4 * (got[1] * 80 * GIB + worker.CONTEXT)


LACKING = """
import resource
import sys
import torch
torch.set_num_threads(1)
sys.path[:0] = ["tests", "tests/slow", "tests/commands"]
from test_faults import run
from sgan.training import steps
update = steps.GanTask.step
def step(self, number):
    if number == 3:
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 2**26, size + 2**26))
        {allocate}
    return update(self, number)
steps.GanTask.step = step
result = run(sys.argv[1], "level1")
print(result["status"], result["reason"])
"""


def run(root: str, label: str, deterministic: bool = False) -> dict[str, str]:
    """Run a stage of the tiny trial as its Ray task does, in this process, without Ray; all before it have finished or
    are run. The store has the mark; the scheduler says of each report that the stage goes on."""
    trial = tiny_plan()
    job = Job(tiny_data(), root, "mark", "test", Slots(4, 1, 0.0, 0, "here"), deterministic)
    silent, scheduler = SimpleNamespace(go_on=lambda **_: True), cast(Any, None)
    for each, stage in trial.stages:
        with mock.patch("sweeps.execution.worker._Reports", return_value=silent):
            result = run_stage_under_claim(job, stage, trial.score.judge, scheduler)
        if each == label or result["status"] not in ("done", "held"):
            return result
    raise AssertionError(label)


@pytest.mark.parametrize("allocate", ["torch.zeros(2**31)", "bytearray(2**33)"], ids=["torch", "python"])
def test_a_stage_without_memory_fails_at_once_with_what_would_fit(allocate, root):
    """A real allocation that the kernel refuses; the worker says so and lives on."""
    leave_mark(Store(root), "mark")
    command = [sys.executable, "-c", LACKING.replace("{allocate}", allocate), str(root)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    assert done.stdout.startswith("failed out of memory in level ("), done.stderr
    assert "): --slots 2 leaves each stage twice the memory; or change the config with --override: a" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_an_error_that_is_no_lack_of_memory_is_raised(root, monkeypatch):
    def wrong(*arguments):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("sgan.training.steps.GanTask.step", wrong)
    leave_mark(Store(root), "mark")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run(str(root), "level1")


def test_a_full_disk_is_no_failure_of_a_stage(small_disk, root):
    """The worker says what it waits for, wherever the disk lets it down; once there is room the stage runs."""
    leave_mark(Store(root), "mark")
    shutil.copytree(root, small_disk / "store")
    filler = fill(small_disk)
    text = f"waiting for the store {small_disk / 'store'} (No space left on device)"
    assert run(str(small_disk / "store"), "level1") == {"status": "full", "reason": text}
    filler.unlink()
    assert run(str(small_disk / "store"), "level1")["status"] == "done"


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (OSError(errno.ESTALE, "Stale file handle"), "full", "waiting for the store {root} (Stale file handle)"),
        (OSError(errno.EIO, "Input/output error"), "full", "waiting for the store {root} (Input/output error)"),
        (PermissionError(errno.EACCES, "Permission denied", "file"), "failed", "[Errno 13] Permission denied: 'file'"),
        (PermissionError(errno.EPERM, "Operation not permitted"), "failed", "[Errno 1] Operation not permitted"),
        (LostClaim("its claim was deleted"), "held", "its claim was deleted"),
    ],
)
def test_a_sick_share_is_waited_for_or_said_in_one_line(error, status, reason, root, monkeypatch):
    def fail(store: Store, name: str, now: bool = False):
        raise error

    leave_mark(Store(root), "mark")
    with monkeypatch.context() as sick:
        sick.setattr(Store, "keep", fail)
        assert run(str(root), "level1") == {"status": status, "reason": reason.format(root=root)}
    assert run(str(root), "level1")["status"] == "done"


def test_a_worker_that_hears_nothing_frees_its_stage(root, tmp_path, monkeypatch):
    """Another process may go on with it, and the result is that of one run."""

    class Deaf:
        def report(self, stage_name: str, progress: dict[str, Any]) -> None:
            time.sleep(1000)

    monkeypatch.setattr(worker, "SILENCE", 0.0)
    trial = tiny_plan()
    shutil.copytree(root, tmp_path / "quiet")
    finish(trial, tmp_path / "quiet")
    leave_mark(Store(root), "mark")
    job = Job(tiny_data(), str(root), "mark", "test", Slots(1, 1, 0.0, 0, "here"))
    stage = dict(trial.stages)["level1"]
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        deaf: Any = ray.remote(Deaf).remote()
        assert run_stage_under_claim(job, stage, trial.score.judge, deaf) == {"status": "waiting"}
    finally:
        ray.shutdown()
    assert not Store(root).held(name(stage))
    assert finish(trial, root)[0] == "level1"
    whole, through = contents(trial, tmp_path / "quiet"), contents(trial, root)
    for each in whole:
        assert through[each] == whole[each], each


def test_deterministic_is_wired_and_the_same_training_on_a_cpu(root, tmp_path, monkeypatch):
    """From the job to torch: every step of every stage has a deterministic form, on CPUs at least."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    leave_mark(Store(root), "mark")
    shutil.copytree(root, tmp_path / "asked")
    try:
        for place, wanted in ((root, False), (tmp_path / "asked", True)):
            assert run(str(place), "score", wanted)["status"] == "done"
            assert torch.are_deterministic_algorithms_enabled() == wanted
            assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if wanted else None)
    finally:
        be_deterministic(False)
    for label, stage in tiny_plan().stages[2:]:
        facts = [Store(place).facts(name(stage)) for place in (root, tmp_path / "asked")]
        assert [fact["deterministic"] for fact in facts] == [False, True]
        tensors = [{file: each[file] for file in each if "safetensors" in file} for each in (f["files"] for f in facts)]
        assert tensors[0] == tensors[1], label
