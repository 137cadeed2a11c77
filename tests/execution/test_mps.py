"""CUDA's MPS, with a stand-in for NVIDIA's control program that keeps its daemon in a file."""

import os

import pytest

from sweeps.execution import mps

STAND_IN = """#!/bin/sh
cd "$(dirname "$0")"
if [ "$1" = -d ]; then
    [ -e daemon ] && { echo 'An instance of this daemon is already running' >&2; exit 1; }
    echo start >> said; touch daemon; exit 0
fi
read command
[ -e daemon ] || { echo 'Cannot find MPS control daemon process' >&2; exit 1; }
echo "$command" >> said
[ "$command" = quit ] && rm daemon
exit 0
"""


@pytest.fixture
def control(tmp_path, monkeypatch):
    """The folder of the stand-in, which is the only program on the path beside the system's."""
    program = tmp_path / mps.CONTROL
    program.write_text(STAND_IN)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def said(folder) -> list[str]:
    path = folder / "said"
    return path.read_text().split() if path.exists() else []


def test_the_first_worker_starts_it_and_the_sweeps_end_stops_it(control):
    assert mps.start("sweep")
    assert not mps.start("sweep")  # the next worker finds it
    assert mps.stop("sweep")
    assert not mps.stop("sweep")
    assert said(control) == ["start", "get_server_list", "quit"]
    assert not (control / "daemon").exists()


def test_a_daemon_of_somebody_else_is_left_alone(control):
    (control / "daemon").touch()
    assert not mps.start("sweep")
    assert not mps.stop("sweep")
    assert said(control) == ["get_server_list"]
    assert (control / "daemon").exists()


def test_another_sweep_does_not_stop_it(control):
    assert mps.start("first")
    assert not mps.start("second")
    assert not mps.stop("second")
    assert (control / "daemon").exists()
    assert mps.stop("first")


def test_a_node_without_mps_goes_on_as_before(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not mps.start("sweep")
    assert not mps.stop("sweep")
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_fails_starts_nothing(control):
    (control / mps.CONTROL).write_text("#!/bin/sh\nexit 1\n")
    assert not mps.start("sweep")
    assert not (control / "sgan-mps").exists()
