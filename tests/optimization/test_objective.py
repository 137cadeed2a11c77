"""What a search optimises, on a real Ray worker: SGANs on digits at a tiny budget, stopped early."""

import statistics
from pathlib import Path

import pytest
import ray
import tyro
from optuna.trial import TrialState

from sgan.store.s3 import open_store
from sweeps.execution import cluster, sharing
from sweeps.optimization.phases import Plan, Running
from sweeps.optimization.study import FEWEST_PEERS
from sweeps.planning.basis import prepare
from sweeps.search import Search

IMAGES, EVALUATIONS = 2560, 4
RATE = "gan.adam.learning_rate"
SMALL = ("encoder.images=640", "scorer.images=12800", "samples=500")
STAGES = (f"image_level={IMAGES}", f"evaluations={EVALUATIONS}")


@pytest.fixture(scope="module")
def slots():
    cluster.connect()
    yield cluster.slots(1, 1)
    ray.shutdown()


def test_a_config_that_does_not_learn_is_stopped_early(slots, tmp_path: Path):
    options = ("--dataset", "digits", "--variant", "sgan-no-joint", "--splits", "none", "--early-stop")
    options += ("--vary", f"{RATE}=1e-9:1e-2:log", "--store", str(tmp_path), "--override", *SMALL, *STAGES)
    search = tyro.cli(Search, args=options)
    basis = prepare(search, 0)
    running = Running(search, basis, search.space(basis), open_store(search.store), slots)
    sharing.mark(running.store, running.key)
    study, good = running.open(), running.space.known_good()
    for conditional in (0.5, 2.0, 4.0):
        study.enqueue_trial(good | {"conditional": conditional})
    for entropy in (9.0, 11.0):
        study.enqueue_trial(good | {"entropy": entropy, RATE: 1e-9})
    plan = Plan(FEWEST_PEERS + 2, 0, 0, None, 0.0, 0.0)  # pyright: ignore[reportArgumentType]
    assert running.explore(study, plan) == []

    found = running.open().get_trials()
    assert [trial.state for trial in found] == 4 * [TrialState.COMPLETE] + 2 * [TrialState.PRUNED]
    grace, every = IMAGES // 2, IMAGES // EVALUATIONS
    for trial in found[:4]:  # before there are enough to compare with, none is stopped
        assert {every, grace} <= trial.intermediate_values.keys()
    for trial in found[4:]:
        assert max(trial.intermediate_values) == trial.last_step == grace
        assert trial.value == trial.intermediate_values[grace]
        assert trial.user_attrs["outcome"] == "pruned"
        peers = [each.intermediate_values[grace] for each in found[:4]]
        assert max(trial.intermediate_values.values()) < statistics.median(peers)
        assert not running.store.has(trial.user_attrs["trial"])
