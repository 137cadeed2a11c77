"""Runs an ablation or a search: plans it, starts Ray and MLflow's process, runs the trials, and writes the report."""

import collections
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TypeVar

from sgan.addresses import masked
from sgan.checks import ConfigError, require
from sgan.command_line import INTERRUPTED, ROOT, python
from sgan.stages.cost import recorded_rate
from sgan.stages.run import processor
from sgan.store.files import lack
from sgan.store.local import Store
from sgan.store.s3 import find_store, open_store
from sweeps.execution import scheduler
from sweeps.execution.cluster import Slots, count_slots, join_cluster, require_shared_store
from sweeps.execution.worker import Job, measured_here, measured_in_a_slot
from sweeps.mlflow_view import follow
from sweeps.mlflow_view.connection import address_of, default_uri, pages, warn_if_away
from sweeps.optimization.phases import Plan, SearchRun
from sweeps.optimization.search_options import Search
from sweeps.optimization.study import OUTCOME, ended
from sweeps.planning import ablation, config_file, manifest
from sweeps.planning.ablation import Ablation
from sweeps.planning.basis import prepare
from sweeps.planning.options import Options, Sweep
from sweeps.planning.trials import ListSource, Trial, clock, state_of
from sweeps.reporting import document, results

Made = TypeVar("Made")
PAUSE = 10.0  # Seconds between two looks at a disk in trouble
STOPPED_SECONDS = 3.0  # A stopped command waits for MLflow at most this long


def run_ablation(options: Sweep) -> int:
    """Run an ablation. Returns the exit status: 0; 1 if a trial failed or MLflow did not get everything; 130 if it was
    stopped."""
    slots = join(options)
    planned, store = ablation.plan_ablation(options, slots.all_gpus), store_of(options)
    ablation.check_record(planned, store)
    lines = ablation.summary(planned, store)
    if options.dry_run:  # while trials run, a line says how long they will still take
        rate = recorded_rate(store, (stage for one in planned.trials for _, stage in one.plan.stages))
        rate = rate or measured_here(planned.trials[0].config, planned.basis.data, slots)
        lines.append(("time", f"about {clock(ablation.seconds_left(planned, store, rate, slots.count))}"))
    print_plan(planned, lines, slots)
    if options.dry_run:
        return 0
    frame = Frame(planned, store, slots)
    finished = scheduler.run(ListSource(planned.trials, store), frame.job, store)
    sweep = frame.end(finished, planned.rows, options.seed_range)
    if sweep is None:
        print("\nStopped with trials open; the same command goes on where they are.")
        return INTERRUPTED
    left = sum(state_of(store, trial.record).outcome in ("interrupted", "failed") for trial in planned.trials)
    then = f"{python('sweeps/best.py')} {shlex.quote(options.store)}"
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
        run.replay()
        measure = measured_here if search.dry_run else measured_in_a_slot
        made = run.plan(lambda: measure(next(iter(run.templates.values())), basis.data, slots))
        print_plan(run, run.summary(made), slots)
        return 0 if search.dry_run else both_phases(run, made, slots)


def print_plan(planned: Ablation | SearchRun, summary: Sequence[tuple[str, str]], slots: Slots) -> None:
    """Print the plan of a command: its title, and lines with a heading each."""
    lines = [("why", planned.basis.why), *summary, ("slots", f"{slots.count} stages at a time on {slots.where}")]
    lines.append(("store", masked(planned.options.store)))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    wrap = textwrap.TextWrapper(width, subsequent_indent=" " * 10, break_long_words=False, break_on_hyphens=False)
    parts = [wrap.fill(text) for text in (planned.title, *(f"  {heading:<8}{text}" for heading, text in lines))]
    print("\n".join(parts), flush=True)


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


def both_phases(run: SearchRun, made: Plan, slots: Slots) -> int:
    """Run both phases of a search, and write best.yaml and the report; returns the exit status."""
    began, frame, searcher = time.monotonic(), Frame(run, run.store, slots), run.searcher
    run.copy_study()
    confirmed: list[Trial] = []
    best, finished = None, scheduler.run(searcher, frame.job, run.store)
    if finished:
        confirmed = waiting(lambda: run.best(made.best, made.seeds))
        if confirmed:
            print(f"confirming {' '.join(each.title for each in confirmed)}", flush=True)
            source = waiting(lambda: ListSource(confirmed, run.store, lambda: run.write(*confirmed)))
            finished = scheduler.run(source, frame.job, run.store)
    if finished:  # otherwise some configs may lack seeds
        best = waiting(lambda: run.write_best(confirmed, frame.origin))
        with suppress(OSError):  # a view, which the same command makes again
            run.store.save(run.study_path)
    sweep = frame.end(finished, {each.variant for each in confirmed}, {each.seed for each in confirmed})
    if sweep is None:
        print("\nStopped with trials open; the same command goes on where they are.")
        return INTERRUPTED
    print(f"\nPredicted {clock(made.seconds)}, took {clock(time.monotonic() - began)}.")
    print(f"Open the study (after make .venv/dev): optuna-dashboard {shlex.quote(str(run.study_path))}")
    failed = any(run.outcome(each.record) is None for each in confirmed)
    if best:
        print(f"{run.chosen} The best config is in {best}.")
        then = config_file.command(best, run.store, run.options)
    elif failed:
        then = "No config was confirmed on all of its seeds; the same command runs the failed trials again."
    else:
        ends = collections.Counter(each.user_attrs[OUTCOME] for each in ended(searcher.study))
        ends["failed"] = searcher.failed
        counts = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()) if count) or "none has ended"
        then = (
            f"No config was confirmed on fresh seeds. Outcomes of the {ends.total()} explored: {counts}. Train longer "
            "(--budget), or search elsewhere (--splits, --adversarial, --conditional, --entropy)."
        )
    document.ending(sweep, frame.unsent or pages(frame.uri, run.key), then)
    return 0 if best and not failed and not frame.unsent and not searcher.failed else 1


def waiting(call: Callable[[], Made]) -> Made:
    """Return the result of a call, which is repeated while the disk of the store is full or sick."""
    while True:
        try:
            return call()
        except (OSError, ConfigError) as error:
            if not (trouble := lack(error)):
                raise
            print(f"waiting for the store ({trouble.strerror})", flush=True)
            time.sleep(PAUSE)


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
    """The work around the trials of an ablation or a search. Made, it checks that the hosts share the store
    (ConfigError), writes the sweep's record, and starts the process that sends the trials to MLflow. `origin`: the
    record's command, commit and machine. `unsent`: after `end`, what MLflow did not get, in words."""

    def __init__(self, planned: Ablation | SearchRun, store: Store, slots: Slots):
        self.planned, self.store, self.key, self.unsent = planned, store, planned.key, ""
        basis, options = planned.basis, planned.options
        address, commit = address_of(options.mlflow), manifest.commit()
        self.uri = address or default_uri(store)
        machine = f"{processor()}, {slots.where}"
        self.origin = {"command": manifest.command(), "commit": commit, "machine": machine}
        self.job = Job(basis.data, store.address, self.key, commit, slots, options.deterministic)
        require_shared_store(store, self.key)
        if basis.judge_weights:
            store.keep_weights(basis.judge_weights, basis.judge_digest)
        if address:
            warn_if_away(address)
        manifest.write(store, planned.record(self.origin))
        store.note("sweep started", sweep=self.key, command=self.origin["command"])
        self.follower = follow.start(store, self.key, self.uri)

    def end(self, finished: bool, variants: Collection[str], seeds: Collection[int]) -> results.Sweep | None:
        """Write the record again, since it may have been deleted, and the report, and wait until MLflow has both; where
        the command was stopped, do not. Returns the sweep as read from the store, or None if it was stopped."""
        sweep = None
        try:
            if finished:  # a command that is stopped does not wait for a bucket
                with suppress(OSError):  # a full disk; the same command writes it again
                    manifest.write(self.store, self.planned.record(self.origin))
                address = self.planned.options.store if Path.cwd() == ROOT else self.store.address
                sweep = document.keep(self.store, self.key, address, variants, seeds)
        finally:
            wait = None if finished else STOPPED_SECONDS
            self.unsent = follow.finish(self.follower, self.store, self.key, self.uri, wait)
        self.store.note("sweep ended", sweep=self.key)
        return sweep
