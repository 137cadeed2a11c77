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

from sgan import presets
from sgan.checks import as_json, content_key, require
from sgan.stages.cost import cost, recorded_rate
from sgan.stages.fit import check_networks
from sgan.stages.graph import ClassifierStage, JointStage, LevelStage, code_version, name, plan
from sgan.store.files import sha256
from sgan.store.local import Store
from sgan.store.record import read_record
from sweeps.optimization.budget import EXPLORE, Ahead, Estimate, Limits, confirmations, estimate
from sweeps.optimization.objective import OBJECTIVES, PRUNED, Outcome, outcome_of
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
"""In the folder of a search's record: Optuna's study, unless --study-storage names a database."""
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
        parts = [*basis.shared, code_version(), search.objective, search.sampler, search.early_stop, search.seed]
        space_parts = [space.variant, space.splits, space.ranges, space.zeros, [*map(repr, space.varied)]]
        self.key = content_key([*parts, as_json(space_parts)])
        self.store, self.scores = store, tuple(OBJECTIVES[search.objective])
        self.stop_by = self.scores[0] if search.early_stop else ""
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
        return f"sgan-{self.key}"

    @property
    def study_place(self) -> str | Path:
        """Address of the database, or path of the journal file, in which Optuna's dashboard finds the study."""
        return self.options.study_storage or manifest.folder(self.store, self.key) / STUDY

    def _template(self, split: str, seed: int):
        return self.space.config(self.space.known_good() | {"split": split}, seed)

    def searcher(self) -> Searcher:
        """The first phase, with all that the record holds of it."""
        if self.key in manifest.keys(self.store):
            record = manifest.read(self.store, self.key)
            self.rows, self.decided = record["trials"], record["decided"]
            self.before = max([record["spent"], *(row["spent"] for row in self.rows)])
        lasts = [plan(config).stages[-2][1] for config in self.templates.values()]
        images = min(stage.images for stage in lasts if isinstance(stage, (JointStage, LevelStage)))
        options, space = self.options, self.space
        sampler = DistinctSampler(SAMPLERS[options.sampler], options.seed, space.distributions, space.key)
        ways = tuple(OBJECTIVES[options.objective].values())
        study = new_study(ways, sampler, images // 2 if options.early_stop else None)
        return Searcher(study, sampler, self, self.phase("explore"), space.known_good())

    def phase(self, phase: str) -> list[Row]:
        """The rows of a phase."""
        return [row for row in self.rows if row["phase"] == phase]

    def trial(self, number: int, params: Mapping[str, Any], seed: int | None = None) -> tuple[Trial, Row]:
        """The trial of a config, and its row; without a seed that of the first phase."""
        phase, seed = ("explore", self.options.seed) if seed is None else ("confirm", seed)
        one = trial(f"config-{number}", seed, self.space.config(dict(params), seed))
        title, words = f"{number}: {self.space.title(dict(params))}", self.rerun(params)
        default = self.space.fields(self.space.known_good())
        changes = {field: value for field, value in self.space.fields(params).items() if value != default[field]}
        changed = presets.Row(title, changes, self.options.variant)
        row = manifest.trial_row(one, phase, words, number, changed, base_variant=self.options.variant)
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
        if "stopped" in row:
            return Outcome(PRUNED, points=dict(row["stopped"]))
        found = outcome_of(state_of(self.store, row), self.scores)
        if found is None or not self.stop_by:
            return found
        judge = next(stage["name"] for stage in row["stages"] if stage["label"] == "judge")
        lines = read_record(self.store.look(row["stages"][-2]["name"]))
        points = {
            line["images"]: line["metrics"][self.stop_by]
            for line in lines
            if line["images"] > 0 and self.stop_by in line["metrics"] and line.get("judge", judge) == judge
        }
        return dataclasses.replace(found, points=points)

    def spent(self) -> float:
        """Seconds of wall time of all commands of this search."""
        return self.before + time.monotonic() - self.began

    def in_time(self, seconds: float) -> bool:
        """Whether a config of the first phase that takes so many seconds may still begin."""
        seconds = max(self.expected_seconds, seconds)
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
        left = best * seeds - sum(self.outcome(row) is not None for _, row in confirmed)
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

    def begin(self, searcher: Searcher, command: str, commit: str, machine: str) -> None:
        """Write the search's head into the record, and open the copy of the study."""
        self.head = {"command": command, "commit": commit, "machine": machine}
        self.write_head(searcher)
        if isinstance(self.study_place, Path):
            self.store.fetch(self.study_place)
        searcher.copy = StoredStudy(searcher.study, self.name, self.study_place)

    def end(self, searcher: Searcher) -> None:
        """Write the record's head, plots and study as they are at the command's end."""
        self.write_head(searcher)
        for path in (self.plots, self.study_place):
            if isinstance(path, Path) and path.exists():
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
        """The trials that confirm the best configs."""
        first = self.options.seed + 1
        return [
            self.trial(each.number, each.params, seed)
            for seed in range(first, first + seeds)
            for each in best_first(searcher.study)[:best]
        ]
