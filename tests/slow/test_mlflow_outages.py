"""MLflow servers that are away, processes that are killed: in the end MLflow has everything once."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
from handmade import (
    GRID_IMAGES,
    KEY,
    POINTS,
    assert_complete,
    empty_database,
    finish,
    found,
    new,
    publish,
    sync,
    train,
)
from mlflow import MlflowClient
from waiting import wait_for

from sgan.store.local import Store
from sweeps.mlflow_view import follow
from sweeps.mlflow_view.connection import EXPERIMENT, default_uri, pages
from sweeps.mlflow_view.verify import differences
from sweeps.planning.manifest import folder


@pytest.fixture
def store(tmp_path) -> Store:
    return new(tmp_path / "a store")


def test_a_follower_killed_in_the_middle_leaves_nothing_twice(store):
    uri = default_uri(store)
    finish(store, "sgan", 0)
    finish(store, "sgan-no-joint", 0)
    store.begin("score-sgan-0")
    with follow.start(store, KEY, uri) as follower:
        wait_for(lambda: found(store)[0] is not None)
        follower.kill()
    assert follower.returncode == -signal.SIGKILL
    assert sync(store)
    assert_complete(store, "sgan")
    assert_complete(store, "sgan-no-joint")


def test_a_database_that_was_being_made_when_its_process_was_killed_is_made_again(store):
    finish(store, "sgan", 0)
    (store.root / "mlflow.db").unlink()
    code = (
        "from sgan.store.local import Store; from sweeps.mlflow_view.connection import default_uri, prepare;"
        f"store = Store({str(store.root)!r}); prepare(store, default_uri(store))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    wait_for(lambda: any(path.stat().st_size for path in store.root.glob("*mlflow.db*")))
    process.kill()
    assert process.wait(20) == -signal.SIGKILL
    assert not (store.root / "mlflow.db").exists()
    sync(store)
    assert_complete(store, "sgan")


def test_two_followers_that_begin_at_once_make_one_database(store):
    finish(store, "sgan", 0)
    finish(store, "sgan-no-joint", 0)
    (store.root / "mlflow.db").unlink()
    uri = default_uri(store)
    followers = [follow.start(store, KEY, uri) for _ in range(3)]
    assert [follow.finish(each, store, KEY, uri) for each in followers] == 3 * [""]
    assert "trying again" not in (folder(store, KEY) / "mlflow.log").read_text()
    assert_complete(store, "sgan")
    assert_complete(store, "sgan-no-joint")


def test_a_dead_driver_leaves_nothing_running(store):
    """The driver is killed with SIGKILL: nobody closes the follower's standard input but the kernel."""
    train(store, "level0-0", POINTS[:1], ())
    uri = default_uri(store)
    code = (
        "import sys, time; from sgan.store.local import Store; from sweeps.mlflow_view import follow;"
        f"print(follow.start(Store({str(store.root)!r}), {KEY!r}, {uri!r}).pid, flush=True);"
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
    assert (folder(store, KEY) / "mlflow.log").read_text() == ""


class Server:
    """A real tracking server, which can be killed and started again."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        database = folder / "server.db"
        database.write_bytes(empty_database())
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
def server(tmp_path):
    made = Server(tmp_path)
    yield made
    made.kill()


def test_a_server_that_is_down_at_first_and_killed_in_the_middle_gets_everything(store, server):
    log = folder(store, KEY) / "mlflow.log"
    train(store, "level0-0", POINTS[:2], GRID_IMAGES[:1])

    follower = follow.start(store, KEY, server.uri)
    wait_for(lambda: "trying again" in log.read_text())
    server.start()
    wait_for(lambda: "accepts results again" in log.read_text())
    assert {run.info.status for run in found(store, server.uri)[1].values()} == {"RUNNING"}
    server.kill()
    train(store, "level0-0", POINTS[1:], GRID_IMAGES, done=POINTS[0])
    publish(store, "level0-0")
    finish(store, "sgan", 0)
    finish(store, "sgan-no-joint", 0)
    wait_for(lambda: log.read_text().count("trying again") == 2)
    server.start()
    wait_for(lambda: log.read_text().count("accepts results again") == 2)
    assert follower.stdin is not None
    follower.stdin.close()
    assert follower.wait(60) == 0
    assert log.read_text().count("\n") == 4
    assert_complete(store, "sgan", uri=server.uri)
    assert_complete(store, "sgan-no-joint", uri=server.uri)
    assert list(differences(store, KEY, server.uri)) == []


def test_the_page_of_the_runs_is_told_by_the_experiments_own_id(tmp_path, server):
    database = f"sqlite:///{tmp_path / 'a folder%' / 'mlflow.db'}"
    (tmp_path / "a folder%").mkdir()
    assert pages(database).endswith("\nand then http://127.0.0.1:5000/#/experiments?workflowType=machine_learning")
    assert pages(server.uri) == f"{server.uri}/#/experiments?workflowType=machine_learning"
    server.start()
    wait_for(lambda: answers(server.uri))
    for uri, address in ((database, "http://127.0.0.1:5000"), (server.uri, server.uri)):
        client = MlflowClient(uri)
        client.create_experiment("another one")
        made = client.create_experiment(EXPERIMENT)
        assert made == "2"
        assert pages(uri).endswith(f"{address}/#/experiments/{made}/runs?workflowType=machine_learning")


def answers(uri: str) -> bool:
    with contextlib.suppress(OSError), urlopen(f"{uri}/health", timeout=5) as answer:
        return answer.status == 200
    return False


def test_an_uploader_that_was_killed_leaves_nothing_unsent(store):
    finish(store, "sgan", 0)
    finish(store, "sgan-no-joint", 0)
    follower = follow.start(store, KEY, default_uri(store))
    follower.kill()
    follower.wait(20)
    assert follow.finish(follower, store, KEY, default_uri(store)) == ""
    assert_complete(store, "sgan")


def test_a_database_that_was_deleted_is_made_again_by_another_command(store):
    finish(store, "sgan", 0)
    finish(store, "sgan-no-joint", 0)
    store.begin("score-sgan-0")
    follower = follow.start(store, KEY, default_uri(store))
    wait_for(lambda: len(found(store)[1]) == 2)
    (store.root / "mlflow.db").unlink()
    follow.finish(follower, store, KEY, default_uri(store))
    subprocess.run([sys.executable, "-m", "sweeps.tracking", "sync", store.address], check=True, timeout=120)
    assert_complete(store, "sgan")


def test_without_a_server_the_last_pass_says_how_to_send_it_later(store):
    finish(store, "sgan", 0)
    follower = follow.start(store, KEY, "http://127.0.0.1:9")
    follower.communicate(timeout=120)
    assert follower.returncode == 1
    *_, last = (folder(store, KEY) / "mlflow.log").read_text().splitlines()
    assert f"sync '{store.root}' --mlflow http://127.0.0.1:9" in last
