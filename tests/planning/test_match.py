"""Equal compute: every row trains as long as the largest, and what is matched is part of the sweep's key."""

import shlex
from typing import Any

import pytest
import tyro

from sgan.stages.graph import JointStage, LevelStage
from sgan.store.local import Store
from sweeps.planning import manifest
from sweeps.planning.ablation import check_record, plan_ablation, size
from sweeps.planning.options import Sweep

LONGER = ("mine", "base=sgan", "gan.generator_steps=[[0, 5]]", "joint.generator_steps=[[0, 5]]")


def test_the_recorded_command_of_a_longer_row_is_of_the_sweep_without_a_match(tmp_path):
    store, origin = Store(tmp_path), {"command": "", "commit": "abc", "machine": "a machine"}
    for match in ("none", "images"):
        row = ("mine", "base=sgan", "weights.entropy=5")
        ablation = plan_ablation(Sweep(seeds=1, variants=("sgan-no-joint",), row=(row,), match=match), 0)
        manifest.write(store, ablation.record(origin))
    for row in manifest.read(store, ablation.key)["trials"]:
        again = plan_ablation(tyro.cli(Sweep, args=[*shlex.split(row["rerun"]), "--seeds", "1"]), 0)
        check_record(again, store)
        assert again.trials[0].plan.name == row["name"]


@pytest.mark.parametrize("match", ["images", "flops"])
def test_every_row_is_as_large_as_the_largest_but_for_the_rounding_to_batches(match):
    plain = {trial.variant: trial for trial in plan_ablation(Sweep(seeds=1, row=(LONGER,)), 0).trials}
    trials = plan_ablation(Sweep(seeds=1, row=(LONGER,), match=match), 0).trials
    largest = max(size(trial.config, match) for trial in plain.values())
    for trial in trials:
        assert size(trial.config, match) == pytest.approx(largest, rel=0.01)
        levels = {label: stage.images for label, stage in trial.plan.stages if isinstance(stage, LevelStage)}
        before = {label: stage.images for label, stage in plain[trial.variant].plan.stages if label in levels}  # type: ignore[union-attr]
        longer = {label: levels[label] / before[label] for label in levels}
        assert ("level1" in levels and match == "images") <= (longer.get("level1", 1) == 1)
        assert longer["level0"] >= 1
        assert any(isinstance(stage, JointStage) for _, stage in trial.plan.stages) == trial.config.variant.joint
    same = next(trial for trial in trials if trial.variant == "mine")
    assert same.config == plain["mine"].config


def test_a_larger_row_makes_another_sweep_and_a_smaller_one_does_not():
    def key(*variants: str, match: Any = "flops", **options) -> str:
        return plan_ablation(Sweep(seeds=1, variants=variants, match=match, **options), 0).key

    assert key("sgan") == key("sgan", "dcgan-adv")
    found = {key("sgan"), key("dcgan-adv"), key("sgan", match="none"), key("sgan", match="images")}
    assert len({*found, key("sgan", row=(LONGER,))}) == 5
    assert "equal FLOPs" in plan_ablation(Sweep(seeds=1, match="flops"), 0).title


def test_a_recorded_command_trains_the_same_stages_alone(tmp_path):
    store = Store(tmp_path)
    ablation = plan_ablation(Sweep(seeds=1, variants=("sgan", "dcgan-adv"), row=(LONGER,), match="images"), 0)
    manifest.write(store, ablation.record({"command": "", "commit": "abc", "machine": "a machine"}))
    for row in manifest.read(store, ablation.key)["trials"]:
        again = tyro.cli(Sweep, args=[*shlex.split(row["rerun"]), "--seeds", "1"])
        assert [trial.plan.name for trial in plan_ablation(again, 0).trials] == [row["name"]]
