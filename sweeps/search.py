"""The search: Optuna over loss weights and stack splits, ending in a config that is confirmed on fresh seeds.

python sweeps/search.py [--help]
"""

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from sgan.bucket import open_store
from sgan.checks import ConfigError, as_json, content_key, number, require
from sgan.presets import REAL_DATA_PAPER, VARIANTS
from sweeps import detach, tuned
from sweeps.budget import EXPLORE, Estimate, Limits, confirmations, simulate
from sweeps.manifest import command, commit, trial_row, write_manifest
from sweeps.options import Basis, Options, prepare

if TYPE_CHECKING:
    import optuna

    from sgan.store import Store
    from sweeps.bridge import Outcome
    from sweeps.schedule import Slots
    from sweeps.space import Space
    from sweeps.trials import Trial

BEST, TABLE, STUDIES = "best.yaml", "SEARCH.md", "optuna.log"
DEFAULT_TRIALS = 20
FLOOR = {"inception_score": 1.0, "fid": 500.0, "diversity": 0.0}
"""The worst value of each score: told for a trial that diverged or collapsed. 1 is the least Inception score there is;
an FID has no worst value, and 500 is beyond what noise scores."""
OBJECTIVES = {
    "inception-score": {"inception_score": "maximize"},
    "fid": {"fid": "minimize"},
    "pareto": {"inception_score": "maximize", "fid": "minimize", "diversity": "maximize"},
}
INTERRUPTED = 130


@dataclass(frozen=True)
class Search(Options):
    """Search loss weights and stack splits: explore many configs at one seed, then confirm the best on fresh seeds.

    It ends in best.yaml in the store, which sweeps/ablation.py --config runs. The same command goes on where it was;
    with more --trials or --hours a finished search is extended.
    """

    variant: str = "sgan"
    """The variant whose config is searched."""
    splits: tuple[str, ...] = ("all",)
    """Splits to choose from, such as none, fc3 or pool1+fc3; all: every subset of the taps."""
    adversarial: tuple[float, float] = (0.1, 10.0)
    """Range of the adversarial loss's weight, sampled on a log scale; twice the same number pins it."""
    conditional: tuple[float, float] = (0.1, 10.0)
    """Range of the conditional loss's weight."""
    entropy: tuple[float, float] = (1.0, 100.0)
    """Range of the entropy loss's weight."""
    zeros: tuple[str, ...] = ("conditional", "entropy")
    """Weights that may be zero as well, at most one of them in a config."""
    vary: tuple[str, ...] = ()
    """Numeric fields of the recipe to search too: FIELD=LOW:HIGH, or FIELD=LOW:HIGH:log."""
    objective: Literal["inception-score", "fid", "pareto"] = "inception-score"
    """What is best; pareto: Inception score, FID and diversity (up to that of real data) at once."""
    sampler: Literal["tpe", "gp", "random"] = "tpe"
    """Optuna's sampler."""
    early_stop: bool = False
    """Stop a trial whose score, at the same point of its last training stage, is below the median of the trials with
    the same split."""
    trials: int | None = None
    """Trials in all: about 70 % explore, the rest confirm. Without this, --hours and --max-cost: 20."""
    hours: float | None = None
    """At most so many hours of wall time in all."""
    max_cost: float | None = None
    """At most this cost in all; needs --gpu-hour-price."""
    gpu_hour_price: float | None = None
    """Price of an hour of one GPU, or of one node where there is no GPU."""
    top: int | None = None
    """How many of the best configs are confirmed; without it as many as the budget carries, at most 5."""
    confirm_seeds: int | None = None
    """On how many fresh seeds each; without it 2 to 5, by the budget."""
    seed: int = 1000
    """The seed that explores; the next ones confirm. Another one is another search."""
    study_storage: str | None = None
    """Address of a database for Optuna's study, such as postgresql://user@host/name; without it a journal file in the
    store."""

    def __post_init__(self):
        super().__post_init__()
        require(
            self.variant in VARIANTS,
            f"unknown variant {self.variant!r} in --variant; choose from {', '.join(VARIANTS)}",
        )
        for name, value, least in (("--trials", self.trials, 3), ("--top", self.top, 1)):
            require(value is None or value >= least, f"{name} must be at least {least}, but got {value}")
        require(
            self.confirm_seeds is None or 2 <= self.confirm_seeds <= 100,
            f"--confirm-seeds must be from 2 to 100, but got {self.confirm_seeds}",
        )
        for name in ("hours", "max_cost", "gpu_hour_price"):
            if getattr(self, name) is not None:
                number(f"--{name.replace('_', '-')}", getattr(self, name), 0.0, open_low=True)
        require(
            self.max_cost is None or self.gpu_hour_price is not None,
            f"--max-cost {self.max_cost} needs --gpu-hour-price, the price of an hour of one GPU",
        )
        require(0 <= self.seed <= 2**31 - 200, f"--seed must be from 0 to {2**31 - 200}, but got {self.seed}")
        require(
            self.study_storage is None or "://" in self.study_storage,
            f"--study-storage takes an address such as postgresql://user@host/name, but got {self.study_storage!r}",
        )
        require(
            not (self.early_stop and self.objective == "pareto"),
            "--early-stop compares one score; choose --objective inception-score or fid, or leave it out",
        )

    def limits(self, units: int) -> Limits:
        """What the search may use where so many GPUs, or nodes without one, are paid for."""
        seconds = math.inf if self.hours is None else self.hours * 3600
        if self.max_cost is not None and self.gpu_hour_price is not None:
            seconds = min(seconds, self.max_cost / (self.gpu_hour_price * units) * 3600)
        trials = self.trials or (DEFAULT_TRIALS if math.isinf(seconds) else math.inf)
        return Limits(trials, seconds)

    def space(self, basis: Basis) -> "Space":
        """The search space on a basis; ConfigError where it is not valid."""
        from sweeps.space import ALL, NONE, SPLITS, Space, parse_varied

        row = VARIANTS[self.variant].variant
        every = tuple(SPLITS) if row.cuts else (NONE,)
        return Space(
            self.variant,
            basis.config(row, self.seed),
            basis.recipe,
            every if self.splits == (ALL,) else self.splits,
            (self.adversarial, self.conditional, self.entropy),
            self.zeros,
            tuple(parse_varied(text, basis.recipe) for text in self.vary),
        )


@dataclass(frozen=True)
class SganObjective:
    """Trains and scores a config: the bridge's objective.

    Attributes:
        scores: what is told of a score stage, in the order of the study's directions.
        early: yield the score at every evaluation of the last training stage.
    """

    space: "Space"
    job: Any
    seed: int
    scores: tuple[str, ...]
    early: bool

    def trial(self, params: Mapping[str, Any], number: int = -1) -> "Trial":
        """The trial of a config."""
        from sweeps.trials import trial

        return trial(
            f"config-{number}" if number >= 0 else "config", self.seed, self.space.config(dict(params), self.seed)
        )

    def __call__(self, params: Mapping[str, Any]) -> "Generator[Any, None, Outcome]":
        from sgan.stages import name
        from sgan.store import read_record
        from sweeps.bridge import OUTCOME, Point

        mine, store, told = self.trial(params), open_store(self.job.store), set()
        last_label, last = mine.plan.stages[-2]
        for result in self.job.results(mine):
            if result.get(OUTCOME) == "failed":
                raise RuntimeError(result["reason"])
            if result.get(OUTCOME) is None:
                yield result
            if self.early and result.get("label") == last_label:
                for line in read_record(store.work(name(last))):
                    score = line["metrics"].get(self.scores[0])
                    if score is not None and line["images"] > 0 and line["images"] not in told:
                        told.add(line["images"])
                        yield Point(line["images"], score)
        found = outcome(mine, store, self.scores)
        assert found is not None
        return found


def outcome(trial: "Trial", store: "Store", scores: tuple[str, ...]) -> "Outcome | None":
    """What a trial that has ended is told as; None where it has not."""
    from sgan.diagnostics import COLLAPSED, alarms
    from sgan.stages import name
    from sweeps.bridge import Outcome

    for _, stage in trial.plan.stages:
        if store.has(name(stage)) and store.facts(name(stage))["status"] == "diverged":
            return Outcome(tag="diverged", reason=store.facts(name(stage))["reason"])
    if not store.has(trial.plan.name):
        return None
    found = store.facts(trial.plan.name)["scores"]
    collapsed = alarms({COLLAPSED: found.get(COLLAPSED, 0.0)})
    if collapsed:
        return Outcome(tag="collapsed", reason=collapsed[0])
    values = {score: found.get(score) if found.get(score) is not None else math.nan for score in scores}
    if "diversity" in values:
        values["diversity"] = min(values["diversity"], 1.0)  # as diverse as real data is enough
    return Outcome(tuple(values.values()))


@dataclass(frozen=True)
class Plan:
    """What a search is going to do, as printed before it."""

    limits: Limits
    explored: int
    best: int
    seeds: int
    estimate: Estimate
    trial_seconds: float


class Running:
    """A search with everything chosen: its study, and the two phases."""

    def __init__(self, search: Search, basis: Basis, space: "Space", store: "Store", slots: "Slots", uri: str):
        from sgan.run import machine
        from sgan.stages import code_version
        from sweeps.trials import Job

        self.search, self.basis, self.space, self.store, self.slots, self.uri = search, basis, space, store, slots, uri
        parts = [*basis.shared, code_version(), search.objective, search.sampler, search.early_stop, search.seed]
        space_parts = [space.variant, space.splits, space.ranges, space.zeros, space.varied]
        self.key = content_key([*parts, as_json(space_parts)])
        self.directions = OBJECTIVES[search.objective]
        self.commit, self.machine = commit(), f"{machine('cpu').split(',')[0]}, {slots.where}"
        job = Job(basis.folder, store.address, self.commit, code_version(), search.deterministic)
        self.objective = SganObjective(space, job, search.seed, tuple(self.directions), search.early_stop)
        self.title = ", ".join([f"Search: {basis.what}", search.variant, *basis.notes, f"by {search.objective}"])
        self.units = slots.all_gpus or slots.nodes
        self.limits = search.limits(self.units)
        self.began = time.monotonic()

    @property
    def name(self) -> str:
        """The study's name."""
        return f"sgan-{self.key}"

    def open(self) -> "optuna.Study":
        """The study, made if it is not there, with the sampler; ConfigError where the storage does not answer."""
        import optuna
        from optuna.storages import JournalStorage, RDBStorage
        from optuna.storages.journal import JournalFileBackend
        from optuna.study import StudyDirection

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        address = self.search.study_storage
        try:
            storage = (
                RDBStorage(address) if address else JournalStorage(JournalFileBackend(str(self.store.root / STUDIES)))
            )
            study = optuna.create_study(
                storage=storage,
                study_name=self.name,
                directions=[StudyDirection[way.upper()] for way in self.directions.values()],
                load_if_exists=True,
            )
        except Exception as error:  # SQLAlchemy's, the driver's and the file system's
            where = tuned.without_password(address) if address else self.store.root / STUDIES
            first = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"Optuna's study cannot be opened at {where} ({tuned.without_password(first)}); check --study-storage"
            ) from error
        # A sampler that starts with the same numbers after every interruption would suggest the same again.
        seed = self.search.seed + len(study.get_trials(deepcopy=False))
        samplers: dict[str, Callable[[], Any]] = {
            "tpe": lambda: optuna.samplers.TPESampler(seed=seed),
            "gp": lambda: optuna.samplers.GPSampler(seed=seed),
            "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        }
        study.sampler = samplers[self.search.sampler]()
        if self.search.early_stop:
            from sweeps.bridge import Among

            study.pruner = Among(optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1), "split")
        else:
            study.pruner = optuna.pruners.NopPruner()
        study.enqueue_trial(self.space.known_good(), skip_if_exists=True)
        return study

    def plan(self, study: "optuna.Study") -> Plan:
        """Measure a few steps on the hardware, and work out trials, hours and cost of what is still to run."""
        from optuna.trial import TrialState

        from sgan.stages import ClassifierStage, name, plan
        from sweeps import schedule

        known, seed = self.space.known_good(), self.search.seed
        configs = {split: self.space.config(known | {"split": split}, seed) for split in self.space.splits}
        seconds = schedule.measure(list(configs.values()), self.basis.data, self.slots)
        once: dict[str, float] = {}
        splits = []
        for config in configs.values():
            stages = [stage for _, stage in plan(config).stages]
            once |= {name(stage): seconds[name(stage)] for stage in stages if isinstance(stage, ClassifierStage)}
            splits.append({name(stage): seconds[name(stage)] for stage in stages if name(stage) not in once})
        mean = sum(sum(split.values()) for split in splits) / len(splits) / self.slots.count
        limits, spent = self.limits, study.user_attrs.get("seconds", 0.0)
        trials = min(limits.trials, max(3, limits.seconds / mean) if mean > 0 else limits.trials)
        finished = (TrialState.COMPLETE, TrialState.PRUNED)
        held = len(study.get_trials(deepcopy=False, states=finished))
        target = int(min(limits.explored(), max(1, round(EXPLORE * trials))))
        best, seeds = confirmations(trials - target, self.search.top, self.search.confirm_seeds, max(target, held))
        estimate = simulate(splits, once, max(0, target - held), best, seeds, self.slots.count)
        del spent
        return Plan(limits, target, best, seeds, estimate, mean)

    def explore(self, study: "optuna.Study", plan: Plan) -> list[int]:
        """The first phase; returns the numbers of the trials that failed for good."""
        from sweeps import bridge
        from sweeps.trials import ProgressLines

        before = study.user_attrs.get("seconds", 0.0)
        share = 1.0 if math.isinf(self.limits.seconds) else EXPLORE

        def ready() -> bool:
            spent = before + time.monotonic() - self.began
            study.set_user_attr("seconds", spent)
            return spent + plan.trial_seconds < share * self.limits.seconds

        def known(params: Mapping[str, Any]) -> "Outcome | None":
            return outcome(self.objective.trial(params), self.store, self.objective.scores)

        def asked(trial: "optuna.Trial") -> None:
            mine = self.objective.trial(trial.params, trial.number)
            self.store.failure(mine.plan.name).unlink(missing_ok=True)
            trial.set_user_attr("config", self.space.title(trial.params))
            trial.set_user_attr("trial", mine.plan.name)
            self.record(study)

        numbers: dict[str, int] = {}

        def trial_of(config: Mapping[str, Any]) -> "Trial":
            name = self.space.key(config["params"])
            numbers[name] = config["number"]
            return self.objective.trial(config["params"], config["number"])

        count = plan.explored if not math.isinf(self.limits.explored()) else 10**9
        finished = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
        lines = ProgressLines(trial_of, self.store, expected=plan.explored, finished=finished)
        floor = [FLOOR[score] for score in self.objective.scores]
        return bridge.explore(
            study,
            self.space.distributions,
            self.objective,
            count,
            self.slots,
            self.store.root,
            floor,
            self.space.key,
            known,
            ready,
            asked,
            [lines],
        )

    def ranked(self, study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
        """Explored trials that did not go wrong, best first; on a Pareto front by FID, front after front."""
        from optuna.study import StudyDirection
        from optuna.trial import TrialState

        from sweeps.bridge import OUTCOME

        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        trials = [trial for trial in trials if trial.user_attrs.get(OUTCOME) == "done"]
        signs = [1 if direction == StudyDirection.MINIMIZE else -1 for direction in study.directions]
        costs = {
            trial.number: [sign * value for sign, value in zip(signs, trial.values, strict=True)] for trial in trials
        }
        if len(signs) == 1:
            return sorted(trials, key=lambda trial: costs[trial.number])
        left, order = list(trials), []
        while left:
            front = [one for one in left if not any(_dominates(costs[o.number], costs[one.number]) for o in left)]
            order += sorted(front, key=lambda trial: costs[trial.number][1])
            left = [trial for trial in left if trial not in front]
        return order

    def confirm(self, study: "optuna.Study", plan: Plan) -> "list[Trial]":
        """The second phase: the best configs on seeds that the first never saw; returns its trials."""
        from sweeps import trials

        best, seeds = plan.best, plan.seeds
        if not math.isinf(self.limits.seconds):
            left = self.limits.seconds - study.user_attrs.get("seconds", 0.0)
            carried = max(2.0, left / max(plan.trial_seconds, 1e-9))
            if math.isfinite(carried):
                now = confirmations(carried, self.search.top, self.search.confirm_seeds, plan.best)
                best, seeds = min(best, now[0]), min(seeds, now[1])
        chosen = self.confirmed(study, best, seeds)
        self.record(study, chosen)
        trials.run(chosen, self.objective.job, self.store, self.slots)
        return chosen

    def confirmed(self, study: "optuna.Study", best: int, seeds: int) -> "list[Trial]":
        """The trials that confirm the best configs."""
        from sweeps.trials import trial

        first = self.search.seed + 1
        return [
            trial(f"config-{each.number}", seed, self.space.config(each.params, seed))
            for seed in range(first, first + seeds)
            for each in self.ranked(study)[:best]
        ]

    def record(self, study: "optuna.Study", confirm: "list[Trial] | None" = None) -> None:
        """Tell tracking and report what the search consists of so far."""
        explored = [
            trial for trial in study.get_trials(deepcopy=False) if len(trial.params) == len(self.space.distributions)
        ]
        rows = [
            trial_row(self.objective.trial(t.params, t.number), "explore", self.rerun(t.params, self.search.seed))
            for t in explored
        ]
        params = {f"config-{trial.number}": trial.params for trial in explored}
        rows += [trial_row(one, "confirm", self.rerun(params[one.variant], one.seed)) for one in confirm or []]
        settings = {
            "dataset": self.basis.dataset.name,
            "recipe": self.basis.recipe.name,
            "variant": self.search.variant,
            "objective": self.search.objective,
            "sampler": self.search.sampler,
            "study": self.name,
            "seed": self.search.seed,
            **{name: list(getattr(self.search, name)) for name in ("adversarial", "conditional", "entropy", "zeros")},
            "splits": " ".join(self.space.splits),
            "vary": list(self.search.vary),
            "budget": self.search.budget,
            "width": self.search.width,
            "override": list(self.search.override),
        }
        write_manifest(
            self.store,
            key=self.key,
            title=self.title,
            command=command("search.py"),
            commit=self.commit,
            machine=self.machine,
            settings=settings,
            judges=self.objective.trial(self.space.known_good()).plan.judges,
            variants=[
                {"name": f"config-{t.number}", "title": f"{t.number}: {self.space.title(t.params)}", "paper": ""}
                for t in explored
            ],
            trials=rows,
            more={
                "paper_real": REAL_DATA_PAPER,
                "search": None,
                "default": "",
                "explored": len(explored),
                "plots": f"{self.key}-plots",
            },
        )

    def options(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """A config as options of sweeps/ablation.py."""
        from sweeps.space import SPLITS

        weights = self.space.loss_weights(dict(params))
        varied = [f"{one.field}={params[one.field]!r}" for one in self.space.varied]
        return tuned.options_of(
            self.search,
            self.basis,
            cuts=SPLITS[params["split"]],
            weights=dataclasses.astuple(weights),
            override=[*self.search.override, *varied],
        )

    def rerun(self, params: Mapping[str, Any], seed: int) -> str:
        """The options of sweeps/ablation.py that run a config again."""
        from sweeps.sweep import Sweep

        values = {name: tuple(v) if isinstance(v, list) else v for name, v in self.options(params).items()}
        chosen = {"variants": (self.search.variant,), "seeds": 1, "first_seed": seed, "data": self.search.data}
        return tuned.words(Sweep(**values, **chosen))

    def write_best(self, study: "optuna.Study", confirm: "list[Trial]") -> tuple[Path, str] | None:
        """Write best.yaml; returns it and the config's name, None where no config was confirmed."""
        import statistics

        scores, worst = self.objective.scores, {score: FLOOR[score] for score in self.objective.scores}
        costs, told = {}, {}
        for name in dict.fromkeys(trial.variant for trial in confirm):
            outcomes = [outcome(trial, self.store, scores) for trial in confirm if trial.variant == name]
            if None in outcomes:
                continue  # a machine failed it: the same command tries it again
            sign = {"maximize": -1, "minimize": 1}
            values = [
                [value for value, _ in zip(one.values or worst.values(), scores, strict=True)]
                for one in outcomes
                if one
            ]
            means = [statistics.fmean(column) for column in zip(*values, strict=True)]
            costs[name] = [sign[self.directions[score]] * mean for score, mean in zip(scores, means, strict=True)]
            told[name] = [trial for trial in confirm if trial.variant == name]
        if not costs:
            return None
        front = [name for name in costs if not any(_dominates(other, costs[name]) for other in costs.values())]
        winner = min(front, key=lambda name: costs[name][-2] if len(scores) > 1 else costs[name][0])
        trials = told[winner]
        number = int(winner.removeprefix("config-"))
        params = next(trial.params for trial in study.get_trials(deepcopy=False) if trial.number == number)
        facts = [self.store.facts(trial.plan.name)["scores"] for trial in trials if self.store.has(trial.plan.name)]
        summary = {}
        for score in ("inception_score", "fid", "diversity"):
            values = [found[score] for found in facts if found.get(score) is not None]
            spread = statistics.stdev(values) if len(values) > 1 else None
            summary[score] = {"mean": statistics.fmean(values) if values else None, "std": spread, "n": len(values)}
        provenance = {
            "study": self.name,
            "trial": number,
            "commit": self.commit,
            "command": command("search.py"),
            "objective": self.search.objective,
            "explored": {"configs": len(study.get_trials(deepcopy=False)), "seed": self.search.seed},
            "confirmed": {"seeds": [trial.seed for trial in trials], **summary},
        }
        path = self.store.root / BEST
        config = dataclasses.replace(trials[0].config)
        options = self.options(params)
        tuned.Tuned(self.search.variant, options, tuple(self.search.override), config, provenance).write(path)
        self.store.save(path)
        return path, winner


def _dominates(one: list[float], other: list[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


def main(search: Search) -> int:
    """Run a search; returns the exit status: 0, 1 where a trial failed or the record could not be sent, or 130 where it
    was stopped.

    Raises:
        ConfigError, StoreError: a bad option, data that are absent or torn, a store or a study that cannot be opened.
    """
    print("starting Ray ...", flush=True)
    from sweeps import schedule, tracking

    store = open_store(search.store)
    if search.dataset != "auto":
        search.space(prepare(search, gpus=0))  # a bad option ends here, before Ray starts
    schedule.connect()
    slots = schedule.slots(search.slots, search.trials_per_gpu)
    basis = prepare(search, slots.all_gpus)
    uri = search.mlflow or tracking.default_uri(store)
    running = Running(search, basis, search.space(basis), store, slots, uri)
    with store.alone(f"search-{running.key}") as alone:
        require(
            alone,
            f"this search runs already in another process on the store {store.root}; wait for it, stop it, or name "
            "another store or --seed",
        )
        return _run(running, store, slots, uri)


def _run(running: Running, store: "Store", slots: "Slots", uri: str) -> int:
    from sweeps import tracking, trials
    from sweeps.bridge import reconcile

    study = running.open()
    left = reconcile(study)
    plan = running.plan(study)
    print_plan(running, study, plan, left)
    if running.search.dry_run:
        return 0
    if running.basis.inception_weights:
        store.keep_weights(running.basis.inception_weights, running.basis.inception)
    running.record(study)
    before = study.user_attrs.get("seconds", 0.0)
    uploader = tracking.start(store, running.key, uri)
    confirm: list[Trial] = []
    failed: list[int] = []
    stopped = True
    try:
        failed = running.explore(study, plan)
        waiting = any(not trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
        if not waiting or failed:
            confirm = running.confirm(study, plan)
            stopped = any(not trials.ended(one, store) and not store.failure(one.plan.name).exists() for one in confirm)
        from sweeps import plots

        plots.draw(study, running.space, store.root / "sweeps" / f"{running.key}-plots", list(running.directions))
        running.record(study, confirm)
    finally:
        spent = time.monotonic() - running.began
        study.set_user_attr("seconds", before + spent)
        sent = tracking.finish(uploader)
    if stopped:
        print("\nStopped with trials open; the same command goes on where they are.")
        return INTERRUPTED
    print(account(running, study, confirm, plan, spent))
    best = running.write_best(study, confirm)
    if not sent:
        print(tracking.unsent(store, running.key, uri))
        return 1
    from sweeps import report

    found = report.read(uri, running.key, dict.fromkeys(one.variant for one in confirm), {one.seed for one in confirm})
    table = report.markdown(found)
    (store.root / TABLE).write_text(table)
    store.save(store.root / TABLE)
    print(f"\n{table}\nWritten to {store.root / TABLE}")
    if best:
        path, winner = best
        print(f"Best: {winner}, in {path}. The six variants with it:\n  python sweeps/ablation.py --config {path}")
    print(f"Open MLflow: {tracking.ui_command(store, uri)}")
    if not running.search.study_storage:
        print(f"Open the study: optuna-dashboard {store.root / STUDIES}", flush=True)
    open_trials = [one for one in confirm if not trials.ended(one, store)]
    return 1 if failed or open_trials or not best else 0


def print_plan(running: Running, study: "optuna.Study", plan: Plan, left: int) -> None:
    """Say what is to be done, what it takes and what it costs, before anything is done."""
    from sweeps.trials import clock

    space, search, estimate = running.space, running.search, plan.estimate
    trials = study.get_trials(deepcopy=False)
    finished = sum(trial.state.is_finished() for trial in trials)
    print(f"{running.title}\n  why      {running.basis.why}")
    print(
        f"  space    {len(space.splits)} splits, losses {' or '.join(space.losses)}, "
        + ", ".join(
            f"{name} {low:g} to {high:g}"
            for name, (low, high) in zip(("adversarial", "conditional", "entropy"), space.ranges, strict=True)
            if name in space.weights
        )
        + "".join(f", {one.field} {one.low:g} to {one.high:g}" for one in space.varied)
    )
    print(
        f"  study    {running.name}: {finished} trials finished" + (f", {left} interrupted ones go on" if left else "")
    )
    print(f"  explore  {plan.explored} configs at seed {search.seed}, sampler {search.sampler}")
    first = search.seed + 1
    print(f"  confirm  the best {plan.best} on {plan.seeds} fresh seeds, {first} to {first + plan.seeds - 1}")
    print(f"  slots    {running.slots.count} trials at a time on {running.slots.where}")
    print(
        f"  time     about {clock(estimate.median)} (nine in ten: {clock(estimate.low)} to {clock(estimate.high)}), "
        f"from measured steps; sharing stages saves about {clock(estimate.saved)} of stage time"
    )
    if search.gpu_hour_price:
        price = search.gpu_hour_price * running.units / 3600
        unit = f"{running.units} {'GPU' if running.slots.all_gpus else 'node'}{'s' * (running.units > 1)}"
        print(
            f"  cost     about {estimate.median * price:.2f} ({estimate.low * price:.2f} to "
            f"{estimate.high * price:.2f}) for {unit} at {search.gpu_hour_price:g} an hour"
        )
    print(f"  store    {running.store.address}", flush=True)


def account(running: Running, study: "optuna.Study", confirm: "list[Trial]", plan: Plan, spent: float) -> str:
    """Predicted against actual time and cost, and what sharing saved."""
    from sgan.stages import name
    from sweeps.trials import clock

    explored = [running.objective.trial(t.params) for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
    stages = [name(stage) for one in [*explored, *confirm] for _, stage in one.plan.stages]
    seconds = {each: running.store.facts(each).get("seconds", 0.0) for each in set(stages) if running.store.has(each)}
    each_alone = sum(seconds.get(each, 0.0) for each in stages)
    lines = [
        f"\nPredicted {clock(plan.estimate.median)} ({clock(plan.estimate.low)} to {clock(plan.estimate.high)}), took "
        f"{clock(spent)}; {clock(study.user_attrs['seconds'])} in all.",
        f"Stages took {clock(sum(seconds.values()))}; sharing them between trials saved "
        f"{clock(each_alone - sum(seconds.values()))}.",
    ]
    if running.search.gpu_hour_price:
        price = running.search.gpu_hour_price * running.units / 3600
        lines.append(f"Predicted cost {plan.estimate.median * price:.2f}, actual {spent * price:.2f}.")
    return "\n".join(lines)


def run() -> int:
    """The command line: a bad value ends in one line and exit status 2."""
    try:
        search = tyro.cli(Search, prog="python sweeps/search.py")
        return detach.run(lambda: main(search), search, "search.py")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(run())
