"""Runs an ablation: its plan, its trials, MLflow and the table."""

import shlex

from sgan.command_line import INTERRUPTED
from sgan.host import processor
from sgan.stages.graph import code_version
from sgan.store.s3 import find_store, open_store
from sweeps.execution import scheduler
from sweeps.execution.cluster import count_slots, join_cluster
from sweeps.execution.shared_store import require_shared_store
from sweeps.execution.worker import Job
from sweeps.mlflow_view import follow
from sweeps.mlflow_view.connection import address_of, default_uri, pages, warn_if_away
from sweeps.planning import manifest
from sweeps.planning.ablation import check_record, plan_ablation, record, summary
from sweeps.planning.options import STOPPED_SECONDS, Sweep
from sweeps.planning.state import state_of
from sweeps.planning.trials import ListSource
from sweeps.reporting import document


def main(options: Sweep) -> int:
    """Run an ablation.

    Returns:
        The exit status: 0, 1 where a trial failed or MLflow does not have all of it, 130 where it was stopped.
    Raises:
        ConfigError: a bad option, data that are absent or torn, a store that cannot be written.
    """
    address = address_of(options.mlflow)
    if not options.dry_run:
        print("starting Ray ...", flush=True)
        join_cluster()
    slots = count_slots(options.slots, options.trials_per_gpu)
    ablation = plan_ablation(options, slots.all_gpus)
    store = find_store(options.store) if options.dry_run else open_store(options.store)
    if store:
        check_record(ablation, store)
    print(summary(ablation, store, options.store, slots.count, slots.where), flush=True)
    if options.dry_run or store is None:
        return 0
    key, basis, commit, command = ablation.key, ablation.basis, manifest.commit(), manifest.command("ablation.py")
    require_shared_store(store, key)
    if basis.inception_weights:
        store.keep_weights(basis.inception_weights, basis.inception)
    machine = f"{processor()}, {slots.where}"
    record(ablation, store, machine, commit)
    uri = address or default_uri(store)
    if address:
        warn_if_away(uri)
    job = Job(basis.data, store.address, key, commit, code_version(), slots, options.deterministic)
    follower = follow.start(store, key, uri)
    store.note("sweep started", sweep=key, command=command)
    finished = scheduler.run(ListSource(ablation.trials, store), job, store, slots)
    record(ablation, store, machine, commit)  # again: somebody may have deleted it
    try:  # MLflow shows the report, too
        sweep = document.keep(store, key, options.store, ablation.rows, options.seed_range) if finished else None
    finally:
        unsent = follow.finish(follower, store, key, uri, None if finished else STOPPED_SECONDS)
    outcomes = [state_of(store, trial.row).outcome for trial in ablation.trials]
    failed, left = outcomes.count("failed"), outcomes.count("interrupted") + outcomes.count("failed")
    store.note("sweep ended", sweep=key, open=left, failed=failed)
    if sweep is None:
        print(f"\nStopped with {left} trials open; the same command goes on where they are.")
        return INTERRUPTED
    document.ending(sweep, unsent or pages(uri, key), f"python sweeps/best.py {shlex.quote(options.store)}")
    return 1 if left or unsent else 0
