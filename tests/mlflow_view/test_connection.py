"""The address of the database in a store."""

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
