"""Addresses of MLflow, servers that are away or answer nonsense, and the database in a store."""

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from handmade import KEY, manifest
from mlflow import MlflowClient

from sgan.checks import ConfigError
from sgan.command_line import python
from sgan.store.local import Store
from sweeps import tracking
from sweeps.mlflow_view import connection
from sweeps.mlflow_view.connection import address_of, default_uri, experiment_id
from sweeps.mlflow_view.sync import attempt


@pytest.mark.parametrize("folder", ["feature%2Fone", "what?", "a#b é c:d@e"])
def test_a_store_at_any_path_holds_its_database_and_its_artifacts(folder, tmp_path):
    """Characters that mean something in an address, such as a build server's %2F for a slash."""
    store = Store(tmp_path / folder)
    client = MlflowClient(default_uri(store))
    run = client.create_run(experiment_id(client)).info.run_id
    client.log_text(run, "text", "sub/file.txt")
    assert (store.root / "mlflow.db").exists()
    assert [path.read_text() for path in store.root.glob("mlartifacts/**/file.txt")] == ["text"]
    assert [path.name for path in tmp_path.iterdir()] == [folder]


def test_a_journal_of_a_killed_writer_is_not_played_into_a_new_database(tmp_path):
    """The store is moved, so its database is made anew."""
    before, moved = Store(tmp_path / "before"), tmp_path / "moved"
    code = "import os, sqlite3, sys; db = sqlite3.connect(sys.argv[1]); "
    client = MlflowClient(default_uri(before))
    run, database = client.create_run(experiment_id(client)).info.run_id, moved / "mlflow.db"
    for number in range(300):
        client.log_metric(run, f"m{number}", 1.0)
    # So little memory that pages of an open transaction are written; then it dies.
    code += "db.execute('pragma cache_size=2'); db.execute('update metrics set value=2'); "
    code += "db.execute('update runs set name=hex(randomblob(99999))'); os._exit(1)"
    subprocess.run([sys.executable, "-c", code, str(before.root / "mlflow.db")], check=False, timeout=60)
    before.root.rename(moved)
    assert (moved / "mlflow.db-journal").stat().st_size > 0
    connection.prepare(Store(moved), default_uri(Store(moved)))
    assert sqlite3.connect(database).execute("pragma integrity_check").fetchall() == [("ok",)]
    assert not (moved / "mlflow.db-journal").exists()


def test_a_group_that_may_write_the_store_may_write_its_database_and_its_artifacts(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o2770)
    before = os.umask(0o077)
    try:
        store = Store(tmp_path / "shared" / "store")
        experiment_id(MlflowClient(default_uri(store)))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in store.root.iterdir()}
    assert (modes["mlflow.db"], modes["mlartifacts"], modes["stages"]) == (0o660, 0o770, 0o770)


@pytest.mark.parametrize(
    ("given", "variable", "address"),
    [
        (None, "", ""),
        (None, "http://a:5000", "http://a:5000"),
        ("http://b:5000/", "./mlruns", "http://b:5000"),  # what is given wins over a variable that is wrong
        ("127.0.0.1:5000", "", "http://127.0.0.1:5000"),
        ("http://b:5000/#/experiments/1/runs?workflowType=machine_learning", "", "http://b:5000"),
        ("https://b/mlflow/?x=1", "", "https://b/mlflow"),
        ("postgresql+psycopg://h/d?host=/run", "", "postgresql+psycopg://h/d?host=/run"),
        ("sqlite:////a/mlflow.db", "", "sqlite:////a/mlflow.db"),
    ],
)
def test_an_address_is_given_or_the_variables(given, variable, address, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    assert address_of(given) == address


@pytest.mark.parametrize(
    ("given", "variable", "named"),
    [
        (None, "./mlruns", r"\$MLFLOW_TRACKING_URI is './mlruns'"),
        ("mlruns", "http://a:5000", "--mlflow is 'mlruns'"),
        ("ftp://me:S3CRET@a", "", "--mlflow is 'ftp://HIDDEN@a'"),
        ("http://", "", "--mlflow is 'http://'"),
    ],
)
def test_what_is_no_address_is_one_error_that_names_its_origin(given, variable, named, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    with pytest.raises(ConfigError, match=f"{named}, which is no address of MLflow; give one like http://127.0.0.1"):
        address_of(given)


def test_help_does_not_read_the_variable():
    environment = os.environ | {"MLFLOW_TRACKING_URI": "./mlruns"}
    command = [sys.executable, "sweeps/ablation.py", "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert "--mlflow" in done.stdout


class Odd(BaseHTTPRequestHandler):
    """A server that answers everything with JSON that is no answer, or never ends one."""

    trickles = False

    def answer(self) -> None:
        text = b'{"runs": 7}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text) + 1000 * self.trickles))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(text)
            while self.trickles:
                self.wfile.write(b" ")
                time.sleep(0.2)

    do_GET = do_POST = do_PATCH = answer

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def odd() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    Odd.trickles = False
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("verify", [False, True])
def test_an_answer_that_is_none_is_one_line(odd, verify, tmp_path, capsys):
    manifest(Store(tmp_path))
    assert tracking.sync(str(tmp_path), odd, verify=verify) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("MLflow did not get everything: ")
    assert line.endswith(f"send it later with: {python()} sweeps/tracking.py sync {tmp_path} --mlflow {odd}")


def test_a_pass_ends_though_an_answer_trickles(odd, tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "PASS_SECONDS", 2.0)
    Odd.trickles = True
    manifest(Store(tmp_path))
    assert "it was not done within 2 s; send it later with" in attempt(Store(tmp_path), [KEY], odd)


def test_a_server_that_is_away_is_told_before_training(odd, monkeypatch, capsys):
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 1.0)
    Odd.trickles = True
    connection.warn_if_away(f"{odd.replace('//', '//me:S3CRET@')}")
    address = odd.replace("//", "//HIDDEN@")
    told = capsys.readouterr().out
    assert told.startswith(f"MLflow at {address} cannot be reached (")
    assert told.endswith("it was not done within 1 s); it gets all results once it answers\n")
    assert "S3CRET" not in told
