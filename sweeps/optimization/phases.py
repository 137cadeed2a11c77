"""A search in progress: its plan, and its two phases. Explore: many configs at one seed. Confirm: the best of them on
seeds that the first phase never saw."""

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial

from sgan.checks import as_json, content_key, require
from sgan.config import Config
from sgan.host import processor
from sgan.stages.graph import ClassifierStage, JointStage, LevelStage, Stage, code_version, name, plan
from sgan.store.files import remove
from sgan.store.local import Store
from sweeps.execution import scheduler as schedule
from sweeps.execution import worker as job
from sweeps.execution.cluster import Slots
from sweeps.execution.progress import ProgressLines
from sweeps.optimization import best_config as publish
from sweeps.optimization import bridge
from sweeps.optimization.budget import EXPLORE, Estimate, Limits, confirmations, simulate
from sweeps.optimization.objective import FLOOR, OBJECTIVES, SganObjective, outcome, variant
from sweeps.optimization.space import Space
from sweeps.optimization.study import SECONDS, best_first, finished, mean_seconds, open_study
from sweeps.planning import trials
from sweeps.planning.basis import Basis
from sweeps.planning.manifest import commit
from sweeps.planning.trials import Trial, trial

if TYPE_CHECKING:
    from sweeps.search import Search

STUDIES = "optuna.log"
DECIDED = "confirm"
"""User attribute of a study: how many configs and seeds its second phase has, and what was asked for then."""
ENDLESS = 10**9
SIMULATED = 1000
"""Of more configs that are still to be drawn, so many stand for all in the plan."""
SHARED = ("scorer", "encoder")
"""Labels of the stages that all trials of a seed share."""


@dataclass(frozen=True)
class Plan:
    """What a search is going to do, as printed before it.

    Attributes:
        explored: configs of the first phase; best, seeds: configs and seeds of the second.
        estimate: of what is still to run.
        saved: seconds of the stages of trials still to run that the store has, or that they share.
        trial_seconds: of a trial on its slot (mean over the splits).
        made: when the plan was made, on `time.monotonic`'s clock.
    """

    explored: int
    best: int
    seeds: int
    estimate: Estimate
    saved: float
    trial_seconds: float
    made: float = field(default_factory=time.monotonic)


def still(ahead: Sequence[Sequence[tuple[Stage, float]]], store: Store) -> tuple[list[float], list[list[float]], float]:
    """What trials still to run take, where a stage that the store has costs nothing and every other one is run once.

    Args:
        ahead: the stages of each trial, with their seconds.
    Returns:
        Seconds of each trial's own stages; of each classifier that it is the first to need, and for which trials that
        share it wait; and of all that need not be run.
    """
    own, shared, saved, counted = [], [], 0.0, set()
    for stages in ahead:
        own.append(0.0)
        shared.append([])
        for stage, seconds in stages:
            if name(stage) in counted or store.has(name(stage)):
                saved += seconds
            elif isinstance(stage, ClassifierStage):
                shared[-1].append(seconds)
            else:
                own[-1] += seconds
            counted.add(name(stage))
    return own, shared, saved


def _taps(config: Config) -> tuple[str, ...]:
    return config.variant.cuts or config.variant.through


class Running:
    """A search with everything chosen."""

    def __init__(self, search: "Search", basis: Basis, space: Space, store: Store, slots: Slots):
        self.search, self.basis, self.space, self.store, self.slots = search, basis, space, store, slots
        parts = [*basis.shared, code_version(), search.objective, search.sampler, search.early_stop, search.seed]
        space_parts = [space.variant, space.splits, space.ranges, space.zeros, space.varied]
        self.key = content_key([*parts, as_json(space_parts)])
        self.directions = OBJECTIVES[search.objective]
        self.commit, self.machine = commit(), f"{processor()}, {slots.where}"
        given = (basis.data, store.address, self.key, self.commit, code_version())
        work = job.Job(*given, slots, search.deterministic)
        self.objective = SganObjective(space, work, search.seed, tuple(self.directions), search.early_stop)
        self.title = ", ".join([f"Search: {basis.what}", search.variant, *basis.notes, f"by {search.objective}"])
        self.units = slots.all_gpus or slots.nodes
        self.limits: Limits = search.limits(self.units)
        self.began, self.before = time.monotonic(), 0.0
        self._explored: dict[int, Trial] = {}

    @property
    def name(self) -> str:
        """The study's name."""
        return f"sgan-{self.key}"

    @property
    def place(self) -> str | Path:
        """Where the study is kept: address of a database or path of a journal file."""
        return self.search.study_storage or self.store.root / STUDIES

    def open(self) -> optuna.Study:
        """The study; ConfigError where its storage does not answer."""
        lasts = [plan(self._config(split)).stages[-2][1] for split in self.space.splits]
        images = min(stage.images for stage in lasts if isinstance(stage, (JointStage, LevelStage)))
        search, grace = self.search, images // 2 if self.search.early_stop else None
        first = self.space.known_good()
        kind = (self.directions, search.sampler, search.seed, grace, first)
        study = open_study(self.place, self.store, self.name, *kind, kept=not search.dry_run)
        self.before = study.user_attrs.get(SECONDS, 0.0)
        return study

    def _config(self, split: str):
        return self.space.config(self.space.known_good() | {"split": split}, self.search.seed)

    def complete(self, study: optuna.Study) -> list[FrozenTrial]:
        """The trials whose params are all written."""
        return [
            each for each in study.get_trials(deepcopy=False) if each.params.keys() >= self.space.distributions.keys()
        ]

    def explored(self, each: FrozenTrial) -> Trial:
        """The trial of the first phase that a trial of the study is."""
        if each.number not in self._explored:
            self._explored[each.number] = self.objective.trial(each.params, each.number)
        return self._explored[each.number]

    def plan(self, study: optuna.Study) -> Plan:
        """Measure a few steps on the hardware, and work out trials, hours and cost of what is still to run.

        Raises:
            ConfigError: --hours or --max-cost carry fewer than three trials.
        """
        configs = [self._config(split) for split in self.space.splits]
        measured, start = schedule.measure(configs, self.basis.data, self.slots, self.basis.inception_weights)
        seconds = {
            _taps(config): {label: measured[name(stage)] for label, stage in plan(config).stages} for config in configs
        }
        splits = [sum(each for label, each in row.items() if label not in SHARED) for row in seconds.values()]
        mean = sum(splits) / len(splits)
        limits, held, search = self.limits, len(finished(study)), self.search
        carried = min(limits.seconds / mean * self.slots.count, ENDLESS)
        require(
            held > 0 or carried >= 3,
            f"--hours or --max-cost carry {carried:.1f} trials of about {trials.clock(mean)}, and a search needs 3; "
            "allow more, or make the trials shorter with --budget or --width",
        )
        count = min(limits.trials, max(3, carried))
        target = int(Limits(count, limits.seconds).explored())
        best, seeds = confirmations(count - target, search.top, search.confirm_seeds, max(target, held))
        explore: list[Trial | int] = [
            self.explored(each) for each in self.complete(study) if not each.state.is_finished()
        ]
        drawn = max(0, target - held - len(explore))
        explore += [search.seed] * min(drawn, SIMULATED)  # of which the seed is known
        factor = max(1.0, drawn / SIMULATED)
        confirm: list[Trial | int] = [*self.best(study, best, seeds)]
        if explore:
            confirm = [search.seed + 1 + index % seeds for index in range(best * seeds)]

        def stages(one: Trial | int) -> list[tuple[Stage, float]]:
            config = self.space.config(self.space.known_good(), one) if isinstance(one, int) else one.config
            return [
                (stage, seconds[_taps(config)][label])
                for label, stage in plan(config).stages
                if label in SHARED or not isinstance(one, int)
            ]

        ahead = [
            [one for one in phase if isinstance(one, int) or not trials.ended(one, self.store)]
            for phase in (explore, confirm)
        ]
        own, shared, saved = still([stages(one) for phase in ahead for one in phase], self.store)
        costs = [None if isinstance(one, int) else each for one, each in zip([*ahead[0], *ahead[1]], own, strict=True)]
        first = len(ahead[0])
        classifiers = [list(itertools.chain(*of)) for of in (shared[:first], shared[first:])]
        phases = simulate(splits, costs[:first], costs[first:], classifiers, self.slots.count)
        estimate = phases.times(factor).after(start * sum(map(bool, ahead)))  # each phase starts workers of its own
        return Plan(target, best, seeds, estimate, factor * saved, mean)

    def spent(self, study: optuna.Study) -> float:
        """Seconds of wall time of all commands of this search, which the study notes."""
        now = self.before + time.monotonic() - self.began
        study.set_user_attr(SECONDS, now)
        return now

    def explore(self, study: optuna.Study, plan: Plan) -> list[int]:
        """The first phase; returns the numbers of the trials that failed for good."""
        share = 1.0 if math.isinf(self.limits.seconds) else EXPLORE

        def ready() -> bool:
            # Steps that were measured leave out what a worker's start takes, and other work on the machine.
            trial_seconds = max(plan.trial_seconds, mean_seconds(study))
            return self.spent(study) + trial_seconds < share * self.limits.seconds

        def known(params: Mapping[str, Any]) -> bridge.Outcome | None:
            return outcome(self.objective.trial(params, 0), self.store, self.objective.scores)

        def asked(each: optuna.Trial) -> None:
            mine = self.objective.trial(each.params, each.number)
            remove(self.store.failure(mine.plan.name))
            each.set_user_attr("config", self.space.title(each.params))
            each.set_user_attr("trial", mine.plan.name)
            self.store.when_there_is_room(lambda: publish.record(self, study))

        return bridge.explore(
            study,
            self.space.distributions,
            self.objective,
            ENDLESS if math.isinf(self.limits.trials) else plan.explored,
            self.slots,
            self.store.root,
            [FLOOR[score] for score in self.directions],
            self.space.key,
            known,
            ready,
            asked,
            [
                ProgressLines(
                    lambda config: self.objective.trial(config["params"], config["number"]),
                    self.store,
                    expected=plan.explored,
                    finished=len(finished(study)),
                )
            ],
        )

    def confirm(self, study: optuna.Study, plan: Plan) -> list[Trial]:
        """The second phase; returns its trials. What was decided stands when the command goes on after a kill."""
        asked = repr([self.limits, self.search.top, self.search.confirm_seeds, len(finished(study))])
        decided = study.user_attrs.get(DECIDED, {})
        if decided.get("asked") != asked:
            best, seeds = plan.best, plan.seeds
            if not math.isinf(self.limits.seconds):
                left = max(0.0, self.limits.seconds - self.spent(study))
                carried = max(2.0, left / max(plan.trial_seconds, mean_seconds(study), 1e-9) * self.slots.count)
                now = confirmations(carried, self.search.top, self.search.confirm_seeds, best)
                best, seeds = min(best, now[0]), min(seeds, now[1])
            decided = {"asked": asked, "best": best, "seeds": seeds}
            study.set_user_attr(DECIDED, decided)
        chosen = self.best(study, decided["best"], decided["seeds"])
        self.store.when_there_is_room(lambda: publish.record(self, study, chosen))
        if chosen:
            configs, seeds = (
                ", ".join(dict.fromkeys(each))
                for each in zip(*((one.variant, str(one.seed)) for one in chosen), strict=True)
            )
            print(f"confirming {configs} on seeds {seeds}", flush=True)
        job.run(chosen, self.objective.job, self.store, self.slots)
        return chosen

    def best(self, study: optuna.Study, best: int, seeds: int) -> list[Trial]:
        """The trials that confirm the best configs."""
        first = self.search.seed + 1
        return [
            trial(variant(each.number), seed, self.space.config(each.params, seed))
            for seed in range(first, first + seeds)
            for each in best_first(study)[:best]
        ]
