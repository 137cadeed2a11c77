"""Brings MLflow level with the output store: one parent run a sweep, one child run a trial.

The store is the truth and MLflow a view of it, which can be made again at any time and on any tracking server:

    python sweeps/tracking.py sync STORE [--mlflow URI] [--sweep KEY] [--verify]

During a sweep a process of its own does this (sweeps/mlflow_view/follow.py).
"""

import sys

import tyro
from tyro.conf import Positional

from sgan.checks import require
from sgan.command_line import later, parse, status

PROG = "python sweeps/tracking.py"


def sync(store: Positional[str], mlflow: str | None = None, sweep: str | None = None, verify: bool = False) -> int:
    """Send what MLflow lacks of the sweeps in a store. Trials that have not ended are marked as killed.

    Args:
        store: The output store.
        mlflow: Tracking URI; by default $MLFLOW_TRACKING_URI or the SQLite file inside the store.
        sweep: Key of one sweep; by default all of the store's.
        verify: Then compare every value, param, tag, image, figure and model in MLflow with the store, and print what
            differs.
    """
    from sweeps.mlflow_view.connection import address_of, default_uri, error_line, pages  # MLflow takes seconds
    from sweeps.mlflow_view.sync import attempt
    from sweeps.mlflow_view.verify import differences
    from sweeps.planning import manifest

    opened, keys = manifest.find(store)
    require(not sweep or sweep in keys, f"{store} holds no sweep {sweep}; it holds {', '.join(keys)}")
    uri = address_of(mlflow) or default_uri(opened)
    keys = [sweep] if sweep else keys
    trouble, found = attempt(opened, keys, uri), []
    if verify and not trouble:
        try:
            found = [line for key in keys for line in differences(opened, key, uri)]
        except Exception as error:  # whatever MLflow's client makes of an answer
            trouble = f"MLflow could not be compared: {error_line(error)}"
    result = trouble or f"all is in MLflow: {pages(uri, keys[-1])}"
    if verify and not trouble:
        result = "every value and file in MLflow is as in the store"
    if found:
        result = f"{len(found)} differences; delete a run in MLflow, or a strange file, and give the command again"
    for line in found:
        print(line)
    print(result, file=sys.stderr)
    return 1 if trouble or found else 0


if __name__ == "__main__":
    sys.exit(status(lambda: parse(lambda: tyro.extras.subcommand_cli_from_dict({"sync": later(sync)}, prog=PROG))()))
