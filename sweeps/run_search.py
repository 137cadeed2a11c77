"""Runs a search: its plan, both phases, best.yaml and the report."""

import collections
import shlex
import tempfile
import time
from contextlib import nullcontext, suppress

from sgan.addresses import masked
from sgan.checks import require
from sgan.command_line import INTERRUPTED
from sgan.store.local import Store
from sgan.store.s3 import find_store, open_store
from sweeps.execution.cluster import Slots
from sweeps.execution.worker import measured_here, measured_in_a_slot
from sweeps.frame import Frame, join
from sweeps.optimization.phases import Plan, SearchRun
from sweeps.optimization.search_options import Search
from sweeps.optimization.searcher import Row, Searcher
from sweeps.optimization.space import WEIGHTS
from sweeps.optimization.study import OUTCOME
from sweeps.planning.basis import prepare
from sweeps.planning.trials import ListSource, Trial, clock


def main(search: Search) -> int:
    """Run a search; returns the exit status: 0, 1 where a trial failed, no config could be confirmed or MLflow does
    not have all of it, or 130 where it was stopped.

    Raises:
        ConfigError, StoreError: a bad option, data that are absent or torn, a store or a study that cannot be opened.
    """
    slots = join(search)
    basis = prepare(search, slots.all_gpus)
    with tempfile.TemporaryDirectory() as folder:  # a dry run makes no store
        store = (find_store(search.store) or Store(folder)) if search.dry_run else open_store(search.store)
        run = SearchRun(search, basis, store, slots.count)
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
    """Seconds of a unit of cost, in a slot; a dry run measures in this process."""
    measure = measured_here if run.options.dry_run else measured_in_a_slot
    return measure(next(iter(run.templates.values())), run.basis.data, slots)


def print_plan(run: SearchRun, searcher: Searcher, made: Plan, slots: Slots) -> None:
    """Print what is to run, and its time."""
    space, search = run.space, run.options
    ranges = [
        f"{name} {low:g} to {high:g}"
        for name, (low, high) in zip(WEIGHTS, space.ranges, strict=True)
        if name in space.weights
    ]
    ranges += [f"{field} {each.low:g} to {each.high:g}" for field, each in space.varied]
    left = f", {len(searcher.waiting)} interrupted ones go on" if searcher.waiting else ""
    seeds = f"{made.seeds} fresh seeds, {search.seed + 1} to {search.seed + made.seeds}"
    low, mean, high = map(clock, made.seconds)
    print(f"{run.title}\n  why      {run.basis.why}")
    print(f"  space    {len(space.splits)} splits, losses {' or '.join(space.losses)}, {', '.join(ranges)}")
    print(f"  study    {run.name}: {searcher.ended} trials finished{left}")
    print(f"  explore  {made.explored} configs at seed {search.seed}")
    print(f"  confirm  the best {made.best} and the default config on {seeds}")
    print(f"  slots    {slots.count} stages at a time on {slots.where}")
    print(f"  time     about {mean} ({low} where all have the shortest split, {high} where all have the longest)")
    print(f"  store    {masked(search.store)}", flush=True)


def carry_out(run: SearchRun, searcher: Searcher, made: Plan, slots: Slots) -> int:
    """Run both phases, and leave best.yaml and the report; returns the exit status."""
    began, frame = time.monotonic(), Frame("search.py", run.options, run.store, run.key, run.basis, slots)
    run.begin(searcher, frame.origin)
    frame.start()
    confirmed: list[tuple[Trial, Row]] = []
    best, finished = None, frame.run(searcher)
    if finished:
        confirmed = run.confirm(searcher, made)
        if confirmed:
            print(f"confirming {' '.join(one.title for one, _ in confirmed)}", flush=True)
            finished = frame.run(ListSource([one for one, _ in confirmed], run.store))
        best = run.write_best(searcher, confirmed)
    with suppress(OSError):  # a full disk; the same command writes it again
        run.end(searcher)
    sweep, unsent = frame.end(finished, {one.variant for one, _ in confirmed}, {one.seed for one, _ in confirmed})
    if sweep is None:
        print("\nStopped with trials open; the same command goes on where they are.")
        return INTERRUPTED
    print(f"\nPredicted {clock(made.seconds[1])}, took {clock(time.monotonic() - began)}.")
    print(f"Open the study: optuna-dashboard {shlex.quote(str(run.study_path))}")
    failed = any(run.outcome(row) is None for _, row in confirmed)
    then = nothing_confirmed(searcher, failed)
    if best:
        path, title = best
        print(f"Best: {title}, in {path}.")
        then = f"python sweeps/ablation.py --config {shlex.quote(str(path))}"
    frame.conclude(sweep, unsent, then)
    return 0 if best and not failed and not unsent and not searcher.failed else 1


def nothing_confirmed(searcher: Searcher, tried: bool) -> str:
    """Why there is no best config, and what to do."""
    if tried:
        return "No config was confirmed on all of its seeds; the same command tries again what failed."
    ends = collections.Counter(each.user_attrs.get(OUTCOME, "failed") for each in searcher.study.trials)
    counts = ", ".join(f"{count} {end}" for end, count in sorted(ends.items())) or "none has ended"
    return (
        f"There is no config to confirm: of the {ends.total()} that were explored, {counts}. Train longer (--budget), "
        "or search elsewhere (--splits, --adversarial, --conditional, --entropy)."
    )
