"""MLflow's client, its experiment, the address of its pages, and its errors in one line."""

import shlex
from pathlib import Path

from mlflow import MlflowClient, MlflowException
from sqlalchemy import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from sgan.store.local import Store

EXPERIMENT = "sgan"
SQLITE = "sqlite"
ERRORS = (MlflowException, SQLAlchemyError, OSError, KeyError, ValueError, TypeError)
"""What MLflow's client raises where a server does not answer, or answers nonsense, or a database is damaged."""


def default_uri(store: Store) -> str:
    """Tracking URI of the SQLite file inside the store."""
    return database_uri(store.root)


def database_uri(root: Path) -> str:
    """The same for the store's folder. Where a character of its path means something in an address, that names the
    driver, too: MLflow makes a folder of the quoted name otherwise."""
    path = str(root / "mlflow.db")
    plain = f"{SQLITE}:///{path}"
    quoted = URL.create(f"{SQLITE}+pysqlite", database=path).render_as_string()
    return plain if make_url(plain).database == path else quoted


def experiment_id(client: MlflowClient, store: Store, uri: str) -> str:
    """Id of the experiment, which is made, or restored, if need be. With SQLite its artifacts lie in the store."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        location = (store.root / "mlartifacts").as_uri() if uri.startswith(SQLITE) else None
        return client.create_experiment(EXPERIMENT, artifact_location=location)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def pages(uri: str) -> str:
    """How to open MLflow: the address of the page with the runs, after the command that serves a database."""
    try:
        found = MlflowClient(uri).get_experiment_by_name(EXPERIMENT)
    except ERRORS:
        found = None
    # Without a workflow in the address MLflow 3 opens pages for language models, which show none of the runs.
    page = f"#/experiments{f'/{found.experiment_id}' if found else ''}?workflowType=machine_learning"
    if uri.startswith("http"):
        return f"{uri.rstrip('/')}/{page}"
    command = f"mlflow ui --backend-store-uri {shlex.quote(uri)} --port 5000 --workers 1"
    return f"{command}\nand then http://127.0.0.1:5000/{page}"


def error_line(error: Exception) -> str:
    """An error of MLflow's client in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split("(Background on")[0].split())[:200]
