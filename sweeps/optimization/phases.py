"""A search in two phases. Explore: many configs at one seed. Confirm: the best of them on seeds that the first phase
never saw."""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from sgan import presets
from sgan.checks import as_json, content_key
from sgan.config import Config
from sgan.stages.cost import check_networks, cost, recorded_rate
from sgan.stages.graph import ClassifierStage, code_version, name, plan
from sgan.store.local import Store
from sweeps.optimization.objective import DONE, OBJECTIVES, Outcome, outcome_of
from sweeps.optimization.search_options import Search
from sweeps.optimization.searcher import Row, Searcher
from sweeps.optimization.space import SPLITS, Space, parse_varied
from sweeps.optimization.study import StudyFile, best_first, ended, importance
from sweeps.planning import manifest
from sweeps.planning.basis import Basis
from sweeps.planning.options import Options, Sweep
from sweeps.planning.trials import Trial, state_of, trial

STUDY = "optuna.log"
"""Optuna's study, in the folder of a search's record."""
DEFAULT = 0
"""The number of the default config, which is tried first."""
RECENT = 20
"""The times of so many trials predict those of the next."""
EXPLORE = 0.7
"""Share of the trials that explores; the rest confirms on seeds that the search never saw."""
START = 10.0
"""Seconds until the first stage of a phase runs: Ray starts processes, and these import torch."""
CONFIRMED = ("inception_score", "fid", "diversity")
"""The scores that best.yaml holds, one for each seed."""


@dataclass(frozen=True)
class Plan:
    """The plan of a search, as printed before it.

    Attributes:
        explored: configs of the first phase; best, seeds: configs and seeds of the second.
        seconds: wall time of what is still to run: where all configs have the shortest split, the mean of all splits,
            and where all have the longest one.
    """

    explored: int
    best: int
    seeds: int
    seconds: tuple[float, float, float]


class SearchRun:
    """A search with everything chosen; a `Configs` for its searcher.

    Args:
        slots: stages at the same time.
    """

    def __init__(self, search: Search, basis: Basis, store: Store, slots: int):
        self.options, self.basis, self.store, self.slots = search, basis, store, slots
        template = basis.config(presets.VARIANTS[search.variant].variant, search.seed)
        varied = tuple(parse_varied(text, basis.recipe) for text in search.vary)
        ranges = search.adversarial, search.conditional, search.entropy
        chosen = (search.chosen_splits, ranges, search.zeros, varied)
        self.seed, self.space = search.seed, Space(search.variant, template, basis.recipe, *chosen)
        space, self.distributions = self.space, self.space.distributions
        space_parts = [space.variant, space.splits, space.ranges, space.zeros, [*map(repr, space.varied)]]
        parts = [*basis.shared, code_version(), search.objective, search.seed, space_parts]
        self.key, self.objective = content_key(parts), OBJECTIVES[search.objective]
        self.title = ", ".join([f"Search: {basis.what}", search.variant, *basis.notes, f"by {search.objective}"])
        self.name = f"{basis.what}, {search.variant} by {search.objective} ({self.key})"
        self.templates = {split: self._template(split, search.seed) for split in space.splits}
        check_networks(self.templates.values())
        self.rows: list[Row] = []

    @property
    def study_path(self) -> Path:
        """The journal file in which Optuna's dashboard finds the study."""
        return manifest.folder(self.store, self.key) / STUDY

    def _template(self, split: str, seed: int) -> Config:
        return self.space.config(self.space.known_good() | {"split": split}, seed)

    def searcher(self) -> Searcher:
        """The first phase, with all that the record holds of it."""
        if self.key in manifest.keys(self.store):
            self.rows = manifest.read(self.store, self.key)["trials"]
        study = optuna.create_study(direction=self.objective.direction)
        target = explored(self.options.trials)
        return Searcher(study, self, self.phase("explore"), self.space.known_good(), target)

    def phase(self, phase: str) -> list[Row]:
        """The rows of a phase."""
        return [row for row in self.rows if row["phase"] == phase]

    def config_key(self, params: Mapping[str, Any]) -> str:
        """The key of a config, whatever its seed: weights of losses that are left out are no part of it."""
        return content_key(self.space.config(dict(params), 0))

    def trial(self, number: int, params: Mapping[str, Any], seed: int | None = None) -> tuple[Trial, Row]:
        """The trial of a config, and its row; without a seed that of the first phase."""
        phase, seed = ("explore", self.options.seed) if seed is None else ("confirm", seed)
        one = trial(f"config-{number}", seed, self.space.config(dict(params), seed))
        title = f"{number}: {self.space.title(dict(params))}" + " (default)" * (number == DEFAULT)
        default = self.space.fields(self.space.known_good())
        changes = {field: value for field, value in self.space.fields(params).items() if value != default[field]}
        changed = presets.Row(title, changes, self.options.variant)
        alone, kind = self.ablation(params), self.space.kind(params)
        row = manifest.trial_row(one, phase, alone, number, changed, base_variant=kind)
        return one, row | {"number": number, "params": dict(params)}

    def ablation(self, params: Mapping[str, Any]) -> Sweep:
        """A config as options of sweeps/ablation.py."""
        values = {each.name: getattr(self.options, each.name) for each in dataclasses.fields(Options)}
        values["override"] += tuple(f"{field}={params[field]!r}" for field, _ in self.space.varied)
        weights = tuple(vars(self.space.loss_weights(dict(params))).values())
        own: Any = {"variants": (self.options.variant,), "cuts": SPLITS[params["split"]], "weights": weights}
        return Sweep(**values | self.basis.chosen | own)

    def write(self, row: Row) -> None:
        """Write a row into the record."""
        manifest.write_trial(self.store, self.key, row)

    def outcome(self, row: Row) -> Outcome | None:
        """How a trial of the record ended; None where it has not, or failed."""
        return outcome_of(state_of(self.store, row), self.objective)

    def plan(self, searcher: Searcher, probe: Callable[[], float]) -> Plan:
        """Work out the trials and the time of what is still to run.

        Args:
            probe: measures the seconds of a unit of cost, where the store has no stages of this search.
        """
        recent = [self.trial(row["number"], row["params"])[0].plan for row in self.phase("explore")[-RECENT:]]
        rate = recorded_rate(self.store, [stage for each in recent for _, stage in each.stages]) or probe()
        own = [[stage for _, stage in plan(config).stages] for config in self.templates.values()]
        splits = [rate * sum(cost(each) for each in stages if not isinstance(each, ClassifierStage)) for stages in own]
        trials, first = self.options.trials, self.options.seed
        best, seeds = confirmations(trials - searcher.target, max(searcher.target, searcher.ended))
        confirmed = [] if searcher.expected else self.best(searcher, best, seeds)
        left = (best + 1) * seeds if searcher.expected else len(confirmed)
        left -= sum(self.outcome(row) is not None for _, row in confirmed)
        phases = [(searcher.expected, [first]), (left, range(first + 1, first + 1 + seeds))]
        ahead = [(count, [rate * each for each in self._shared(chosen, count)]) for count, chosen in phases]
        low, mean, high = (
            sum(wall(count, shared, seconds, self.slots) for count, shared in ahead)
            for seconds in (min(splits), statistics.fmean(splits), max(splits))
        )
        return Plan(searcher.target, best, seeds, (low, mean, high))

    def _shared(self, seeds: Sequence[int], trials: int) -> list[float]:
        """Costs of the classifiers of so many trials of these seeds, without those that the store has."""
        split = self.space.splits[0]
        stages = {stage for seed in seeds for _, stage in plan(self._template(split, seed)).stages if trials}
        stages = {stage for stage in stages if isinstance(stage, ClassifierStage)}
        return [cost(each) for each in stages if not self.store.has(name(each))]

    def begin(self, searcher: Searcher, origin: Mapping[str, str]) -> None:
        """Write the search's head into the record, and begin the copy of the study.

        Args:
            origin: command, commit and machine.
        """
        self.head = dict(origin)
        self.write_head(searcher, {})
        searcher.file = StudyFile(searcher.study, self.name, self.objective.score, self.study_path)

    def end(self, searcher: Searcher) -> None:
        """Write the record's head and study as they are at the command's end."""
        self.write_head(searcher, importance(searcher.study))
        if self.study_path.exists():
            self.store.save(self.study_path)

    def write_head(self, searcher: Searcher, shares: Mapping[str, Sequence[float]]) -> None:
        """Write what the record says of the whole search; `shares` as `importance` has them."""
        names = ("variant", "objective", "seed", "adversarial", "conditional", "entropy", "zeros", "vary")
        settings = {
            "dataset": self.basis.dataset.name,
            "recipe": self.basis.recipe.name,
            "study": self.name,
            "splits": " ".join(self.space.splits),
            **{each: getattr(self.options, each) for each in (*names, "budget", "width", "override")},
        }
        head = {
            "key": self.key,
            "title": self.title,
            **self.head,
            "started": time.time(),
            "settings": as_json(settings),
            "judges": [name(each) for each in plan(next(iter(self.templates.values()))).judges],
            "paper_real": presets.REAL_DATA_PAPER,
            "search": None,
            "score": self.objective.score,
            "explored": searcher.ended,
            "importance": shares,
            "trials": [],
        }
        manifest.write(self.store, as_json(head))

    def confirm(self, searcher: Searcher, made: Plan) -> list[tuple[Trial, Row]]:
        """Choose and record the trials of the second phase."""
        chosen = self.best(searcher, made.best, made.seeds)
        for _, row in chosen:
            self.store.when_there_is_room(functools.partial(self.write, row))
        return chosen

    def best(self, searcher: Searcher, best: int, seeds: int) -> list[tuple[Trial, Row]]:
        """The trials that confirm the best configs and, beside them, the default; none where it has not ended."""
        first = self.options.seed + 1
        chosen = {each.number: each.params for each in best_first(searcher.study)[:best]}
        chosen |= {each.number: each.params for each in ended(searcher.study) if each.number == DEFAULT}
        return [
            self.trial(number, params, seed)
            for seed in range(first, first + seeds)
            for number, params in chosen.items()
        ]

    def write_best(self, searcher: Searcher, confirmed: Sequence[tuple[Trial, Row]]) -> tuple[Path, str] | None:
        """Write best.yaml; returns its path and its config in words, or None where no config has ended on all of its
        seeds, or all went wrong.

        A seed that diverged or collapsed counts with the floor in the choice of the best.
        """
        configs: dict[str, list[tuple[Trial, Row, Outcome | None]]] = {}
        for one, row in confirmed:
            configs.setdefault(one.variant, []).append((one, row, self.outcome(row)))
        sign, whole = -1 if self.objective.direction == "maximize" else 1, []
        for seeds in configs.values():
            outcomes = [outcome for *_, outcome in seeds if outcome]
            if len(outcomes) == len(seeds) and any(outcome.tag == DONE for outcome in outcomes):
                whole.append((sign * statistics.fmean(outcome.value for outcome in outcomes), seeds))
        if not whole:
            return None
        _, winner = min(whole, key=lambda each: each[0])
        one, row, _ = winner[0]
        wrong = {one.seed: outcome.tag for one, _, outcome in winner if outcome and outcome.tag != DONE}
        facts = [self.store.facts(one.plan.name)["scores"] for one, *_ in winner if self.store.has(one.plan.name)]
        scores = {name: [each[name] for each in facts if each.get(name) is not None] for name in CONFIRMED}
        provenance = {
            "study": self.name,
            "sweep": self.key,
            "trial": row["number"],
            "commit": self.head["commit"],
            "command": self.head["command"],
            "objective": self.options.objective,
            "explored": {"configs": searcher.ended, "seed": self.options.seed},
            "confirmed": {"seeds": [one.seed for one, *_ in winner], "went_wrong": wrong, **scores},
        }
        options = self.ablation(row["params"])
        path = manifest.write_best(self.store, self.options.variant, options, one.config, provenance)
        return path, row["title"]


def explored(trials: int) -> int:
    """How many configs are explored at most: at least two trials are left, which confirm one config."""
    return max(1, min(round(EXPLORE * trials), trials - 2))


def confirmations(trials: int, configs: int) -> tuple[int, int]:
    """How many of the best configs are confirmed and on how many seeds each, with about `trials` trials: at least one
    config on two seeds, at most five on five."""
    seeds = min(5, max(2, round(math.sqrt(trials))))
    return min(5, max(1, trials // seeds), configs), seeds


def wall(trials: int, shared: Sequence[float], seconds: float, slots: int) -> float:
    """Seconds of wall time of a phase on so many slots.

    Args:
        trials: how many there are, of `seconds` each.
        shared: seconds of the stages that they all wait for.
    """
    waiting = max(sum(shared) / slots, max(shared, default=0.0))
    return (START if trials else 0.0) + waiting + math.ceil(trials / slots) * seconds
