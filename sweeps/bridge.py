"""Optuna decides, Ray Tune executes: the bridge between them. It knows nothing of what a trial trains.

An Optuna trial ends in one of three ways: COMPLETE with its values, or with the floor and the tag "diverged" or
"collapsed", since a trial told as FAIL teaches a sampler nothing; PRUNED with its last reported score; or, where a
worker died or raised more often than it is retried, WAITING: nothing is told, and the next run takes it up again under
the same number. RUNNING is a trial only while this process runs it.
"""

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune.result import DONE
from ray.tune.search import Searcher

from sweeps.schedule import RETRIES, Slots, fit

Params = dict[str, Any]
OUTCOME, REASON = "outcome", "reason"
"""User attributes of a trial in the study: how it ended, and why."""
DRAWS = 50
"""A sampler is asked so often for a config that the study has not."""


@dataclass(frozen=True)
class Point:
    """A score on the way. `step` must mean the same budget in every trial that it is compared with."""

    step: int
    score: float


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: a value an objective, or none and what went wrong ("diverged", "collapsed")."""

    values: tuple[float, ...] = ()
    tag: str = "done"
    reason: str = ""


Objective = Callable[[Params], Any]
"""Returns a number, a sequence of numbers or an Outcome; or is a generator that returns one, and yields a Point, or a
dict of further entries of Tune's result, at least every few seconds. A value that is not finite is a divergence. What
it raises is a failure of the machine: it is called again."""


@dataclass(frozen=True)
class _Work:
    """What a worker does with the params of a trial."""

    objective: Objective

    def __call__(self, config: dict[str, Any]) -> Generator[dict[str, Any]]:
        made = self.objective(config["params"])
        if isinstance(made, Generator):
            made = yield from self._relay(made)
        found = made if isinstance(made, Outcome) else Outcome(tuple(map(float, _sequence(made))))
        yield {"values": list(found.values), OUTCOME: found.tag, REASON: found.reason, DONE: True}

    def _relay(self, made: Generator) -> Generator[dict[str, Any], None, Any]:
        while True:
            try:
                said = next(made)
            except StopIteration as end:
                return end.value
            except GeneratorExit:
                made.close()
                raise
            yield {"point": [said.step, said.score]} if isinstance(said, Point) else dict(said or {})


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else (value,)


class Distinct(BaseSampler):
    """Asks another sampler until it suggests a config that the study has not yet.

    Args:
        inner: the sampler that is asked.
        space: the whole search space.
        key: params -> what tells two configs apart.
    """

    def __init__(self, inner: BaseSampler, space: dict[str, BaseDistribution], key: Callable[[Params], Any]):
        self.inner, self.space, self.key = inner, space, key
        self.anything = RandomSampler(seed=0)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Params:
        if "fixed_params" in trial.system_attrs:
            return {}
        taken = {
            self.key(each.params) for each in study.get_trials(deepcopy=False) if len(each.params) == len(self.space)
        }
        params: Params = {}
        for draw in range(4 * DRAWS):
            sampler = self.inner if draw < DRAWS else self.anything
            joint = sampler.infer_relative_search_space(study, trial)
            params = {**sampler.sample_relative(study, trial, joint), **trial.params}  # some may be written already
            for name, distribution in search_space.items():
                if name not in params:
                    params[name] = sampler.sample_independent(study, trial, name, distribution)
            if self.key(params) not in taken:
                break
        return params

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
    """Run trials until the study holds `count`; returns the numbers of those that failed for good, which are WAITING.

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
    study.sampler = Distinct(study.sampler, space, key)
    teller = _Teller(study, space, count, floor, known, ready, asked)
    try:
        fit(_Work(objective), slots, folder, teller, callbacks, retries, teller.prune)
    finally:
        study.sampler = study.sampler.inner
        reconcile(study)
    return teller.failed


class _Teller(Searcher):
    """Tune's searcher: asks Optuna for each trial and tells it each end."""

    def __init__(
        self,
        study: optuna.Study,
        space: dict[str, BaseDistribution],
        count: int,
        floor: Sequence[float],
        known: Callable[[Params], Outcome | None],
        ready: Callable[[], bool],
        asked: Callable[[optuna.Trial], None],
    ):
        super().__init__()
        self.study, self.space, self.count, self.floor = study, space, count, floor
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
            if not waiting and (len(trials) >= self.count or not self.ready()):
                return Searcher.FINISHED
            trial = self.study.ask(self.space)
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
            trial.set_user_attr(OUTCOME, "pruned")
            self.study.tell(trial, state=TrialState.PRUNED)
        elif error or result is None or result.get(OUTCOME) in (None, "failed"):
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
    maximised = [direction == optuna.study.StudyDirection.MAXIMIZE for direction in study.directions]
    finite = len(outcome.values) == len(floor) and all(map(math.isfinite, outcome.values))
    tag = outcome.tag if finite or outcome.tag != "done" else "diverged"
    values = list(floor)
    if tag == "done":
        pairs = zip(outcome.values, floor, maximised, strict=True)
        values = [max(value, worst) if up else min(value, worst) for value, worst, up in pairs]
    trial.set_user_attr(OUTCOME, tag)
    if outcome.reason or tag != outcome.tag:
        trial.set_user_attr(REASON, outcome.reason or f"its values are {list(outcome.values)}")
    study.tell(trial, values)
