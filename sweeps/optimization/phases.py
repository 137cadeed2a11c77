"""A search in two phases. Explore: many configs at one seed. Confirm: the best of them on seeds that the first phase
never saw."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from sgan import presets
from sgan.checks import as_json, content_key, require
from sgan.stages.cost import check_networks, cost, recorded_rate
from sgan.stages.graph import ClassifierStage, code_version, name, plan
from sgan.store.files import sha256
from sgan.store.local import Store
from sweeps.optimization.budget import EXPLORE, Ahead, Estimate, Limits, confirmations, estimate
from sweeps.optimization.objective import OBJECTIVES, Outcome, outcome_of
from sweeps.optimization.search_options import Search
from sweeps.optimization.searcher import Row, Searcher
from sweeps.optimization.space import SPLITS, Space, parse_varied
from sweeps.optimization.study import SAMPLERS, DistinctSampler, StoredStudy, best_first, new_study
from sweeps.planning import config_file, manifest
from sweeps.planning.basis import Basis, chosen_options
from sweeps.planning.options import Sweep
from sweeps.planning.state import state_of
from sweeps.planning.trials import Trial, clock, trial

STUDY = "optuna.log"
"""Optuna's study, in the folder of a search's record."""
DEFAULT = 0
"""The number of the default config, which is tried first."""
ENDLESS = 10**9
RECENT = 20
"""The times of so many trials predict those of the next."""


@dataclass(frozen=True)
class Plan:
    """The plan of a search, as printed before it.

    Attributes:
        explored: configs of the first phase; best, seeds: configs and seeds of the second.
        estimate: of what is still to run.
        trial_seconds: of a trial (mean over the splits).
    """

    explored: int
    best: int
    seeds: int
    estimate: Estimate
    trial_seconds: float


class SearchRun:
    """A search with everything chosen; a `Configs` for its searcher.

    Args:
        slots: stages at the same time.
        units: GPUs, or nodes where there is no GPU: what is paid for.
    """

    def __init__(self, search: Search, basis: Basis, store: Store, slots: int, units: int):
        self.options, self.basis, self.slots, self.units = search, basis, slots, units
        template = basis.config(presets.VARIANTS[search.variant].variant, search.seed)
        varied = tuple(parse_varied(text, basis.recipe) for text in search.vary)
        chosen = (search.chosen_splits, search.ranges, search.zeros, varied)
        self.space = space = Space(search.variant, template, basis.recipe, *chosen)
        parts = [*basis.shared, code_version(), search.objective, search.sampler, search.seed]
        space_parts = [space.variant, space.splits, space.ranges, space.zeros, [*map(repr, space.varied)]]
        self.key = content_key([*parts, as_json(space_parts)])
        self.store, self.scores = store, tuple(OBJECTIVES[search.objective])
        self.title = ", ".join([f"Search: {basis.what}", search.variant, *basis.notes, f"by {search.objective}"])
        self.limits: Limits = search.limits(units)
        self.templates = {split: self._template(split, search.seed) for split in space.splits}
        check_networks(self.templates.values())
        self.rows: list[Row] = []
        self.decided: dict[str, Any] = {}
        self.began, self.before, self.expected_seconds = time.monotonic(), 0.0, 0.0

    @property
    def name(self) -> str:
        """The study's name."""
        return f"{self.basis.what}, {self.options.variant} by {self.options.objective} ({self.key})"

    @property
    def study_path(self) -> Path:
        """The journal file in which Optuna's dashboard finds the study."""
        return manifest.folder(self.store, self.key) / STUDY

    def _template(self, split: str, seed: int):
        return self.space.config(self.space.known_good() | {"split": split}, seed)

    def searcher(self) -> Searcher:
        """The first phase, with all that the record holds of it."""
        if self.key in manifest.keys(self.store):
            record = manifest.read(self.store, self.key)
            self.rows, self.decided = record["trials"], record["decided"]
            self.before = max([record["spent"], *(row["spent"] for row in self.rows)])
        options, space = self.options, self.space
        sampler = DistinctSampler(SAMPLERS[options.sampler], options.seed, space.distributions, space.key)
        study = new_study(OBJECTIVES[options.objective], sampler)
        return Searcher(study, sampler, self, self.phase("explore"), space.known_good())

    def phase(self, phase: str) -> list[Row]:
        """The rows of a phase."""
        return [row for row in self.rows if row["phase"] == phase]

    def trial(self, number: int, params: Mapping[str, Any], seed: int | None = None) -> tuple[Trial, Row]:
        """The trial of a config, and its row; without a seed that of the first phase."""
        phase, seed = ("explore", self.options.seed) if seed is None else ("confirm", seed)
        one = trial(f"config-{number}", seed, self.space.config(dict(params), seed))
        title, words = f"{number}: {self.space.title(dict(params))}", self.rerun(params)
        title += " (default)" * (number == DEFAULT)
        default = self.space.fields(self.space.known_good())
        changes = {field: value for field, value in self.space.fields(params).items() if value != default[field]}
        changed = presets.Row(title, changes, self.options.variant)
        row = manifest.trial_row(one, phase, words, number, changed, base_variant=self.space.kind(params))
        return one, row | {"number": number, "params": dict(params), "spent": self.spent()}

    def ablation_options(self, params: Mapping[str, Any]) -> config_file.ChosenOptions:
        """A config as options of sweeps/ablation.py."""
        varied = [f"{field}={params[field]!r}" for field, _ in self.space.varied]
        weights, cuts = self.space.loss_weights(dict(params)), SPLITS[params["split"]]
        return chosen_options(self.options, self.basis, cuts, weights, [*self.options.override, *varied])

    def rerun(self, params: Mapping[str, Any]) -> str:
        """The options of sweeps/ablation.py, without seeds, that run a config again."""
        values = dataclasses.asdict(self.ablation_options(params))
        values |= {"variants": (self.options.variant,), "data": self.options.data}
        return config_file.words(Sweep(**values))

    def write(self, row: Row) -> None:
        """Write a row into the record."""
        manifest.write_trial(self.store, self.key, row)

    def outcome(self, row: Row) -> Outcome | None:
        """How a trial of the record ended; None where it has not, or failed."""
        return outcome_of(state_of(self.store, row), self.scores)

    def spent(self) -> float:
        """Seconds of wall time of all commands of this search."""
        return self.before + time.monotonic() - self.began

    def in_time(self, seconds: float) -> bool:
        """Whether a config of the first phase that takes so many seconds may still begin."""
        seconds = seconds or self.expected_seconds  # what trials took corrects what was predicted
        return self.spent() + seconds < EXPLORE * self.limits.seconds

    def plan(self, searcher: Searcher, probe: Callable[[], float]) -> Plan:
        """Work out trials and hours of what is still to run.

        Args:
            probe: measures the seconds of a unit of cost, where the store has no stages of this search.
        Raises:
            ConfigError: --hours or --max-cost carry fewer than three trials.
        """
        recent = [self.trial(row["number"], row["params"])[0].plan for row in self.phase("explore")[-RECENT:]]
        rate = recorded_rate(self.store, [stage for each in recent for _, stage in each.stages]) or probe()
        own = [[stage for _, stage in plan(config).stages] for config in self.templates.values()]
        splits = [rate * sum(cost(each) for each in stages if not isinstance(each, ClassifierStage)) for stages in own]
        self.expected_seconds = mean = sum(splits) / len(splits)
        limits, search = self.limits, self.options
        carried = min(limits.seconds / mean * self.slots, ENDLESS)
        require(
            searcher.ended > 0 or carried >= 3,
            f"--hours or --max-cost carry {carried:.1f} trials of about {clock(mean)}, and a search needs 3; "
            "allow more, or make the trials shorter with --budget or --width",
        )
        count = min(limits.trials, max(3, carried))
        target = int(Limits(count, limits.seconds).explored())
        best, seeds = confirmations(count - target, search.top, search.confirm_seeds, max(target, searcher.ended))
        searcher.expected = len(searcher.waiting) + max(0, target - searcher.count)
        searcher.target = ENDLESS if math.isinf(limits.trials) else target
        confirmed = [] if searcher.expected else self.best(searcher, best, seeds)
        trials = (best + 1) * seeds if searcher.expected else len(confirmed)
        left = trials - sum(self.outcome(row) is not None for _, row in confirmed)
        fresh = range(search.seed + 1, search.seed + 1 + seeds)
        explore, confirm = (
            Ahead(count, [rate * each for each in self._shared(first, count)])
            for count, first in ((searcher.expected, [search.seed]), (left, fresh))
        )
        return Plan(target, best, seeds, estimate(splits, explore, confirm, self.slots), mean)

    def _shared(self, seeds: Sequence[int], trials: int) -> list[float]:
        """Costs of the classifiers of so many trials of these seeds, without those that the store has."""
        split = self.space.splits[0]
        stages = {stage for seed in seeds for _, stage in plan(self._template(split, seed)).stages if trials}
        stages = {stage for stage in stages if isinstance(stage, ClassifierStage)}
        return [cost(each) for each in stages if not self.store.has(name(each))]

    def begin(self, searcher: Searcher, origin: Mapping[str, str]) -> None:
        """Write the search's head into the record, and open the copy of the study.

        Args:
            origin: command, commit and machine.
        """
        self.head = dict(origin)
        self.write_head(searcher)
        self.store.fetch(self.study_path)
        searcher.copy = StoredStudy(searcher.study, self.name, OBJECTIVES[self.options.objective], self.study_path)

    def end(self, searcher: Searcher) -> None:
        """Write the record's head, plots and study as they are at the command's end."""
        self.write_head(searcher)
        for path in (self.plots, self.study_path):
            if path.exists():
                self.store.save(path)

    def write_head(self, searcher: Searcher) -> None:
        """Write what the record says of the whole search."""
        names = ("variant", "objective", "sampler", "seed", "adversarial", "conditional", "entropy", "zeros", "vary")
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
            "reference": f"config-{DEFAULT}",
            "scores": list(self.scores),
            "explored": searcher.ended,
            "decided": self.decided,
            "spent": self.spent(),
            # Their digests, so that tracking sees that they have changed.
            "plotted": {file.name: sha256(file)[:16] for file in sorted(self.plots.glob("*.png"))},
            "trials": [],
        }
        manifest.write(self.store, head)

    @property
    def plots(self) -> Path:
        """The folder of a search's plots."""
        return manifest.folder(self.store, self.key) / "plots"

    def confirm(self, searcher: Searcher, made: Plan) -> list[tuple[Trial, Row]]:
        """Choose and record the trials of the second phase. An earlier command's choice stands."""
        search, limits = self.options, self.limits
        asked = as_json([repr(limits), search.top, search.confirm_seeds, searcher.ended])
        if self.decided.get("asked") != asked:
            best, seeds = made.best, made.seeds
            if not math.isinf(limits.seconds):
                left, seconds = limits.seconds - self.spent(), max(made.trial_seconds, searcher.mean_seconds(), 1e-9)
                carried = max(2.0, left / seconds * self.slots)
                now = confirmations(carried, search.top, search.confirm_seeds, best)
                best, seeds = min(best, now[0]), min(seeds, now[1])
            self.decided = {"asked": asked, "best": best, "seeds": seeds}
            self.store.when_there_is_room(lambda: self.write_head(searcher))
        chosen = self.best(searcher, self.decided["best"], self.decided["seeds"])
        for _, row in chosen:
            self.store.when_there_is_room(functools.partial(self.write, row))
        return chosen

    def best(self, searcher: Searcher, best: int, seeds: int) -> list[tuple[Trial, Row]]:
        """The trials that confirm the best configs and, beside them, the default; none where it has not ended."""
        first = self.options.seed + 1
        chosen = {each.number: each.params for each in best_first(searcher.study)[:best]}
        ended = searcher.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        chosen |= {each.number: each.params for each in ended if each.number == DEFAULT}
        return [
            self.trial(number, params, seed)
            for seed in range(first, first + seeds)
            for number, params in chosen.items()
        ]
