"""MLflow as all here reach it: a connection that gives up soon, the runs of a sweep, and errors in one line."""

import contextlib
import json
import os
import shlex
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

from sgan.checks import ConfigError
from sgan.host import importing
from sgan.store.files import StoreError, passing, read_json
from sgan.store.local import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "sgan"
SWEEP, TRIAL, SENT, MANIFEST = "sgan.sweep", "sgan.trial", "sgan.sent", "sgan.manifest"  # tags that runs are found by
STATUS = {"done": "FINISHED", "diverged": "FAILED", "failed": "FAILED", "running": "RUNNING", "interrupted": "KILLED"}
MANIFEST_FILE = "manifest.json"
SQLITE = "sqlite:///"
GET_EXPERIMENT = "api/2.0/mlflow/experiments/get-by-name"
LONGEST_PARAM = 6000  # MLflow's limit
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # at MLflow's defaults a call to an absent server takes minutes to fail
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
POOL = "MLFLOW_SQLALCHEMYSTORE_"


def module():
    """MLflow itself, made quiet; imported late because that takes seconds, which the driver and --help do not have."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # A connection that is kept goes on with a database that was deleted, or whose disk was mounted anew. Whoever gives
    # a size wants some kept, and without a pool MLflow fails on a size.
    if not any(name.startswith(POOL) for name in os.environ):
        os.environ[f"{POOL}POOLCLASS"] = "NullPool"
    with importing():
        import mlflow
        import mlflow.entities

    return mlflow


def connect(uri: str) -> "MlflowClient":
    """A quiet client that gives up soon on a server that does not answer."""
    database = Path(uri.removeprefix(SQLITE))
    if uri.startswith(SQLITE) and not database.exists():
        _make(database)
    mlflow = module()
    with importing():  # what reaches a database
        return mlflow.MlflowClient(tracking_uri=uri)


def _make(database: Path) -> None:
    """Make a database whole or not at all: MLflow takes seconds and many steps, and one that was cut off between them
    could never be opened again."""
    with passing(database.parent, ".mlflow-") as folder:
        made = folder / database.name
        mlflow = module()
        with importing():  # its steps are modules
            mlflow.MlflowClient(tracking_uri=f"{SQLITE}{made}")
        try:
            os.link(made, database)
        except FileExistsError:
            pass  # another process was faster
        except OSError:  # a file system without links
            os.replace(made, database)


@contextlib.contextmanager
def reading(uri: str) -> Iterator[None]:
    """Turns whatever goes wrong in reading MLflow into one ConfigError; a LookupError for what is not there stays."""
    from sqlalchemy.exc import SQLAlchemyError  # MLflow lets the errors of a broken database through

    try:
        yield
    except ConfigError:
        raise
    except (module().MlflowException, SQLAlchemyError, OSError, KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"MLflow at {uri} cannot be read ({in_short(error)}){advice(uri, error)}") from error


def in_short(error: Exception) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split("(Background on")[0].split())[:200]


def advice(uri: str, error: Exception) -> str:
    """What to do about a database that may be damaged."""
    path = uri.removeprefix(SQLITE)
    if path == uri or isinstance(error, OSError):
        return ""
    return f"; if {path} is damaged, delete it: `tracking.py sync STORE` makes it again"


def default_uri(store: Store) -> str:
    """Tracking URI of the SQLite file inside the store."""
    return f"{SQLITE}{store.root / 'mlflow.db'}"


def pages(uri: str) -> str:
    """How to look at the sweeps: the shell line that serves MLflow's pages of a database, and the address of the page
    with the runs. Without a workflow in it MLflow 3 opens pages for language models, where none of them is."""
    place = f"#/experiments/{_experiment_id(uri)}".rstrip("/")
    page = f"{place}?workflowType=machine_learning"
    if uri.startswith("http"):
        return f"{uri.rstrip('/')}/{page}"
    command = f"mlflow ui --backend-store-uri {shlex.quote(uri)} --port 5000 --workers 1"
    return f"{command}\nand then http://127.0.0.1:5000/{page}"


def _experiment_id(uri: str) -> str:
    """The experiment's id, asked for without MLflow, which takes seconds to import; "" where that does not tell it:
    then the page is the list of experiments."""
    with contextlib.suppress(OSError, HTTPException, sqlite3.Error, ValueError, LookupError, TypeError):
        if uri.startswith(SQLITE):
            file = Path(uri.removeprefix(SQLITE)).absolute().as_uri()
            with contextlib.closing(sqlite3.connect(f"{file}?mode=ro", uri=True)) as database:
                found = database.execute("select experiment_id from experiments where name = ?", (EXPERIMENT,))
                return str(found.fetchone()[0])
        if uri.startswith("http"):
            with urlopen(f"{uri.rstrip('/')}/{GET_EXPERIMENT}?experiment_name={EXPERIMENT}", timeout=5) as answer:
                return str(json.load(answer)["experiment"]["experiment_id"])
    return ""


def runs_of(client: "MlflowClient", sweep_key: str) -> "list[Run]":
    """All runs of a sweep, its parent's and its trials'."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return _search(client, experiment.experiment_id, sweep_key) if experiment else []


def _search(client: "MlflowClient", experiment: str, sweep_key: str, trial: str = "") -> "list[Run]":
    """The runs of a sweep in the experiment of this id, or those of one of its trials."""
    query = f"tags.`{SWEEP}` = '{sweep_key}'" + (f" and tags.`{TRIAL}` = '{trial}'" if trial else "")
    runs, page = [], None
    while page is None or page.token:
        token = page.token if page else None
        page = client.search_runs([experiment], query, max_results=1000, page_token=token)
        runs += page
    return runs


def find(client: "MlflowClient", sweep_key: str) -> "tuple[Run | None, dict[str, Run]]":
    """The parent run of a sweep (None before its first pass) and its child runs by trial name."""
    runs = runs_of(client, sweep_key)
    parents = [run for run in runs if TRIAL not in run.data.tags]
    return next(iter(parents), None), {run.data.tags[TRIAL]: run for run in runs if TRIAL in run.data.tags}


def find_some(
    client: "MlflowClient", sweep_key: str, parent: str, trials: Iterable[str]
) -> "tuple[Run | None, dict[str, Run]]":
    """The parent run of a sweep by its id (None where it was deleted), and the child runs of some trials."""
    run = client.get_run(parent)
    found = {trial: _search(client, run.info.experiment_id, sweep_key, trial) for trial in trials}
    return run if run.info.lifecycle_stage == "active" else None, {
        name: runs[0] for name, runs in found.items() if runs
    }


def manifest_of(client: "MlflowClient", run: "Run") -> dict[str, Any]:
    """The manifest that a sweep's parent run has; StoreError where it is missing or damaged."""
    if not any(file.path == MANIFEST_FILE for file in client.list_artifacts(run.info.run_id)):
        raise StoreError(f"the run {run.info.run_id} has no {MANIFEST_FILE}")
    with tempfile.TemporaryDirectory() as folder:
        held = client.download_artifacts(run.info.run_id, MANIFEST_FILE, folder)
        return read_json(Path(held), key=run.data.tags[SWEEP])


def experiment(client: "MlflowClient", store: Store, uri: str) -> str:
    """Id of the experiment, made if it is not there; with SQLite its artifacts lie in the store."""
    location = (store.root / "mlartifacts").as_uri() if uri.startswith(SQLITE) else None
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        try:
            return client.create_experiment(EXPERIMENT, artifact_location=location)
        except module().MlflowException:  # another process was faster, or the server is in trouble
            found = client.get_experiment_by_name(EXPERIMENT)
            if found is None:
                raise
    return found.experiment_id
