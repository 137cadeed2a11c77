"""Whether there is a cluster, and its nodes: those that are there, and those that its autoscaler may start."""

import os
from pathlib import Path
from typing import Any

CONFIG = "ray_bootstrap_config.yaml"
"""What `ray up` leaves in the head's home folder: the cluster's configuration, with the resources of each node type."""


def on_cluster() -> bool:
    """Whether `ray.init()` would join a cluster here, by the rules of `ray._private.services`: RAY_ADDRESS, or else
    what `ray start` left."""
    address = os.environ.get("RAY_ADDRESS")
    left = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray/ray_current_cluster")
    return address != "local" if address else left.exists()


def nodes() -> list[dict[str, float]]:
    """The resources of each node that Ray has, and of each one that work would make it start."""
    import ray  # takes seconds, which those who ask for a cluster do not have

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
