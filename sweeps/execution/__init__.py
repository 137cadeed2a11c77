"""Everything that runs on Ray. This file itself does not import Ray, which takes seconds."""

import os
import socket
from pathlib import Path

from sgan.checks import ConfigError

ANSWER_SECONDS = 5.0  # Time limit for an answer of a cluster's head node
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""The first bytes that a gRPC client sends (RFC 9113, section 3.4). Every live server answers them."""


def cluster_address() -> str:
    """The address of the cluster that `ray.init` would join here, "" where there is none: RAY_ADDRESS, or else the
    file that `ray start` leaves on this machine."""
    address = os.environ.get("RAY_ADDRESS", "")
    left = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray", "ray_current_cluster")
    if address in ("", "auto") and left.exists():
        return left.read_text().strip()
    return "" if address == "local" else address


def require_answer(address: str) -> None:
    """Raise ConfigError if no server answers at a cluster's address, host:port. Ray itself would try for minutes."""
    server, _, port = address.rpartition("://")[2].rpartition(":")
    if not (server and port.isdigit()):
        return
    try:
        with socket.create_connection((server.strip("[]"), int(port)), ANSWER_SECONDS) as connection:
            connection.sendall(PREFACE)
            connection.recv(1)
    except OSError as error:
        raise no_cluster(address, str(error)) from error


def no_cluster(address: str, reason: str) -> ConfigError:
    named = os.environ.get("RAY_ADDRESS", "") not in ("", "auto")
    origin = "of RAY_ADDRESS" if named else "that `ray start` has left here"
    return ConfigError(
        f"no Ray cluster answers at the address {address} {origin} ({reason}); start the cluster (`ray up`), give "
        "its token (~/.ray/auth_token) to this user, or set RAY_ADDRESS=local to use this machine alone"
    )


# Ray reads these variables when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default; silences its notice
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # the nodes have the environment already
if not cluster_address():  # a Ray that serves one command listens only on the loopback address
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
