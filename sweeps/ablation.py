"""The ablation of Stacked GANs: six variants x seeds on Ray, recorded in MLflow, ending in a table.

python sweeps/ablation.py [--help]
"""

import argparse
import sys
from pathlib import Path

import tyro

from sgan.checks import ConfigError
from sweeps.planning import config_file
from sweeps.planning.options import INTERRUPTED, Sweep, status

TABLE = "RESULTS.md"


def main(options: Sweep) -> int:
    """Run a sweep.

    Returns:
        The exit status: 0, 1 where a trial failed or MLflow did not get everything, 130 for a stopped sweep.
    Raises:
        ConfigError: a bad option, data that are absent or torn, a store that cannot be written.
    """
    # These take seconds, which --help does not need.
    from sgan.host import processor
    from sgan.stages.graph import code_version
    from sgan.store.s3 import open_store
    from sweeps.execution import cluster, sharing, start, worker
    from sweeps.mlflow_view import connection, follow
    from sweeps.planning import manifest
    from sweeps.planning.ablation import plan_ablation, record, summary
    from sweeps.planning.state import state_of

    store = open_store(options.store)
    slots, ablation = start.prepare(
        lambda gpus: plan_ablation(options, gpus), options.slots, options.trials_per_gpu, options.dry_run
    )
    print(summary(ablation, store, slots.count, slots.where), flush=True)
    if options.dry_run:
        return 0
    key, basis, revision = ablation.key, ablation.basis, manifest.commit()
    sharing.check(store, key)
    if basis.inception_weights:
        store.keep_weights(basis.inception_weights, basis.inception)
    record(ablation, store, f"{processor()}, {slots.where}", revision)
    uri, outcomes = options.mlflow or connection.default_uri(store), []
    with store.alone(f"sweep-{key}") as alone:
        if not alone:
            print("Another process runs this sweep in this store; this one joins it: each stage is trained once.")
        follower = follow.start(store, key, uri)
        try:
            store.note("sweep started", sweep=key, command=manifest.command("ablation.py"))
            job = worker.Job(basis.data, store.address, key, revision, code_version(), slots, options.deterministic)
            worker.run(ablation.trials, job, store, slots)
        finally:
            cluster.leave()
            outcomes = [state_of(store, trial.row).outcome for trial in ablation.trials]
            stopped, failed = outcomes.count("interrupted"), outcomes.count("failed")
            asked = None if stopped else follow.Table(options.variants, [*options.seed_range])
            sent, table = follow.finish(follower, asked)
    store.note("sweep ended", sweep=key, open=stopped + failed, failed=failed)
    if stopped:
        print(f"\nStopped with {stopped + failed} trials open; the same command goes on where they are.")
        return INTERRUPTED
    if sent == follow.NO_TABLE:
        raise ConfigError(follow.said(store, key))
    if sent != follow.SENT:
        print(follow.unsent(store, key, uri))
        return 1
    (store.root / TABLE).write_text(table)
    store.save(store.root / TABLE)
    print(f"\n{table}\nWritten to {store.root / TABLE}\nOpen MLflow: {connection.pages(uri)}", flush=True)
    return 1 if failed else 0


def parse() -> Sweep:
    """The options of the command line; those of --config stand where it names no others."""
    known = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    known.add_argument("--config", type=Path)
    path = known.parse_known_args()[0].config
    default = Sweep(**config_file.defaults(path)) if path else Sweep()
    return tyro.cli(Sweep, prog="python sweeps/ablation.py", default=default)


def run() -> int:
    """The command line; on a cluster the command outlives its terminal."""
    options = parse()
    from sweeps.execution import jobs

    return jobs.run(lambda: main(options), options, "ablation.py")


if __name__ == "__main__":
    sys.exit(status(run))
