"""Weights and scores of a tiny trial of every variant and recipe are those that were recorded.

PYTHONPATH=tests python tests/stages/test_golden.py    records them anew, after a change that is meant to alter them
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, finish, released_recipe, tiny_recipe

from sgan.config import Config, Recipe
from sgan.data.datasets import read
from sgan.models.tensors import read_tensors
from sgan.presets import DATASETS, VARIANTS, configure
from sgan.stages.graph import plan
from sgan.stages.run import processor
from sgan.store.local import Store

RECORDED = Path(__file__).with_suffix(".json")
RECIPES = {"paper": tiny_recipe(), "released": released_recipe()}
RECIPES = {title: replace(recipe, samples=200) for title, recipe in RECIPES.items()}
DIGITS = read(DATASETS["digits"], Path())


def configs() -> Iterator[tuple[str, Config]]:
    for recipe_name, recipe in RECIPES.items():
        for variant, row in VARIANTS.items():
            yield f"{recipe_name} {variant}", config(recipe, row.variant)


def config(recipe: Recipe, variant: Any) -> Config:
    return configure(TINY, DIGITS.digest, recipe, variant, 0, None, ("fc3",))


def outcome(trial: Config, root: Path) -> dict[str, Any]:
    """The digest of a finished trial's weights, the mean size of each of its tensors, and its scores."""
    finish(plan(trial), root, DIGITS)
    store, name = Store(root), plan(trial).name
    tensors = read_tensors(store.file(name, "model/last/generator.safetensors"))
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(tensors[key].numpy().tobytes())
    sizes = {key: tensor.double().abs().mean().item() for key, tensor in sorted(tensors.items())}
    return {"weights": digest.hexdigest(), "sizes": sizes, "scores": store.facts(name)["scores"]}


def machine() -> list[str]:
    """Where bits are the same: kinds of processors round some sums in another order."""
    return [processor(), torch.__version__]


CONFIGS = dict(configs())


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """One store for all, as in a sweep."""
    return tmp_path_factory.mktemp("shared")


@pytest.mark.parametrize("title", CONFIGS)
def test_a_tiny_trial_ends_as_recorded(title, shared):
    recorded = json.loads(RECORDED.read_text())
    expected, found = recorded["trials"][title], outcome(CONFIGS[title], shared)
    if recorded["machine"] == machine():
        assert found == expected
    # Where a gradient is nothing but rounding, Adam makes steps of it all the same: small biases differ.
    assert found["sizes"] == pytest.approx(expected["sizes"], rel=0.02, abs=1e-3)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        trials = {title: outcome(each, Path(folder)) for title, each in CONFIGS.items()}
    RECORDED.write_text(json.dumps({"machine": machine(), "trials": trials}, indent=1) + "\n")
