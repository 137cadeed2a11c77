"""The cluster: whether there is one, how to join it, its nodes and those that its autoscaler may start.

Ray is imported where it is needed, since that takes a second.
"""

import logging
import os
from pathlib import Path
from typing import Any

from sgan.checks import ConfigError

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
    from ray._private import ray_constants, services

    asked = os.environ.get("RAY_ADDRESS", "")
    here = asked == "local" or not (asked or services.find_bootstrap_address(None))
    before = ray_constants.ENABLE_RAY_CLUSTER
    try:
        # As where Ray has no clusters: its own address is then the loopback one, and all that it starts listens there.
        ray_constants.ENABLE_RAY_CLUSTER = before and not here
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
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def leave() -> None:
    """Leave the cluster; Ray ends where `connect` has started it."""
    import ray

    ray.shutdown()


def nodes() -> list[dict[str, float]]:
    """The resources of each node that Ray has, and of each one that work would make it start."""
    import ray

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
