"""The cluster: joins it, counts its slots (how many stages run at the same time), and checks its nodes. They must share
one output store, in which claims (locks of stages) work between nodes, and have the same versions."""

import logging
import os
import platform
import secrets
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
import yaml
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sgan.checks import ConfigError, require
from sgan.stages.graph import code_version
from sgan.store.files import StoreError, write_text
from sgan.store.local import Store
from sgan.store.s3 import find_store
from sweeps.execution import cluster_address, no_cluster

CONFIG = "ray_bootstrap_config.yaml"  # The cluster's configuration, which `ray up` leaves in the head's home folder
NODE_SECONDS = 120.0  # Time limit for an answer of a node


def join_cluster() -> None:
    """Join the cluster if there is one; otherwise start Ray on this machine, for this process only. ConfigError if Ray
    does not join the cluster, or does not start here."""
    address = cluster_address()
    keep_token_private(make=not address)
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except SystemExit as error:  # Ray's answer to SIGTERM
        raise KeyboardInterrupt from error
    except Exception as error:  # Ray raises Exception itself where a start takes too long
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if address:
            raise no_cluster(address, reason) from error
        advice = "give the command again when the machine has less to do"
        if "AF_UNIX" in reason or (isinstance(error, OSError) and error.errno):
            place = "with a short path, such as /tmp" if "AF_UNIX" in reason else "that can be written and has room"
            advice = f"set RAY_TMPDIR to a folder {place}"
        raise ConfigError(f"Ray does not start on this machine ({reason}); {advice}") from error
    finally:
        signal.signal(signal.SIGTERM, terminated)  # Ray's handler would end the command without checkpoints


def keep_token_private(make: bool) -> None:
    """Let only this user read the file of Ray's token: whoever has it can run code as this user, and Ray creates it
    with the umask's rights. `make`: create a missing file. ConfigError if its rights cannot be narrowed."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if make and not path.exists():
        with suppress(OSError):  # another command was faster; or Ray itself reports what is wrong with the folder
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(0o600, exist_ok=False)
            path.write_text(secrets.token_hex(32))  # what `ray get-auth-token --generate` writes
    try:
        if path.exists() and path.stat().st_mode & 0o77:
            path.chmod(0o600)
    except OSError as error:
        advice = "have its owner narrow its rights (chmod 600), or name another one in RAY_AUTH_TOKEN_PATH"
        raise ConfigError(f"other users can read Ray's token {path} ({error}); {advice}") from error


def to_come(config: dict[str, Any], nodes: int) -> list[dict[str, float]]:
    """The resources of each worker node that a cluster of this configuration may still start, as if all were of the
    type with the highest priority. Those of a local cluster are unknown until they join. `nodes`: number of running
    nodes, including the head."""
    types = [row for name, row in config["available_node_types"].items() if name != config["head_node_type"]]
    types = [row for row in types if row.get("resources") and row.get("max_workers", 0) > 0]
    types.sort(key=lambda row: -row.get("priority", 0))
    return [row["resources"] for row in types[:1]] * max(0, config["max_workers"] - max(0, nodes - 1))


@dataclass(frozen=True)
class Slots:
    """Stages that run at the same time: `count` slots, each with `cpus` CPUs (and torch threads) and `gpus` GPUs (with
    a fraction, several share one). `all_gpus`: number of all GPUs. `where`: the hardware in words."""

    count: int
    cpus: int
    gpus: float
    all_gpus: int
    where: str


def count_slots(limit: int | None, trials_per_gpu: int) -> Slots:
    """The slots of all nodes that Ray has or may start, or of this machine if Ray has not been started: one per CPU or,
    with GPUs, `trials_per_gpu` per GPU; at most `limit`.

    The node with the fewest CPUs per GPU sets the CPUs of a slot, so that a stage fits on every GPU."""
    if not ray.is_initialized():
        nodes = [{"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}]
    else:
        nodes, path = [node["Resources"] for node in ray.nodes() if node["Alive"]], Path.home() / CONFIG
        if cluster_address() and path.exists():
            nodes += to_come(yaml.safe_load(path.read_text()), len(nodes))
    cpus, gpus = (int(sum(node.get(kind, 0) for node in nodes)) for kind in ("CPU", "GPU"))
    share, count = 1, cpus
    usable = [node for node in nodes if min(node.get("CPU", 0), node.get("GPU", 0)) >= 1]
    if packs := [(node["CPU"], node["GPU"] * trials_per_gpu) for node in usable]:
        share = max(1, min(int(held // stages) for held, stages in packs))
        count = int(sum(min(stages, held // share) for held, stages in packs))
    models = sorted({key.partition(":")[2] for node in nodes for key in node if key.startswith("accelerator_type:")})
    named = f" ({', '.join(models)})" if models else ""
    where = f"{len(nodes)} node{'s' * (len(nodes) > 1)}, {cpus} CPUs, {gpus or 'no'} GPU{'s' * (gpus > 1)}{named}"
    return Slots(max(1, min(count, limit or count)), share, 1 / trials_per_gpu if gpus else 0.0, gpus, where)


def leave_mark(store: Store, mark: str) -> None:
    """Write a mark into the store, by which other nodes recognise it."""
    path = store.root / "hosts" / mark
    write_text(path, mark)
    store.save(path)


def versions() -> str:
    """The versions that results depend on, besides their configs, in words."""
    return f"Python {platform.python_version()}, torch {torch.__version__}, code {code_version()}"


def open_shared_store(address: str, mark: str, driver: str) -> Store:
    """Open the store on any node. StoreError if the driver's mark is not in it: a network share may be gone for a
    moment. ConfigError if this node has other versions than the `driver`."""
    node = platform.node()
    require(
        versions() == driver,
        f"the node {node} has {versions()}, but the driver {driver}; install the same environment and checkout on "
        "all nodes (`ray up`), since one table compares their results, and run the command again",
    )
    store = find_store(address)
    if store:
        store.fetch(store.root / "hosts" / mark)
    if store is None or not (store.root / "hosts" / mark).exists():
        raise StoreError(
            f"the output store {address} is not shared: the node {node} does not see the driver's file in it; "
            "name a folder that all nodes share under one path (such as NFS), or s3://bucket/folder, with --store"
        )
    return store


@ray.remote(num_cpus=0)
def answer(address: str, mark: str, driver: str) -> bool:
    """Whether a claim that the driver holds is refused on this node."""
    with open_shared_store(address, mark, driver).alone(f"sharing-{mark}") as mine:
        return not mine


def require_shared_store(store: Store, mark: str) -> None:
    """Check that every node reads the driver's mark, and is refused a claim that the driver holds. ConfigError, which
    names the node, if it has another store or other versions, or could train the same stage as another node."""
    leave_mark(store, mark)
    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if len(nodes) < 2:
        return
    with store.alone(f"sharing-{mark}"):  # if another driver holds the claim, the nodes are refused just as well
        there = [answer.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)) for node in nodes]
        answers = [each.remote(store.address, mark, versions()) for each in there]
        for (node, name), refused in zip(nodes.items(), answers, strict=True):
            try:
                require(
                    ray.get(refused, timeout=NODE_SECONDS),
                    f"claims in the output store {store.address} do not hold between the driver and the node {name}, "
                    "so both might train the same stage; mount it with locks (NFS version 4, without nolock), or name "
                    "s3://bucket/folder with --store",
                )
            except RayTaskError as error:
                if isinstance(error.cause, ConfigError):
                    raise error.cause from None
                raise ConfigError(
                    f"the node {name} cannot use the output store {store.address} ({error.cause!r:.300}); it needs "
                    "the rights to write there, and locks that work (NFS version 4, without nolock)"
                ) from None
            except RayError as error:
                if any(each["NodeID"] == node and each["Alive"] for each in ray.nodes()):
                    raise ConfigError(
                        f"the node {name} did not report within {NODE_SECONDS:g} s whether it sees the output store "
                        f"{store.address}; look at `ray status`, or run the command again"
                    ) from error
