"""CUDA's Multi-Process Service (MPS), through which processes that share a GPU use it at the same time, not in turns.

A node has MPS while NVIDIA's control daemon runs there: a process that begins to use the GPU then finds it by itself
(man nvidia-cuda-mps-control). The worker that first shares a node's GPU starts the daemon, and the driver stops it.
"""

import platform
import subprocess
from contextlib import suppress
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

CONTROL = "nvidia-cuda-mps-control"
SECONDS = 30.0  # Time limit for an answer of the control program


def _owner() -> Path:
    """The file with the key of the sweep that started this node's daemon; nodes may share a home folder."""
    return Path.home() / ".cache" / "sgan" / f"mps-{platform.node()}"


def _control(command: str = "", *options: str) -> bool:
    """Run the control program with a command on its input; returns whether it succeeded."""
    with suppress(OSError, subprocess.SubprocessError):  # it is missing, fails or hangs
        subprocess.run([CONTROL, *options], input=command, capture_output=True, text=True, timeout=SECONDS, check=True)
        return True
    return False


def start(sweep_key: str) -> bool:
    """Start this node's daemon; returns whether this call started it. Nothing happens if the node has no MPS, or a
    daemon already runs."""
    if _control("get_server_list\n") or not _control("", "-d"):
        return False
    _owner().parent.mkdir(parents=True, exist_ok=True)
    _owner().write_text(sweep_key)
    return True


def stop(sweep_key: str) -> bool:
    """Stop this node's daemon, if this sweep has started it; returns whether it had."""
    mine = _owner().exists() and _owner().read_text() == sweep_key
    if mine:
        _control("quit\n")
        _owner().unlink()
    return mine


def stop_everywhere(sweep_key: str) -> int:
    """Stop the daemons that a sweep has started; returns the number of nodes that had one."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    task, on = ray.remote(num_cpus=0)(stop), NodeAffinitySchedulingStrategy
    stops = [task.options(scheduling_strategy=on(node, soft=False)).remote(sweep_key) for node in nodes]
    with suppress(RayError):  # a node that has died has no daemon
        return sum(ray.get(stops, timeout=SECONDS))
    return 0
