"""The cluster: whether there is one, how to join it, its nodes and those that its autoscaler may start.

Ray is imported where it is needed, since that takes a second.
"""

import contextlib
import logging
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgan.checks import ConfigError
from sweeps.execution.alone import alone

# For glibc in workers: large pages, and the memory of one training step is kept for the next, which makes steps on CPUs
# a tenth faster (docs/performance.md). It is read where a process starts.
os.environ.setdefault(
    "GLIBC_TUNABLES",
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=17179869184",
)
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default; silences its notice
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # the nodes have the environment already

CONFIG = "ray_bootstrap_config.yaml"
"""What `ray up` leaves in the head's home folder: the cluster's configuration, with the resources of each node type."""


def on_cluster() -> bool:
    """Whether `ray.init()` would join a cluster here, by the rules of `ray._private.services`: RAY_ADDRESS, or else
    what `ray start` left."""
    address = os.environ.get("RAY_ADDRESS")
    left = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray/ray_current_cluster")
    return address != "local" if address else left.exists()


def connect() -> None:
    """Join the cluster of RAY_ADDRESS or of `ray start` on this machine; where there is none, start Ray here, for this
    process alone and on the loopback address alone.

    Raises:
        ConfigError: there is an address, and no cluster answers there; or Ray does not start here.
    """
    import ray
    from ray._private import services

    asked = os.environ.get("RAY_ADDRESS", "")
    here = asked == "local" or not (asked or services.find_bootstrap_address(None))
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        with alone() if here else contextlib.nullcontext():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises Exception itself where a start takes too long
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if here:
            raise ConfigError(
                f"Ray does not start on this machine ({said}); give the command again, when the machine has less to do "
                "if it is overloaded"
            ) from error
        address = asked or "left by an earlier `ray start`"
        raise ConfigError(
            f"no Ray cluster answers at the address {address} ({said}); start it, or set "
            "RAY_ADDRESS=local to use this machine alone"
        ) from error
    except SystemExit as end:
        if end.code != signal.SIGTERM:  # with which Ray answers that signal
            raise
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminated)


def leave() -> None:
    """Leave the cluster; Ray ends where `connect` has started it."""
    import ray

    ray.shutdown()


def _nodes() -> list[dict[str, float]]:
    """The resources of each node that Ray has, and of each one that work would make it start."""
    import ray
    from ray._private.resource_and_label_spec import ResourceAndLabelSpec

    if not ray.is_initialized():
        mine = ResourceAndLabelSpec().resolve(is_head=True).to_resource_dict()
        return [{kind: float(count or 0) for kind, count in mine.items()}]
    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    path = Path.home() / CONFIG
    if not (on_cluster() and path.exists()):
        return there
    import yaml

    return there + to_come(yaml.safe_load(path.read_text()), len(there))


def to_come(config: dict[str, Any], there: int) -> list[dict[str, float]]:
    """The resources of the workers that a cluster of this configuration may still start, as if all were of the type
    that it starts first. Those of a local cluster are not known before they are there.

    Args:
        there: nodes, the head among them.
    """
    types = [row for name, row in config["available_node_types"].items() if name != config["head_node_type"]]
    types = [row for row in types if row.get("resources") and row.get("max_workers", 0) > 0]
    if not types:
        return []
    first = max(types, key=lambda row: row.get("priority", 0))
    return [first["resources"]] * max(0, config["max_workers"] - max(0, there - 1))


@dataclass(frozen=True)
class Slots:
    """What runs at the same time.

    Attributes:
        count: trials at the same time.
        cpus: CPUs, and torch threads, a trial.
        gpus: GPUs a trial; a fraction packs several onto one.
        all_gpus: GPUs in all.
        where: the machine or cluster, in words.
        nodes: machines.
    """

    count: int
    cpus: int
    gpus: float
    all_gpus: int
    where: str
    nodes: int = 1


def slots(limit: int | None, trials_per_gpu: int) -> Slots:
    """How many trials Ray runs at the same time: one a CPU, or `trials_per_gpu` a GPU.

    CPUs a trial are what the node with the fewest a GPU can give, so that a trial fits on every GPU. Where Ray has not
    been started, it is what it would be on this machine alone.
    """
    nodes = _nodes()
    cpus, gpus = (int(sum(node.get(kind, 0) for node in nodes)) for kind in ("CPU", "GPU"))
    share = 1
    if gpus:
        with_gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
        share = max(1, min(int(node["CPU"] // (node["GPU"] * trials_per_gpu)) for node in with_gpus))
        count = int(sum(min(node["GPU"] * trials_per_gpu, node["CPU"] // share) for node in with_gpus))
    else:
        count = cpus
    models = sorted({key.partition(":")[2] for node in nodes for key in node if key.startswith("accelerator_type:")})
    counted = f"{gpus or 'no'} GPU{'s' if gpus > 1 else ''}{' (' + ', '.join(models) + ')' if models else ''}"
    where = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}, {cpus} CPUs, {counted}"
    return Slots(
        max(1, min(count, limit or count)), share, 1 / trials_per_gpu if gpus else 0.0, gpus, where, len(nodes)
    )
