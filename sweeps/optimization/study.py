"""Optuna's study of a search. It is a view: made from the search's record in the store, at any time."""

import random
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.importance import get_param_importances
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from sgan.checks import ConfigError, content_key
from sweeps.optimization.objective import DONE, Outcome

Params = dict[str, Any]
Space = dict[str, BaseDistribution]
OUTCOME, REASON = "outcome", "reason"
"""User attributes of a trial: how it ended, and why."""
RESAMPLES = 100
"""Bootstrap samples of the trials: how sure an importance is."""
DRAWS = 20
"""A sampler is asked so often for a config that is new; then ten times as often for a random one."""
optuna.logging.set_verbosity(optuna.logging.WARNING)


def ask(study: optuna.Study, space: Space, seed: int, new: Callable[[Params], bool]) -> optuna.Trial | None:
    """A trial with a config that is new; None where the space is used up.

    Each draw has a sampler of its own, whose seed is made of the search's seed and the trial's number. So a suggestion
    depends only on what the study holds, and a search that was interrupted goes on as it would have. A draw that is not
    new stays in the study as failed.

    Args:
        space: name -> distribution; every config has all of them.
    """
    for draw in range(11 * DRAWS):
        number = len(study.get_trials(deepcopy=False))
        make = TPESampler if draw < DRAWS else RandomSampler
        study.sampler = make(seed=int(content_key([seed, number])[:8], 16))
        asked = study.ask(space)
        if new(asked.params):
            return asked
        study.tell(asked, state=TrialState.FAIL)
    return None


def replay(
    study: optuna.Study,
    space: Space,
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
        if row is None:  # its config was not new, or its file was deleted; the others keep their numbers
            study.add_trial(create_trial(state=TrialState.FAIL))
        elif outcome is None:
            study.enqueue_trial(row["params"])
            open_trials[number] = study.ask(space)
            note(open_trials[number], _attributes(row))
        else:
            attributes = _attributes(row) | _ending(outcome)
            about = {"params": row["params"], "distributions": space, "user_attrs": attributes}
            study.add_trial(create_trial(value=outcome.value, **about))
    return open_trials


def _attributes(row: Mapping[str, Any]) -> dict[str, str]:
    return {"config": row["title"], "trial": row["name"]}


def _ending(outcome: Outcome) -> dict[str, str]:
    return {OUTCOME: outcome.tag, REASON: outcome.reason}


def note(trial: optuna.Trial, attributes: Mapping[str, str]) -> None:
    """Set user attributes of a trial."""
    for name, value in attributes.items():
        trial.set_user_attr(name, value)


def tell(study: optuna.Study, trial: optuna.Trial, row: Mapping[str, Any], outcome: Outcome) -> None:
    """Tell the study how a trial ended."""
    note(trial, _attributes(row) | _ending(outcome))
    study.tell(trial, outcome.value)


class StudyFile:
    """The copy of a study that optuna-dashboard reads: all trials up to the first one that has not ended. Each command
    makes it anew.

    Args:
        name: of the study.
        score: the name of its values.
        path: of a journal file.
    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, study: optuna.Study, name: str, score: str, path: Path):
        self.study, self.path, self.count = study, path, 0
        try:
            path.unlink(missing_ok=True)
            storage = JournalStorage(JournalFileBackend(str(path)))
            self.copy: optuna.Study | None = optuna.create_study(
                storage=storage, study_name=name, direction=study.direction
            )
            with warnings.catch_warnings(action="ignore"):  # Optuna calls names of metrics experimental
                self.copy.set_metric_names([score])
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


def best_first(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that did not go wrong, best first."""
    done = [trial for trial in ended(study) if trial.user_attrs[OUTCOME] == DONE]
    return sorted(done, key=lambda trial: trial.values[0], reverse=study.direction == StudyDirection.MAXIMIZE)


def ended(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that have ended, those that went wrong among them."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def importance(study: optuna.Study) -> dict[str, tuple[float, float, float]]:
    """Name of each param that varies -> the share of the values' variance that it explains (PED-ANOVA), and the ends of
    the 90 % interval over resampled trials: a search of few trials says little. Empty where nothing can be told."""
    trials, rng = ended(study), random.Random(0)
    names = [name for name in (trials[0].params if trials else ()) if len({trial.params[name] for trial in trials}) > 1]
    if not names or len({trial.value for trial in trials}) < 2:
        return {}

    def shares(chosen: Sequence[FrozenTrial]) -> dict[str, float]:
        drawn = optuna.create_study(direction=study.direction)
        drawn.add_trials(create_trial(value=t.value, params=t.params, distributions=t.distributions) for t in chosen)
        return get_param_importances(drawn, params=names) if len({trial.value for trial in chosen}) > 1 else {}

    with warnings.catch_warnings(action="ignore"):  # Optuna's are for those who choose a method
        found = shares(trials)
        again = [shares(rng.choices(trials, k=len(trials))) for _ in range(RESAMPLES)]
    ends = {name: np.quantile([each.get(name, 0.0) for each in again if each], (0.05, 0.95)) for name in names}
    return {name: (found.get(name, 0.0), float(ends[name][0]), float(ends[name][1])) for name in names}
