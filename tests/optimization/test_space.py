"""The search space over all splits: every config of it has networks, and what tells two configs apart."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from sgan.checks import ConfigError, content_key
from sgan.config import INNER_TAPS, TAPS, Config
from sgan.presets import DATASETS, RECIPES, VARIANTS
from sgan.stages.cost import check_networks
from sgan.stages.graph import plan
from sweeps.optimization.search_options import SPLITS, Search, parse_varied, splits_of
from sweeps.optimization.space import Space
from sweeps.planning.basis import Basis


def basis(name: str = "digits", width: float = 1.0, recipe: str = "laptop") -> Basis:
    """A basis without the data's files."""
    row, made = DATASETS[name], RECIPES[recipe](DATASETS[name], 1347)

    class Absent:
        digest = "0" * 16

    return Basis(row.scaled(width), made, Absent(), "held-out", None, "", "", name, ())  # pyright: ignore[reportArgumentType]


def space(of: Basis | None = None, variant: str = "sgan", **changes) -> Space:
    return Space(Search(dataset="digits", variant=variant, **changes), of or basis())


def template(of: Space) -> Config:
    """The config before the search chooses."""
    return of.basis.config(of.variant, 0)


def configs_of(of: Space) -> list[Config]:
    """A config of every split."""
    return [of.config(of.known_good() | {"split": split}, 0) for split in of.splits]


def test_the_splits_are_the_subsets_of_the_taps_each_in_the_encoders_order():
    assert len(SPLITS) == 2 ** len(INNER_TAPS) == len(set(SPLITS.values()))
    for split, taps in SPLITS.items():
        assert list(taps) == [tap for tap in TAPS if tap in taps]
        assert split == ("+".join(taps) or "none")


ROWS = [("digits", 1.0, "paper"), ("digits", 0.1, "laptop"), ("mnist", 0.25, "released"), ("mnist", 1.0, "laptop")]
ROWS += [("svhn", 0.5, "laptop"), ("cifar10", 1.0, "released"), ("cifar10", 0.1, "paper")]


@pytest.mark.parametrize(("name", "width", "recipe"), ROWS)
def test_every_split_of_every_dataset_has_networks_that_fit(name: str, width: float, recipe: str):
    assert {row[0] for row in ROWS} == set(DATASETS)
    made = space(basis(name, width, recipe))
    check_networks(configs_of(made))
    for split, taps in SPLITS.items():
        levels = plan(made.config(made.known_good() | {"split": split}, 0)).score.levels
        assert [stage.level.low for stage in levels] == ["image", *taps]


def test_networks_that_do_not_fit_are_one_error_before_anything_runs():
    row = DATASETS["digits"]
    broken = dataclasses.replace(row, gan=dataclasses.replace(row.gan, map_convs=tuple(
        dataclasses.replace(conv, kernel=99, padding=0) for conv in row.gan.map_convs
    )))  # fmt: skip
    of = dataclasses.replace(basis(), dataset=broken)
    with pytest.raises(ConfigError, match=r"the networks of the level from .* do not fit digits"):
        check_networks(configs_of(space(of)))


def test_no_memory_is_taken_for_the_networks():
    before = torch.get_default_device()
    check_networks(configs_of(space(splits=("fc3",))))
    assert torch.get_default_device() == before


def test_distributions_are_those_asked_for():
    vary = ("gan.image_noise=0.0:0.5", "gan.batch=16:64:log")
    found = space(splits=("none", "pool1+fc3"), vary=vary).distributions
    assert found == {
        "split": CategoricalDistribution(("none", "pool1+fc3")),
        "losses": CategoricalDistribution(("adv+cond+ent", "adv+ent", "adv+cond")),
        "adversarial": FloatDistribution(0.1, 10.0, log=True),
        "conditional": FloatDistribution(0.1, 10.0, log=True),
        "entropy": FloatDistribution(1.0, 100.0, log=True),
        "gan.image_noise": FloatDistribution(0.0, 0.5),
        "gan.batch": IntDistribution(16, 64, log=True),
    }


def key(of: Space, params: dict) -> str:
    return content_key(of.config(params, 0))


def test_zero_is_a_choice_and_two_configs_that_differ_only_in_a_weight_left_out_are_one():
    made = space(splits=("none", "fc3"))
    base = made.known_good() | {"losses": "adv+ent"}
    assert dataclasses.astuple(made.config(base, 0).variant.weights) == (1.0, 0.0, 10.0)
    assert key(made, base) == key(made, base | {"conditional": 3.0})
    for other in ({"adversarial": 3.0}, {"entropy": 3.0}, {"losses": "adv+cond+ent"}, {"split": "none"}):
        assert key(made, base) != key(made, base | other)


def test_a_dcgan_of_a_search_has_the_name_of_a_row_only_where_that_has_labels_too():
    made = space(splits=("none", "fc3"))
    base = made.known_good() | {"split": "none"}
    assert made.kind(base) == "dcgan-adv-cond-ent"
    assert made.kind(base | {"losses": "adv+ent"}) == "sgan"


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_has_a_space_and_the_papers_point_is_in_it(variant: str):
    row = VARIANTS[variant].variant
    some = tuple(split for split in ("none", "fc3", "pool1+fc3") if split in splits_of(variant))
    made = space(variant=variant, splits=some)
    known = made.known_good()
    assert known.keys() == made.distributions.keys()
    for param, distribution in made.distributions.items():
        assert distribution._contains(distribution.to_internal_repr(known[param]))
    assert made.config(known, 5).variant == template(made).variant
    for split in some:
        found = made.config(known | {"split": split}, 0).variant
        assert (found.cuts, found.through) == (SPLITS[split] if row.cuts else (), SPLITS[split] if row.through else ())
    for losses in made.losses:
        weights = made.loss_weights(known | {"losses": losses})
        assert sum(weight > 0 for weight in dataclasses.astuple(weights)) >= 1


ONE = space(splits=("fc3",))


@given(st.tuples(*(st.floats(1e-3, 1e3) for _ in range(3))), st.sampled_from(list(SPLITS)), st.integers(0, 2**31 - 2))
def test_params_reach_the_config_and_nothing_else_changes(weights: tuple, split: str, seed: int):
    made = ONE
    params = made.known_good() | dict(zip(("adversarial", "conditional", "entropy"), weights, strict=True))
    config = made.config(params | {"split": split}, seed)
    assert dataclasses.astuple(config.variant.weights) == weights
    assert (config.variant.cuts, config.seed) == (SPLITS[split], seed)
    same = dataclasses.replace(config, seed=0, variant=template(made).variant)
    assert same == template(made)


def test_a_varied_field_reaches_the_recipe():
    made = space(splits=("fc3",), vary=("gan.adam.learning_rate=1e-5:1e-2:log",))
    config = made.config(made.known_good() | {"gan.adam.learning_rate": 2e-3}, 0)
    assert config.recipe.gan.adam.learning_rate == 2e-3
    assert config.recipe.joint == made.basis.recipe.joint


def test_a_varied_field_without_a_default_begins_at_its_lowest_value():
    field = "encoder.feature_variance"
    made = space(vary=(f"{field}=0.25:1",))
    assert made.basis.recipe.encoder.feature_variance is None
    assert made.known_good()[field] == 0.25


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"splits": ("fc9",)}, "fc9"),
        ({"splits": ("fc3+pool1",)}, r"fc3\+pool1"),
        ({"splits": ()}, "--splits"),
        ({"adversarial": (0.0, 1.0)}, "--adversarial"),
        ({"adversarial": (2.0, 1.0)}, "--adversarial"),
        ({"entropy": (1.0, math.inf)}, "--entropy"),
        ({"conditional": (math.nan, 1.0)}, "--conditional"),
        ({"vary": ("gan.batch=16:64", "gan.batch=8:16")}, "--vary must name a field once"),
        ({"zeros": ("label",)}, "label"),
        ({"variant": "full-gan", "splits": ("none",)}, "full-gan cannot be split at 'none'"),
        ({"variant": "dcgan-adv", "splits": ("fc3",)}, "dcgan-adv cannot be split at 'fc3'"),
    ],
)
def test_a_bad_space_is_one_error_that_names_its_value(changes: dict, named: str):
    with pytest.raises(ConfigError, match=named):
        Search(**changes)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("gan.image_noise", "FIELD=LOW:HIGH"),
        ("gan.image_noise=1", "FIELD=LOW:HIGH"),
        ("gan.image_noise=0:1:linear", "linear"),
        ("gan.nothing=0:1", "nothing"),
        ("gan.adversarial=0:1", "gan.adversarial"),
        ("gan.image_noise=a:b", "a:b"),
        ("gan.batch=1.5:2", "int"),
        ("gan.fresh_noise=false:true", "gan.fresh_noise=false:true: both ends must be numbers"),
        ("gan.image_noise=1:0.5", "low <= high"),
        ("gan.image_noise=0:1:log", "log"),
        ("gan.image_noise=-1:1", "-1"),
        ("gan.image_noise=0:NaN", "finite"),
        ("samples=500:1000", "samples=500:1000: all configs of a search are scored in one way"),
        ("judge.images=640:6400", "judge.images with --override"),
    ],
)
def test_a_bad_field_to_vary_is_one_error_that_names_it(text: str, named: str):
    with pytest.raises(ConfigError, match=named):
        parse_varied(text, basis().recipe)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"variant": "gan"}, "gan"),
        ({"trials": 2}, "--trials"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_a_bad_option_of_a_search_is_one_error(options: dict, named: str):
    with pytest.raises(ConfigError, match=named):
        Search(**options)
