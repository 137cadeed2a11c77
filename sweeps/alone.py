"""Ray for one process: what it starts for a cluster, and a laptop waits for in vain, is left out.

A node is there once its two agents have said where they listen, and importing what they need takes both cores of a
laptop for more than a second. Ray starts this file instead of each:

    python -I -S sweeps/alone.py SCRIPT --session-dir=... --node-id=... --node-ip-address=... [what else Ray says]
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

LOOK, LOOKS_FOR = 0.05, 10.0
"""Seconds between two looks for the node that starts here, and for how long it is looked for so often."""
ABSENT = {"metrics_agent": -1, "metrics_export": -1, "dashboard_agent_listen": -1}
"""Ports of the dashboard's agent, as it says itself where there is no dashboard."""
STARTS = ("start_monitor", "start_log_monitor", "start_api_server")
"""What starts the autoscaler, the reader of logs and the dashboard's server, which make half of Ray's start."""


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """What Ray starts meanwhile is for this process alone.

    It listens on the loopback address, as where Ray has no clusters; three processes are left out, and two are stood
    for; and the node is looked for twenty times a second, not once. Ray has no option for any of them.
    """
    from ray._private import ray_constants, services
    from ray._private.node import Node
    from ray._private.state import GlobalState

    patient, build = services.get_node, services._build_python_executable_command_memory_profileable

    def get_node(address: str, node: str) -> dict[str, Any]:
        state = GlobalState()
        state._initialize_global_state(services._get_gcs_client_options(address))
        for _ in range(round(LOOKS_FOR / LOOK)):
            if any(each["NodeID"] == node for each in state.node_table()):
                break
            time.sleep(LOOK)
        return patient(address, node)  # which raises what Ray raises where there is none

    def python(component: str, *args: Any, **options: Any) -> list[str]:
        agent = component.endswith("_agent")
        return [sys.executable, "-I", "-S", __file__] if agent else build(component, *args, **options)

    changed: list[tuple[Any, str, Any]] = [(Node, name, lambda self, **options: None) for name in STARTS]
    changed += [(ray_constants, "ENABLE_RAY_CLUSTER", False)]
    changed += [(services, "get_node", get_node), (services, build.__name__, python)]
    kept = [getattr(owner, name) for owner, name, _ in changed]
    try:
        for owner, name, value in changed:
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name, _), value in zip(changed, kept, strict=True):
            setattr(owner, name, value)


def _say(given: dict[str, str], ports: dict[str, int]) -> None:
    """Write ports where Ray waits for them."""
    for name, port in ports.items():
        path = Path(given["session-dir"], f"{name}_port_{given['node-id']}")
        path.with_suffix(".new").write_text(str(port))
        path.with_suffix(".new").replace(path)


def stand(script: str, words: list[str]) -> None:
    """Stand for the agent that is a script, until Ray's process has ended. The dashboard's has nothing to do; that of
    environments, for which nothing here asks, starts when somebody is at its port."""
    given = dict(word.removeprefix("--").split("=", 1) for word in words if "=" in word)
    ray = os.getppid()
    doors = [socket.create_server((given["node-ip-address"], 0))] if "runtime_env" in Path(script).parts else []
    _say(given, {"runtime_env_agent": doors[0].getsockname()[1]} if doors else ABSENT)
    while os.getppid() == ray:
        for door in select.select(doors, [], [], 1.0)[0]:
            port = f"--runtime-env-agent-port={door.getsockname()[1]}"
            door.close()  # who is at it tries again
            os.execv(sys.executable, [sys.executable, "-u", script, *words, port])


if __name__ == "__main__":
    stand(sys.argv[1], sys.argv[2:])
