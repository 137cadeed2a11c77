"""Everything that runs on Ray."""

import os
from pathlib import Path


def cluster_address() -> str:
    """The address of the cluster that `ray.init` would join here, "" where there is none: RAY_ADDRESS, or else what
    `ray start` has left on this machine."""
    address = os.environ.get("RAY_ADDRESS", "")
    left = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray", "ray_current_cluster")
    if address in ("", "auto") and left.exists():
        return left.read_text().strip()
    return "" if address == "local" else address


# Ray reads them when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default; silences its notice
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # the nodes have the environment already
if not cluster_address():  # Ray of one command listens on the loopback address alone
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
