"""Brings MLflow level with the output store: one parent run a sweep, one child run a trial.

The store is the truth and MLflow a view of it, which can be made again at any time and on any tracking server:

    python sweeps/tracking.py sync STORE [--mlflow URI] [--sweep KEY] [--verify]

During a sweep a process of its own does this (sweeps/mlflow_view/follow.py).
"""

import os
import sys

import tyro
from tyro.conf import Positional

from sgan.checks import ConfigError
from sgan.store.files import StoreError
from sgan.store.s3 import find_store
from sweeps.planning import manifest


def sync(store: Positional[str], mlflow: str | None = None, sweep: str | None = None, verify: bool = False) -> int:
    """Send what MLflow lacks of the sweeps in a store. Trials that have not ended are marked as killed.

    Args:
        store: The output store.
        mlflow: Tracking URI; by default $MLFLOW_TRACKING_URI or the SQLite file inside the store.
        sweep: Key of one sweep; by default all of the store's.
        verify: Then compare every value, param, tag, image, figure and model in MLflow with the store, and print what
            differs.
    """
    opened = find_store(store)
    keys = manifest.keys(opened) if opened else []
    if opened is None or not keys:
        raise StoreError(f"{store} holds no sweep; name the folder that the sweep was given as --store")
    if sweep and sweep not in keys:
        raise StoreError(f"{store} holds no sweep {sweep}; it holds {', '.join(keys)}")
    from sweeps.mlflow_view.connection import default_uri, pages
    from sweeps.mlflow_view.sync import attempt, later
    from sweeps.mlflow_view.verify import differences

    uri = mlflow or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(opened)
    chosen = [sweep] if sweep else keys
    trouble = attempt(opened, chosen, uri)
    print(f"{trouble}; {later(opened, uri)}" if trouble else f"all is in MLflow: {pages(uri)}", file=sys.stderr)
    if trouble or not verify:
        return 1 if trouble else 0
    found = [line for key in chosen for line in differences(opened, key, uri)]
    print(*found, sep="\n", end="\n" if found else "")
    advice = "a run that is deleted in MLflow is sent anew by the same command"
    result = f"{len(found)} differences; {advice}" if found else "every value and file in MLflow is as in the store"
    print(result, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    try:
        sys.exit(tyro.extras.subcommand_cli_from_dict({"sync": sync}))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
