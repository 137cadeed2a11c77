"""Retries, on a cluster of real Ray processes whose nodes and workers are killed."""

import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle, tune
from ray.cluster_utils import Cluster
from ray.tune.result import DONE
from waiting import wait_for

from sgan.data.datasets import read
from sgan.presets import DATASETS
from sgan.store.local import Store
from sweeps.execution import scheduler as schedule
from sweeps.execution.progress import ProgressLines

QUICK = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}


@pytest.fixture
def nodes(monkeypatch) -> Iterator[Cluster]:
    """A head that runs no trials, and a node that runs one."""
    folder = tempfile.mkdtemp(prefix="ray")  # or commands that other tests run find this cluster, and join it
    monkeypatch.setenv("RAY_TMPDIR", folder)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        made.add_node(num_cpus=1)
        ray.init(address=made.address, log_to_driver=False)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


class Noted(tune.Callback):
    def __init__(self):
        self.retried, self.failed = [], []

    def on_trial_recover(self, iteration, trials, trial, **info) -> None:
        self.retried.append(schedule.failure(trial))

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        self.failed.append((trial.config["trial"], schedule.failure(trial)))


def test_what_tune_writes_of_the_progress_lines_has_no_data(tmp_path):
    data = read(DATASETS["digits"], tmp_path)
    trial_of: Any = lambda config: data  # noqa: E731
    assert len(cloudpickle.dumps(data)) > 100_000
    assert len(cloudpickle.dumps(ProgressLines(trial_of, Store(tmp_path)))) < 10_000


def mapping(address: int) -> str:
    """The line of this process's memory map (proc_pid_maps(5)) that has an address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(end, 16) for end in line.split()[0].split("-"))
        if low <= address < high:
            return line
    return ""


@pytest.mark.slow
def test_a_node_that_dies_costs_no_retry_and_a_worker_that_dies_does(nodes, tmp_path, monkeypatch):
    """Trial 0 loses its node twice where one retry is allowed, and ends well; trial 1 kills its worker each time. Every
    node that comes gets the data that the driver has read. The driver does without MLflow."""
    monkeypatch.setitem(sys.modules, "ray.air.integrations.mlflow", None)  # as if it were not installed
    data = read(DATASETS["digits"], tmp_path)
    expected = (data.images.sum().item(), data.digest)

    def work(config):
        assert (data.images.sum().item(), data.digest) == expected
        assert "plasma" in mapping(data.images.data_ptr())  # it lies in Ray's object store
        with open(tmp_path / f"begun-{config['trial']}", "a") as begun:
            begun.write("x")
        if config["trial"] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        while not (tmp_path / "go").exists():
            time.sleep(0.05)
            yield {DONE: False}
        yield {DONE: True}

    def begun(trial: int) -> int:
        path = tmp_path / f"begun-{trial}"
        return len(path.read_text()) if path.exists() else 0

    noted = Noted()
    slots = schedule.Slots(1, 1, 0.0, 0, "")
    words = (work, slots, tmp_path, [0, 1], [noted], 1)
    run = threading.Thread(target=schedule.fit, args=words)  # nodes start in the main thread alone
    run.start()
    for deaths in (1, 2):
        wait_for(lambda deaths=deaths: begun(0) == deaths)
        (worker,) = (node for node in nodes.list_all_nodes() if node is not nodes.head_node)
        nodes.remove_node(worker, allow_graceful=False)
        nodes.add_node(num_cpus=1)
    wait_for(lambda: begun(0) == 3)
    (tmp_path / "go").touch()
    run.join(100)
    assert not run.is_alive()
    assert (begun(0), begun(1)) == (3, 2)
    assert ["its node has died" in each for each in noted.retried] == [True, True, False]
    ((failed, why),) = noted.failed
    assert failed == 1
    assert "its worker process has died" in why
