"""What an ablation and a search do around their trials: Ray, the store, MLflow's process, the report."""

from collections.abc import Collection

from sgan.host import processor
from sgan.store.local import Store
from sweeps.execution import scheduler
from sweeps.execution.cluster import Slots, count_slots, join_cluster, require_shared_store
from sweeps.execution.worker import Job
from sweeps.mlflow_view import follow
from sweeps.mlflow_view.connection import address_of, default_uri, pages, warn_if_away
from sweeps.planning import manifest
from sweeps.planning.basis import Basis
from sweeps.planning.options import Options
from sweeps.planning.trials import TrialSource
from sweeps.reporting import document
from sweeps.reporting.results import Sweep

STOPPED_SECONDS = 3.0  # A stopped command waits for MLflow no longer than so many seconds


def join(options: Options) -> Slots:
    """The slots of the cluster or this machine; a dry run does not start Ray. ConfigError for a wrong --mlflow."""
    address_of(options.mlflow)
    if not options.dry_run:
        print("starting Ray ...", flush=True)
        join_cluster()
    return count_slots(options.slots, options.trials_per_gpu)


class Frame:
    """A command that runs trials.

    Attributes:
        origin: what its record says of the command.
    Args:
        script: of the command, in sweeps/.
        key: of its sweep.
    Raises:
        ConfigError: the hosts of the cluster do not share the store.
    """

    def __init__(self, script: str, options: Options, store: Store, key: str, basis: Basis, slots: Slots):
        self.options, self.store, self.key, self.slots = options, store, key, slots
        address, commit = address_of(options.mlflow), manifest.commit()
        self.uri = address or default_uri(store)
        machine = f"{processor()}, {slots.where}"
        self.origin = {"command": manifest.command(script), "commit": commit, "machine": machine}
        self.job = Job(basis.data, store.address, key, commit, slots, options.deterministic)
        require_shared_store(store, key)
        if basis.inception_weights:
            store.keep_weights(basis.inception_weights, basis.inception)
        if address:
            warn_if_away(address)

    def start(self) -> None:
        """The record is there, and trials begin: MLflow's process follows."""
        self.store.note("sweep started", sweep=self.key, command=self.origin["command"])
        self.follower = follow.start(self.store, self.key, self.uri)

    def run(self, source: TrialSource) -> bool:
        """Run a source's trials; false where the command was stopped."""
        return scheduler.run(source, self.job, self.store)

    def end(self, finished: bool, variants: Collection[str], seeds: Collection[int]) -> tuple[Sweep | None, str]:
        """Write the report, and wait for MLflow, which shows it, too.

        Returns:
            The sweep as the store has it, None where the command was stopped; and what MLflow did not get, in words.
        """
        sweep = None
        try:
            if finished:
                sweep = document.keep(self.store, self.key, self.options.store, variants, seeds)
        finally:
            wait = None if finished else STOPPED_SECONDS
            unsent = follow.finish(self.follower, self.store, self.key, self.uri, wait)
        self.store.note("sweep ended", sweep=self.key)
        return sweep, unsent

    def conclude(self, sweep: Sweep, unsent: str, then: str) -> None:
        """Print the verdict, the table, and what to do next."""
        document.ending(sweep, unsent or pages(self.uri, self.key), then)
