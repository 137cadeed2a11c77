"""Nodes that share a store: what each answers, or that it has died."""

import pytest
import ray
from ray.exceptions import GetTimeoutError, NodeDiedError

from sgan.checks import ConfigError
from sgan.store.local import Store
from sweeps.execution import cluster
from sweeps.execution.cluster import leave_mark, open_shared_store, require_shared_store, versions

LAST = 56 * "3"
NODES = [{"NodeID": each, "NodeManagerHostname": "twin", "Alive": True} for each in (56 * "1", 56 * "2", LAST)]


def test_a_node_with_other_versions_or_another_store_is_named_before_it_computes(tmp_path):
    leave_mark(Store(tmp_path), "mark")
    assert open_shared_store(str(tmp_path), "mark", versions()).root == tmp_path
    with pytest.raises(ConfigError, match=r"the node .* has Python .*, torch .*, but the driver Python 2.7, torch 1;"):
        open_shared_store(str(tmp_path), "mark", "Python 2.7, torch 1")
    with pytest.raises(ConfigError, match=r"is not shared: the node .* does not see the driver's file in it"):
        open_shared_store(str(tmp_path), "other", versions())


class Answers:
    """Stands for the nodes: two have one host's name, and the third one dies, or is silent."""

    def __init__(self, store: Store, monkeypatch, dies: bool):
        self.store, self.nodes, self.dies, self.asked = store, list(NODES), dies, 0
        monkeypatch.setattr(cluster, "answer", self)
        monkeypatch.setattr(ray, "nodes", lambda: self.nodes)
        monkeypatch.setattr(ray, "get", self.get)

    def options(self, scheduling_strategy) -> "Answers":
        return self

    def remote(self, address: str, mark: str, driver: str) -> str:
        assert (address, driver) == (self.store.address, versions())
        node = NODES[self.asked]["NodeID"]
        self.asked += 1
        with Store(self.store.root).alone(f"sharing-{mark}") as mine:
            assert not mine
        return node

    def get(self, node: str, timeout: float) -> bool:
        if node == LAST:
            self.nodes = [each | {"Alive": not self.dies or each["NodeID"] != LAST} for each in NODES]
            raise NodeDiedError("gone") if self.dies else GetTimeoutError("silent")
        return True


def test_nodes_of_one_name_answer_each_and_a_dead_one_need_not(tmp_path, monkeypatch):
    store = Store(tmp_path)
    Answers(store, monkeypatch, dies=True)
    require_shared_store(store, "mark")
    assert [path.name for path in (tmp_path / "hosts").iterdir()] == ["mark"]


def test_a_node_that_lives_and_says_nothing_is_named(tmp_path, monkeypatch):
    store = Store(tmp_path)
    Answers(store, monkeypatch, dies=False)
    with pytest.raises(ConfigError, match="the node twin did not report within"):
        require_shared_store(store, "mark")
