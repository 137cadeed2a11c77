"""How a command starts: it joins the cluster, or starts Ray, and plans meanwhile."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sgan.checks import ConfigError
from sgan.host import importing
from sweeps.execution import cluster

Chosen = TypeVar("Chosen")


def prepare(
    choose: Callable[[int], Chosen], limit: int | None, trials_per_gpu: int, dry_run: bool = False
) -> tuple[cluster.Slots, Chosen]:
    """Join the cluster, and what a command makes of the number of GPUs, at the same time: the data and Tune take
    seconds, as does Ray. Where there is no cluster, a dry run starts none.

    Args:
        choose: called with the number of GPUs; first with none.
        limit, trials_per_gpu: as for `cluster.slots`.
    Raises:
        ConfigError: by `cluster.connect` or `choose`; then the cluster has been left.
    """
    starts = cluster.on_cluster() or not dry_run

    def early() -> Chosen:
        found = choose(0)
        if starts:
            import sweeps.execution.scheduler  # noqa: F401  # for Tune, which takes a second more
        return found

    with importing(), ThreadPoolExecutor(1) as aside:
        first = aside.submit(early)
        if starts:
            print("starting Ray ...", flush=True)
            cluster.connect()
        found = cluster.slots(limit, trials_per_gpu)
        try:
            return found, choose(found.all_gpus) if found.all_gpus else first.result()
        except ConfigError:
            if starts:
                cluster.leave()
            raise
