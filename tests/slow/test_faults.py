"""A machine in trouble: a full or read-only disk, no memory left, and GPUs that are to be deterministic."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from chaos import below, processes
from conftest import BATCH, TINY, contents, fill, finish, make_context, mount, tiny_plan, tiny_recipe
from sweeps.execution.sharing import mark
from test_ablation import complete, start, table, trains
from waiting import wait_for

from sgan.config import Config
from sgan.data.batches import Data
from sgan.data.datasets import read
from sgan.presets import DATASETS, VARIANTS
from sgan.stages import run
from sgan.stages.graph import code_version, name
from sgan.stages.run import be_deterministic, run_trial
from sgan.store.files import StoreError
from sgan.store.local import Store
from sgan.training.checkpoint import CHECKPOINTS
from sweeps.execution import memory
from sweeps.execution.memory import GIB
from sweeps.execution.scheduler import Slots
from sweeps.execution.worker import Job
from sweeps.mlflow_view.connection import default_uri
from sweeps.mlflow_view.verify import differences
from sweeps.planning import manifest
from sweeps.planning.trials import Trial


@pytest.mark.parametrize("label", ["encoder", "level0", "score"])
def test_a_disk_that_fills_up_holds_a_trial_up_until_there_is_room(label, small_disk, tmp_path, monkeypatch, capsys):
    """Then it ends as if nothing had been, in every kind of stage; it says what it waits for."""
    monkeypatch.setattr(run, "ROOM_WAIT", 0.01)
    trial = tiny_plan(tiny_recipe(steps=12))
    finish(trial, tmp_path / "quiet")
    filler, waited = None, False
    for event in run_trial(trial, make_context(small_disk / "store")):
        if event.label == label and filler is None:
            filler = fill(small_disk)
        if filler and f"room in the store {small_disk / 'store'} (No space left on device)" in capsys.readouterr().out:
            filler.unlink()
            waited = True
    assert waited
    whole, through = contents(trial, tmp_path / "quiet"), contents(trial, small_disk / "store")
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
def test_a_disk_that_becomes_read_only_holds_a_trial_up_until_it_is_repaired(
    label, ext4, tmp_path, monkeypatch, capsys
):
    """What is published before is on the disk, whole."""
    monkeypatch.setattr(run, "ROOM_WAIT", 0.01)
    trial = tiny_plan(tiny_recipe(steps=12))
    finish(trial, tmp_path / "quiet")
    waited, broken = False, False
    for event in run_trial(trial, make_context(ext4.place / "store")):
        if event.label == label and not broken:
            ext4.break_down()
            broken = True
        if f"room in the store {ext4.place / 'store'} (Read-only file system)" in capsys.readouterr().out:
            ext4.repair()
            waited = True
    assert waited
    whole, through = contents(trial, tmp_path / "quiet"), contents(trial, ext4.place / "store")
    for each in whole:
        assert through[each] == whole[each], each


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_whole_sweep_waits_for_its_disk(fault, ext4):
    """Driver, worker and uploader: the command ends with the whole table, and so does the same command again. The disk
    breaks down while the level trains and after the sweep's run has come to MLflow, which the worker waits for."""
    store, options = ext4.place / "runs", ("--seeds", "1", "--variants", "dcgan-adv", "--budget", "1")
    driver = start(store, *options)
    assert driver.stdout is not None
    wait_for(lambda: any(store.glob("work/level-*")), 60)
    workers = [process for process in below(driver.pid, processes()) if trains(process)]
    assert workers
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    wait_for(lambda: any(store.glob("mlartifacts/*/artifacts/manifest.json")), 60)
    filler = fill(ext4.place) if fault == "full" else ext4.break_down()
    for worker in workers:
        os.kill(worker, signal.SIGCONT)
    assert any("waiting for room in the store" in line for line in driver.stdout)
    filler.unlink() if filler else ext4.repair()
    rest, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, rest
    assert [line.split("|")[1].strip() for line in table(rest)] == ["Variant", "DCGAN (adv)", "Real data"]
    assert table(complete(store, *options)) == table(rest)
    (key,) = manifest.keys(Store(store))
    assert not list(differences(Store(store), key, default_uri(Store(store))))


def test_a_read_only_disk_is_refused_before_anything_starts(small_disk):
    if not mount("-o", "remount,ro", str(small_disk)):
        pytest.skip("only root can remount a disk")
    with pytest.raises(StoreError, match=r"cannot be written \(Read-only file system\); name a writable folder"):
        Store(small_disk / "store")


def config() -> Config:
    digest = read(DATASETS["digits"], Path()).digest
    return Config(TINY, TINY, digest, tiny_recipe(), VARIANTS["sgan"].variant, 0)


def test_a_gpu_is_shared_by_as_many_as_fit_it(monkeypatch):
    """The calls that a GPU would get; on this machine there may be none."""
    got: list[float] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (70 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", got.append)
    for share in (0.0, 1.0, 0.5, 0.25):
        memory.cap(share)
    assert got == [0.5 - 0.5 / 80, 0.25 - 0.5 / 80]
    assert sum(0.25 * 80 * GIB for _ in range(4)) == 4 * (got[1] * 80 * GIB + memory.CONTEXT)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 3.5 * GIB)
    assert memory.peak() == (4 * GIB, 18)


LACKING = """
import sys
from collections.abc import Iterator
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, "tests")
import resource
from test_faults import digits, tiny_trial
from sgan import train
from sgan.stages import code_version
from sgan.store import Store
from sweeps.schedule import Slots
from sweeps.sharing import mark
from sweeps.job import Job
update = train.GanTask.step
def step(self, number):
    if number == 3:
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 2**26, size + 2**26))
        {allocate}
    return update(self, number)
train.GanTask.step = step
mark(Store(sys.argv[1]), "mark")
slots = Slots(1, 1, 0.0, 0, "here")
*_, last = Job(digits(), sys.argv[1], "mark", "test", code_version(), slots).results(tiny_trial())
print(last["outcome"], last["reason"])
"""


def digits() -> Data:
    return read(DATASETS["digits"], Path())


def job(root: Path, deterministic: bool = False) -> Job:
    mark(Store(root), "mark")
    return Job(digits(), str(root), "mark", "test", code_version(), Slots(1, 1, 0.0, 0, "here"), deterministic)


def tiny_trial() -> Trial:
    return Trial("sgan", 0, config(), tiny_plan())


@pytest.mark.parametrize("allocate", ["torch.zeros(2**31)", "bytearray(2**33)"], ids=["torch", "python"])
def test_a_trial_without_memory_fails_at_once_with_what_would_fit(allocate, root):
    """A real allocation that the kernel refuses; the worker says so and lives on."""
    command = [sys.executable, "-c", LACKING.replace("{allocate}", allocate), str(root)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    assert done.stdout.startswith("failed out of memory in level, which needs more than"), done.stderr
    assert "--override: a smaller gan.batch" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_an_error_that_is_no_lack_of_memory_is_raised(root, monkeypatch):
    def wrong(*arguments):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("sgan.training.steps.GanTask.step", wrong)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        list(job(root).results(tiny_trial()))


@pytest.mark.parametrize("taken_over", [False, True])
def test_a_trial_that_nobody_asks_for_more_frees_its_stage(taken_over, root, tmp_path, monkeypatch):
    """Then another process may go on with it; asked again, the trial goes on itself or finds it done, and ends as if it
    had been asked all the time."""
    monkeypatch.setattr("sweeps.execution.worker.UNASKED", 3.0)
    shutil.copytree(root, tmp_path / "quiet")
    trial = tiny_trial()
    finish(trial.plan, tmp_path / "quiet")
    stage = name(dict(trial.plan.stages)["level0"])

    def free() -> bool:
        with Store(root).claim(stage) as mine:
            return mine

    results = job(root).results(trial, 0.0)
    while (result := next(results))["label"] != "level0" or not 0.0 < result["share"] < 1.0:
        pass
    assert not free()
    wait_for(free, 20)
    assert list((Store(root).work(stage) / CHECKPOINTS).iterdir())
    if taken_over:
        assert finish(trial.plan, root)[0] == "level0"
    *_, last = results
    assert last["outcome"] == "done"
    whole, through = contents(trial.plan, tmp_path / "quiet"), contents(trial.plan, root)
    for each in whole:
        assert through[each] == whole[each], each


def test_deterministic_is_wired_and_the_same_training_on_a_cpu(root, tmp_path, monkeypatch):
    """From the job to torch: every step of every stage has a deterministic form, on CPUs at least."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    shutil.copytree(root, tmp_path / "asked")
    trial = tiny_trial()
    try:
        for place, wanted in ((root, False), (tmp_path / "asked", True)):
            *_, last = job(place, wanted).results(trial)
            assert last["outcome"] == "done", last["reason"]
            assert torch.are_deterministic_algorithms_enabled() == wanted
            assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if wanted else None)
    finally:
        be_deterministic(False)
    for label, stage in trial.plan.stages[2:]:
        facts = [Store(place).facts(name(stage)) for place in (root, tmp_path / "asked")]
        assert [fact["deterministic"] for fact in facts] == [False, True]
        tensors = [{file: each for file, each in fact["files"].items() if "safetensors" in file} for fact in facts]
        assert tensors[0] == tensors[1], label
