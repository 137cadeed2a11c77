"""Commands on a cluster, as real processes with real terminals; what they run is a toy that waits for files."""

import os
import pty
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from waiting import wait_for

from sgan.checks import ConfigError
from sweeps.execution import jobs as detach
from sweeps.planning.options import Options

TOY = """
import sys, time
from pathlib import Path
import tyro
from sgan.checks import ConfigError
from sweeps import detach
from sweeps.options import Options

options = tyro.cli(Options)

def main():
    store = Path(options.store)
    print("began", flush=True)
    with open(store / "begun", "a") as begun:
        begun.write("x")
    try:
        end = time.monotonic() + 60
        while not (store / "go").exists() and time.monotonic() < end:
            time.sleep(0.02)
    except KeyboardInterrupt:
        print("stopped", flush=True)
        return 130
    print("ended", flush=True)
    return int(options.budget)

try:
    sys.exit(detach.run(main, options, "toy.py"))
except ConfigError as error:
    sys.exit(f"error: {error}")
"""


class Toy:
    """A command on a machine with a cluster; `store` is what its drivers see."""

    def __init__(self, folder: Path):
        self.script, self.store, self.state = folder / "toy.py", folder / "store", folder / "state"
        self.script.write_text(TOY)
        self.store.mkdir()
        self.environment = os.environ | {"RAY_ADDRESS": "192.0.2.1:6379", "SGAN_STATE": str(self.state)}

    def words(self, *words: str) -> list[str]:
        return [sys.executable, str(self.script), "--store", str(self.store), *words]

    def start(self, *words: str, **more) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True, "text": True}
        return subprocess.Popen(self.words(*words), env=self.environment, **(pipes | more))

    def complete(self, *words: str) -> tuple[int, str]:
        process = self.start(*words)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def begun(self) -> int:
        """How many drivers have begun."""
        return len((self.store / "begun").read_text()) if (self.store / "begun").exists() else 0

    def go(self) -> None:
        (self.store / "go").touch()

    def pid(self) -> int:
        """Process of the one driver there is."""
        (path,) = (self.state / "drivers").glob("*/pid")
        return int(path.read_text())


@pytest.fixture
def toy(tmp_path):
    made = Toy(tmp_path)
    yield made
    for path in (made.state / "drivers").glob("*/pid"):
        with suppress(ProcessLookupError):
            os.kill(int(path.read_text()), signal.SIGKILL)


def line(process: subprocess.Popen[str]) -> str:
    """The next line that a process prints."""
    assert process.stdout is not None
    return process.stdout.readline()


def test_a_driver_outlives_its_terminal_and_is_found_again(toy):
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, toy.words("--budget", "3"), toy.environment)
    wait_for(lambda: b"began" in os.read(terminal, 1000))
    os.close(terminal)  # the connection goes away: the kernel hangs up
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGHUP
    os.kill(toy.pid(), 0)

    again = toy.start("--budget", "3")
    assert "runs already" in line(again)
    assert line(again) == "began\n"
    toy.go()
    assert again.communicate(timeout=30)[0] == "ended\n"
    assert again.returncode == 3
    assert toy.begun() == 1
    assert toy.complete("--budget", "3") == (3, "began\nended\n")  # it had ended: it runs anew
    assert toy.begun() == 2
    assert {path.read_text() for path in (toy.store / "drivers").iterdir()} == {"began\nended\n"}


def test_ctrl_c_ends_the_following_and_stop_the_driver(toy):
    follower = toy.start()
    wait_for(toy.begun)
    os.killpg(follower.pid, signal.SIGINT)
    output, _ = follower.communicate(timeout=30)
    assert follower.returncode == 130
    assert "It goes on without this terminal" in output
    os.kill(toy.pid(), 0)
    assert toy.complete("--stop") == (130, "began\nstopped\n")
    status, output = toy.complete("--stop")
    assert status == 1
    assert "does not run here" in output
    assert toy.begun() == 1


def test_attach_follows_the_one_that_runs_whatever_its_options(toy):
    status, output = toy.complete("--attach")
    assert status == 1
    assert "no command runs here" in output
    first = toy.start("--width", "2")
    wait_for(toy.begun)
    following = toy.start("--attach")
    assert line(following) == "began\n"
    second = toy.start("--width", "3")
    wait_for(lambda: toy.begun() == 2)
    status, output = toy.complete("--attach")
    assert status == 1
    assert "--width 2" in output
    assert "--width 3" in output
    toy.go()
    assert following.communicate(timeout=30)[0] == "ended\n"
    for process in (first, second):
        assert process.communicate(timeout=30)[0] == "began\nended\n"
    assert {process.returncode for process in (first, following, second)} == {1}


def test_a_driver_that_is_killed_is_said_to_be(toy):
    follower = toy.start()
    wait_for(toy.begun)
    os.kill(toy.pid(), signal.SIGKILL)
    assert follower.communicate(timeout=30)[0] == "began\n"
    assert follower.returncode == 128 + signal.SIGKILL


def test_a_log_is_in_the_store_before_its_driver_has_ended(toy, tmp_path):
    """The head may be lost for good."""
    folder, ended = tmp_path / "driver", threading.Event()
    folder.mkdir()
    (folder / "log").write_text("one\n")
    copies = threading.Thread(target=detach._copy_log, args=(folder, str(toy.store), ended, 0.05))
    copies.start()
    wait_for(lambda: [path.read_text() for path in toy.store.glob("drivers/*.log")] == ["one\n"])
    (folder / "log").write_text("one\ntwo\n")
    wait_for(lambda: [path.read_text() for path in toy.store.glob("drivers/*.log")] == ["one\ntwo\n"])
    ended.set()
    copies.join(20)


def test_a_driver_that_nobody_watches_runs_still(toy):
    """The process that would note its exit status is killed."""
    follower = toy.start()
    wait_for(toy.begun)
    parent = Path(f"/proc/{toy.pid()}/stat").read_text().rsplit(")", 1)[1].split()[1]
    os.kill(int(parent), signal.SIGKILL)
    again = toy.start()
    assert "runs already" in line(again)
    toy.go()
    for process in (follower, again):
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 137
        assert "ended\nThe command was killed" in output
    assert toy.begun() == 1


def test_of_commands_that_start_at_once_one_drives(toy):
    followers = [toy.start() for _ in range(6)]
    firsts = [line(process) for process in followers]
    assert sum("runs already" in first for first in firsts) == 5
    wait_for(toy.begun)
    toy.go()
    for process in followers:
        assert process.communicate(timeout=60)[0].endswith("ended\n")
        assert process.returncode == 1
    assert toy.begun() == 1


def test_without_a_cluster_the_command_runs_in_its_own_terminal(toy):
    toy.environment["RAY_ADDRESS"] = "local"
    toy.go()
    assert toy.complete("--budget", "2") == (2, "began\nended\n")
    assert not toy.state.exists()
    status, output = toy.complete("--attach")
    assert status == 1
    assert "none runs here" in output


def test_a_dry_run_is_not_detached(toy, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    assert detach.run(lambda: 7, Options(dry_run=True, store=str(toy.store)), "toy.py") == 7


def test_a_bad_flag_is_a_config_error(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(ConfigError, match="--attach and --stop are for a cluster"):
        detach.run(lambda: 0, Options(stop=True), "toy.py")
