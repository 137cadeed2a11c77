"""Whether all nodes of a cluster have one output store: seen by each from each, with claims that hold between them."""

from sgan.checks import ConfigError, require
from sgan.store.local import Store
from sgan.store.s3 import find_store

ANSWERS = 120.0
"""Seconds within which every node answers."""
ADVICE = "name a folder that all of them share under one path (NFS, say), or s3://bucket/folder, with --store"


def mark(store: Store, name: str) -> None:
    """Leave a mark in the store for the other nodes."""
    path = store.root / "hosts" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(name)
    store.save(path)


def marked(store: Store, name: str) -> bool:
    """Whether the store has a mark."""
    path = store.root / "hosts" / name
    store.fetch(path)
    return path.exists()


def see(address: str, name: str, node: str) -> Store:
    """The store at an address, on a node that is not the driver's; ConfigError where the driver's mark is not in it."""
    store = find_store(address)
    if store is None or not marked(store, name):
        raise ConfigError(
            f"the output store {address} is not shared: the node {node} does not see there what the driver wrote; "
            f"{ADVICE}"
        )
    return store


def check(store: Store, name: str) -> None:
    """Leave the driver's mark, and have every node that is there read it, try a claim that the driver holds, and leave
    a mark of its own, which the driver reads.

    Raises:
        ConfigError: a node has another store, or could train what another one trains; the message names it.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayTaskError, TaskUnschedulableError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mark(store, name)
    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if len(nodes) < 2:
        return
    claim = f"sharing-{name}"

    def answer(node: str, host: str) -> bool:
        theirs = see(store.address, name, host)
        mark(theirs, f"{name}-{node}")
        with theirs.alone(claim) as mine:
            return not mine

    remote = ray.remote(num_cpus=0)(answer)
    with store.alone(claim):  # where another driver holds it, it is held as well
        asked = {
            host: remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                node, host
            )
            for node, host in nodes.items()
        }
        for host, said in asked.items():
            try:
                held = ray.get(said, timeout=ANSWERS)
            except RayTaskError as error:
                if isinstance(error.cause, ConfigError):
                    raise error.cause from None
                raise
            except (GetTimeoutError, TaskUnschedulableError) as error:
                raise ConfigError(
                    f"the node {host} did not say within {ANSWERS:g} s whether it sees the output store "
                    f"{store.address}; look at `ray status`, or run the command again"
                ) from error
            require(
                held,
                f"claims in the output store {store.address} do not hold between the driver and the node {host}, so "
                "both might train one stage; mount it with locks (NFS version 4, without nolock), or name "
                "s3://bucket/folder with --store",
            )
    for node, host in nodes.items():
        require(
            marked(store, f"{name}-{node}"),
            f"the output store {store.address} is not shared: what the node {host} wrote there is not seen here; "
            f"{ADVICE}",
        )
        (store.root / "hosts" / f"{name}-{node}").unlink()
