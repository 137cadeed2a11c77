"""The search: Optuna over loss weights and stack splits, ending in a config that is confirmed on fresh seeds.

python sweeps/search.py [--help]
"""

import functools
import math
import sys
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from pydantic import Field, PositiveFloat, PositiveInt

from sgan.checks import ConfigError, one_of, require, validated
from sgan.presets import VARIANTS
from sgan.store.s3 import open_store
from sweeps.execution import jobs as detach
from sweeps.execution import start
from sweeps.optimization.budget import Limits
from sweeps.planning.manifest import command, without_password
from sweeps.planning.options import INTERRUPTED, Address, Options, flag, status, valid

if TYPE_CHECKING:
    import optuna

    from sweeps.mlflow_view import follow as uploader
    from sweeps.optimization.phases import Plan, Running
    from sweeps.optimization.space import Space
    from sweeps.planning.basis import Basis
    from sweeps.planning.trials import Trial

TABLE = "SEARCH.md"
DEFAULT_TRIALS = 20


@validated(flag)
class Search(Options):
    """Search loss weights and stack splits: explore many configs at one seed, then confirm the best on fresh seeds.

    It ends in best.yaml in the store, which sweeps/ablation.py --config runs. The same command goes on where it was;
    with more --trials or --hours a finished search is extended.
    """

    variant: Annotated[str, one_of(*VARIANTS)] = "sgan"
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
    trials: Annotated[int, Field(ge=3)] | None = None
    """Trials in all: about 70 % explore, the rest confirm. Without this, --hours and --max-cost: 20."""
    hours: PositiveFloat | None = None
    """About so many hours of wall time in all, of which the last trial may take a little more."""
    max_cost: PositiveFloat | None = None
    """About this cost in all; needs --gpu-hour-price."""
    gpu_hour_price: PositiveFloat | None = None
    """Price of an hour of one GPU, or of one node where there is no GPU."""
    top: PositiveInt | None = None
    """How many of the best configs are confirmed; without it as many as the budget carries, at most 5."""
    confirm_seeds: Annotated[int, Field(ge=2, le=100)] | None = None
    """On how many fresh seeds each; without it 2 to 5, by the budget."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 200)] = 1000
    """The seed that explores; the next ones confirm. Another one is another search."""
    study_storage: Address | None = None
    """Address of a database for Optuna's study, such as postgresql://user@host/name; without it a journal file in the
    store."""

    def __post_init__(self):
        super().__post_init__()
        require(
            self.max_cost is None or self.gpu_hour_price is not None,
            f"--max-cost {self.max_cost} needs --gpu-hour-price, the price of an hour of one GPU",
        )
        require(
            not (self.early_stop and self.objective == "pareto"),
            "--early-stop compares one score; choose --objective inception-score or fid, or leave it out",
        )
        from sweeps.optimization.space import check, parse_varied  # Optuna, which --help does not need

        check(self.variant, self.chosen_splits, self.ranges, self.zeros)
        for text in self.vary:
            valid(functools.partial(parse_varied, text, recipe) for recipe in self.recipes())

    @property
    def chosen_splits(self) -> tuple[str, ...]:
        """The splits by name, also where all are chosen."""
        from sweeps.optimization.space import ALL, splits_of

        return splits_of(self.variant) if self.splits == (ALL,) else self.splits

    @property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """The range of each weight."""
        return self.adversarial, self.conditional, self.entropy

    def limits(self, units: int) -> Limits:
        """What the search may use where so many GPUs, or nodes without one, are paid for."""
        seconds = math.inf if self.hours is None else self.hours * 3600
        if self.max_cost is not None and self.gpu_hour_price is not None:
            seconds = min(seconds, self.max_cost / (self.gpu_hour_price * units) * 3600)
        trials = self.trials or (DEFAULT_TRIALS if math.isinf(seconds) else math.inf)
        return Limits(trials, seconds)

    def space(self, basis: "Basis") -> "Space":
        """The search space on a basis; ConfigError where it is not valid."""
        from sweeps.optimization.space import Space, parse_varied

        row = VARIANTS[self.variant].variant
        return Space(
            self.variant,
            basis.config(row, self.seed),
            basis.recipe,
            self.chosen_splits,
            self.ranges,
            self.zeros,
            tuple(parse_varied(text, basis.recipe) for text in self.vary),
        )


def main(search: Search) -> int:
    """Run a search; returns the exit status: 0, 1 where a trial failed, no config could be confirmed or the record
    could not be sent, or 130 where it was stopped.

    Raises:
        ConfigError, StoreError: a bad option, data that are absent or torn, a store or a study that cannot be opened.
    """
    store = open_store(search.store)
    slots, (basis, space) = start.prepare(lambda gpus: _chosen(search, gpus), search.slots, search.trials_per_gpu)
    from sweeps.optimization.bridge import reconcile
    from sweeps.optimization.phases import Running

    running = Running(search, basis, space, store, slots)
    with store.alone(f"search-{running.key}") as alone:
        require(
            alone,
            f"this search runs already in another process on the store {store.address}; wait for it, stop it, or name "
            "another store or --seed",
        )
        study = running.open()
        left = reconcile(study)
        plan = running.plan(study)
        print_plan(running, study, plan, left)
        return 0 if search.dry_run else carry_out(running, study, plan)


def _chosen(search: Search, gpus: int) -> "tuple[Basis, Space]":
    from sweeps.planning.basis import prepare

    basis = prepare(search, gpus)
    return basis, search.space(basis)


def carry_out(running: "Running", study: "optuna.Study", plan: "Plan") -> int:
    """Run both phases and publish; returns the exit status."""
    from sweeps.execution import sharing
    from sweeps.mlflow_view import connection
    from sweeps.mlflow_view import follow as uploader
    from sweeps.optimization import best_config as publish
    from sweeps.optimization import plots
    from sweeps.planning import trials

    store = running.store
    sharing.check(store, running.key)
    if running.basis.inception_weights:
        store.keep_weights(running.basis.inception_weights, running.basis.inception)
    uri = running.search.mlflow or connection.default_uri(store)
    publish.record(running, study)
    sender = uploader.start(store, running.key, uri)
    confirm, best, stopped = [], None, True
    try:
        store.note("search started", search=running.key, command=command("search.py"))
        failed = running.explore(study, plan)
        waiting = {each.number for each in study.get_trials(deepcopy=False) if not each.state.is_finished()}
        if waiting <= set(failed):
            confirm = running.confirm(study, plan)
            stopped = any(not trials.ended(one, store) and not store.failure(one.plan.name).exists() for one in confirm)
            best = publish.write_best(running, study, confirm)
        plots.draw(study, running.space, publish.plots_folder(running), list(running.directions))
        store.save(publish.plots_folder(running))
        publish.record(running, study, confirm)
        store.note("search ended", search=running.key)
    finally:
        running.spent(study)
        sent, table = uploader.finish(sender, asked_of(running, confirm))
    if stopped:
        print("\nStopped with trials open; the same command goes on where they are.")
        return INTERRUPTED
    print(f"\n{publish.account(running, study, confirm, plan)}")
    shown = conclude(running, uri, sent, table)
    if best:
        print(f"Best: {best.config}, in {best.path}. The six variants with it:")
        print(f"  python sweeps/ablation.py --config {best.path}")
        if best.wrong:
            told = ", ".join(f"{seed} {how}" for seed, how in best.wrong.items())
            print(f"  Not on every seed: {told}. --objective fid sees what Inception score does not.")
    else:
        print(nothing_confirmed(study, confirm))
    if not running.search.study_storage:
        print(f"Open the study: optuna-dashboard {running.place}", flush=True)
    return 0 if shown and best and not failed and all(trials.ended(one, store) for one in confirm) else 1


def asked_of(running: "Running", confirm: "list[Trial]") -> "uploader.Table | None":
    """The table of the confirmed configs, to be asked for; None where there are none."""
    from sweeps.mlflow_view import follow as uploader
    from sweeps.optimization import best_config as publish

    plots = publish.plots_folder(running).relative_to(running.store.root)
    variants, seeds = dict.fromkeys(one.variant for one in confirm), dict.fromkeys(one.seed for one in confirm)
    return uploader.Table([*variants], [*seeds], str(plots)) if confirm else None


def conclude(running: "Running", uri: str, sent: int, table: str) -> bool:
    """Write the table of the confirmed configs into the store and print it; whether MLflow has all of it. ConfigError
    where there can be no table.

    Args:
        sent, table: how the uploader ended, and what it made.
    """
    from sweeps.mlflow_view import connection
    from sweeps.mlflow_view import follow as uploader

    store = running.store
    if sent == uploader.NO_TABLE:
        raise ConfigError(uploader.said(store, running.key))
    if sent != uploader.SENT:
        print(uploader.unsent(store, running.key, uri))
        return False
    if table:
        (store.root / TABLE).write_text(table)
        store.save(store.root / TABLE)
        print(f"\n{table}\nWritten to {store.root / TABLE}")
    print(f"Open MLflow: {connection.pages(uri)}")
    return True


def nothing_confirmed(study: "optuna.Study", confirm: "list[Trial]") -> str:
    """Why there is no best config, and what to do."""
    from sweeps.optimization.bridge import OUTCOME
    from sweeps.optimization.study import finished

    if confirm:
        return "No config was confirmed on all of its seeds; the same command tries again what failed."
    ends = [each.user_attrs.get(OUTCOME, "unknown") for each in finished(study)]
    told = ", ".join(f"{ends.count(end)} {end}" for end in sorted(set(ends))) or "none has ended"
    return (
        f"There is no config to confirm: of the {len(ends)} that were explored, {told}. Train longer (--budget), or "
        "search elsewhere (--splits, --adversarial, --conditional, --entropy)."
    )


def print_plan(running: "Running", study: "optuna.Study", plan: "Plan", left: int) -> None:
    """Say what is to be done, what it takes and what it costs, before anything is done."""
    from sweeps.optimization.space import WEIGHTS
    from sweeps.optimization.study import finished
    from sweeps.planning.trials import clock

    space, search, estimate = running.space, running.search, plan.estimate
    print(f"{running.title}\n  why      {running.basis.why}")
    print(
        f"  space    {len(space.splits)} splits, losses {' or '.join(space.losses)}, "
        + ", ".join(
            f"{name} {low:g} to {high:g}"
            for name, (low, high) in zip(WEIGHTS, space.ranges, strict=True)
            if name in space.weights
        )
        + "".join(f", {one.field} {one.low:g} to {one.high:g}" for one in space.varied)
    )
    print(
        f"  study    {running.name} in {without_password(str(running.place))}: {len(finished(study))} trials finished"
        + (f", {left} interrupted ones go on" if left else "")
    )
    print(f"  explore  {plan.explored} configs at seed {search.seed}, sampler {search.sampler}")
    first = search.seed + 1
    print(f"  confirm  the best {plan.best} on {plan.seeds} fresh seeds, {first} to {first + plan.seeds - 1}")
    print(f"  slots    {running.slots.count} trials at a time on {running.slots.where}")
    print(
        f"  time     about {clock(estimate.median)} (nine in ten: {clock(estimate.low)} to {clock(estimate.high)}), "
        f"from measured steps; sharing stages saves about {clock(plan.saved)} of stage time"
    )
    if search.gpu_hour_price:
        price = search.gpu_hour_price * running.units / 3600
        unit = f"{running.units} {'GPU' if running.slots.all_gpus else 'node'}{'s' * (running.units > 1)}"
        print(
            f"  cost     about {estimate.median * price:.2f} ({estimate.low * price:.2f} to "
            f"{estimate.high * price:.2f}) for {unit} at {search.gpu_hour_price:g} an hour"
        )
    print(f"  store    {running.store.address}", flush=True)


def run() -> int:
    """The command line."""

    def command() -> int:
        search = tyro.cli(Search, prog="python sweeps/search.py")
        return detach.run(lambda: main(search), search, "search.py")

    return status(command)


if __name__ == "__main__":
    sys.exit(run())
