"""The address of the database in a store."""

import os

import pytest
from mlflow import MlflowClient

from sgan.store.local import Store
from sweeps.mlflow_view.connection import default_uri, experiment_id


@pytest.mark.parametrize("folder", ["feature%2Fone", "what?", "a#b é c:d@e"])
def test_a_store_at_any_path_holds_its_database_and_its_artifacts(folder, tmp_path):
    """Characters that mean something in an address, such as a build server's %2F for a slash."""
    store = Store(tmp_path / folder)
    client = MlflowClient(default_uri(store))
    run = client.create_run(experiment_id(client, default_uri(store))).info.run_id
    client.log_text(run, "text", "sub/file.txt")
    assert (store.root / "mlflow.db").exists()
    assert [path.read_text() for path in store.root.glob("mlartifacts/**/file.txt")] == ["text"]
    assert [path.name for path in tmp_path.iterdir()] == [folder]


def test_a_group_that_may_write_the_store_may_write_its_database_and_its_artifacts(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o2770)
    before = os.umask(0o077)
    try:
        store = Store(tmp_path / "shared" / "store")
        experiment_id(MlflowClient(default_uri(store)), default_uri(store))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in store.root.iterdir()}
    assert (modes["mlflow.db"], modes["mlartifacts"], modes["stages"]) == (0o660, 0o770, 0o770)
