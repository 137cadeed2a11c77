"""Configs: generated bad values end in ConfigError with the value in the message; equal content has equal keys."""

import dataclasses
import hashlib
import itertools
import json
import math
import re
from typing import Any

import pytest
from conftest import PAPER, STACK, TINY, named_recipe, released_recipe, tiny_recipe
from hypothesis import given, settings
from hypothesis import strategies as st

from sgan.checks import ConfigError, as_json, content_key
from sgan.config import INNER_TAPS, AdamRecipe, Codes, Config, EncoderRecipe, GanRecipe, Recipe, Variant, Weights
from sgan.presets import DATASETS, RECIPES, VARIANTS, configure

NOT_FINITE = st.sampled_from([math.nan, math.inf, -math.inf])
NEGATIVE = st.floats(max_value=0, exclude_max=True, allow_infinity=False)
NOT_POSITIVE = st.floats(max_value=0, allow_infinity=False)
TOO_SMALL_BATCH = st.integers(max_value=1)

BAD_NUMBERS: list[tuple[type, str, st.SearchStrategy]] = [
    (Weights, "adversarial", NEGATIVE),
    (Weights, "conditional", NEGATIVE),
    (Weights, "entropy", NEGATIVE),
    (AdamRecipe, "learning_rate", NOT_POSITIVE),
    (AdamRecipe, "learning_rate", st.floats(min_value=1, exclude_min=True)),
    (AdamRecipe, "beta1", NEGATIVE),
    (AdamRecipe, "beta1", st.floats(min_value=1)),
    (AdamRecipe, "beta2", NEGATIVE),
    (AdamRecipe, "beta2", st.floats(min_value=1)),
    (AdamRecipe, "eps", NOT_POSITIVE),
    (EncoderRecipe, "images", st.integers(max_value=0)),
    (EncoderRecipe, "batch", TOO_SMALL_BATCH),
    (EncoderRecipe, "init_std", NOT_POSITIVE),
    (EncoderRecipe, "feature_variance", NOT_POSITIVE),
    (GanRecipe, "batch", TOO_SMALL_BATCH),
    (GanRecipe, "class_weight", NEGATIVE),
    (GanRecipe, "discriminator_scale", NOT_POSITIVE),
    (GanRecipe, "image_noise", NEGATIVE),
    (GanRecipe, "feature_noise", NEGATIVE),
    (GanRecipe, "hidden_noise", NEGATIVE),
    (GanRecipe, "dropout", NEGATIVE),
    (GanRecipe, "dropout", st.floats(min_value=1)),
    (GanRecipe, "init_std", NOT_POSITIVE),
    (Recipe, "image_level", st.integers(max_value=PAPER.batch - 1)),
    (Recipe, "feature_level", st.integers(max_value=PAPER.batch - 1)),
    (Recipe, "joint_images", st.integers(max_value=PAPER.batch - 1)),
    (GanRecipe, "convolution_std", NOT_POSITIVE),
    (GanRecipe, "dense_slope", NEGATIVE),
    (GanRecipe, "dense_slope", st.floats(min_value=1)),
    (Recipe, "joint_start", NEGATIVE),
    (Recipe, "joint_start", st.floats(min_value=1, exclude_min=True)),
    (Recipe, "feedback", NEGATIVE),
    (Recipe, "feedback", st.floats(min_value=1, exclude_min=True)),
    (Recipe, "samples", st.integers(max_value=99)),
    (Recipe, "evaluations", st.integers(max_value=0)),
    (Config, "seed", st.integers(max_value=-1)),
    (Config, "seed", st.integers(min_value=2**31 - 1)),
]
GOOD: dict[type, dict[str, Any]] = {
    EncoderRecipe: {"images": 100},
    Recipe: vars(tiny_recipe()),
    Config: {"dataset": TINY, "data": "0" * 16, "recipe": tiny_recipe(), "variant": STACK, "seed": 0},
}


def refused(kind: type, **fields: Any) -> str:
    """The message with which `kind` refuses these fields."""
    with pytest.raises(ConfigError) as caught:
        kind(**GOOD.get(kind, {}) | fields)
    return str(caught.value)


@pytest.mark.parametrize(("kind", "field", "bad"), BAD_NUMBERS, ids=lambda value: getattr(value, "__name__", None))
def test_a_number_out_of_range_is_refused_and_named(kind, field, bad):
    @settings(max_examples=15)
    @given(bad | NOT_FINITE)
    def check(value):
        assert str(value) in refused(kind, **{field: value})

    check()


@given(st.text("acflonpv1234 'é", max_size=8).filter(lambda text: text not in INNER_TAPS))
def test_an_unknown_tap_is_refused_and_named(tap):
    message = refused(Variant, cuts=(tap,), weights=Weights(), joint=True)
    assert repr(tap) in message
    assert "pool1" in message


def test_a_stack_that_has_nothing_to_join_is_refused():
    assert "set joint to false" in refused(Variant, cuts=(), weights=Weights(), joint=True)


@pytest.mark.parametrize("field", ["discriminator", "pixel_mean", "discriminator_norm"])
def test_a_joint_stage_that_could_not_load_the_levels_is_refused(field):
    other = dataclasses.replace(tiny_recipe().gan, **{field: "classes" if field == "discriminator" else True})
    assert f"{field} must be the same in gan and joint" in refused(Recipe, gan=other)
    if field == "discriminator_norm":  # new weights may have other layers
        assert dataclasses.replace(tiny_recipe(), gan=other, joint_start=0.0).gan == other


@given(st.lists(st.sampled_from(INNER_TAPS), min_size=2, max_size=6))
def test_cuts_are_accepted_in_the_encoders_order_only(cuts):
    fields = {"cuts": tuple(cuts), "weights": Weights(), "joint": True}
    if all(INNER_TAPS.index(a) < INNER_TAPS.index(b) for a, b in itertools.pairwise(cuts)):
        assert [level.low for level in Variant(**fields).levels] == ["image", *cuts]
    else:
        assert " ".join(cuts) in refused(Variant, **fields)


@pytest.mark.parametrize("field", ["discriminator", "adversarial"])
@pytest.mark.parametrize("word", ["", "Binary", "both"])
def test_an_unknown_word_in_a_gan_recipe_is_refused_and_named(field, word):
    assert repr(word) in refused(GanRecipe, **{field: word})


@pytest.mark.parametrize(
    "rule",
    [
        (),
        ((0.5, 1),),
        ((0.3, 1), (0.5, 2), (0.0, 3)),
        ((0.5, 1), (0.5, 2), (0.0, 3)),
        ((0.5, 1), (0.0, 2), (-1.0, 3)),
        ((0.0, 0),),
        ((0.0, 101),),
        ((0.5, 1.5), (0.0, 1)),
        ((0.5,), (0.0, 1)),
        (0.5, 0.0),
        ("ab",),
    ],
)
def test_a_rule_of_generator_steps_that_cannot_be_followed_is_refused(rule):
    message = refused(GanRecipe, generator_steps=rule)
    assert message.startswith("generator_steps")
    inner = [number for pair in rule if isinstance(pair, tuple) for number in pair]
    assert any(f"got {value!r}" in message for value in (rule, *rule, *inner)) or "missing" in message


@pytest.mark.parametrize("threshold", [math.nan, math.inf])
def test_a_threshold_that_is_not_a_finite_number_is_refused(threshold):
    assert str(threshold) in refused(GanRecipe, generator_steps=((threshold, 1), (0.0, 3)))


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_a_bad_width_or_budget_is_refused_and_named(factor):
    for scale in (TINY.scaled, tiny_recipe().budget):
        with pytest.raises(ConfigError, match=re.escape(str(factor))):
            scale(factor)


def test_losses_and_labels_that_contradict_each_other_are_refused():
    assert "all three" in refused(Weights, adversarial=0.0, conditional=0.0, entropy=0.0)
    stack: dict = {"cuts": ("fc3",), "weights": Weights(), "joint": False}
    assert "not both" in refused(Variant, **stack, through=("pool1",))
    assert "has no cuts" in refused(Variant, **stack, codes=Codes())
    assert "entropy weight > 0" in refused(Variant, cuts=(), weights=Weights(1, 1, 0), joint=False, codes=Codes())
    assert "through: unknown tap 'fc9'" in refused(Variant, cuts=(), weights=Weights(), joint=False, through=("fc9",))
    assert "2.5" in refused(Variant, cuts=(), weights=Weights(1, 2.5, 0), joint=False, labels=False)
    unlabelled = Variant((), Weights(1, 0, 0), joint=False, labels=False)
    assert "without labels" in refused(Config, recipe=released_recipe(), variant=unlabelled)
    assert "pixel_mean" in refused(Recipe, joint=dataclasses.replace(PAPER, pixel_mean=True))
    assert "'mean'" in refused(Recipe, sampling="mean")


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6))
def test_good_weights_are_kept_as_they_are(adversarial, conditional, entropy):
    if adversarial or conditional or entropy:
        weights = Weights(adversarial, conditional, entropy)
        assert Weights(**json.loads(json.dumps(as_json(weights)))) == weights
        assert dataclasses.replace(weights) == weights


@pytest.mark.parametrize(("recipe", "dataset"), list(itertools.product(RECIPES, DATASETS)))
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_preset_makes_a_config_that_json_can_carry(recipe, dataset, variant):
    row, base = named_recipe(recipe, dataset), DATASETS[dataset]
    config = configure(base, "0" * 16, row, VARIANTS[variant].variant, 0, Weights(), ("fc3",))
    plain = as_json(config)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["recipe"]["gan"]["adam"]["beta1"] == config.recipe.gan.adam.beta1
    assert plain["variant"]["cuts"] == list(config.variant.cuts)


def test_configure_gives_a_variant_only_the_losses_and_cuts_that_it_has():
    def made(variant: str) -> Variant:
        chosen = VARIANTS[variant].variant
        return configure(TINY, "", released_recipe(), chosen, 0, Weights(2, 3, 4), ("pool1", "fc3")).variant

    assert made("sgan") == Variant(("pool1", "fc3"), Weights(2, 3, 4), joint=True)
    assert made("sgan-no-joint") == Variant(("pool1", "fc3"), Weights(2, 3, 4), joint=False)
    assert made("dcgan-adv-cond-ent") == Variant((), Weights(2, 3, 4), joint=False)
    assert made("dcgan-adv-cond") == Variant((), Weights(2, 3, 0), joint=False)
    assert made("dcgan-adv-ent") == Variant((), Weights(2, 0, 4), joint=False, labels=False)
    assert made("dcgan-adv") == Variant((), Weights(2, 0, 0), joint=False, labels=False)


def test_width_scales_every_hidden_width_but_those_that_z_passes_through():
    half, whole = DATASETS["cifar10"].scaled(0.5), DATASETS["cifar10"]
    assert half.encoder.maps == (32, 64)
    assert half.encoder.features == 128
    assert half.gan.maps == (128, 128, 64, 64)
    assert half.gan.vector_fc == ((256, False), (256, True))
    assert [row.maps for row in half.gan.image_convs] == [48, 48, 96, 96, 96, 96]
    assert (half.gan.noise_hidden, half.gan.label_noise_hidden) == ((128, 128), 256)
    assert (half.gan.image_noise, half.gan.feature_noise, half.classes, half.size) == (16, 50, 10, 32)
    assert whole.scaled(1) == whole


def test_a_budget_scales_the_images_of_the_gan_stages_and_nothing_else():
    whole = tiny_recipe(steps=10)
    twice = whole.budget(2)
    assert (twice.image_level, twice.feature_level, twice.joint_images) == (320, 320, 320)
    assert dataclasses.replace(twice, image_level=160, feature_level=160, joint_images=160) == whole
    assert whole.budget(1e-6).image_level == whole.gan.batch


def test_the_key_is_the_hash_of_canonical_json():
    """Worked out with another program's order of the fields."""
    text = b'{"adversarial":1.0,"conditional":2.0,"entropy":0.5}'
    assert content_key(Weights(1.0, 2.0, 0.5)) == hashlib.sha256(text).hexdigest()[:16]
    assert content_key({"b": 1, "a": 2}) == content_key({"a": 2, "b": 1})
    assert content_key((1, 2)) == content_key([1, 2])
    assert content_key([1, 2]) != content_key([2, 1])


@given(st.tuples(*[st.floats(0.001, 1e6)] * 3), st.tuples(*[st.floats(0.001, 1e6)] * 3))
def test_different_weights_have_different_keys(first, second):
    assert (content_key(Weights(*first)) == content_key(Weights(*second))) == (first == second)


def test_equal_configs_have_equal_keys():
    """1 and 1.0 are one weight; a stage's name must not depend on which of them was written."""
    assert Weights(1, 1, 10) == Weights(1.0, 1.0, 10.0)
    assert content_key(Weights(1, 1, 10)) == content_key(Weights(1.0, 1.0, 10.0))
    assert Weights(-0.0) == Weights(0.0)
    assert content_key(Weights(-0.0)) == content_key(Weights(0.0))
    assert hash(Weights(1, 1, 10)) == hash(Weights(1.0, 1.0, 10.0))


def test_a_changed_copy_is_checked_as_well_and_a_value_of_another_type_is_refused():
    with pytest.raises(ConfigError, match=r"dropout must be less than or equal to 0\.99, but got 3"):
        dataclasses.replace(PAPER, dropout=3)
    for bad in (True, "1", None, [1.0]):
        assert repr(bad) in refused(Weights, entropy=bad)
    assert "gan must be an instance of GanRecipe" in refused(Recipe, gan={"batch": 3})
    assert "colour is not a known field" in refused(Weights, colour=1)
    with pytest.raises(ConfigError, match="images is missing"):
        EncoderRecipe(**{})


def test_a_key_of_a_value_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        content_key([math.nan])
