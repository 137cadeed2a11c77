"""Runs a search: its plan, both phases, best.yaml, the plots and the table."""

import tempfile
import time
from contextlib import nullcontext, suppress

import torch

from sgan.addresses import masked
from sgan.checks import require
from sgan.command_line import INTERRUPTED
from sgan.host import processor
from sgan.stages.graph import code_version
from sgan.stages.probe import seconds_per_unit
from sgan.store.local import Store
from sgan.store.s3 import find_store, open_store
from sweeps.execution import scheduler
from sweeps.execution.cluster import Slots, count_slots, join_cluster
from sweeps.execution.shared_store import require_shared_store
from sweeps.execution.worker import Job
from sweeps.mlflow_view import follow
from sweeps.mlflow_view.connection import address_of, default_uri, pages, warn_if_away
from sweeps.optimization import plots
from sweeps.optimization.best_config import account, write_best
from sweeps.optimization.phases import Plan, SearchRun
from sweeps.optimization.search_options import Search
from sweeps.optimization.searcher import Searcher
from sweeps.optimization.space import WEIGHTS
from sweeps.optimization.study import OUTCOME
from sweeps.planning import manifest
from sweeps.planning.basis import prepare
from sweeps.planning.options import STOPPED_SECONDS
from sweeps.planning.trials import ListSource, clock
from sweeps.reporting import document


def main(search: Search) -> int:
    """Run a search; returns the exit status: 0, 1 where a trial failed, no config could be confirmed or MLflow does
    not have all of it, or 130 where it was stopped.

    Raises:
        ConfigError, StoreError: a bad option, data that are absent or torn, a store or a study that cannot be opened.
    """
    address_of(search.mlflow)
    if not search.dry_run:
        print("starting Ray ...", flush=True)
        join_cluster()
    slots = count_slots(search.slots, search.trials_per_gpu)
    basis = prepare(search, slots.all_gpus)
    with tempfile.TemporaryDirectory() as folder:  # a dry run makes no store
        store = (find_store(search.store) or Store(folder)) if search.dry_run else open_store(search.store)
        run = SearchRun(search, basis, store, slots.count, slots.all_gpus or slots.nodes)
        with nullcontext(True) if search.dry_run else store.alone(f"search-{run.key}") as alone:
            require(
                alone,
                f"this search runs already in another process on the store {store.address}; wait for it, stop it, or "
                "name another store or --seed",
            )
            searcher = run.searcher()
            made = run.plan(searcher, lambda: probe(run, slots))
            print_plan(run, searcher, made, slots)
            return 0 if search.dry_run else carry_out(run, searcher, made, slots)


def probe(run: SearchRun, slots: Slots) -> float:
    """Seconds of a unit of cost on this machine."""
    device = "cuda" if slots.gpus and torch.cuda.is_available() else "cpu"
    torch.set_num_threads(slots.cpus)
    return seconds_per_unit(next(iter(run.templates.values())), run.basis.data.to(device), device)


def print_plan(run: SearchRun, searcher: Searcher, made: Plan, slots: Slots) -> None:
    """Print what is to run, its time and its cost."""
    space, search, estimate = run.space, run.options, made.estimate
    ranges = [
        f"{name} {low:g} to {high:g}"
        for name, (low, high) in zip(WEIGHTS, space.ranges, strict=True)
        if name in space.weights
    ]
    ranges += [f"{field} {each.low:g} to {each.high:g}" for field, each in space.varied]
    left = f", {len(searcher.waiting)} interrupted ones go on" if searcher.waiting else ""
    first = search.seed + 1
    print(f"{run.title}\n  why      {run.basis.why}")
    print(f"  space    {len(space.splits)} splits, losses {' or '.join(space.losses)}, {', '.join(ranges)}")
    print(f"  study    {run.name}: {searcher.ended} trials finished{left}")
    print(f"  explore  {made.explored} configs at seed {search.seed}, sampler {search.sampler}")
    print(f"  confirm  the best {made.best} on {made.seeds} fresh seeds, {first} to {first + made.seeds - 1}")
    print(f"  slots    {slots.count} stages at a time on {slots.where}")
    print(f"  time     about {clock(estimate.median)} (nine in ten: {clock(estimate.low)} to {clock(estimate.high)})")
    if search.gpu_hour_price:
        price = search.gpu_hour_price * run.units / 3600
        unit = f"{run.units} {'GPU' if slots.all_gpus else 'node'}{'s' * (run.units > 1)}"
        print(
            f"  cost     about {estimate.median * price:.2f} ({estimate.low * price:.2f} to "
            f"{estimate.high * price:.2f}) for {unit} at {search.gpu_hour_price:g} an hour"
        )
    print(f"  store    {masked(search.store)}", flush=True)


def carry_out(run: SearchRun, searcher: Searcher, made: Plan, slots: Slots) -> int:
    """Run both phases, and leave best.yaml, plots and table; returns the exit status."""
    store, search, began = run.store, run.options, time.monotonic()
    require_shared_store(store, run.key)
    if run.basis.inception_weights:
        store.keep_weights(run.basis.inception_weights, run.basis.inception)
    address = address_of(search.mlflow)
    if address:
        warn_if_away(address)
    uri, command, commit = address or default_uri(store), manifest.command("search.py"), manifest.commit()
    run.begin(searcher, command, commit, f"{processor()}, {slots.where}")
    job = Job(run.basis.data, store.address, run.key, commit, code_version(), slots, search.deterministic)
    follower = follow.start(store, run.key, uri)
    store.note("search started", search=run.key, command=command)
    confirmed, best, sweep = [], None, None
    finished = scheduler.run(searcher, job, store, slots)
    if finished:
        confirmed = run.confirm(searcher, made)
        print(f"confirming {' '.join(one.title for one, _ in confirmed)}", flush=True)
        finished = scheduler.run(ListSource([one for one, _ in confirmed], store), job, store, slots)
        best = write_best(run, searcher, confirmed)
    with suppress(OSError):  # a full disk; the same command makes them again
        plots.draw(searcher.study, run.space, run.plots, run.scores)
        run.end(searcher)
    try:  # MLflow shows the report, too
        if finished:
            variants, seeds = {one.variant for one, _ in confirmed}, {one.seed for one, _ in confirmed}
            sweep = document.keep(store, run.key, search.store, variants, seeds)
    finally:
        unsent = follow.finish(follower, store, run.key, uri, None if finished else STOPPED_SECONDS)
    store.note("search ended", search=run.key)
    if sweep is None:
        print("\nStopped with trials open; the same command goes on where they are.")
        return INTERRUPTED
    print(f"\n{account(run, made, time.monotonic() - began)}")
    print(f"Open the study: optuna-dashboard {masked(str(run.study_place))}")
    if best:
        print(f"Best: {best.config}, in {best.path}.")
        if best.wrong:
            wrong = ", ".join(f"{seed} {how}" for seed, how in best.wrong.items())
            print(f"  Not on every seed: {wrong}. --objective fid sees what Inception score does not.")
    then = f"python sweeps/ablation.py --config {best.path}" if best else nothing_confirmed(searcher, bool(confirmed))
    document.ending(sweep, unsent or pages(uri, run.key), then)
    complete = all(run.outcome(row) for _, row in confirmed)
    return 0 if best and complete and not unsent and not searcher.failed else 1


def nothing_confirmed(searcher: Searcher, tried: bool) -> str:
    """Why there is no best config, and what to do."""
    if tried:
        return "No config was confirmed on all of its seeds; the same command tries again what failed."
    ends = [each.user_attrs.get(OUTCOME, "failed") for each in searcher.study.get_trials(deepcopy=False)]
    counts = ", ".join(f"{ends.count(end)} {end}" for end in sorted(set(ends))) or "none has ended"
    return (
        f"There is no config to confirm: of the {len(ends)} that were explored, {counts}. Train longer (--budget), or "
        "search elsewhere (--splits, --adversarial, --conditional, --entropy)."
    )
