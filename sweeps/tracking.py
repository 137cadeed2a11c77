"""Sends to MLflow what it lacks of an output store: one parent run per sweep, one child run per trial.

The store is the source of truth. MLflow is a view, which can be rebuilt at any time and on any tracking server:

    python sweeps/tracking.py sync STORE [--mlflow URI] [--verify]

During a sweep a separate process does this (sweeps/mlflow_view/follow.py).
"""

import sys

import tyro

from sgan.command_line import StoreAddress, later, parse, status
from sweeps.planning import manifest


def sync(store: StoreAddress, mlflow: str | None = None, verify: bool = False) -> int:
    """Send to MLflow what it lacks of the sweeps in a store. Trials that have not ended are marked as killed.

    Args:
        store: The output store.
        mlflow: Tracking URI; by default $MLFLOW_TRACKING_URI or the SQLite file inside the store.
        verify: Afterwards compare every value, param, tag, image, figure and model in MLflow with the store, and print
            the differences.
    """
    from sweeps.mlflow_view.connection import address_of, default_uri, error_line, pages  # MLflow takes seconds
    from sweeps.mlflow_view.sync import attempt
    from sweeps.mlflow_view.verify import differences

    opened, keys = manifest.find(store)
    uri = address_of(mlflow) or default_uri(opened)
    result, found = attempt(opened, keys, uri), []
    if verify and not result:
        try:
            found = [line for key in keys for line in differences(opened, key, uri)]
        except Exception as error:  # MLflow's client raises many types
            result = f"MLflow could not be compared: {error_line(error)}"
    if found:
        print(*found, sep="\n")
        result = f"{len(found)} differences; delete these runs in MLflow, or the unlisted files, and repeat the command"
    whole = "every value and file in MLflow is as in the store" if verify else "all is in MLflow"
    print(result or f"{whole}: {pages(uri, keys[-1])}", file=sys.stderr)
    return 1 if result else 0


if __name__ == "__main__":
    commands, prog = {"sync": later(sync)}, "python sweeps/tracking.py"
    sys.exit(status(lambda: parse(lambda: tyro.extras.subcommand_cli_from_dict(commands, prog=prog))()))
