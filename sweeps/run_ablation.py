"""Runs an ablation: its plan, its trials, MLflow and the table."""

import shlex

from sgan.command_line import INTERRUPTED
from sgan.store.s3 import find_store, open_store
from sweeps.frame import Frame, join
from sweeps.planning.ablation import check_record, plan_ablation, record, summary
from sweeps.planning.options import Sweep
from sweeps.planning.trials import ListSource, state_of


def main(options: Sweep) -> int:
    """Run an ablation.

    Returns:
        The exit status: 0, 1 where a trial failed or MLflow does not have all of it, 130 where it was stopped.
    Raises:
        ConfigError: a bad option, data that are absent or torn, a store that cannot be written.
    """
    slots = join(options)
    ablation = plan_ablation(options, slots.all_gpus)
    store = find_store(options.store) if options.dry_run else open_store(options.store)
    if store:
        check_record(ablation, store)
    print(summary(ablation, store, options.store, slots.count, slots.where), flush=True)
    if options.dry_run or store is None:
        return 0
    frame = Frame("ablation.py", options, store, ablation.key, ablation.basis, slots)
    record(ablation, store, frame.origin)
    frame.start()
    finished = frame.run(ListSource(ablation.trials, store))
    record(ablation, store, frame.origin)  # again: somebody may have deleted it
    sweep, unsent = frame.end(finished, ablation.rows, options.seed_range)
    outcomes = [state_of(store, trial.row).outcome for trial in ablation.trials]
    left = outcomes.count("interrupted") + outcomes.count("failed")
    if sweep is None:
        print(f"\nStopped with {left} trials open; the same command goes on where they are.")
        return INTERRUPTED
    frame.conclude(sweep, unsent, f"python sweeps/best.py {shlex.quote(options.store)}")
    return 1 if left or unsent else 0
