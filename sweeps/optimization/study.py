"""Optuna's study of a search. It is a view: made from the search's record in the store, at any time."""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from sgan.checks import ConfigError, content_key
from sweeps.optimization.objective import DONE, Outcome

Params = dict[str, Any]
OUTCOME, REASON = "outcome", "reason"
"""User attributes of a trial: how it ended, and why."""
DRAWS = 20
"""A sampler is asked so often for a config that is new; then ten times as often for a random one."""
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}
optuna.logging.set_verbosity(optuna.logging.WARNING)


class DistinctSampler(BaseSampler):
    """Suggests configs that are new, each by a sampler made for its trial alone.

    That sampler's seed is made of the search's seed and the trial's number. So a suggestion depends only on what the
    study holds, and a search that was interrupted goes on as it would have. One that is not new ends the search: the
    space is used up.

    Attributes:
        taken: keys of the configs that are not new.
    Args:
        make: makes a sampler from its seed.
        seed: the search's.
        space: name -> distribution; every config has all of them.
        key: params -> a key that equal configs share.
    """

    def __init__(
        self,
        make: Callable[[int], BaseSampler],
        seed: int,
        space: dict[str, BaseDistribution],
        key: Callable[[Params], str],
    ):
        self.make, self.seed, self.space, self.key = make, seed, space, key
        self.taken: set[str] = set()

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Params:
        inner = self.make(int(content_key([self.seed, trial.number])[:8], 16))
        anything = RandomSampler(seed=trial.number)
        for draw in range(11 * DRAWS):
            sampler = inner if draw < DRAWS else anything
            params = sampler.sample_relative(study, trial, sampler.infer_relative_search_space(study, trial))
            for name, distribution in search_space.items():
                if name not in params:
                    params[name] = sampler.sample_independent(study, trial, name, distribution)
            if self.key(params) not in self.taken:
                break
        return params

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise AssertionError(f"{param_name} is not in the space")


def new_study(objective: Mapping[str, str], sampler: BaseSampler) -> optuna.Study:
    """An empty study in memory.

    Args:
        objective: score -> "maximize" or "minimize".
    """
    return optuna.create_study(directions=_directions(objective), sampler=sampler)


def _directions(objective: Mapping[str, str]) -> list[StudyDirection]:
    return [StudyDirection[way.upper()] for way in objective.values()]


def replay(
    study: optuna.Study,
    space: dict[str, BaseDistribution],
    rows: Sequence[Mapping[str, Any]],
    outcomes: Mapping[int, Outcome],
) -> dict[int, optuna.Trial]:
    """Fill an empty study from a search's record.

    Args:
        rows: of the configs that were asked for, with "number", "params", "title" and "name".
        outcomes: number -> outcome, of those that have ended.
    Returns:
        number -> trial, of those that have not: each asked for again with its params, under its number.
    """
    numbered, open_trials = {row["number"]: row for row in rows}, dict[int, optuna.Trial]()
    for number in range(max(numbered, default=-1) + 1):
        row, outcome = numbered.get(number), outcomes.get(number)
        if row is None:  # its file was deleted; the others keep their numbers
            study.add_trial(create_trial(state=TrialState.FAIL))
        elif outcome is None:
            study.enqueue_trial(row["params"])
            open_trials[number] = study.ask(space)
            note(open_trials[number], _attributes(row))
        else:
            study.add_trial(_ended_trial(row, space, outcome))
    return open_trials


def _ended_trial(row: Mapping[str, Any], space: dict[str, BaseDistribution], outcome: Outcome) -> FrozenTrial:
    return create_trial(
        values=outcome.values,
        params=row["params"],
        distributions=space,
        user_attrs=_attributes(row) | {OUTCOME: outcome.tag, REASON: outcome.reason},
    )


def _attributes(row: Mapping[str, Any]) -> dict[str, str]:
    return {"config": row["title"], "trial": row["name"]}


def note(trial: optuna.Trial, attributes: Mapping[str, str]) -> None:
    """Set user attributes of a trial."""
    for name, value in attributes.items():
        trial.set_user_attr(name, value)


def tell(study: optuna.Study, trial: optuna.Trial, row: Mapping[str, Any], outcome: Outcome) -> None:
    """Tell the study how a trial ended."""
    note(trial, _attributes(row) | {OUTCOME: outcome.tag, REASON: outcome.reason})
    study.tell(trial, outcome.values)


class StoredStudy:
    """The copy of a study that optuna-dashboard reads: all trials up to the first one that has not ended.

    A copy that does not agree with the study, or cannot be read, is made anew.

    Args:
        objective: score -> direction; the scores are the names of the study's values.
        path: of a journal file that holds no other study.
    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, study: optuna.Study, name: str, objective: Mapping[str, str], path: Path):
        self.study, self.path, self.count = study, path, 0
        try:
            if path.exists() and not _is_whole(path):
                path.unlink()
            storage = _journal(path)
            if name in optuna.get_all_study_names(storage):
                there = optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
                here = study.get_trials(deepcopy=False)[: len(there)]
                if [*map(_content, here)] == [*map(_content, there)]:
                    self.count = len(there)
                else:
                    optuna.delete_study(study_name=name, storage=storage)
            ways = {"study_name": name, "directions": _directions(objective), "load_if_exists": True}
            self.copy: optuna.Study | None = optuna.create_study(storage=storage, **ways)
            with warnings.catch_warnings(action="ignore"):  # Optuna calls names of metrics experimental
                self.copy.set_metric_names(list(objective))
            self._add(())
        except Exception as error:  # Optuna's and the file system's
            raise ConfigError(f"{self._reason(error)}; make room, or delete the file") from error

    def update(self, failed: Collection[int] = ()) -> None:
        """Add the trials that have ended since, and as failed those with the numbers `failed`. Where the file cannot
        be written, the copy stays as it is."""
        try:
            self._add(failed)
        except Exception as error:  # as above; a view must not end the search
            print(f"{self._reason(error)}; the same command makes it again", flush=True)
            self.copy = None

    def _add(self, failed: Collection[int]) -> None:
        for trial in self.study.get_trials(deepcopy=False)[self.count :]:
            if trial.number in failed:
                about = {"distributions": trial.distributions, "user_attrs": trial.user_attrs}
                trial = create_trial(state=TrialState.FAIL, params=trial.params, **about)
            if self.copy is None or not trial.state.is_finished():
                return
            self.copy.add_trial(trial)
            self.count += 1

    def _reason(self, error: Exception) -> str:
        return f"Optuna's study cannot be kept at {self.path} ({' '.join(str(error).split())[:300]})"


def _journal(path: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(path)))


def _is_whole(path: Path) -> bool:
    """Whether Optuna can read a journal file, and go on with it."""
    try:
        optuna.get_all_study_names(_journal(path))
    except Exception:  # of Optuna's reader
        return False
    return path.read_bytes().endswith(b"\n")


def _content(trial: FrozenTrial) -> tuple[Any, ...]:
    return trial.state, trial.values, trial.params


def best_first(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that did not go wrong, best first."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    trials = [trial for trial in trials if trial.user_attrs[OUTCOME] == DONE]
    return [trials[index] for index in order(study.directions, [trial.values for trial in trials])]


def order(directions: Sequence[StudyDirection], rows: Sequence[Sequence[float]]) -> list[int]:
    """Indices of rows of values, best first. With several values a row is the better, the fewer rows dominate it; then
    its second value counts, which is FID."""
    signs = [1 if direction == StudyDirection.MINIMIZE else -1 for direction in directions]
    costs = [[sign * value for sign, value in zip(signs, row, strict=True)] for row in rows]
    if len(signs) == 1:
        return sorted(range(len(costs)), key=costs.__getitem__)

    def dominate(row: list[float]) -> int:
        return sum(other != row and all(a <= b for a, b in zip(other, row, strict=True)) for other in costs)

    return sorted(range(len(costs)), key=lambda index: (dominate(costs[index]), costs[index][1]))
