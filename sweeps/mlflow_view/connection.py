"""MLflow's address, its experiment, how to open its pages, and its errors in one line."""

import os
import re
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy import URL, make_url

from sgan.addresses import masked
from sgan.checks import require
from sgan.command_line import python
from sgan.store.files import atomic_write, make_folder, remove, share
from sgan.store.local import Store

EXPERIMENT = "sgan"
SQLITE, ARTIFACTS, HOME = "sqlite", "mlartifacts", "store"
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
VARIABLE = "MLFLOW_TRACKING_URI"
VIEW = "mlflow.sharedViewState."  # Prefix of the experiment's tags that hold saved views
ANSWER_SECONDS = 15.0  # The longest wait for MLflow before a command trains
PASS_SECONDS = 300.0  # Time limit of a pass, which sends what MLflow lacks of a sweep


def address_of(given: str | None) -> str:
    """The tracking URI from --mlflow, or else from $MLFLOW_TRACKING_URI; "" if neither is set. The address of one of
    MLflow's pages is accepted, too. ConfigError for an address that MLflow does not accept."""
    origin, address = ("--mlflow", given) if given else (f"${VARIABLE}", os.environ.get(VARIABLE) or "")
    if re.match(r"[\w.-]+:\d+(/|$)", address):
        address = f"http://{address}"
    scheme, _, rest = address.partition("://")
    require(
        not address or (scheme.partition("+")[0] in SCHEMES and bool(rest)),
        f"{origin} is {masked(address)!r}, which is no address of MLflow; give one like http://127.0.0.1:5000, "
        "postgresql+psycopg://host/name or sqlite:////folder/mlflow.db, or leave it out to use a file in the store",
    )
    return re.split("[?#]", address)[0].rstrip("/") if scheme.startswith("http") else address


def default_uri(store: Store) -> str:
    """Tracking URI of the SQLite file inside the store."""
    return _file_uri(store.root / "mlflow.db")


def _file_uri(path: Path) -> str:
    """Tracking URI of an SQLite file. If its path must be quoted in an address, the address also names the driver:
    MLflow makes a folder of the quoted name otherwise."""
    plain = f"{SQLITE}:///{path}"
    quoted = URL.create(f"{SQLITE}+pysqlite", database=str(path)).render_as_string()
    return plain if make_url(plain).database == str(path) else quoted


def prepare(store: Store, uri: str) -> None:
    """Make the store's own database if there is none, whole or not at all: MLflow takes seconds for its tables, and
    cannot go on with half of them. A database whose store was moved or copied is made anew, without its artifacts:
    MLflow's addresses of files are absolute, so that it would show none. Everything is sent again. Call it before this
    process first uses that database."""
    if uri != default_uri(store):
        return
    database, home = store.root / "mlflow.db", store.root / ARTIFACTS / HOME
    with store.lock("mlflow"):
        with suppress(OSError):
            if database.exists() and os.path.samefile(home.read_text(), store.root):
                return
        for end in ("", "-journal", "-wal", "-shm"):  # a killed writer's journal would be played into the new one
            remove(database.with_name(f"{database.name}{end}"))
        remove(home.parent)
        with atomic_write(home) as temporary:
            temporary.write_text(str(store.root))
        with atomic_write(database) as temporary:
            MlflowClient(_file_uri(temporary)).search_experiments(max_results=1)


def experiment_id(client: MlflowClient) -> str:
    """Id of the experiment, which is created or restored if needed. With SQLite its artifacts lie beside it."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        uri, place = client.tracking_uri, None
        file = make_url(uri).database if uri.startswith(SQLITE) else None
        if file:  # all users who may write the folder may write both
            share(Path(file))
            make_folder(Path(file).absolute().with_name(ARTIFACTS))
            place = Path(file).absolute().with_name(ARTIFACTS).as_uri()
        try:
            return client.create_experiment(EXPERIMENT, place)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return experiment_id(client)  # another command was faster
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def pages(uri: str, view: str = "") -> str:
    """How to open MLflow: the address of the page with the runs, for a database after the command that serves it. The
    page opens with the saved view of the key `view`, if MLflow has it."""
    # Without a workflow in the address MLflow 3 opens pages for language models, which show none of the runs.
    page = "#/experiments?workflowType=machine_learning"
    with suppress(Exception):  # no answer, or nonsense
        found = MlflowClient(uri).get_experiment_by_name(EXPERIMENT)
        if found:
            page = page.replace("?", f"/{found.experiment_id}/runs?")
            page += f"&viewStateShareKey={view}" if f"{VIEW}{view}" in found.tags else ""
    if uri.startswith("http"):
        return f"{masked(uri)}/{page}"
    command = f"{python()} -m mlflow ui --backend-store-uri {shlex.quote(masked(uri))} --port 5000 --workers 1"
    return f"{command}\nand then http://127.0.0.1:5000/{page}"


class Late(Exception):
    """A block took longer than its time limit."""


@contextmanager
def limited(seconds: float = 0.0) -> Iterator[None]:
    """Raise Late in a block of the main thread that takes longer than `seconds`, by default PASS_SECONDS. MLflow only
    limits single reads, so an answer that trickles in never times out."""
    seconds = seconds or PASS_SECONDS

    def end(*_: object) -> None:
        raise Late(f"it was not done within {seconds:g} s")

    handler, timer = signal.signal(signal.SIGALRM, end), signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


def warn_if_away(uri: str) -> None:
    """Print a warning if MLflow does not answer within ANSWER_SECONDS. Training does not need it."""
    try:
        with limited(ANSWER_SECONDS):
            MlflowClient(uri).search_experiments(max_results=1)
    except Exception as error:  # MLflow's client raises many types
        away = f"MLflow at {masked(uri)} cannot be reached ({error_line(error)}); it gets all results once it answers"
        print(away, flush=True)


def error_line(error: Exception) -> str:
    line = " ".join(f"{type(error).__name__}: {error}".split("(Background on")[0].split())
    return masked(line)[:200]
