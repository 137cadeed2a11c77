"""Optuna's study of a search: a view that is made from the search's record in the store, at any time."""

import math
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
from sgan.evaluation.alarms import COLLAPSED as COLLAPSED_CLASSES
from sgan.evaluation.alarms import alarms
from sgan.evaluation.measures import MEASURES

Row = Mapping[str, Any]
Distributions = dict[str, BaseDistribution]
DONE, DIVERGED, COLLAPSED = "done", "diverged", "collapsed"
OUTCOME, REASON = "outcome", "reason"  # User attributes of a trial: how it ended, and why
RESAMPLES = 100  # Bootstrap samples of the trials, for the interval of an importance
DRAWS = 20  # Draws of TPE for a new config; then ten times as many random draws
FLOORS = {"inception_score": 1.0, "fid": 500.0}
"""The scores that a search can optimise, and the floor of each: the worst value, which Optuna gets for a trial that
diverged or collapsed. 1 is the lowest possible Inception score; FID has no worst value, and 500 is worse than the FID
of noise."""
optuna.logging.set_verbosity(optuna.logging.WARNING)


class Outcome(NamedTuple):
    """The end of a config. `tag`: done, diverged or collapsed. `value`: its score, no worse than the floor, or the
    floor if it went wrong. `reason`: why it went wrong."""

    tag: str
    value: float
    reason: str = ""


def outcome_of(ended: str, reason: str, scores: Mapping[str, Any], score: str) -> Outcome | None:
    """The outcome by a score of FLOORS of a trial that `ended` in this way; None where it has not ended, or failed.

    A sampler learns nothing from a failed trial, so a config that diverged or collapsed counts with the floor.
    """
    if ended == "diverged":
        return Outcome(DIVERGED, FLOORS[score], reason)
    if ended != "done":
        return None
    # The Inception score does not notice a class that repeats one image: by it alone such configs would win.
    collapsed = alarms({COLLAPSED_CLASSES: scores.get(COLLAPSED_CLASSES, 0.0)})
    if collapsed:
        return Outcome(COLLAPSED, FLOORS[score], collapsed[0])
    value = scores.get(score)
    if value is None or not math.isfinite(value):
        return Outcome(DIVERGED, FLOORS[score], f"its {score} is {value}")
    return Outcome(DONE, (max if MEASURES[score].better == "higher" else min)(value, FLOORS[score]))


def ask(
    study: optuna.Study, distributions: Distributions, seed: int, new: Callable[[dict[str, Any]], bool]
) -> optuna.Trial | None:
    """A trial with a config that is `new`; None if the draws find none.

    Each draw has its own sampler, seeded with the search's seed and the trial's number. So a suggestion depends only on
    the study's content, and an interrupted search goes on as if it had never stopped. A draw that is not new stays in
    the study as failed.
    """
    for draw in range(11 * DRAWS):
        number = len(study.get_trials(deepcopy=False))
        make = TPESampler if draw < DRAWS else RandomSampler
        study.sampler = make(seed=int(content_key([seed, number])[:8], 16))
        asked = study.ask(distributions)
        if new(asked.params):
            return asked
        study.tell(asked, state=TrialState.FAIL)
    return None


def replay(
    study: optuna.Study, distributions: Distributions, rows: Sequence[Row], outcomes: Mapping[int, Outcome]
) -> dict[int, optuna.Trial]:
    """Fill an empty study from the rows of a search's record, and the outcomes by number of those that have ended.
    Returns the trials of the others by number: each is asked for again with its params, under its number."""
    numbered, waiting = {row["number"]: row for row in rows}, dict[int, optuna.Trial]()
    for number in range(max(numbered, default=-1) + 1):
        row, outcome = numbered.get(number), outcomes.get(number)
        if row is None:  # its config was not new, or its file was deleted; the others keep their numbers
            study.add_trial(create_trial(state=TrialState.FAIL))
        elif outcome is None:
            study.enqueue_trial(row["params"])
            waiting[number] = study.ask(distributions)
        else:
            about = {"params": row["params"], "distributions": distributions, "user_attrs": attributes(row, outcome)}
            study.add_trial(create_trial(value=outcome.value, **about))
    return waiting


def attributes(row: Row, outcome: Outcome) -> dict[str, str]:
    return {"config": row["title"], "trial": row["name"], OUTCOME: outcome.tag, REASON: outcome.reason}


class StudyFile:
    """The copy of a study that optuna-dashboard reads: all trials up to the first one that has not ended, in a journal
    file. Each command writes it anew; ConfigError if it cannot be written. `score`: the name of the trials' values."""

    def __init__(self, study: optuna.Study, name: str, score: str, path: Path):
        self.study, self.path, self.count = study, path, 0
        self.copy: optuna.Study | None = None
        try:
            for each in (path, path.with_name(f"{path.name}.lock")):  # a killed process may have left Optuna's lock
                each.unlink(missing_ok=True)
            storage = JournalStorage(JournalFileBackend(str(path)))
            self.copy = optuna.create_study(storage=storage, study_name=name, direction=study.direction)
            with warnings.catch_warnings(action="ignore"):  # Optuna calls names of metrics experimental
                self.copy.set_metric_names([score])
        except Exception as error:  # Optuna's and the file system's
            raise ConfigError(f"{self._reason(error)}; make room, or delete the file") from error
        self.update()

    def update(self) -> None:
        """Add the trials that have ended since the last call. If the file cannot be written, the copy is kept."""
        try:
            for trial in self.study.get_trials(deepcopy=False)[self.count :]:
                if self.copy is None or not trial.state.is_finished():
                    return
                self.copy.add_trial(trial)
                self.count += 1
        except Exception as error:  # as above; a view must not end the search
            print(f"{self._reason(error)}; the same command makes it again", flush=True)
            self.copy = None

    def _reason(self, error: Exception) -> str:
        return f"Optuna's study cannot be written to {self.path} ({' '.join(str(error).split())[:300]})"


def best_first(study: optuna.Study) -> list[FrozenTrial]:
    done = [trial for trial in ended(study) if trial.user_attrs[OUTCOME] == DONE]
    return sorted(done, key=lambda trial: trial.values[0], reverse=study.direction == StudyDirection.MAXIMIZE)


def ended(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that have ended, including those that diverged or collapsed."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def importance(study: optuna.Study) -> dict[str, tuple[float, float, float]]:
    """Name of each param that varies -> its importance (PED-ANOVA, Watanabe et al. 2023: how much the best tenth of the
    trials differs from all of them in it; all add up to 1), and the lower and upper end of the 90 % interval over
    resampled trials, since few trials say little. Empty if nothing varies, or nearly all trials went equally wrong."""
    trials, rng = ended(study), random.Random(0)
    names = [name for name in (trials[0].params if trials else ()) if len({trial.params[name] for trial in trials}) > 1]
    if not names:
        return {}
    worst = (max if study.direction == StudyDirection.MINIMIZE else min)(trial.values[0] for trial in trials)

    def shares(chosen: Sequence[FrozenTrial]) -> dict[str, float]:
        drawn = optuna.create_study(direction=study.direction)
        drawn.add_trials(create_trial(value=t.value, params=t.params, distributions=t.distributions) for t in chosen)
        better = sum(trial.value != worst for trial in chosen)
        return get_param_importances(drawn, params=names) if better >= len(chosen) / 10 else {}

    with warnings.catch_warnings(action="ignore"):  # Optuna's warnings are about the choice of its method
        found = shares(trials)
        again = [shares(rng.choices(trials, k=len(trials))) for _ in range(RESAMPLES)]
    if not found:
        return {}
    ends = {name: np.quantile([each.get(name, 0.0) for each in again if each], (0.05, 0.95)) for name in names}
    return {name: (found.get(name, 0.0), float(ends[name][0]), float(ends[name][1])) for name in names}
