"""Rows of one's own: what they mean, what they share, and what is refused before anything is trained."""

import dataclasses
import shlex
from pathlib import Path

import pytest
import tyro

from sgan.checks import ConfigError
from sgan.config import Config, Variant, Weights
from sgan.presets import VARIANTS
from sgan.store.local import Store
from sweeps.planning import manifest
from sweeps.planning.ablation import check_record, plan_ablation
from sweeps.planning.options import Sweep
from sweeps.planning.trials import Trial

SHIPPED = Path(__file__).parents[2] / "sweeps" / "rows"
ROW = ("mine", "base=sgan", "cuts=pool1+fc3", "weights.entropy=0.5", "joint.fresh_noise=true", "title=Mine")


def planned(**options) -> dict[str, Trial]:
    return {trial.variant: trial for trial in plan_ablation(Sweep(seeds=1, **options), 0).trials}


def config(**options) -> Config:
    (trial,) = planned(variants=(), **options).values()
    return trial.config


def test_a_row_is_its_base_but_for_what_it_changes():
    base, mine = planned(variants=("sgan",), row=(ROW,)).values()
    assert mine.config.variant == Variant(("pool1", "fc3"), Weights(1, 1, 0.5), joint=True)
    joint = dataclasses.replace(base.config.recipe.joint, fresh_noise=True)
    assert mine.config.recipe == dataclasses.replace(base.config.recipe, joint=joint)
    assert (mine.config.dataset, mine.config.seed) == (base.config.dataset, base.config.seed)


def test_a_row_shares_every_stage_that_its_changes_do_not_reach():
    base, mine = planned(variants=("sgan",), row=(("mine", "base=sgan", "joint.fresh_noise=true"),)).values()
    labels = [label for label, _ in base.plan.stages]
    same = [label for label, one, two in zip(labels, base.plan.names, mine.plan.names, strict=True) if one == two]
    assert [label for label in labels if label not in same] == ["joint", "score"]


def test_options_for_all_rows_reach_ones_own_too():
    found = config(row=(("mine", "base=dcgan-adv", "gan.dropout=0.2"),), weights=(2.0, 3.0, 4.0), budget=2.0)
    assert found.variant == Variant((), Weights(2, 0, 0), joint=False, labels=False)
    assert found.recipe.image_level == 2 * config(row=(("mine", "base=dcgan-adv"),)).recipe.image_level


def test_a_row_without_labels_gets_what_it_needs():
    found = config(row=(("mine", "base=sgan", "labels=false"),), recipe="released")
    assert (found.recipe.gan.discriminator, found.recipe.encoder.objective) == ("binary", "rotation")


def test_the_papers_file_has_the_built_in_variants():
    both = plan_ablation(Sweep(rows=(SHIPPED / "paper.yaml",)), 0)
    assert both.rows == {name: row for name, row in VARIANTS.items() if row.default}
    assert [trial.config for trial in both.trials] == [trial.config for trial in plan_ablation(Sweep(), 0).trials]


@pytest.mark.parametrize("recipe", ["paper", "laptop"])
def test_each_rule_of_the_released_code_is_another_config(recipe: str):
    trials = planned(variants=("sgan",), rows=(SHIPPED / "released.yaml",), recipe=recipe)
    base = trials.pop("sgan")
    assert len(trials) > 10
    same = [name for name, trial in trials.items() if trial.config == base.config]
    assert recipe == "laptop" or not same


def test_the_record_says_what_a_row_changes_and_how_to_run_it_again(tmp_path: Path):
    store, options = Store(tmp_path), Sweep(seeds=1, variants=("sgan",), row=(ROW,), budget=0.5)
    ablation = plan_ablation(options, 0)
    manifest.write(store, ablation.record({"command": "", "commit": "abc", "machine": "a machine"}))
    found = manifest.read(store, ablation.key)
    assert [row["name"] for row in found["variants"]] == ["sgan", "mine"]
    mine = found["trials"][1]
    assert (mine["base"], mine["title"], mine["variant"]) == ("sgan", "Mine", "mine")
    assert mine["changes"] == {"cuts": "pool1+fc3", "weights.entropy": 0.5, "joint.fresh_noise": True}
    again = tyro.cli(Sweep, args=[*shlex.split(mine["rerun"]), "--seeds", "1"])
    (trial,) = plan_ablation(again, 0).trials
    assert trial.plan.name == mine["name"]
    other = plan_ablation(dataclasses.replace(options, row=(("mine", "base=sgan"),)), 0)
    assert other.key == ablation.key
    check_record(ablation, store)
    with pytest.raises(ConfigError, match=r"row mine has other changes .*another name"):
        check_record(other, store)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (("base=sgan", "gan.frsh_noise=true"), "row x: no field 'gan.frsh_noise'.*fresh_noise"),
        (("base=sgan", "weights.entropy=-1"), "row x: weights.entropy must be .*-1"),
        (("base=sgan", "cuts=fc3+pool1"), "row x: .*order"),
        (("base=dcgan-adv", "weights.conditional=1"), "row x: .*conditional weight must be 0"),
        (("base=sgan", "gan.pixel_mean=true"), "row x: .*pixel_mean must be the same"),
        (("base=sgan", "judge.images=300"), "row x changes the scoring"),
        (("base=sgan", "gan.batch=3000", "joint.batch=3000"), "row x: .*1347 .*gan.batch=3000, joint.batch=3000"),
        (("base=gan",), "row x needs base, one of sgan.*'gan'"),
        (("weights.entropy=1",), "row x needs base"),
        (("base=sgan", "weights.entropy"), "--row x takes FIELD=VALUE"),
    ],
)
def test_a_row_that_cannot_be_is_refused_before_compute(fields: tuple[str, ...], said: str):
    with pytest.raises(ConfigError, match=said):
        planned(row=(("x", *fields),))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x: [", "cannot be read"),
        ("- sgan", "must map the name"),
        ("", "must map the name"),
        ("x: sgan", "'x' is 'sgan'"),
        ("../x: {base: sgan}", "name of a row"),
        ("sgan: {base: sgan, weights.entropy: 1}", "not the built-in variant"),
        ("sgan: {base: sgan, gan.dropout: 0.1}", "not the built-in variant"),
        ("x: {base: sgan, gan: {fresh_noise: true}}", "no field 'gan'"),
    ],
)
def test_a_file_of_rows_that_cannot_be_is_refused(text: str, said: str, tmp_path: Path):
    (tmp_path / "rows.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        planned(rows=(tmp_path / "rows.yaml",))


def test_a_title_is_kept_as_it_is_typed():
    trial = planned(row=(("x", "base=sgan", "title=1e3", "weights.entropy=5"),))["x"]
    assert trial.record["title"] == "1e3"


def test_weights_that_leave_a_row_without_a_loss_name_the_row():
    with pytest.raises(ConfigError, match=r"row DCGAN \(adv\): .*weight.*--variants"):
        plan_ablation(Sweep(weights=(0.0, 1.0, 10.0)), 0)


def test_names_are_given_once_and_something_is_run():
    with pytest.raises(ConfigError, match="two rows"):
        Sweep(row=(("x", "base=sgan"), ("x", "base=dcgan-adv")))
    with pytest.raises(ConfigError, match="two rows have the title 'SGAN'"):
        Sweep(row=(("x", "base=sgan", "title=SGAN"),))
    with pytest.raises(ConfigError, match="--variants names no variant"):
        Sweep(variants=())
