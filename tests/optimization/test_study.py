"""The copy of a study on real storages, a journal file and PostgreSQL; and which trials are best."""

import errno
import itertools
from collections.abc import Iterator
from pathlib import Path

import optuna
import psycopg
import pytest
from conftest import fill
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from optuna_dashboard._storage_url import get_storage

from sgan.checks import ConfigError
from sweeps.optimization.objective import Outcome
from sweeps.optimization.study import (
    SAMPLERS,
    DistinctSampler,
    PeersPruner,
    StoredStudy,
    best_first,
    new_study,
    order,
    replay,
)

SPACE = {"x": FloatDistribution(0.0, 1.0)}
SERVER = "postgresql://postgres@127.0.0.1:5432"


def study_of(values: list[float | None]) -> optuna.Study:
    """A study made from the record of configs with these values; None: it has not ended."""
    rows = [{"number": n, "params": {"x": n / 100}, "title": f"{n}", "name": f"score-{n}"} for n in range(len(values))]
    outcomes = {number: Outcome("done", (value,)) for number, value in enumerate(values) if value is not None}
    study = new_study(["maximize"], DistinctSampler(SAMPLERS["random"], 0, {**SPACE}, str), None)
    replay(study, {**SPACE}, rows, outcomes)
    return study


def read(place: str | Path) -> list[FrozenTrial]:
    """The trials as the dashboard reads them."""
    storage = get_storage(str(place), storage_class=None if "://" in str(place) else "JournalFileStorage")
    return optuna.load_study(study_name="toy", storage=storage).trials


def values(place: str | Path) -> list[float | None]:
    return [trial.value for trial in read(place)]


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


def is_kept_and_made_again(place: str | Path) -> None:
    study = study_of([1.0, 2.0, None, 4.0])
    copy = StoredStudy(study, "toy", place)
    assert values(place) == [1.0, 2.0]  # up to the first one that has not ended
    study.tell(2, 3.0)
    copy.update()
    assert values(place) == [1.0, 2.0, 3.0, 4.0]
    assert [trial.user_attrs["trial"] for trial in read(place)] == [f"score-{number}" for number in range(4)]
    assert [trial.params for trial in read(place)] == [trial.params for trial in study.trials]
    began = [trial.datetime_start for trial in read(place)]
    StoredStudy(study_of([1.0, 2.0, 3.0, 4.0]), "toy", place)  # another command finds nothing to do
    assert [trial.datetime_start for trial in read(place)][:2] == began[:2]
    StoredStudy(study_of([1.0, 2.0, 3.0, 4.0, 5.0]), "toy", place)  # one that goes on
    assert values(place) == [1.0, 2.0, 3.0, 4.0, 5.0]
    StoredStudy(study_of([1.0, 9.0, 3.0]), "toy", place)  # one whose record says otherwise
    assert values(place) == [1.0, 9.0, 3.0]


def test_a_copy_in_a_file(tmp_path: Path):
    is_kept_and_made_again(tmp_path / "optuna.log")


def test_a_copy_in_postgresql_at_a_plain_address(database: str):
    is_kept_and_made_again(database)


def test_a_trial_that_failed_holds_up_no_other_and_is_shown_again_when_it_has_ended(tmp_path: Path):
    study, place = study_of([1.0, None, 3.0]), tmp_path / "optuna.log"
    StoredStudy(study, "toy", place).update({1})
    assert [trial.state for trial in read(place)] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    StoredStudy(study_of([1.0, 2.0, 3.0]), "toy", place)
    assert values(place) == [1.0, 2.0, 3.0]


def test_a_trial_that_a_kill_left_running_is_made_again(tmp_path: Path):
    place = tmp_path / "optuna.log"
    StoredStudy(study_of([1.0]), "toy", place)
    storage = JournalStorage(JournalFileBackend(str(place)))
    optuna.load_study(study_name="toy", storage=storage).ask()
    assert [trial.state for trial in read(place)][1] == TrialState.RUNNING
    StoredStudy(study_of([1.0, 2.0]), "toy", place)
    assert values(place) == [1.0, 2.0]


def test_a_file_cut_anywhere_by_a_power_cut_is_made_again(tmp_path: Path):
    path, torn = tmp_path / "optuna.log", tmp_path / "torn.log"
    StoredStudy(study_of([1.0, 2.0, 3.0]), "toy", path)
    whole = path.read_bytes()
    for cut in range(0, len(whole), 17):
        torn.write_bytes(whole[:cut])
        study = study_of([1.0, 2.0, 3.0, None])
        copy = StoredStudy(study, "toy", torn)
        study.tell(3, 4.0)
        copy.update()
        assert values(torn) == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("damage", [b"no json\n" * 3, b"\x00\xff\n", b"{}\n", b""])
def test_a_damaged_file_is_made_again(damage: bytes, tmp_path: Path):
    (tmp_path / "optuna.log").write_bytes(damage)
    StoredStudy(study_of([1.0]), "toy", tmp_path / "optuna.log")
    assert values(tmp_path / "optuna.log") == [1.0]


def test_a_value_that_was_changed_is_not_believed(tmp_path: Path):
    path = tmp_path / "optuna.log"
    StoredStudy(study_of([1.0]), "toy", path)
    changed = path.read_bytes().replace(b'"value":1.0', b'"value":7.0')
    assert changed != path.read_bytes()
    path.write_bytes(changed)
    StoredStudy(study_of([1.0]), "toy", path)
    assert values(path) == [1.0]


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
        StoredStudy(study_of([1.0]), "toy", place)
    assert "secret" not in str(caught.value)
    assert "--study-storage" in str(caught.value)


def test_a_full_disk_ends_the_copy_and_not_the_search(small_disk, capsys):
    study = study_of([None] * 40)
    copy = StoredStudy(study, "toy", small_disk / "optuna.log")
    filler = fill(small_disk)
    for number in range(40):
        study.tell(number, float(number))
        copy.update()
    said = capsys.readouterr().out
    assert said.count("the same command makes it again") == 1
    assert errno.errorcode[errno.ENOSPC] in said or "No space left" in said
    filler.unlink()
    StoredStudy(study, "toy", small_disk / "optuna.log")
    assert values(small_disk / "optuna.log") == [float(value) for value in range(40)]


@given(st.data())
def test_a_trial_is_stopped_by_the_median_of_the_trials_with_its_split_alone(data: st.DataObject):
    """Against the rule as Optuna documents it: worse than the median of the others' scores at the same step."""
    space: dict[str, BaseDistribution] = {"split": CategoricalDistribution(["a", "b"])}
    study = optuna.create_study(direction="maximize")
    number, scores = st.integers(0, 9), {"a": list[float](), "b": list[float]()}
    for split in data.draw(st.lists(st.sampled_from("ab"), max_size=12)):
        score = float(data.draw(number))
        scores[split].append(score)
        study.add_trial(optuna.create_trial(
            params={"split": split}, distributions=space, values=[0.0], intermediate_values={5: score}
        ))  # fmt: skip
    mine, split = float(data.draw(number)), data.draw(st.sampled_from("ab"))
    trial = optuna.create_trial(
        state=TrialState.RUNNING, params={"split": split}, distributions=space, intermediate_values={5: mine}
    )
    peers = sorted(scores[split])
    middle = len(peers) // 2
    median = (peers[middle] + peers[-middle - 1]) / 2 if peers else 0.0
    assert PeersPruner(optuna.pruners.MedianPruner(4), "split").prune(study, trial) == (
        len(peers) >= 4 > 0 and mine < median
    )


def test_trials_that_went_wrong_are_never_among_the_best():
    rows = [{"number": n, "params": {"x": n / 10}, "title": "", "name": ""} for n in range(4)]
    tags = ((1.0, "collapsed"), (5.0, "done"), (9.0, "diverged"), (7.0, "done"))
    study = optuna.create_study(direction="maximize")
    replay(study, {**SPACE}, rows, {n: Outcome(tag, (value,)) for n, (value, tag) in enumerate(tags)})
    assert [trial.value for trial in best_first(study)] == [7.0, 5.0]


@given(st.lists(st.tuples(*(st.integers(0, 4) for _ in range(3))).map(list), max_size=12))
def test_no_config_stands_before_one_that_dominates_it(rows: list[list[float]]):
    ranked = order([StudyDirection.MINIMIZE] * 3, rows)
    assert sorted(ranked) == list(range(len(rows)))
    for earlier, later in itertools.combinations(ranked, 2):
        worse = all(a <= b for a, b in zip(rows[later], rows[earlier], strict=True)) and rows[later] != rows[earlier]
        assert not worse


@given(st.lists(st.floats(-9, 9).map(lambda value: [value]), max_size=12))
def test_one_score_is_sorted(rows: list[list[float]]):
    assert [rows[index] for index in order([StudyDirection.MINIMIZE], rows)] == sorted(rows)
    assert [rows[index] for index in order([StudyDirection.MAXIMIZE], rows)] == sorted(rows, reverse=True)
