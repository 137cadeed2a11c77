"""Where a study is kept, on real storages: the journal file and PostgreSQL; and which trials are best."""

import itertools
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import optuna
import psycopg
import pytest
from conftest import fill
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
from optuna_dashboard._storage_url import get_storage

from sgan.checks import ConfigError
from sgan.store.local import Store
from sweeps.optimization.study import best_first, mean_seconds, open_study, order

SPACE = {"x": FloatDistribution(0.0, 1.0)}
STORE: Store
SERVER = "postgresql://postgres@127.0.0.1:5432"


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory) -> None:
    global STORE
    STORE = Store(tmp_path_factory.mktemp("store"))


def opened(place: str | Path, sampler: str = "tpe") -> optuna.Study:
    return open_study(place, STORE, "toy", {"score": "maximize"}, sampler, 0, None, {"x": 0.5})


def ask(study: optuna.Study, value: float) -> optuna.Trial:
    trial = study.ask(SPACE)  # pyright: ignore[reportArgumentType]
    trial.set_user_attr("outcome", "done")
    study.tell(trial, value)
    return trial


@pytest.fixture
def database() -> Iterator[str]:
    """The address of a database of this test's own."""
    try:
        server = psycopg.connect(f"{SERVER}/postgres", autocommit=True, connect_timeout=3)
    except psycopg.OperationalError:
        pytest.skip("needs PostgreSQL on 127.0.0.1:5432 with user postgres")
    with server:
        server.execute("DROP DATABASE IF EXISTS sgan_test_study WITH (FORCE)")
        server.execute("CREATE DATABASE sgan_test_study")
        yield f"{SERVER}/sgan_test_study"
        server.execute("DROP DATABASE sgan_test_study WITH (FORCE)")


def goes_on_and_is_read_by_the_dashboard(place: str | Path) -> None:
    first = opened(place)
    assert ask(first, 1.0).params == {"x": 0.5}  # the known good point, once
    for value in (2.0, 3.0):
        ask(first, value)
    again = opened(place)
    assert [trial.value for trial in again.trials] == [1.0, 2.0, 3.0]
    assert ask(again, 4.0).params["x"] not in [trial.params["x"] for trial in first.trials[:3]]
    storage = get_storage(str(place), storage_class=None if "://" in str(place) else "JournalFileStorage")
    shown = optuna.load_study(study_name="toy", storage=storage)
    assert [trial.value for trial in shown.trials] == [1.0, 2.0, 3.0, 4.0]
    assert shown.user_attrs == again.user_attrs


def test_a_study_in_a_file(tmp_path: Path):
    goes_on_and_is_read_by_the_dashboard(tmp_path / "optuna.log")


def test_a_study_in_postgresql_at_a_plain_address(database: str):
    goes_on_and_is_read_by_the_dashboard(database)


def test_a_file_cut_anywhere_by_a_power_cut_is_read_up_to_the_cut(tmp_path: Path):
    path = tmp_path / "optuna.log"
    study = opened(path)
    for value in (1.0, 2.0, 3.0):
        ask(study, value)
    whole = path.read_bytes()
    second = whole.index(b"\n", whole.index(b'"values":[2.0]')) + 1  # the line that tells the second value
    for cut in range(second, len(whole), 7):
        torn = tmp_path / f"torn-{cut}.log"
        torn.write_bytes(whole[:cut])
        again = opened(torn)
        assert [trial.value for trial in again.trials][:2] == [1.0, 2.0]
        ask(again, 9.0)
        assert 9.0 in [trial.value for trial in opened(torn).trials]  # what is written after the cut is read


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("postgresql://me:secret@127.0.0.1:1/name", r"postgresql://me@127\.0\.0\.1:1/name"),
        ("mysql://me:secret@127.0.0.1/name", "mysql://me@127"),
        ("nothing://x", "nothing"),
        (Path("nowhere/at/all/optuna.log"), "nowhere/at/all"),
    ],
)
def test_a_storage_that_does_not_answer_is_one_error_without_the_password(place: str | Path, named: str):
    with pytest.raises(ConfigError, match=named) as caught:
        opened(place)
    assert "secret" not in str(caught.value)
    assert "--study-storage" in str(caught.value)


def test_a_full_disk_holds_a_study_up_until_there_is_room(small_disk, monkeypatch, capsys):
    """No line is lost, and none is torn."""
    monkeypatch.setattr("sgan.store.local.ROOM_WAIT", 0.05)
    path = small_disk / "optuna.log"
    study = open_study(path, Store(small_disk), "toy", {"score": "maximize"}, "tpe", 0, None, {"x": 0.5})
    ask(study, 1.0)
    filler = fill(small_disk)
    teller = threading.Thread(target=lambda: [ask(study, float(value)) for value in range(2, 60)])
    teller.start()
    teller.join(1.0)
    assert teller.is_alive()
    filler.unlink()
    teller.join(60)
    assert f"waiting for room in the store {small_disk} (No space left on device)" in capsys.readouterr().out
    assert [trial.value for trial in opened(path).trials] == [float(value) for value in range(1, 60)]


def test_a_line_that_was_changed_is_not_believed(tmp_path: Path):
    path = tmp_path / "optuna.log"
    ask(opened(path), 1.0)
    path.write_bytes(path.read_bytes().replace(b'"values":[1.0]', b'"values":[7.0]'))
    with pytest.raises(ConfigError, match=rf"{path} is not as it was written; delete {path}, and the same command"):
        opened(path)


def test_what_is_done_to_a_study_that_is_not_kept_leaves_no_trace(tmp_path: Path):
    def copy() -> optuna.Study:
        kind = ("toy", {"score": "maximize"}, "tpe", 0, None, {"x": 0.5})
        return open_study(tmp_path / "optuna.log", STORE, *kind, kept=False)

    assert ask(copy(), 1.0).params == {"x": 0.5}
    assert not list(tmp_path.iterdir())
    ask(opened(tmp_path / "optuna.log"), 3.0)
    held = (tmp_path / "optuna.log").read_bytes()
    ask(copy(), 2.0)
    assert [trial.value for trial in copy().trials] == [3.0]
    assert (tmp_path / "optuna.log").read_bytes() == held


def test_a_damaged_file_is_one_error_that_names_it(tmp_path: Path):
    (tmp_path / "optuna.log").write_text("no json\n" * 3)
    with pytest.raises(ConfigError, match=r"optuna\.log"):
        opened(tmp_path / "optuna.log")


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_every_sampler_suggests_and_goes_on_elsewhere_after_an_interruption(sampler: str, tmp_path: Path):
    seen = []
    for _ in range(3):
        study = opened(tmp_path / "optuna.log", sampler)
        seen += [ask(study, 1.0).params["x"] for _ in range(2)]
    assert len(set(seen)) == 6


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_interrupted_before_any_trial_a_study_suggests_what_it_would_have(sampler: str, tmp_path: Path):
    def suggested(place: Path, again: bool) -> list[float]:
        study, found = opened(place, sampler), []
        for index in range(14):  # TPE and GP draw their first ten at random
            study = opened(place, sampler) if again else study
            found.append(ask(study, index % 5).params["x"])
        return found

    assert suggested(tmp_path / "whole.log", False) == suggested(tmp_path / "interrupted.log", True)


def test_the_mean_time_is_that_of_the_trials_that_have_ended(tmp_path: Path):
    study = opened(tmp_path / "optuna.log")
    assert mean_seconds(study) == 0.0
    began = datetime(2026, 1, 1)
    for seconds in (2, 4):
        ended = began + timedelta(seconds=seconds)
        trial = optuna.trial.FrozenTrial(0, TrialState.COMPLETE, 1.0, began, ended, {}, {}, {}, {}, {}, 0)
        study.add_trial(trial)
    study.ask(SPACE)  # pyright: ignore[reportArgumentType]
    assert mean_seconds(opened(tmp_path / "optuna.log")) == 3.0


def test_trials_that_went_wrong_are_never_among_the_best(tmp_path: Path):
    study = opened(tmp_path / "optuna.log")
    for value, outcome in ((1.0, "collapsed"), (5.0, "done"), (9.0, "diverged"), (7.0, "done")):
        trial = study.ask(SPACE)  # pyright: ignore[reportArgumentType]
        trial.set_user_attr("outcome", outcome)
        study.tell(trial, value)
    assert [trial.value for trial in best_first(study)] == [7.0, 5.0]


@given(st.lists(st.tuples(*(st.integers(0, 4) for _ in range(3))).map(list), max_size=12))
def test_no_config_stands_before_one_that_dominates_it(rows: list[list[float]]):
    ranked = order(rows)
    assert sorted(ranked) == list(range(len(rows)))
    for earlier, later in itertools.combinations(ranked, 2):
        worse = all(a <= b for a, b in zip(rows[later], rows[earlier], strict=True)) and rows[later] != rows[earlier]
        assert not worse


@given(st.lists(st.floats(-9, 9).map(lambda value: [value]), max_size=12))
def test_one_score_is_sorted(rows: list[list[float]]):
    assert [rows[index] for index in order(rows)] == sorted(rows)
