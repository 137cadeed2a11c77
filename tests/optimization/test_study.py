"""The copy of a study in a journal file; and which trials are best."""

import errno
import random
from pathlib import Path

import optuna
import pytest
from conftest import fill
from optuna.distributions import FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from optuna_dashboard._storage_url import get_storage

from sgan.checks import ConfigError
from sweeps.optimization.study import Distributions, Outcome, StudyFile, best_first, importance, replay

SPACE = {"x": FloatDistribution(0.0, 1.0)}
SCORE = "s"


def study_of(values: list[float | None]) -> optuna.Study:
    """A study made from the record of configs with these values; None: it has not ended."""
    rows = [{"number": n, "params": {"x": n / 100}, "title": f"{n}", "name": f"score-{n}"} for n in range(len(values))]
    outcomes = {number: Outcome("done", value) for number, value in enumerate(values) if value is not None}
    study = optuna.create_study(direction="maximize")
    replay(study, {**SPACE}, rows, outcomes)
    return study


def read(place: Path) -> list[FrozenTrial]:
    """The trials as the dashboard reads them."""
    storage = get_storage(str(place), storage_class="JournalFileStorage")
    return optuna.load_study(study_name="toy", storage=storage).trials


def values(place: Path) -> list[float | None]:
    return [trial.value for trial in read(place)]


def is_kept_and_made_again(place: Path) -> None:
    study = study_of([1.0, 2.0, None, 4.0])
    copy = StudyFile(study, "toy", SCORE, place)
    assert values(place) == [1.0, 2.0]  # up to the first one that has not ended
    study.tell(2, 3.0)
    copy.update()
    assert values(place) == [1.0, 2.0, 3.0, 4.0]
    assert [trial.user_attrs.get("trial") for trial in read(place)] == ["score-0", "score-1", None, "score-3"]
    assert [trial.params for trial in read(place)] == [trial.params for trial in study.trials]
    StudyFile(study_of([1.0, 2.0, 3.0, 4.0, 5.0]), "toy", SCORE, place)  # one that goes on
    assert values(place) == [1.0, 2.0, 3.0, 4.0, 5.0]
    StudyFile(study_of([1.0, 9.0, 3.0]), "toy", SCORE, place)  # one whose record says otherwise
    assert values(place) == [1.0, 9.0, 3.0]


def test_a_copy_in_a_file(tmp_path: Path):
    is_kept_and_made_again(tmp_path / "optuna.log")


def test_a_trial_that_failed_holds_up_no_other_and_is_shown_again_when_it_has_ended(tmp_path: Path):
    study, place = study_of([1.0, None, 3.0]), tmp_path / "optuna.log"
    copy = StudyFile(study, "toy", SCORE, place)
    study.tell(1, state=TrialState.FAIL)
    copy.update()
    assert [trial.state for trial in read(place)] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    StudyFile(study_of([1.0, 2.0, 3.0]), "toy", SCORE, place)
    assert values(place) == [1.0, 2.0, 3.0]


def test_a_trial_that_a_kill_left_running_is_made_again(tmp_path: Path):
    place = tmp_path / "optuna.log"
    StudyFile(study_of([1.0]), "toy", SCORE, place)
    storage = JournalStorage(JournalFileBackend(str(place)))
    optuna.load_study(study_name="toy", storage=storage).ask()
    assert [trial.state for trial in read(place)][1] == TrialState.RUNNING
    StudyFile(study_of([1.0, 2.0]), "toy", SCORE, place)
    assert values(place) == [1.0, 2.0]


def test_a_lock_that_a_kill_left_in_a_store_that_was_moved_holds_up_nothing(tmp_path: Path):
    """Optuna's lock is a link to the file's old place: it waits for it without end."""
    place = tmp_path / "optuna.log"
    place.with_name("optuna.log.lock").symlink_to(tmp_path / "before" / "optuna.log")
    StudyFile(study_of([1.0, 2.0]), "toy", SCORE, place)
    assert values(place) == [1.0, 2.0]


def test_a_file_cut_anywhere_by_a_power_cut_is_made_again(tmp_path: Path):
    path, torn = tmp_path / "optuna.log", tmp_path / "torn.log"
    StudyFile(study_of([1.0, 2.0, 3.0]), "toy", SCORE, path)
    whole = path.read_bytes()
    for cut in range(0, len(whole), 17):
        torn.write_bytes(whole[:cut])
        study = study_of([1.0, 2.0, 3.0, None])
        copy = StudyFile(study, "toy", SCORE, torn)
        study.tell(3, 4.0)
        copy.update()
        assert values(torn) == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("damage", [b"no json\n" * 3, b"\x00\xff\n", b"{}\n", b""])
def test_a_damaged_file_is_made_again(damage: bytes, tmp_path: Path):
    (tmp_path / "optuna.log").write_bytes(damage)
    StudyFile(study_of([1.0]), "toy", SCORE, tmp_path / "optuna.log")
    assert values(tmp_path / "optuna.log") == [1.0]


def test_a_value_that_was_changed_is_not_believed(tmp_path: Path):
    path = tmp_path / "optuna.log"
    StudyFile(study_of([1.0]), "toy", SCORE, path)
    changed = path.read_bytes().replace(b'"value":1.0', b'"value":7.0')
    assert changed != path.read_bytes()
    path.write_bytes(changed)
    StudyFile(study_of([1.0]), "toy", SCORE, path)
    assert values(path) == [1.0]


def test_a_file_that_cannot_be_written_is_one_error():
    with pytest.raises(ConfigError, match="nowhere/at/all"):
        StudyFile(study_of([1.0]), "toy", SCORE, Path("nowhere/at/all/optuna.log"))


def test_its_values_have_the_names_of_the_scores(tmp_path: Path):
    place = tmp_path / "optuna.log"
    StudyFile(study_of([1.0]), "toy", SCORE, place)
    study = optuna.load_study(study_name="toy", storage=JournalStorage(JournalFileBackend(str(place))))
    assert study.metric_names == ["s"]


def test_a_full_disk_ends_the_copy_and_not_the_search(small_disk, capsys):
    study = study_of([None] * 40)
    copy = StudyFile(study, "toy", SCORE, small_disk / "optuna.log")
    filler = fill(small_disk)
    for number in range(40):
        study.tell(number, float(number))
        copy.update()
    said = capsys.readouterr().out
    assert said.count("the same command makes it again") == 1
    assert errno.errorcode[errno.ENOSPC] in said or "No space left" in said
    filler.unlink()
    StudyFile(study, "toy", SCORE, small_disk / "optuna.log")
    assert values(small_disk / "optuna.log") == [float(value) for value in range(40)]


def test_trials_that_went_wrong_are_never_among_the_best():
    rows = [{"number": n, "params": {"x": n / 10}, "title": "", "name": ""} for n in range(4)]
    tags = ((1.0, "collapsed"), (5.0, "done"), (9.0, "diverged"), (7.0, "done"))
    study = optuna.create_study(direction="maximize")
    replay(study, {**SPACE}, rows, {n: Outcome(tag, value) for n, (value, tag) in enumerate(tags)})
    assert [trial.value for trial in best_first(study)] == [7.0, 5.0]


def test_the_param_that_matters_is_the_important_one():
    ends, rng = {"x": 1.0, "y": 1.0, "z": 0.0}, random.Random(0)
    space: Distributions = {name: FloatDistribution(0.0, high) for name, high in ends.items()}
    rows = [{"params": {"x": rng.random(), "y": rng.random(), "z": 0.0}, "title": "", "name": ""} for _ in range(40)]
    study = optuna.create_study(direction="maximize")
    outcomes = {number: Outcome("done", row["params"]["x"]) for number, row in enumerate(rows)}
    replay(study, space, [row | {"number": number} for number, row in enumerate(rows)], outcomes)
    found = importance(study)
    assert found.keys() == {"x", "y"}
    assert found["x"][1] <= found["x"][0] <= found["x"][2]
    assert found["x"][0] > 0.5 > found["y"][0]
    worst = {number: Outcome("done" if number == 0 else "collapsed", float(number == 0)) for number in outcomes}
    study = optuna.create_study(direction="maximize")
    replay(study, space, [row | {"number": number} for number, row in enumerate(rows)], worst)
    assert importance(study) == {}  # one of 40 did not go wrong: its best tenth is any tenth
    assert importance(study_of([])) == importance(study_of([1.0, None])) == importance(study_of([1.0, 1.0])) == {}
