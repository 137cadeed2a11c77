"""Runs an ablation or a search: plans it, starts Ray and MLflow's process, runs the trials, and writes the report."""

import collections
import shlex
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress

from sgan.addresses import masked
from sgan.checks import require
from sgan.command_line import INTERRUPTED, python
from sgan.stages.run import processor
from sgan.store.local import Store
from sgan.store.s3 import find_store, open_store
from sweeps.execution import scheduler
from sweeps.execution.cluster import Slots, count_slots, join_cluster, require_shared_store
from sweeps.execution.worker import Job, measured_here, measured_in_a_slot
from sweeps.mlflow_view import follow
from sweeps.mlflow_view.connection import address_of, default_uri, pages, warn_if_away
from sweeps.optimization.phases import Plan, Searcher, SearchRun
from sweeps.optimization.search_options import Search
from sweeps.optimization.study import OUTCOME, Row, ended
from sweeps.planning import ablation, config_file, manifest
from sweeps.planning.basis import Basis, prepare
from sweeps.planning.options import Options, Sweep
from sweeps.planning.trials import ListSource, Trial, clock, state_of
from sweeps.reporting import document, results

STOPPED_SECONDS = 3.0  # A stopped command waits for MLflow at most this long


def run_ablation(options: Sweep) -> int:
    """Run an ablation. Returns the exit status: 0; 1 if a trial failed or MLflow did not get everything; 130 if it was
    stopped."""
    slots = join(options)
    planned = ablation.plan_ablation(options, slots.all_gpus)
    store = store_of(options)
    ablation.check_record(planned, store)
    print(ablation.summary(planned, store, slots.count, slots.where), flush=True)
    if options.dry_run:
        return 0
    frame = Frame(options, store, planned.key, planned.basis, slots)
    record = ablation.record(planned, frame.origin)
    manifest.write(store, record)
    frame.start()
    finished = scheduler.run(ListSource(planned.trials, store), frame.job, store)
    manifest.write(store, record)  # again: it may have been deleted
    sweep = frame.end(finished, planned.rows, options.seed_range)
    left = sum(state_of(store, trial.row).outcome in ("interrupted", "failed") for trial in planned.trials)
    if sweep is None:
        print(f"\nStopped with {left} trials open; the same command goes on where they are.")
        return INTERRUPTED
    then = f"{python()} sweeps/best.py {shlex.quote(options.store)}"
    document.ending(sweep, frame.unsent or pages(frame.uri, planned.key), then)
    return 1 if left or frame.unsent else 0


def run_search(search: Search) -> int:
    """Run a search. Returns the exit status: 0; 1 if a trial failed, no config could be confirmed or MLflow did not get
    everything; 130 if it was stopped."""
    slots = join(search)
    basis, store = prepare(search, slots.all_gpus), store_of(search)
    run = SearchRun(search, basis, store, slots.count)
    with nullcontext(True) if search.dry_run else only_one(store, f"search-{run.key}") as alone:
        running = f"another process already runs this search on the store {store.address}"
        require(alone, f"{running}; wait for it, stop it, or name another store or --seed")
        searcher, measure = run.searcher(), measured_here if search.dry_run else measured_in_a_slot
        made = run.plan(searcher, lambda: measure(next(iter(run.templates.values())), basis.data, slots))
        print_plan(run, searcher, made, slots)
        return 0 if search.dry_run else both_phases(run, searcher, made, slots)


@contextmanager
def only_one(store: Store, lock: str) -> Iterator[bool]:
    """Try to hold a lock, as `store.alone`; where another process holds it, its host may have died: wait that out."""
    until = time.monotonic() + store.expiry
    if store.expiry and not Store.held(store, lock) and store.held(lock):  # a lock of this host dies with its process
        print(f"another process has this search; waiting {store.expiry:g} s in case its host has died", flush=True)
        while store.held(lock) and time.monotonic() < until:
            time.sleep(1)
    with store.alone(lock) as alone:
        yield alone


def print_plan(run: SearchRun, searcher: Searcher, made: Plan, slots: Slots) -> None:
    """Print the plan of a search and its predicted time."""
    space, search = run.space, run.options
    ranges = [f"{name} {ends.low:g} to {ends.high:g}" for name, ends in space.ranges.items()]
    left = f", {len(searcher.waiting)} interrupted trials continue" if searcher.waiting else ""
    seeds = f"{made.seeds} fresh seeds, {search.seed + 1} to {search.seed + made.seeds}"
    print(f"{run.title}\n  why      {run.basis.why}")
    splits = f"{len(space.splits)} split{'s' * (len(space.splits) > 1)}"
    print(f"  space    {splits}, losses {' or '.join(space.losses)}, {', '.join(ranges)}")
    print(f"  study    {run.name}: {searcher.ended} trials finished{left}")
    print(f"  explore  {searcher.target} configs at seed {search.seed}")
    print(f"  confirm  the best {made.best} and the default config on {seeds}")
    print(f"  slots    {slots.count} stages at a time on {slots.where}")
    print(f"  time     about {clock(made.seconds)}")
    print(f"  store    {masked(search.store)}", flush=True)


def both_phases(run: SearchRun, searcher: Searcher, made: Plan, slots: Slots) -> int:
    """Run both phases of a search, and write best.yaml and the report; returns the exit status."""
    began, frame = time.monotonic(), Frame(run.options, run.store, run.key, run.basis, slots)
    run.begin(searcher, frame.origin)
    frame.start()
    confirmed: list[tuple[Trial, Row]] = []
    best, finished = None, scheduler.run(searcher, frame.job, run.store)
    if finished:
        confirmed = run.best(searcher, made.best, made.seeds)
        if confirmed:
            print(f"confirming {' '.join(one.title for one, _ in confirmed)}", flush=True)
            rows = [row for _, row in confirmed]
            source = ListSource([one for one, _ in confirmed], run.store, lambda: run.write(*rows))
            finished = scheduler.run(source, frame.job, run.store)
        best = run.write_best(searcher, confirmed)
    with suppress(OSError):  # a full disk; the same command writes it again
        run.write_head(searcher)
    sweep = frame.end(finished, {one.variant for one, _ in confirmed}, {one.seed for one, _ in confirmed})
    if sweep is None:
        print("\nStopped with trials open; the same command goes on where they are.")
        return INTERRUPTED
    print(f"\nPredicted {clock(made.seconds)}, took {clock(time.monotonic() - began)}.")
    print(f"Open the study (after make .venv/dev): optuna-dashboard {shlex.quote(str(run.study_path))}")
    failed = any(run.outcome(row) is None for _, row in confirmed)
    if best:
        print(f"{run.chosen} The best config is in {best}.")
        then = config_file.command(best, run.store, run.options)
    elif failed:
        then = "No config was confirmed on all of its seeds; the same command runs the failed trials again."
    elif confirmed:
        then = (
            "Every config that was tried on fresh seeds diverged or collapsed on all of them. Train longer (--budget), "
            "or search elsewhere (--splits, --adversarial, --conditional, --entropy)."
        )
    else:
        ends = collections.Counter(each.user_attrs[OUTCOME] for each in ended(searcher.study))
        ends["failed"] = searcher.failed
        counts = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()) if count) or "none has ended"
        then = (
            f"There is no config to confirm. Outcomes of the {ends.total()} explored: {counts}. Train longer "
            "(--budget), or search elsewhere (--splits, --adversarial, --conditional, --entropy)."
        )
    document.ending(sweep, frame.unsent or pages(frame.uri, run.key), then)
    return 0 if best and not failed and not frame.unsent and not searcher.failed else 1


def join(options: Options) -> Slots:
    """Join the cluster or start Ray; a dry run does neither. Returns the slots. ConfigError for a wrong --mlflow."""
    address_of(options.mlflow)
    if not options.dry_run:
        print("starting Ray ...", flush=True)
        join_cluster()
    return count_slots(options.slots, options.trials_per_gpu)


def store_of(options: Options) -> Store:
    """The output store, which is created if it does not exist; a dry run creates nothing."""
    if options.dry_run:
        return find_store(options.store) or Store(options.store, there=True)
    return open_store(options.store)


class Frame:
    """The work around the trials of an ablation or a search. `origin`: the record's command, commit and machine.
    `unsent`: after `end`, what MLflow did not get, in words. ConfigError if the hosts do not share the store."""

    def __init__(self, options: Options, store: Store, key: str, basis: Basis, slots: Slots):
        self.options, self.store, self.key, self.unsent = options, store, key, ""
        address, commit = address_of(options.mlflow), manifest.commit()
        self.uri = address or default_uri(store)
        machine = f"{processor()}, {slots.where}"
        self.origin = {"command": manifest.command(), "commit": commit, "machine": machine}
        self.job = Job(basis.data, store.address, key, commit, slots, options.deterministic)
        require_shared_store(store, key)
        if basis.judge_weights:
            store.keep_weights(basis.judge_weights, basis.judge_digest)
        if address:
            warn_if_away(address)

    def start(self) -> None:
        """Start the process that sends the trials to MLflow; the sweep's record must exist."""
        self.store.note("sweep started", sweep=self.key, command=self.origin["command"])
        self.follower = follow.start(self.store, self.key, self.uri)

    def end(self, finished: bool, variants: Collection[str], seeds: Collection[int]) -> results.Sweep | None:
        """Write the report, and wait until MLflow has it, too. Returns the sweep as read from the store, or None if the
        command was stopped."""
        sweep = None
        try:
            if finished:
                sweep = document.keep(self.store, self.key, self.options.store, variants, seeds)
        finally:
            wait = None if finished else STOPPED_SECONDS
            self.unsent = follow.finish(self.follower, self.store, self.key, self.uri, wait)
        self.store.note("sweep ended", sweep=self.key)
        return sweep
