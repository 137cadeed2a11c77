"""The ledger of a store: what several processes did, whatever became of them and of its files."""

import multiprocessing
import os
import signal

import pytest
from command import ended
from conftest import fill

from sgan.store.local import LEDGER, Store
from sweeps import ledger

PROCESSES, EACH = 4, 50


def _write(root: str, number: int) -> None:
    """A process that adds events until it kills itself."""
    store = Store(root)
    for count in range(EACH):
        store.note("counted", process_number=number, count=count)
    os.kill(os.getpid(), signal.SIGKILL)


def test_every_event_of_every_process_that_was_killed_is_there_in_order(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write, args=(str(tmp_path), number)) for number in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    events = Store(tmp_path).events()
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)
    for number, process in enumerate(processes):
        mine = [event for event in events if event["process_number"] == number]
        assert [event["count"] for event in mine] == list(range(EACH))
        assert {event["process"] for event in mine} == {process.pid}
    assert len(list((tmp_path / LEDGER).iterdir())) == PROCESSES


def stage(store: Store, name: str) -> None:
    store.begin(name)
    store.publish(name, {"status": "done"})


def test_the_command_says_what_was_done_and_what_in_vain(tmp_path, capsys):
    store = Store(tmp_path / "runs")
    store.begin("level-1")
    store.keep("level-1", now=True)
    stage(store, "level-1")
    for path in store.stage("level-1").iterdir():
        path.unlink() if path.is_file() else path.rmdir()
    stage(store, "level-1")
    stage(store, "level-2")
    store.note("trial retried", trial="sgan seed 0", reason="its worker died")
    ledger.main(store.address)
    said = capsys.readouterr().out.splitlines()
    events = [line.split("  ", 2)[2] for line in said[:-1]]
    assert events == [
        "stage begun: stage level-1",
        "stage stopped: stage level-1",
        "stage resumed: stage level-1",
        "stage published: stage level-1, status done",
        "stage begun: stage level-1",
        "stage published: stage level-1, status done",
        "stage begun: stage level-2",
        "stage published: stage level-2, status done",
        "trial retried: trial sgan seed 0, reason its worker died",
    ]
    assert said[-1].endswith("level-1 2 times")


@pytest.mark.parametrize("place", ["none", "file"])
def test_what_is_no_store_is_one_line_and_exit_status_2(place, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert ended("sweeps/ledger.py", tmp_path / place) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: there is no output store {tmp_path / place}")


def test_a_disk_that_fills_up_takes_no_half_event(small_disk):
    store = Store(small_disk / "store")
    store.note("first")
    filler = fill(small_disk)
    for _ in range(100):  # the last block of the file has room for some
        store.note("lost or not", what="x" * 100)
    filler.unlink()
    store.note("last")
    events = [event["event"] for event in store.events()]
    assert (events[0], events[-1]) == ("first", "last")
    assert len(events) < 102
