"""Whether all nodes of a cluster have one output store: each reads what the others wrote, and claims hold between
them; and whether they run the same versions."""

import platform

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sgan.checks import ConfigError, require
from sgan.store.files import write_text
from sgan.store.local import Store
from sgan.store.s3 import find_store

ANSWER_SECONDS = 120.0  # Every node answers within so many seconds


def leave_mark(store: Store, mark: str) -> None:
    """Leave a mark in the store for the other nodes."""
    path = store.root / "hosts" / mark
    write_text(path, mark)
    store.save(path)


def versions() -> str:
    """What a result depends on beside the code."""
    return f"Python {platform.python_version()}, torch {torch.__version__}"


def open_shared_store(address: str, mark: str, driver: str) -> Store:
    """The store, on any node; ConfigError where the driver's mark is not in it, or this node has other versions than
    the driver."""
    node = platform.node()
    require(
        versions() == driver,
        f"the node {node} has {versions()}, but the driver {driver}; make the same environment on all nodes "
        "(`ray up`), since their results stand in one table",
    )
    store = find_store(address)
    if store:
        store.fetch(store.root / "hosts" / mark)
    if store is None or not (store.root / "hosts" / mark).exists():
        raise ConfigError(
            f"the output store {address} is not shared: the node {node} does not see there what the driver wrote; "
            "name a folder that all of them share under one path (NFS, say), or s3://bucket/folder, with --store"
        )
    return store


@ray.remote(num_cpus=0)
def answer(address: str, mark: str, driver: str) -> bool:
    """Whether a claim that the driver holds is refused on this node."""
    with open_shared_store(address, mark, driver).alone(f"sharing-{mark}") as mine:
        return not mine


def require_shared_store(store: Store, mark: str) -> None:
    """Have every node read the driver's mark, and try a claim that the driver holds. ConfigError where a node has
    another store or other versions, or could train what another one trains; the message names it."""
    leave_mark(store, mark)
    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if len(nodes) < 2:
        return
    with store.alone(f"sharing-{mark}"):  # where another driver holds it, it is held as well
        there = [answer.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)) for node in nodes]
        answers = [each.remote(store.address, mark, versions()) for each in there]
        for (node, name), refused in zip(nodes.items(), answers, strict=True):
            try:
                require(
                    ray.get(refused, timeout=ANSWER_SECONDS),
                    f"claims in the output store {store.address} do not hold between the driver and the node {name}, "
                    "so both might train one stage; mount it with locks (NFS version 4, without nolock), or name "
                    "s3://bucket/folder with --store",
                )
            except RayTaskError as error:
                raise (error.cause if isinstance(error.cause, ConfigError) else error) from None
            except RayError as error:
                if any(each["NodeID"] == node and each["Alive"] for each in ray.nodes()):
                    raise ConfigError(
                        f"the node {name} did not say within {ANSWER_SECONDS:g} s whether it sees the output store "
                        f"{store.address}; look at `ray status`, or give the command again"
                    ) from error
