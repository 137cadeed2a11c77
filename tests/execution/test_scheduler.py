"""The scheduler on real Ray processes, which are killed; its stages train nothing."""

import errno
import operator
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
import stages_that_wait
from chaos import below
from chaos import processes as processes_now
from ray import cloudpickle
from ray.cluster_utils import Cluster
from stages_that_wait import ListSource, Waiting, job, stage_name, trials
from waiting import wait_for

from sgan.stages.graph import name
from sgan.store.files import StoreError, unreadable
from sgan.store.local import Store
from sweeps.execution import scheduler, stage_scheduler
from sweeps.execution.worker import Job
from sweeps.planning.trials import Trial

DONE = ("done", "")
QUICK = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}


@pytest.fixture(scope="module")
def processes() -> Iterator[None]:
    """Ray with four CPUs, on whatever this machine has."""
    cloudpickle.register_pickle_by_value(stages_that_wait)  # workers cannot import a test
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def no_signals(monkeypatch) -> None:
    """Sweeps run in threads here, and the main one alone may ask for signals."""
    monkeypatch.setattr(scheduler, "stop_flag", lambda: nullcontext(threading.Event()))


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


class Running:
    """A sweep that runs in a thread."""

    def __init__(self, source: ListSource, job: Job, store: Store):
        self.source, self.work = source, job.run
        assert isinstance(self.work, Waiting)
        self.thread = threading.Thread(target=scheduler.run, args=(source, job, store))
        self.thread.start()

    def ends(self) -> dict[str, tuple[str, str]]:
        self.thread.join(240)
        assert not self.thread.is_alive()
        return self.source.ends

    def begun(self, stage: str) -> list[int]:
        """Wait until a stage has begun; the processes that began it."""
        return wait_for(lambda: self.work.begun(stage))


def events(store: Store, kind: str) -> Counter[str]:
    return Counter(event["stage"] for event in store.events() if event["event"] == kind)


@pytest.mark.slow
def test_each_stage_runs_once_after_what_it_needs(processes, store, tmp_path):
    asked = trials(["sgan", "sgan-no-joint", "dcgan-adv-cond"], seeds=2)
    source, work = ListSource(asked), job(store, tmp_path, seconds=0.2, slots=4)
    assert scheduler.run(source, work, store)
    assert source.ends == {trial.title: DONE for trial in asked}
    stages = {stage for trial in asked for stage in trial.plan.names}
    assert events(store, "stage published") == Counter(stages)
    when = {stage: store.facts(stage)["finished"] for stage in stages}
    for trial in asked:
        for _, stage in trial.plan.stages:
            for need in trial.plan.needs(stage):
                assert when[name(need)] <= when[name(stage)] - 0.2


@pytest.mark.slow
def test_a_sweep_whose_trials_have_all_ended_runs_nothing(processes, store, tmp_path):
    asked = trials(["dcgan-adv"])
    for _ in range(2):
        work = job(store, tmp_path)
        source = ListSource(asked)
        assert scheduler.run(source, work, store)
        assert source.ends == {asked[0].title: DONE}
    assert max(events(store, "stage begun").values()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("label", ["judge", "score"])
def test_a_stage_whose_process_is_killed_begins_again(processes, store, tmp_path, label):
    asked = trials(["dcgan-adv-cond"])
    stage = stage_name(asked[0], label)
    (tmp_path / f"hold-{stage}").touch()
    running = Running(ListSource(asked), job(store, tmp_path), store)
    (first,) = running.begun(stage)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: len(running.work.begun(stage)) == 2)
    (tmp_path / f"hold-{stage}").unlink()
    assert running.ends() == {asked[0].title: DONE}
    assert events(store, "stage retried") == {stage: 1}
    assert events(store, "stage published") == Counter(asked[0].plan.names)


@pytest.mark.slow
def test_a_stage_that_always_raises_fails_its_trials_alone(processes, store, tmp_path):
    asked = trials(["sgan", "sgan-no-joint", "dcgan-adv-cond"])
    stage = stage_name(asked[0], "level1")
    (tmp_path / f"raise-{stage}").touch()
    running = Running(ListSource(asked), job(store, tmp_path), store)
    failed = ("failed", "ValueError: the stage raises")
    assert running.ends() == {asked[0].title: failed, asked[1].title: failed, asked[2].title: DONE}
    assert len(running.work.begun(stage)) == stage_scheduler.RETRIES + 1
    assert [store.failure(trial.plan.name).exists() for trial in asked] == [True, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ResourceTrainable", "StageScheduler"])
def test_a_trials_process_or_the_scheduler_may_be_killed(processes, store, tmp_path, kind):
    asked = trials(["sgan", "dcgan-adv-cond"])
    stage = stage_name(asked[0], "level1")
    (tmp_path / f"hold-{stage}").touch()
    running = Running(ListSource(asked), job(store, tmp_path), store)
    running.begun(stage)
    time.sleep(1)
    found = processes_now()
    killed = [process for process in below(os.getpid(), found) if f"ray::{kind}" in found[process][1]]
    if kind == "ResourceTrainable":  # a trial is light: of these there is one a slot
        assert not any("libtorch" in Path(f"/proc/{process}/maps").read_text() for process in killed)
    for process in killed:
        os.kill(process, signal.SIGKILL)
    assert killed
    time.sleep(3)
    (tmp_path / f"hold-{stage}").unlink()
    assert running.ends() == {trial.title: DONE for trial in asked}
    begun = len(running.work.begun(stage))
    assert begun == (1 if kind == "ResourceTrainable" else 2)
    assert set(events(store, "stage published").values()) == {1}


@pytest.mark.slow
def test_a_stage_that_another_process_trains_is_waited_for(processes, store, tmp_path):
    asked = trials(["dcgan-adv-cond"])
    stage = stage_name(asked[0], "level0")
    with store.claim(stage) as mine:
        assert mine
        running = Running(ListSource(asked), job(store, tmp_path), store)
        wait_for(lambda: store.has(stage_name(asked[0], "encoder")))
        time.sleep(2)
        assert not running.work.begun(stage)
        assert running.thread.is_alive()
    assert running.ends() == {asked[0].title: DONE}
    assert len(running.work.begun(stage)) == 1


@pytest.mark.slow
def test_no_more_trials_are_asked_for_than_there_are_slots_while_they_wait_for_one_stage(processes, store, tmp_path):
    asked = trials(["dcgan-adv-cond"], seeds=8)
    source = ListSource(asked)
    stage = stage_name(asked[0], "judge")
    (tmp_path / f"hold-{stage}").touch()
    running = Running(source, job(store, tmp_path, slots=2), store)
    running.begun(stage)
    time.sleep(4)
    assert source.given <= 2
    (tmp_path / f"hold-{stage}").unlink()
    assert set(running.ends().values()) == {DONE}
    assert source.most <= 2


@pytest.mark.slow
def test_a_full_store_is_told_of_and_tried_only_now_and_then(processes, store, tmp_path, capsys):
    asked = trials(["dcgan-adv-cond"])
    stage, said = stage_name(asked[0], "level0"), []
    (tmp_path / f"full-{stage}").touch()
    running = Running(ListSource(asked), job(store, tmp_path), store)
    wait_for(lambda: said.append(capsys.readouterr().out) or "(No space left on device)" in said[-1])
    wait_for(lambda: len(running.work.begun(stage)) >= 3)
    (tmp_path / f"full-{stage}").unlink()
    assert running.ends() == {asked[0].title: DONE}
    kinds = ("stage begun", "stage resumed")
    begun = [event["time"] for event in store.events() if event["event"] in kinds and event["stage"] == stage]
    assert min(map(operator.sub, begun[1:], begun)) >= stage_scheduler.ROOM_WAIT
    assert not events(store, "stage retried")


@dataclass
class Troubled(ListSource):
    """Knows no trial ahead, as a search does, and meets a disk's error when it is first asked."""

    trouble: OSError | StoreError | None = None

    def __post_init__(self):
        super().__post_init__()
        self.trials = self.ahead
        self.ahead: Sequence[Trial] = []

    def next(self) -> Trial | None:
        if error := self.trouble:
            self.trouble = None
            raise error from error.__cause__
        self.given += 1
        return self.trials[self.given - 1] if self.given <= len(self.trials) else None


@pytest.mark.slow
def test_a_disk_in_trouble_when_a_trial_is_asked_for_and_when_it_begins_loses_no_trial(processes, store, tmp_path):
    sick = OSError(errno.EIO, os.strerror(errno.EIO))
    (asked,) = trials(["dcgan-adv-cond"])
    has, answers = store.has, iter([sick])

    def has_at_last(name: str) -> bool:
        for error in answers:
            raise error
        return has(name)

    store.has = has_at_last
    try:
        raise unreadable(tmp_path / "stage.json", sick) from sick  # as `Store.facts` does
    except StoreError as error:
        damaged = error
    for trouble in (sick, damaged):
        source = Troubled([asked], trouble=trouble)
        assert scheduler.run(source, job(store, tmp_path), store)
        assert source.ends == {asked.title: DONE}


@pytest.mark.slow
def test_a_store_that_raises_while_stages_are_planned_does_not_end_the_sweep(processes, store, tmp_path):
    """A folder lies where the lock of the next stage should be, so that nobody can ask whether it is held."""
    asked = trials(["dcgan-adv-cond"])
    lock = store.root / "claims" / f"{stage_name(asked[0], 'level0')}.lock"
    lock.mkdir(parents=True)
    running = Running(ListSource(asked), job(store, tmp_path), store)
    wait_for(lambda: all(store.has(stage_name(asked[0], each)) for each in ("judge", "encoder")))
    time.sleep(3)
    assert running.thread.is_alive()
    lock.rmdir()
    assert running.ends() == {asked[0].title: DONE}


@pytest.mark.slow
def test_a_node_that_dies_costs_no_attempt(store, tmp_path, monkeypatch):
    """A head without CPUs and one node at a time, which is taken away more often than a stage may fail."""
    ray.shutdown()
    folder = tempfile.mkdtemp(prefix="ray")  # or commands that other tests run find this cluster, and join it
    monkeypatch.setenv("RAY_TMPDIR", folder)
    cloudpickle.register_pickle_by_value(sys.modules["stages_that_wait"])
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes.add_node(num_cpus=1)
        ray.init(address=nodes.address, log_to_driver=False)
        asked = trials(["dcgan-adv-cond"])
        stage = stage_name(asked[0], "level0")
        (tmp_path / f"hold-{stage}").touch()
        running = Running(ListSource(asked), job(store, tmp_path, slots=1), store)
        for deaths in range(1, stage_scheduler.RETRIES + 3):
            wait_for(lambda deaths=deaths: len(running.work.begun(stage)) == deaths)
            (worker,) = (node for node in nodes.list_all_nodes() if node is not nodes.head_node)
            nodes.remove_node(worker, allow_graceful=False)
            nodes.add_node(num_cpus=1)
        wait_for(lambda: len(running.work.begun(stage)) == stage_scheduler.RETRIES + 3)
        (tmp_path / f"hold-{stage}").unlink()
        assert running.ends() == {asked[0].title: DONE}
    finally:
        ray.shutdown()
        nodes.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
