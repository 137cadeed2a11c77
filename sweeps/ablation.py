"""The ablation of Stacked GANs: six variants x seeds on Ray, recorded in MLflow, ending in a table.

python sweeps/ablation.py [--help]
"""

import argparse
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from sgan.checks import ConfigError
from sgan.host import end, processor
from sgan.store.s3 import open_store
from sweeps.execution import cluster
from sweeps.execution import jobs as detach
from sweeps.execution.start import prepare
from sweeps.planning import config_file as tuned
from sweeps.planning.ablation_options import Sweep
from sweeps.planning.ablation_plan import Resolved, record, resolve
from sweeps.planning.manifest import command, commit
from sweeps.planning.options import INTERRUPTED, status

if TYPE_CHECKING:
    from sgan.store.local import Store
    from sweeps.execution.cluster import Slots

TABLE = "RESULTS.md"


def main(sweep: Sweep) -> int:
    """Run a sweep; returns the exit status: 0, 1 where a trial failed or the record could not be sent, or 130 where
    it was stopped.

    Raises:
        ConfigError, StoreError: a bad option, data that are absent or torn, a store that cannot be written.
    """
    store = open_store(sweep.store)
    slots, resolved = prepare(lambda gpus: resolve(sweep, gpus), sweep.slots, sweep.trials_per_gpu, sweep.dry_run)
    basis = resolved.basis
    print_plan(resolved, store, slots)
    if sweep.dry_run:
        return 0
    from sgan.stages.graph import code_version
    from sweeps.execution import sharing
    from sweeps.execution import worker as job
    from sweeps.mlflow_view import connection
    from sweeps.mlflow_view import follow as uploader
    from sweeps.planning import trials

    sharing.check(store, resolved.key)
    if basis.inception_weights:
        store.keep_weights(basis.inception_weights, basis.inception)
    uri = sweep.mlflow or connection.default_uri(store)
    revision = commit()
    record(resolved, store, f"{processor()}, {slots.where}", revision)
    with store.alone(f"sweep-{resolved.key}") as alone:
        if not alone:
            print("Another process runs this sweep in this store; this one joins it: each stage is trained once.")
        sender = uploader.start(store, resolved.key, uri)
        try:
            given = (basis.data, store.address, resolved.key, revision, code_version())
            work = job.Job(*given, slots, sweep.deterministic)
            store.note("sweep started", sweep=resolved.key, command=command("ablation.py"))
            job.run(resolved.trials, work, store, slots)
        finally:
            threading.Thread(target=cluster.leave).start()  # takes a second, as what the uploader has left
            open_trials = [trial for trial in resolved.trials if not trials.ended(trial, store)]
            failed = [trial for trial in open_trials if store.failure(trial.plan.name).exists()]
            stopped = len(open_trials) > len(failed)
            asked = None if stopped else uploader.Table(sweep.variants, [*sweep.seed_range])
            sent, table = uploader.finish(sender, asked)
    store.note("sweep ended", sweep=resolved.key, open=len(open_trials), failed=len(failed))
    if stopped:
        print(f"\nStopped with {len(open_trials)} trials open; the same command goes on where they are.")
        return INTERRUPTED
    return conclude(resolved, store, uri, sent, table) or (1 if failed else 0)


def print_plan(resolved: Resolved, store: "Store", slots: "Slots") -> None:
    """Say what is to be done before anything is done."""
    from sweeps.planning.trials import ended, missing

    trials = resolved.trials
    todo = [trial for trial in trials if not ended(trial, store)]
    kinds: dict[str, set[str]] = {}
    for trial in trials:
        for stage_name, (_, stage) in zip(trial.plan.names, trial.plan.stages, strict=True):
            kinds.setdefault(stage.kind, set()).add(stage_name)
    waiting = missing(todo, store)
    shared = sum(len(trial.plan.stages) for trial in trials) - sum(map(len, kinds.values()))
    print(f"{resolved.title}\n  why     {resolved.basis.why}")
    print(
        f"  trials  {len(trials)}: {len(dict.fromkeys(resolved.sweep.variants))} variants x {resolved.sweep.seeds} "
        f"seeds; {len(trials) - len(todo)} finished, {len(todo)} to run"
    )
    for kind, names in kinds.items():
        missing_here = sum(stage_name in waiting for stage_name in names)
        print(f"  stages  {kind:<8}{len(names):>3}: {len(names) - missing_here} there, {missing_here} to run")
    print(f"          {shared} more are shared between trials and run once")
    print(f"  slots   {slots.count} trials at a time on {slots.where}")
    print(f"  store   {store.address}", flush=True)


def conclude(resolved: Resolved, store: "Store", uri: str, sent: int, table: str) -> int:
    """Write the table into the store, print it, and say how to open MLflow; ConfigError where there can be no table.

    Args:
        sent, table: how the uploader ended, and what it made.
    """
    from sweeps.mlflow_view import connection
    from sweeps.mlflow_view import follow as uploader

    if sent == uploader.NO_TABLE:
        raise ConfigError(uploader.said(store, resolved.key))
    if sent != uploader.SENT:
        print(uploader.unsent(store, resolved.key, uri))
        return 1
    (store.root / TABLE).write_text(table)
    store.save(store.root / TABLE)
    print(f"\n{table}\nWritten to {store.root / TABLE}\nOpen MLflow: {connection.pages(uri)}", flush=True)
    return 0


def _defaults() -> Sweep:
    """What an option is that the command line does not name: that of --config, if there is one."""
    named = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    named.add_argument("--config", type=Path)
    path = named.parse_known_args()[0].config
    return Sweep(**tuned.defaults(path)) if path else Sweep()


def run() -> int:
    """The command line."""

    def command() -> int:
        sweep = tyro.cli(Sweep, prog="python sweeps/ablation.py", default=_defaults())
        return detach.run(lambda: main(sweep), sweep, "ablation.py")

    return status(command)


if __name__ == "__main__":
    end(run())
