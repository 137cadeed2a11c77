"""Commands on a real cluster of this machine, with real terminals; what they run is a toy that waits for files."""

import json
import os
import pty
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_for

from sweeps.execution import jobs
from sweeps.planning.options import Options

TOY = """
import json, os, sys, time
from pathlib import Path
import tyro
from sgan.checks import ConfigError
from sweeps.execution import jobs
from sweeps.planning.options import Options

options = tyro.cli(Options)

def main(options):
    store = Path(options.store)
    print("began", flush=True)
    (store / "environment").write_text(json.dumps(dict(os.environ)))
    with open(store / "begun", "a") as begun:
        begun.write(f"{os.getpid()}\\n")
    try:
        end = time.monotonic() + 120
        while not (store / "go").exists() and time.monotonic() < end:
            time.sleep(0.02)
    except KeyboardInterrupt:
        print("stopped", flush=True)
        return 130
    print("ended", flush=True)
    return int(options.budget)

try:
    sys.exit(jobs.run(main, options))
except ConfigError as error:
    sys.exit(f"error: {error}")
"""
AGAIN = "This command runs already; it is followed from its beginning.\n"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """The environment on the head of a cluster whose secret is a token."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short: sockets lie in it
    token = Path(folder, "token")
    token.write_text(secrets.token_hex(32))
    given = {"RAY_TMPDIR": folder, "TMPDIR": folder, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    values = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SGAN_"))} | given
    ports = [f"--{name}={free_port()}" for name in ("port", "dashboard-port", "ray-client-server-port")]
    command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--num-cpus=1", *ports]
    with open(f"{folder}/log", "w") as log:
        head = subprocess.Popen(
            [*command, "--dashboard-agent-listen-port=0"],
            env=values,
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(lambda: head.poll() is not None or "Ray runtime started" in Path(folder, "log").read_text())
        assert head.poll() is None, Path(folder, "log").read_text()
        yield values
    finally:
        head.terminate()
        head.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


class Toy:
    """A command, given on the head; `store` is seen by its drivers."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.script, self.store, self.environment = folder / "toy.py", folder / "store", dict(environment)
        self.script.write_text(TOY)
        self.store.mkdir()

    def words(self, *words: str) -> list[str]:
        return [sys.executable, self.script.name, "--store", str(self.store), *words]

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.words(*words),
            cwd=self.script.parent,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )

    def complete(self, *words: str) -> tuple[int, str]:
        process = self.start(*words)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def begun(self) -> list[int]:
        """The drivers that have begun, by their process ids."""
        path = self.store / "begun"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def go(self) -> None:
        (self.store / "go").touch()


@pytest.fixture
def toy(tmp_path, environment) -> Iterator[Toy]:
    made = Toy(tmp_path, environment)
    yield made
    made.go()


def read_until(process: subprocess.Popen[str], line: str) -> str:
    """The output of a process up to this line."""
    assert process.stdout is not None
    lines = []
    while not lines or lines[-1] != line:
        lines.append(process.stdout.readline())
        assert lines[-1], lines
    return "".join(lines)


@pytest.mark.slow
def test_a_command_outlives_its_terminal_and_is_followed_again(toy):
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(toy.script.parent)
        os.execve(sys.executable, toy.words("--budget", "3"), toy.environment)
    wait_for(lambda: b"began" in os.read(terminal, 1000))
    os.close(terminal)  # the connection goes away: the kernel hangs up
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGHUP
    (driver,) = toy.begun()
    os.kill(driver, 0)

    again = toy.start("--budget", "3")
    assert read_until(again, "began\n").startswith(AGAIN)
    toy.go()
    assert again.communicate(timeout=60)[0] == "ended\n"
    assert again.returncode == 3
    assert len(toy.begun()) == 1
    status, output = toy.complete("--budget", "3")  # it had ended: it runs anew
    assert (status, AGAIN in output, output.endswith("began\nended\n")) == (3, False, True)
    assert len(toy.begun()) == 2


@pytest.mark.slow
def test_ctrl_c_ends_the_following_and_rays_own_stop_the_command(toy):
    follower = toy.start()
    (driver,) = wait_for(toy.begun)
    os.killpg(follower.pid, signal.SIGINT)
    output, _ = follower.communicate(timeout=60)
    assert follower.returncode == 130
    assert "The job goes on without this terminal" in output
    os.kill(driver, 0)
    again = toy.start()
    read_until(again, "began\n")
    (job,) = re.findall("`ray job stop (.*)` stops it", output)
    stop = [Path(sys.executable).with_name("ray"), "job", "stop", job]
    subprocess.run(stop, env=toy.environment, capture_output=True, timeout=100, check=True)
    assert again.communicate(timeout=60)[0] == "stopped\n"
    assert again.returncode == 130
    assert toy.begun() == [driver]


@pytest.mark.slow
def test_a_command_that_is_killed_says_so(toy):
    follower = toy.start()
    (driver,) = wait_for(toy.begun)
    os.kill(driver, signal.SIGKILL)
    assert "began\nThe command was killed" in follower.communicate(timeout=60)[0]
    assert follower.returncode == 128 + signal.SIGKILL


@pytest.mark.slow
def test_of_commands_that_start_at_once_one_runs(toy):
    followers = [toy.start() for _ in range(3)]
    outputs = [read_until(process, "began\n") for process in followers]
    assert sum(AGAIN in output for output in outputs) == 2
    toy.go()
    for process in followers:
        assert process.communicate(timeout=60)[0] == "ended\n"
        assert process.returncode == 1
    assert len(toy.begun()) == 1


@pytest.mark.slow
def test_a_job_has_the_environment_of_its_terminal_and_ray_shows_no_secret(toy):
    toy.environment |= {"AWS_SECRET_ACCESS_KEY": "first-secret", "QUOTED": 'it\'s "$HOME"\n'}
    toy.go()
    status, output = toy.complete("--mlflow", "http://user:second-secret@127.0.0.1:1")
    assert status == 1
    seen = json.loads((toy.store / "environment").read_text())
    assert {name: seen[name] for name in ("AWS_SECRET_ACCESS_KEY", "QUOTED")} == {
        "AWS_SECRET_ACCESS_KEY": "first-secret",
        "QUOTED": 'it\'s "$HOME"\n',
    }
    listing = subprocess.run(
        [Path(sys.executable).with_name("ray"), "job", "list"],
        env=toy.environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    ).stdout
    assert "http://HIDDEN@127.0.0.1:1" in listing
    files = [path for path in Path(toy.environment["RAY_TMPDIR"]).rglob("*") if path.is_file()]
    texts = [listing, output, *(path.read_bytes().decode(errors="ignore") for path in files)]
    assert not [text for text in texts if "first-secret" in text or "second-secret" in text]


@pytest.mark.slow
@pytest.mark.parametrize("token", ["", "f" * 64])
def test_without_the_clusters_token_one_line_says_so(toy, token):
    for name in ("RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        del toy.environment[name]
    toy.environment |= {"HOME": str(toy.store)} | ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {})
    status, output = toy.complete()
    assert status == 1
    last = output.splitlines()[-1]
    assert last.startswith("error: the dashboard of the Ray cluster at ")
    assert "InvalidAuthToken" in last
    assert not toy.begun()


@pytest.mark.slow
def test_without_a_cluster_the_command_runs_in_its_own_terminal(toy):
    toy.environment["RAY_ADDRESS"] = "local"
    toy.go()
    assert toy.complete("--budget", "2") == (2, "began\nended\n")


def test_a_dry_run_is_no_job(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    assert jobs.run(lambda options: 7, Options(dry_run=True)) == 7
