"""Optuna decides, Ray Tune executes: the bridge between them. It knows nothing of what a trial trains.

An Optuna trial ends in one of three ways: COMPLETE with its values, or with the floor and the tag "diverged" or
"collapsed", since a trial told as FAIL teaches a sampler nothing; PRUNED with its last reported score; or, where a
worker died or raised more often than it is retried, or the objective returned what is no score, WAITING: nothing is
told, and the next run takes it up again under the same number. RUNNING is a trial only while this process runs it.
"""

import itertools
import math
import random
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune.result import DONE
from ray.tune.search import Searcher

from sweeps.execution.scheduler import RETRIES, Slots, fit

Params = dict[str, Any]
OUTCOME, REASON = "outcome", "reason"
"""User attributes of a trial in the study: how it ended, and why."""
DONE_WELL, DIVERGED, COLLAPSED, FAILED, PRUNED = "done", "diverged", "collapsed", "failed", "pruned"
TAGS = (DONE_WELL, DIVERGED, COLLAPSED, FAILED)
DRAWS = 20
"""A sampler is asked so often for a config that the study has not; then ten times as often for a random one."""
ENUMERATED = 2000
"""A finite space of at most so many configs is known by heart."""


@dataclass(frozen=True)
class Point:
    """A score on the way. `step` must mean the same budget in every trial that it is compared with. One that is not
    finite is left out, and so is every one of a study with several objectives, which Optuna cannot prune."""

    step: int
    score: float


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: "done" with a value an objective; "diverged" or "collapsed", which is told as the floor; or
    "failed", which is not told and would be the same again: it waits for the next run."""

    values: tuple[float, ...] = ()
    tag: str = "done"
    reason: str = ""


Objective = Callable[[Params], Any]
"""Returns a number, a sequence of numbers or an Outcome; or is a generator that returns one, and yields a Point, a dict
of further entries of Tune's result, or None, at least every few seconds. A value that is not finite is a divergence.
What it raises is a failure of the machine: it is called again. Anything else that it returns (None, a text, a wrong
number of values) is "failed"."""


@dataclass(frozen=True)
class _Work:
    """What a worker does with the params of a trial."""

    objective: Objective
    objectives: int

    def __call__(self, config: dict[str, Any]) -> Generator[dict[str, Any]]:
        made = self.objective(config["params"])
        if isinstance(made, Generator):
            made = yield from self._relay(made)
        found = _outcome(made, self.objectives)
        yield {"values": list(found.values), OUTCOME: found.tag, REASON: found.reason, DONE: True}

    def _relay(self, made: Generator) -> Generator[dict[str, Any], None, Any]:
        while True:
            try:
                said = next(made)
            except StopIteration as end:
                return end.value
            try:
                point = {"point": [int(said.step), float(said.score)]} if isinstance(said, Point) else dict(said or {})
                yield {**point, DONE: False}  # it has ended when it returns
            except GeneratorExit:  # stopped early
                with suppress(Exception):  # what it does with its end is nothing to the worker's next trial
                    made.close()
                raise


def _outcome(made: Any, objectives: int) -> Outcome:
    """What an objective has returned, as an Outcome of so many finite or other numbers."""
    if isinstance(made, Outcome) and made.tag != DONE_WELL:
        known = made.tag in TAGS
        return Outcome((), made.tag, made.reason) if known else Outcome((), FAILED, f"unknown tag {made.tag!r}")
    values = made.values if isinstance(made, Outcome) else made
    values = values if isinstance(values, (list, tuple)) else (values,)
    with suppress(TypeError, ValueError, OverflowError):
        numbers = tuple(float(value) for value in values if isinstance(value, SupportsFloat))
        if len(numbers) == len(values) == objectives:
            return Outcome(numbers)
    told = f"{objectives} numbers" if objectives > 1 else "a number"
    return Outcome((), FAILED, f"the objective must return {told} or an Outcome, but it returned {made!r:.100}")


def _configs(space: dict[str, BaseDistribution]) -> list[Params]:
    """Every config of a finite space; none where it is not finite, or has more than ENUMERATED."""
    choices: list[Sequence[Any]] = []
    for distribution in space.values():
        if isinstance(distribution, CategoricalDistribution):
            choices.append(distribution.choices)
        elif isinstance(distribution, IntDistribution):
            choices.append(range(distribution.low, distribution.high + 1, distribution.step))
        elif isinstance(distribution, FloatDistribution) and distribution.single():
            choices.append([distribution.low])
        else:
            return []
    if math.prod(map(len, choices)) > ENUMERATED:
        return []
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*choices)]


class Distinct(BaseSampler):
    """Asks another sampler until it suggests a config that the study has not yet.

    Args:
        inner: the sampler that is asked.
        space: the whole search space.
        key: params -> what tells two configs apart.
    """

    def __init__(self, inner: BaseSampler, space: dict[str, BaseDistribution], key: Callable[[Params], Any]):
        self.inner, self.space, self.key = inner, space, key
        self.keys: dict[int, Any] = {}
        self.configs = {key(params): params for params in _configs(space)}

    def taken(self, study: optuna.Study) -> set[Any]:
        """The keys of the study's configs."""
        for trial in study.get_trials(deepcopy=False):
            if trial.number not in self.keys and trial.params.keys() >= self.space.keys():
                self.keys[trial.number] = self.key(trial.params)
        return set(self.keys.values())

    def used_up(self, study: optuna.Study) -> bool:
        """Whether the space is finite and the study has all of it."""
        return bool(self.configs) and self.configs.keys() <= self.taken(study)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Params:
        if "fixed_params" in trial.system_attrs or trial.params.keys() >= search_space.keys():
            return {}
        taken, anything = self.taken(study), RandomSampler(seed=trial.number)
        for draw in range(11 * DRAWS):
            sampler = self.inner if draw < DRAWS else anything
            joint = sampler.infer_relative_search_space(study, trial)
            params = {**sampler.sample_relative(study, trial, joint), **trial.params}  # some may be written already
            for name, distribution in search_space.items():
                if name not in params:
                    params[name] = sampler.sample_independent(study, trial, name, distribution)
            if self.key(params) not in taken:
                return params
        left = [params for key, params in self.configs.items() if key not in taken]
        return random.Random(trial.number).choice(left) if left else params

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.inner.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.inner.before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self.inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        self.inner.reseed_rng()


class Among(BasePruner):
    """Lets another pruner compare a trial only with those that have the same value of a param: scores of different
    splits at the same point of training mean different budgets."""

    def __init__(self, inner: BasePruner, param: str):
        self.inner, self.param = inner, param

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        peers = optuna.create_study(direction=study.direction)
        value = trial.params[self.param]
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        peers.add_trials([each for each in done if each.params[self.param] == value])
        return self.inner.prune(peers, trial)


def reconcile(study: optuna.Study) -> int:
    """Give the trials that a killed driver left RUNNING back to the queue, under their numbers; returns how many."""
    # A trial whose params were not all written has none that count: what is missing is suggested when it is asked for.
    left = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in left:
        study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
    return len(left)


def explore(
    study: optuna.Study,
    space: dict[str, BaseDistribution],
    objective: Objective,
    count: int,
    slots: Slots,
    folder: Path,
    floor: Sequence[float],
    key: Callable[[Params], Any] = lambda params: tuple(sorted(params.items())),
    known: Callable[[Params], Outcome | None] = lambda params: None,
    ready: Callable[[], bool] = lambda: True,
    asked: Callable[[optuna.Trial], None] = lambda trial: None,
    callbacks: Iterable[tune.Callback] = (),
    retries: int = RETRIES,
) -> list[int]:
    """Run trials until the study holds `count`, or all of a finite space; returns the numbers of those that failed for
    good, which are WAITING. What the study's pruner or a callback raises ends the run, with nothing left RUNNING.

    Args:
        space: name -> distribution; every trial has all of them.
        objective: sent to every worker.
        slots: how many run at the same time, and on what.
        folder: for Tune's temporary files.
        floor: the worst value of each objective: told for a trial that diverged or collapsed, and for worse values.
        key: what tells two configs apart; a config that the study has is not suggested again.
        known: the outcome of a config that ran before, which is told at once.
        ready: asked before every trial that is new; false: no more are started.
        asked: called with each trial before it runs.
        retries: so many times a trial whose worker died or that raised starts again.
    """
    reconcile(study)
    inner = study.sampler
    study.sampler = distinct = Distinct(inner, space, key)
    teller = _Teller(study, distinct, count, floor, known, ready, asked)
    try:
        fit(_Work(objective, len(floor)), slots, folder, teller, callbacks, retries, teller.prune)
    finally:
        study.sampler = inner
        reconcile(study)
    return teller.failed


class _Teller(Searcher):
    """Tune's searcher: asks Optuna for each trial and tells it each end."""

    def __init__(
        self,
        study: optuna.Study,
        sampler: Distinct,
        count: int,
        floor: Sequence[float],
        known: Callable[[Params], Outcome | None],
        ready: Callable[[], bool],
        asked: Callable[[optuna.Trial], None],
    ):
        super().__init__()
        self.study, self.sampler, self.count, self.floor = study, sampler, count, floor
        self.known, self.ready, self.asked = known, ready, asked
        self.live: dict[str, optuna.Trial] = {}
        self.steps: dict[str, set[int]] = {}
        self.pruned: set[str] = set()
        self.failed: list[int] = []

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher for a restore that nobody does: the study is the truth

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        while True:
            trials = self.study.get_trials(deepcopy=False)
            waiting = any(trial.state == TrialState.WAITING for trial in trials)
            if not waiting and (len(trials) >= self.count or self.sampler.used_up(self.study) or not self.ready()):
                return Searcher.FINISHED
            trial = self.study.ask(self.sampler.space)
            self.asked(trial)
            outcome = self.known(trial.params)
            if outcome is None:
                self.live[trial_id], self.steps[trial_id] = trial, set()
                return {"number": trial.number, "params": trial.params}
            tell(self.study, trial, outcome, self.floor)

    def prune(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Report a point to Optuna; whether Tune is to stop the trial."""
        trial, point = self.live.get(trial_id), result.get("point")
        if trial is None or point is None or result[DONE]:
            return False
        step, score = point
        # A trial that starts again repeats its points.
        if not math.isfinite(score) or step in self.steps[trial_id]:
            return False
        self.steps[trial_id].add(step)
        if len(self.study.directions) > 1:
            return False
        trial.report(score, step)
        if trial.should_prune():
            self.pruned.add(trial_id)
        return trial_id in self.pruned

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self.live.pop(trial_id)
        if trial_id in self.pruned:
            trial.set_user_attr(OUTCOME, PRUNED)
            self.study.tell(trial, state=TrialState.PRUNED)
        elif error or result is None or result.get(OUTCOME) in (None, FAILED):
            trial.set_user_attr(REASON, str((result or {}).get(REASON) or "its worker died or raised"))
            self.failed.append(trial.number)
        else:
            outcome = Outcome(tuple(result["values"]), result[OUTCOME], result[REASON])
            tell(self.study, trial, outcome, self.floor)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study is the truth."""


def tell(study: optuna.Study, trial: optuna.Trial, outcome: Outcome, floor: Sequence[float]) -> None:
    """Tell a trial as COMPLETE: with its values, none worse than the floor; with the floor where it went wrong."""
    tag, reason, values = outcome.tag, outcome.reason, list(floor)
    if tag == DONE_WELL and not all(map(math.isfinite, outcome.values)):
        tag, reason = DIVERGED, f"its values are {list(outcome.values)}"
    if tag == DONE_WELL:
        maximised = [direction == optuna.study.StudyDirection.MAXIMIZE for direction in study.directions]
        told = zip(outcome.values, floor, maximised, strict=True)
        values = [max(value, worst) if up else min(value, worst) for value, worst, up in told]
    trial.set_user_attr(OUTCOME, tag)
    if reason:
        trial.set_user_attr(REASON, reason)
    study.tell(trial, values)
