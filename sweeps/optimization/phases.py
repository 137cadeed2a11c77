"""A search in two phases. Explore: Optuna suggests many configs, which train with one seed. Confirm: the best of them
train with seeds that the first phase never saw."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.trial import TrialState

from sgan.checks import as_json, content_key
from sgan.config import Config
from sgan.evaluation.measures import MEASURES
from sgan.stages.cost import check_networks, recorded_rate
from sgan.stages.graph import ClassifierStage, JudgeStage, Stage, code_version, cost, name, plan
from sgan.store.local import Store
from sweeps.optimization import study
from sweeps.optimization.search_options import SPLITS, WEIGHTS, Search
from sweeps.optimization.space import Params, Space
from sweeps.optimization.study import DONE, REASON, Outcome, Row, StudyFile
from sweeps.planning import config_file, manifest
from sweeps.planning.basis import Basis, check_batch
from sweeps.planning.options import Options, Sweep
from sweeps.planning.trials import Trial, clock, config_key, state_of, trial

STUDY = "optuna.log"  # Optuna's study, in the folder of a search's record
DEFAULT = 0  # The number of the default config, which is tried first
EXPLORE = 0.7  # Share of the trials that explore; the rest confirm on seeds that the search never saw
SHARED = (ClassifierStage, JudgeStage)  # Kinds of stages that all configs of a seed share
START = 10.0  # Seconds until the first stage of a phase runs: Ray starts processes, and these import torch
CONFIRMED = ("inception_score", "fid", "diversity")  # The scores that best.yaml holds, one for each seed
SETTINGS = ("variant", "objective", "seed", *WEIGHTS, "zeros", "vary", "budget", "width", "override")
"""Options that the record holds."""


class Plan(NamedTuple):
    """The plan of the work that is left: the number of configs to confirm (`best`), of `seeds` for each, and the wall
    time in `seconds`, where every config takes as long as the mean of all splits."""

    best: int
    seeds: int
    seconds: float


class SearchRun:
    """A search with all options resolved, and its record. `slots`: how many stages run at the same time. `chosen`: its
    best config in words, "" before there is one."""

    chosen = ""

    def __init__(self, search: Search, basis: Basis, store: Store, slots: int):
        self.options, self.basis, self.store, self.slots = search, basis, store, slots
        self.seed, self.score, self.space = search.seed, search.objective.replace("-", "_"), Space(search, basis)
        ranges = [getattr(search, name) for name in WEIGHTS if name in self.space.ranges]
        chosen = (self.space.splits, ranges, search.zeros, search.vary)
        parts = [*basis.shared, code_version(), search.objective, search.seed, search.variant, *chosen]
        self.key = content_key(parts)
        by = f"by {MEASURES[self.score].heading}"
        self.title = ", ".join([f"Search: {basis.what}", search.variant, *basis.notes, by])
        self.name = f"{basis.what}, {search.variant} {by} ({self.key})"
        self.study_path = manifest.folder(store, self.key) / STUDY
        self.templates = {split: self._template(split, search.seed) for split in self.space.splits}
        ends = [(field, end) for field, at in self.space.varied.items() for end in (at.low, at.high)]
        varied = [self.space.config(self.space.known_good() | {field: end}, search.seed) for field, end in ends]
        check_networks([*self.templates.values(), *varied])
        for config in varied:
            check_batch(config.recipe, len(basis.data.images), "--vary: ")

    def _template(self, split: str, seed: int) -> Config:
        return self.space.config(self.space.known_good() | {"split": split}, seed)

    def replay(self) -> "Searcher":
        """Make the first phase, `searcher`, from the trials that the record already has."""
        there = self.key in manifest.keys(self.store)
        rows = manifest.read(self.store, self.key)["trials"] if there else []
        rows = [row for row in rows if row["phase"] == "explore"]
        self.searcher = Searcher(self, rows, explored(self.options.trials))
        return self.searcher

    def config_key(self, params: Params) -> str:
        """The key of a config without its seed: the weights of losses that are left out do not change it."""
        return config_key(self.space.config(params, 0))

    def trial(self, number: int, params: Params, seed: int | None = None) -> Trial:
        """The trial of a config; without a seed it belongs to the first phase."""
        phase, seed = ("explore", self.seed) if seed is None else ("confirm", seed)
        default = self.space.known_good()
        return trial(
            f"config-{number}",
            seed,
            self.space.config(params, seed),
            title=f"{number}: {self.space.title(params)}" + " (default)" * (number == DEFAULT),
            paper="",
            base=self.options.variant,
            changes={field: params[field] for field in self.space.varied if params[field] != default[field]},
            base_variant=self.space.kind(params),
            rank=number,
            phase=phase,
            rerun=config_file.words(self.ablation(params)),
            number=number,
            params=dict(params),
        )

    def ablation(self, params: Params) -> Sweep:
        values = {each.name: getattr(self.options, each.name) for each in dataclasses.fields(Options)}
        values["override"] += tuple(f"{field}={params[field]!r}" for field in self.space.varied)
        weights = tuple(vars(self.space.loss_weights(params)).values())
        own: Any = {"variants": (self.options.variant,), "cuts": SPLITS[params["split"]], "weights": weights}
        return Sweep(**values | self.basis.chosen | own)

    def write(self, *trials: Trial) -> None:
        for each in trials:
            manifest.write_trial(self.store, self.key, each.record)

    def outcome(self, row: Row) -> Outcome | None:
        """How a trial of the record ended; None where it has not, or failed."""
        state = state_of(self.store, row)
        scores = state.facts[-1]["scores"] if state.outcome == "done" else {}
        return study.outcome_of(state.outcome, state.reason, scores, self.score)

    def plan(self, probe: Callable[[], float]) -> Plan:
        """Plan the second phase, and predict the time of the work that is left. `probe` measures the seconds per unit
        of cost, if the store has no stages of this search."""
        searcher = self.searcher
        recent = [plan(self.space.config(row["params"], self.seed)).stages for row in searcher.rows[-20:]]
        rate = recorded_rate(self.store, [stage for stages in recent for _, stage in stages]) or probe()
        own = [stage for config in self.templates.values() for _, stage in plan(config).stages]
        each = rate * sum(cost(stage) for stage in own if not isinstance(stage, SHARED)) / len(self.templates)
        best, seeds = confirmations(self.options.trials - searcher.target, max(searcher.target, searcher.ended))
        confirmed = [] if searcher.expected else self.best(best, seeds)
        left = (best + 1) * seeds if searcher.expected else len(confirmed)
        left -= sum(self.outcome(each.record) is not None for each in confirmed)
        seconds, split, counted = 0.0, self.space.splits[0], set[Stage]()
        for count, chosen in ((searcher.expected, [self.seed]), (left, range(self.seed + 1, self.seed + 1 + seeds))):
            stages = {stage for seed in chosen for _, stage in plan(self._template(split, seed)).stages if count}
            shared = {stage for stage in stages - counted if isinstance(stage, SHARED)}
            counted |= shared
            waits = [rate * cost(stage) for stage in shared if not self.store.has(name(stage))]
            seconds += wall(count, waits, each, self.slots)
        return Plan(best, seeds, seconds)

    def summary(self, made: Plan) -> list[tuple[str, str]]:
        """The plan of the work: pairs of a heading and a line of text."""
        space, searcher, splits = self.space, self.searcher, len(self.space.splits)
        ranges = [f"{name} {ends.low:g} to {ends.high:g}" for name, ends in space.ranges.items()]
        left = f", {len(searcher.waiting)} interrupted trials continue" if searcher.waiting else ""
        seeds = f"{made.seeds} fresh seeds, {self.seed + 1} to {self.seed + made.seeds}"
        shape = f"{splits} split{'s' * (splits > 1)}, losses {' or '.join(space.losses)}, {', '.join(ranges)}"
        return [
            ("space", shape),
            ("study", f"{self.name}: {searcher.ended} trials finished{left}"),
            ("explore", f"{searcher.target} config{'s' * (searcher.target != 1)} at seed {self.seed}"),
            ("confirm", f"the best {made.best} and the default config on {seeds}"),
            ("time", f"about {clock(made.seconds)}"),
        ]

    def record(self, origin: Mapping[str, str]) -> dict[str, Any]:
        """The head of the search's record, for `manifest.write`. `origin`: command, commit and machine."""
        settings = self.basis.chosen | {each: getattr(self.options, each) for each in SETTINGS}
        settings |= {"study": self.name, "splits": " ".join(self.space.splits)}
        head = manifest.head(self.key, self.title, origin, settings, plan(next(iter(self.templates.values()))))
        return head | {
            "score": self.score,
            "explored": self.searcher.ended,
            "chosen": self.chosen,
            "importance": as_json(study.importance(self.searcher.study)),
            "trials": [],
        }

    def copy_study(self) -> None:
        """Begin the study's copy; the folder of the search's record must exist."""
        self.searcher.file = StudyFile(self.searcher.study, self.name, self.score, self.study_path)

    def best(self, best: int, seeds: int) -> list[Trial]:
        """The trials that confirm the best configs and, if it has ended, the default config."""
        explored = self.searcher.study
        chosen = {each.number: each.params for each in study.best_first(explored)[:best]}
        chosen |= {each.number: each.params for each in study.ended(explored) if each.number == DEFAULT}
        fresh = range(self.seed + 1, self.seed + 1 + seeds)
        return [self.trial(number, params, seed) for seed in fresh for number, params in chosen.items()]

    def write_best(self, confirmed: Sequence[Trial], origin: Mapping[str, str]) -> Path | None:
        """Write best.yaml, and describe its config in `chosen`. Returns its path, or None if no config has ended on all
        of its seeds, at least one of them well. A seed that diverged or collapsed counts with the floor."""
        configs: dict[str, list[tuple[Trial, Outcome | None]]] = {}
        for one in confirmed:
            configs.setdefault(one.variant, []).append((one, self.outcome(one.record)))
        whole = []
        for seeds in configs.values():
            outcomes = [outcome for _, outcome in seeds if outcome]
            if len(outcomes) == len(seeds) and any(outcome.tag == DONE for outcome in outcomes):
                whole.append((statistics.fmean(outcome.value for outcome in outcomes), seeds))
        if not whole:
            return None
        better = max if MEASURES[self.score].better == "higher" else min
        _, winner = better(whole, key=lambda each: each[0])
        first = winner[0][0]
        wrong = {one.seed: outcome.tag for one, outcome in winner if outcome and outcome.tag != DONE}
        facts = [self.store.facts(one.plan.name)["scores"] for one, _ in winner if self.store.has(one.plan.name)]
        scores = {name: [each[name] for each in facts if each.get(name) is not None] for name in CONFIRMED}
        provenance = {
            "study": self.name,
            "sweep": self.key,
            "trial": first.record["number"],
            "commit": origin["commit"],
            "command": origin["command"],
            "confirmed": {"seeds": [one.seed for one, _ in winner], "went_wrong": wrong, **scores},
        }
        options = self.ablation(first.record["params"])
        path = config_file.write(self.store, self.options.variant, options, first.config, provenance)
        self.chosen = f"Best: {first.record['title']}."
        for seeds in configs.values():
            bad = sum(outcome is None or outcome.tag != DONE for _, outcome in seeds)
            if bad and seeds is not winner:
                self.chosen += f" {seeds[0][0].record['title']} has {bad} of {len(seeds)} seeds that went wrong"
                self.chosen += "; a seed that diverged or collapsed counts with the worst score."
        return path


class Searcher:
    """The first phase as a `TrialSource`: Optuna suggests configs, and gets their scores.

    For a trial that diverged or collapsed it gets the score's floor. A failed trial has no value: the next command
    runs it again under the same number, like one that was stopped. `rows`: the trials of earlier commands. `target`:
    the number of configs in all.
    """

    def __init__(self, run: SearchRun, rows: Sequence[Row], target: int):
        self.run, self.rows, self.target = run, rows, target
        direction = "maximize" if MEASURES[run.score].better == "higher" else "minimize"
        self.study = optuna.create_study(direction=direction)
        found = {row["number"]: run.outcome(row) for row in rows}
        outcomes = {each: outcome for each, outcome in found.items() if outcome}
        self.waiting = study.replay(self.study, run.space.distributions, rows, outcomes)
        self.ended, self.failed = len(outcomes), 0
        self.taken = {row["config_key"] for row in rows}
        if not rows:
            self.study.enqueue_trial(run.space.known_good())
        self.live: dict[str, optuna.Trial] = {}
        self.file: StudyFile | None = None
        self.expected = len(self.waiting) + max(0, target - len(rows))
        self.ahead: Sequence[Trial] = [run.trial(number, trial.params) for number, trial in self.waiting.items()]

    def next(self) -> Trial | None:
        if not self.waiting and len(self.taken) < self.target:
            asked = study.ask(self.study, self.run.space.distributions, self.run.seed, self._is_new)
            if asked is None:  # the space has no more new configs
                self.target = len(self.taken)
            else:
                self.waiting[asked.number] = asked
        if not self.waiting:
            return None
        number = min(self.waiting)
        trial = self.run.trial(number, self.waiting[number].params)
        self.taken.add(trial.record["config_key"])
        self.run.write(trial)
        self.live[trial.variant] = self.waiting.pop(number)  # only after it is written: a full disk may refuse it
        return trial

    def _is_new(self, params: Params) -> bool:
        return self.run.config_key(params) not in self.taken

    def end(self, trial: Trial, outcome: str, reason: str, scores: Mapping[str, Any]) -> None:
        asked = self.live.pop(trial.variant)
        found = study.outcome_of(outcome, reason, scores, self.run.score)
        for attribute, value in (study.attributes(trial.record, found) if found else {REASON: reason}).items():
            asked.set_user_attr(attribute, value)
        if found:
            self.study.tell(asked, found.value)
            self.ended += 1
        else:
            self.study.tell(asked, state=TrialState.FAIL)
            self.failed += 1
        if self.file:
            self.file.update()


def explored(trials: int) -> int:
    """The number of configs to explore, at most: at least two trials are left, which confirm one config."""
    return max(1, min(round(EXPLORE * trials), trials - 2))


def confirmations(trials: int, configs: int) -> tuple[int, int]:
    """How many of the best configs to confirm, and on how many seeds each, with about `trials` trials: at least one
    config on two seeds, at most five on five. `configs`: the number of explored configs."""
    seeds = min(5, max(2, round(math.sqrt(trials))))
    return min(5, max(1, trials // seeds), configs), seeds


def wall(trials: int, shared: Sequence[float], seconds: float, slots: int) -> float:
    """Wall time of a phase in seconds on this number of slots: `trials` trials of `seconds` each, and before them the
    `shared` stages (seconds each) that all trials wait for."""
    waiting = max(sum(shared) / slots, max(shared, default=0.0))
    return (START if trials else 0.0) + waiting + math.ceil(trials / slots) * seconds
