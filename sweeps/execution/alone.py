"""Ray for one process: Ray starts less than it does for a cluster, and is there a second or two sooner.

A node of Ray is there once its two agents have said where they listen. Importing what they need takes both cores of a
laptop for more than a second, and without a dashboard neither has anything to do. Ray starts this file instead of each,
with nothing but Python's own library, and before what it would have started:

    python -I -S sweeps/alone.py KIND SCRIPT --session-dir=... --node-id=... --node-ip-address=... [more]
"""

import contextlib
import os
import select
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOOK = 0.05
"""Seconds between two looks for the node that starts here. Ray itself waits a second."""
ALIVE = 1.0
"""Seconds between two looks whether Ray's process lives."""
DASHBOARD, ENVIRONMENTS = "dashboard_agent", "runtime_env_agent"
"""Ray's names of the two agents."""
NO_DASHBOARD = {"metrics_agent_port": -1, "metrics_export_port": -1, "dashboard_agent_listen_port": -1}
"""What the dashboard's agent says where there is no dashboard."""


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """What Ray starts meanwhile is for this process alone.

    It listens on the loopback address, as where Ray has no clusters. The autoscaler, the reader of logs and the
    dashboard's server, which make half of Ray's start, are left out, and the node's agents are stood for. Ray has no
    option for any of these.
    """
    from ray._private import ray_constants, services, utils
    from ray._private.node import Node
    from ray._private.state import GlobalState

    rays_get_node = services.get_node
    rays_command = services._build_python_executable_command_memory_profileable
    state = GlobalState()

    def get_node(address: str, node: str) -> dict[str, Any]:
        state._initialize_global_state(services._get_gcs_client_options(address))
        if all(each["NodeID"] != node for each in state.node_table()):
            time.sleep(LOOK)
            raise RuntimeError(f"the node {node} is not there yet")  # Ray looks again, for half a minute
        return rays_get_node(address, node)

    def command(component: str, *args: Any, **options: Any) -> list[str]:
        if component in (DASHBOARD, ENVIRONMENTS):
            return [sys.executable, "-I", "-S", __file__, component]
        return rays_command(component, *args, **options)

    def nothing(node: Node, **options: Any) -> None:
        pass

    changed: list[tuple[Any, str, Any]] = [
        (ray_constants, "ENABLE_RAY_CLUSTER", False),
        (Node, "start_monitor", nothing),
        (Node, "start_log_monitor", nothing),
        (Node, "start_api_server", nothing),
        (utils, "get_dashboard_dependency_error", lambda: ImportError("not asked for")),  # looking for them takes 0.3 s
        (services, "_build_python_executable_command_memory_profileable", command),
        (services, "get_node", get_node),
    ]
    kept = [getattr(owner, name) for owner, name, _ in changed]
    try:
        for owner, name, value in changed:
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name, _), value in zip(changed, kept, strict=True):
            setattr(owner, name, value)


def _say(told: dict[str, str], ports: dict[str, int]) -> None:
    """Write ports where Ray waits for them."""
    for name, port in ports.items():
        path = Path(told["session-dir"], f"{name}_{told['node-id']}")
        path.with_suffix(".new").write_text(str(port))
        path.with_suffix(".new").replace(path)


def _ray_lives() -> bool:
    return os.getppid() == int(os.environ["RAY_RAYLET_PID"])


def stand_for_dashboard_agent(told: dict[str, str]) -> None:
    """Say that there is no dashboard, and stay until Ray ends."""
    _say(told, NO_DASHBOARD)
    while _ray_lives():
        time.sleep(ALIVE)


def stand_for_runtime_env_agent(told: dict[str, str], command: list[str]) -> None:
    """Stay until Ray ends, or become the agent, at the same port, when Ray wants it to make an environment."""
    with socket.create_server((told["node-ip-address"], 0)) as server:
        port = server.getsockname()[1]
        _say(told, {"runtime_env_agent_port": port})
        while _ray_lives():
            if select.select([server], [], [], ALIVE)[0]:
                server.close()  # Ray tries again
                os.execv(sys.executable, [sys.executable, "-u", *command, f"--runtime-env-agent-port={port}"])


def main(kind: str, *command: str) -> None:
    """Stand for an agent: of this kind, which this command would start."""
    told = dict(word.removeprefix("--").split("=", 1) for word in command if "=" in word)
    if kind == DASHBOARD:
        stand_for_dashboard_agent(told)
    else:
        stand_for_runtime_env_agent(told, [*command])


if __name__ == "__main__":
    main(*sys.argv[1:])
