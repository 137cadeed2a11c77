"""Stages and their keys: what is shared, what a changed field trains anew, and what the code's version notices."""

import ast
import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import BATCH, CLASSIFIER, PAPER, STACK, TINY, named_recipe, released_recipe, tiny_recipe

import sgan
from sgan.config import INNER_TAPS, Config, JudgeRecipe, Level, Variant, Weights
from sgan.presets import DATASETS, VARIANTS, configure
from sgan.stages import graph
from sgan.stages.graph import KINDS, JointStage, LevelStage, Plan, ScoreStage, code_digest, import_closure, name, plan

PACKAGE = Path(sgan.__file__).parent
DATA = "0123456789abcdef"


def planned(variant: Variant = STACK, **recipe: Any) -> Plan:
    return plan(Config(TINY, DATA, tiny_recipe(**recipe), variant, 0))


def names(trial: Plan) -> dict[str, str]:
    return {label: name(stage) for label, stage in trial.stages}


def changed(first: Plan, second: Plan) -> set[str]:
    """Labels of the stages that have another name in the second plan."""
    before, after = names(first), names(second)
    assert set(before) == set(after)
    return {label for label in before if before[label] != after[label]}


def row(variant: str, weights: Weights | None = None, cuts: tuple[str, ...] = ("fc3",), seed: int = 0) -> Plan:
    chosen = VARIANTS[variant].variant
    return plan(configure(TINY, DATA, released_recipe(), chosen, seed, weights or Weights(), cuts))


def test_the_stages_of_each_variant_in_order():
    stack = ["judge", "encoder", "level1", "level0"]
    assert list(names(row("sgan"))) == [*stack, "joint", "score"]
    assert list(names(row("sgan-no-joint"))) == [*stack, "score"]
    for variant in ("dcgan-adv-cond-ent", "dcgan-adv-cond"):
        assert list(names(row(variant))) == ["judge", "encoder", "level0", "score"]
    for variant in ("dcgan-adv-ent", "dcgan-adv"):
        assert list(names(row(variant))) == ["judge", "level0", "score"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cuts", [("fc3",), INNER_TAPS])
def test_every_stage_comes_after_its_parents(variant, cuts):
    seen = set()
    for _, stage in row(variant, cuts=cuts).stages:
        assert {name(parent) for parent in stage.parents} <= seen
        seen.add(name(stage))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stage_needs_its_parents_and_while_it_trains_the_judge(variant):
    trial, ready = row(variant), set[str]()
    stages = dict(trial.stages)
    for label in stages:
        needs = trial.needs(stages[label])
        assert set(needs) <= {stages[each] for each in ready}
        parents = {each for each in stages if stages[each] in stages[label].parents}
        judge = {"judge"} if label.startswith(("level", "joint")) else set()
        assert set(needs) == {stages[each] for each in parents | judge}
        ready.add(label)


def test_levels_lie_between_neighbouring_cuts():
    trial = plan(Config(TINY, DATA, tiny_recipe(), dataclasses.replace(STACK, cuts=("conv1", "pool2")), 0))
    found = {label: stage.level for label, stage in trial.stages if isinstance(stage, LevelStage)}
    wanted = [Level("image", "conv1"), Level("conv1", "pool2"), Level("pool2", "label")]
    assert found == {f"level{index}": level for index, level in enumerate(wanted)}


def test_sgan_shares_all_but_joint_and_score_with_sgan_no_joint():
    with_joint, without = names(row("sgan")), names(row("sgan-no-joint"))
    assert {label for label in without if without[label] != with_joint[label]} == {"score"}
    assert set(with_joint) - set(without) == {"joint"}


def test_all_variants_of_a_seed_share_encoder_and_judge_and_seeds_share_the_judge():
    trials = [row(variant, seed=seed) for variant in VARIANTS for seed in (0, 1)]
    assert len({names(trial)["judge"] for trial in trials}) == 1
    encoders = {
        (names(trial)["encoder"], trial.score.levels[0].level.labels) for trial in trials if "encoder" in names(trial)
    }
    assert sorted(labels for _, labels in encoders) == [False, False, True, True]
    assert len({trial.name for trial in trials}) == len(trials)


def test_splits_share_the_levels_that_they_have_in_common():
    one, other = names(row("sgan", cuts=("pool1", "fc3"))), names(row("sgan", cuts=("pool2", "fc3")))
    assert one["level2"] == other["level2"]
    assert one["level1"] != other["level1"]
    assert one["level0"] != other["level0"]


GAN = {"level1", "level0", "joint", "score"}
CHANGES: dict[str, tuple[Any, set[str]]] = {
    "name": ("another", set()),
    "encoder": (dataclasses.replace(CLASSIFIER, flips=True), {"encoder", *GAN}),
    "judge": (JudgeRecipe(images=64), {"judge", "score"}),
    "gan": (dataclasses.replace(PAPER, image_noise=0.1), GAN),
    "joint": (dataclasses.replace(PAPER, dropout=0.3), {"joint", "score"}),
    "image_level": (20 * BATCH, {"level0", "joint", "score"}),
    "feature_level": (20 * BATCH, {"level1", "joint", "score"}),
    "joint_images": (20 * BATCH, {"joint", "score"}),
    "joint_start": (0.5, GAN),
    "feedback": (0.5, {"joint", "score"}),
    "fresh_adam": (False, GAN),
    "sampling": ("batch", GAN),  # of the scores while training, too
    "samples": (500, {"judge", "score"}),  # real images are scored as if there were as many
    "evaluations": (2, GAN),
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_changed_field_trains_what_depends_on_it_and_nothing_else(field):
    value, expected = CHANGES[field]
    assert changed(planned(), planned(**{field: value})) == expected


def test_every_field_of_a_recipe_is_in_that_table():
    assert set(CHANGES) == {field.name for field in dataclasses.fields(tiny_recipe())}


def test_a_stack_without_cuts_is_the_dcgan_of_its_losses():
    """One level has no other to be trained with: there is no joint stage."""
    assert names(row("sgan", cuts=())) == names(row("dcgan-adv-cond-ent"))


@pytest.mark.parametrize("part", ["gan", "joint"])
def test_every_field_of_gan_training_is_in_the_key(part):
    """Each field changed by itself."""
    other = {"batch": BATCH // 2, "adam": dataclasses.replace(PAPER.adam, beta1=0.6), "adversarial": "saturating"}
    other |= {
        "generator_steps": ((0.0, 2),),
        "fresh_noise": True,
        "discriminator_scale": 0.5,
        "precision": "bfloat16",
        "dense_glorot": True,
    }
    both = {
        "discriminator": "classes",
        "pixel_mean": True,
        "discriminator_norm": True,
    }  # gan and joint must agree in these
    for field in (field.name for field in dataclasses.fields(PAPER)):
        recipe = dataclasses.replace(PAPER, **{field: (other | both).get(field, 0.125)})
        changes: dict[str, Any] = {"gan": recipe, "joint": recipe} if field in both else {part: recipe}
        assert changed(planned(), planned(**changes)) == (GAN if "gan" in changes else {"joint", "score"}), field


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(CLASSIFIER)])
def test_every_field_of_classifier_training_is_in_the_key(field):
    other = {"images": 9, "batch": 9, "adam": PAPER.adam, "init_std": 0.3, "pixel_mean": True, "flips": True}
    other |= {"objective": "rotation", "feature_variance": 0.5}
    recipe = dataclasses.replace(CLASSIFIER, **{field: other[field]})
    unlabelled = dataclasses.replace(STACK, labels=False)
    assert changed(planned(unlabelled), planned(unlabelled, encoder=recipe)) == {"encoder", *GAN}


def test_seed_data_dataset_and_variant_are_in_the_keys():
    base = Config(TINY, DATA, tiny_recipe(), STACK, 0)
    whole = {"judge", "encoder", *GAN}

    def change(**fields: Any) -> set[str]:
        return changed(plan(base), plan(dataclasses.replace(base, **fields)))

    assert change(seed=1) == {"encoder", *GAN}
    assert change(data=DATA[::-1]) == whole
    wider = dataclasses.replace(TINY, gan=dataclasses.replace(TINY.gan, kernel=5))
    assert change(dataset=wider) == {"encoder", *GAN}
    for field in ("adversarial", "conditional", "entropy"):
        assert change(variant=dataclasses.replace(STACK, weights=Weights(**{field: 0.5}))) == GAN


def test_a_dcgan_without_encoder_does_not_depend_on_one():
    adversarial = VARIANTS["dcgan-adv"].variant
    encoder = dataclasses.replace(CLASSIFIER, flips=True)
    assert changed(planned(adversarial), planned(adversarial, encoder=encoder)) == set()


def test_the_weight_of_an_absent_loss_and_the_cuts_of_a_dcgan_change_nothing():
    assert names(row("dcgan-adv")) == names(row("dcgan-adv", Weights(1, 5, 7), ("pool1",)))
    assert names(row("dcgan-adv-ent")) == names(row("dcgan-adv-ent", Weights(1, 5, 10)))
    assert names(row("dcgan-adv-cond")) == names(row("dcgan-adv-cond", Weights(1, 1, 7)))
    assert names(row("dcgan-adv-ent")) != names(row("dcgan-adv-ent", Weights(1, 1, 7)))


def test_a_name_says_the_kind_and_is_the_same_in_every_process():
    trial = planned()
    for label, stage in trial.stages:
        kind, _, key = name(stage).partition("-")
        assert kind == label.rstrip("0123456789")
        assert len(key) == 16
        assert set(key) <= set("0123456789abcdef")
    script = (
        "from sgan.presets import *; from sgan.stages.graph import plan\n"
        "base = DATASETS['cifar10']; row = RECIPES['released'](base, 50_000)\n"
        "print(plan(configure(base, 'x', row, VARIANTS['sgan'].variant, 3, Weights(), ('fc3',))).name)"
    )
    command = [sys.executable, "-c", script]
    seeds = [{"PYTHONHASHSEED": str(seed), "PYTHONPATH": str(PACKAGE.parent)} for seed in (1, 2)]
    said = {subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout for env in seeds}
    base, recipe = DATASETS["cifar10"], named_recipe("released", "cifar10")
    config = configure(base, "x", recipe, VARIANTS["sgan"].variant, 3, Weights(), ("fc3",))
    assert said == {plan(config).name + "\n"}


def test_the_last_stage_is_the_score_and_gives_the_trial_its_name():
    trial = planned()
    assert isinstance(trial.score, ScoreStage)
    assert isinstance(trial.score.joint, JointStage)
    assert trial.name == name(trial.score)


JUDGES = {"judge", "score"}
STACKS = {"level", "joint", "score"}
ALL = {"encoder", "judge", *STACKS}
DEPENDENTS: dict[str, set[str]] = {
    "__init__.py": set(),
    "addresses.py": set(),
    "calibrate.py": set(),
    "checks.py": set(),
    "command_line.py": set(),
    "config.py": set(),
    "data/__init__.py": set(),
    "data/batches.py": ALL,
    "data/datasets.py": set(),
    "data/image_folder.py": set(),
    "evaluation/__init__.py": set(),
    "evaluation/alarms.py": set(),
    "evaluation/evaluate.py": {"score"},
    "evaluation/figures.py": {"score"},
    "evaluation/grid.py": {"score"},
    "evaluation/dinov2.py": JUDGES,
    "evaluation/inception.py": JUDGES,
    "evaluation/judges.py": JUDGES,
    "evaluation/measures.py": set(),
    "evaluation/scores.py": JUDGES,
    "metrics.py": set(),
    "models/__init__.py": set(),
    "models/discriminator.py": {"encoder", *STACKS},
    "models/encoder.py": ALL,
    "models/export.py": {"score"},
    "models/generator.py": ALL,
    "models/released.py": set(),
    "models/stack.py": ALL,
    "models/tensors.py": ALL,
    "presets.py": set(),
    "released.py": set(),
    "sample.py": set(),
    "shapes.py": set(),
    "stages/__init__.py": set(),
    "stages/context.py": set(),
    "stages/cost.py": set(),
    "stages/graph.py": set(),
    "stages/kinds/__init__.py": set(),
    "stages/kinds/classifier.py": {"encoder", *STACKS},
    "stages/kinds/joint.py": {"joint"},
    "stages/kinds/judge.py": JUDGES,
    "stages/kinds/level.py": STACKS,
    "stages/kinds/score.py": {"score"},
    "stages/run.py": set(),
    "store/__init__.py": set(),
    "store/claims.py": set(),
    "store/files.py": set(),
    "store/local.py": set(),
    "store/s3.py": set(),
    "store/votes.py": set(),
    "training/__init__.py": set(),
    "training/checkpoint.py": ALL,
    "training/cuda_graphs.py": {"encoder", *STACKS},
    "training/loop.py": ALL,
    "training/losses.py": {"encoder", *STACKS},
    "training/optimizers.py": ALL,
    "training/steps.py": {"encoder", *STACKS},
    "turing_test.py": set(),
}
"""File of sgan -> the kinds of stages that an edit of it names anew, by its own code. (A stage has another name, too,
where one of its parents has.)"""


@pytest.fixture
def copied(tmp_path) -> Iterator[Path]:
    shutil.copytree(PACKAGE, tmp_path / "sgan", ignore=shutil.ignore_patterns("__pycache__"))
    yield tmp_path / "sgan"
    code_digest.cache_clear()


def digests(package: Path) -> dict[str, str]:
    code_digest.cache_clear()
    return {kind: code_digest(kind, package) for kind in KINDS}


def test_an_edit_of_a_file_names_the_stages_anew_that_the_table_says(copied):
    before, changes = digests(copied), {}
    assert before == digests(PACKAGE)
    for path in sorted(copied.rglob("*.py")):
        text = path.read_text()
        path.write_text(f"{text}\nEDITED = True\n")
        after = digests(copied)
        changes[path.relative_to(copied).as_posix()] = {kind for kind in KINDS if after[kind] != before[kind]}
        path.write_text(text)
    assert changes == DEPENDENTS


def test_a_stage_has_another_name_where_its_code_or_a_parents_has(monkeypatch):
    first = names(planned())
    for kind in KINDS:
        monkeypatch.setattr(graph, "code_digest", lambda each, edited=kind: str(each == edited))
        name.cache_clear()
        edited = names(planned())
        monkeypatch.setattr(graph, "code_digest", lambda each: str(False))
        name.cache_clear()
        plain = names(planned())
        changes = {label for label in plain if plain[label] != edited[label]}
        assert (
            changes
            == {
                "encoder": {"encoder", *GAN},
                "judge": {"judge", "score"},
                "level": GAN,
                "joint": {"joint", "score"},
                "score": {"score"},
            }[kind]
        )
    monkeypatch.undo()
    name.cache_clear()
    assert names(planned()) == first


@pytest.mark.parametrize("kind", ["encoder", "level", "joint"])
def test_training_does_not_import_evaluation(kind):
    imported = import_closure(f"sgan.stages.kinds.{KINDS[kind]}")
    assert {"sgan.training.loop", "sgan.training.steps", "sgan.stages.context"} <= set(imported)
    assert not [module for module in imported if module.startswith("sgan.evaluation")]


def test_imports_name_the_whole_module():
    """Relative ones would not be in the code that counts."""
    for path in PACKAGE.rglob("*.py"):
        nodes = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom))
        assert all(node.level == 0 for node in nodes), path


class _OtherDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return ast.Expr(ast.Constant(node.value.value + " Said otherwise."))
        return node


def test_comments_docstrings_and_layout_change_no_name(copied):
    before = digests(copied)
    for path in copied.rglob("*.py"):
        path.write_text("# A new comment.\n\n\n" + path.read_text().replace("\n\n", "\n\n\n").replace("#", "# Also:"))
    assert digests(copied) == before
    for path in copied.rglob("*.py"):  # without comments, on other lines, with other docstrings
        path.write_text(ast.unparse(_OtherDocstrings().visit(ast.parse(path.read_text()))))
    assert digests(copied) == before


@pytest.mark.parametrize(
    ("module", "old", "new", "kinds"),
    [
        ("models/discriminator", "LEAK = 0.2", "LEAK = 0.1", STACKS),
        ("training/losses", "F.softplus(-logit).mean()", "F.softplus(-logit).sum()", STACKS),
        ("training/losses", "loss > threshold", "loss >= threshold", STACKS),
        ("training/optimizers", "value=1 - beta2", "value=1 - beta1", {"encoder", *STACKS}),
        ("data/batches", "1_000_003", "1_000_033", {"encoder", *STACKS}),
        ("training/steps", "repeat > 0 or", "repeat >= 0 or", STACKS),
        ("stages/kinds/classifier", "CLASSIFIER_EVALUATIONS = 4", "CLASSIFIER_EVALUATIONS = 5", {"encoder"}),
        ("evaluation/scores", "RandomState", "Generator", JUDGES),
        ("evaluation/evaluate", "GRID_SEED = 2**31 + 7", "GRID_SEED = 2**31 + 8", {"score"}),
    ],
)
def test_a_changed_value_in_the_code_changes_names(copied, module, old, new, kinds):
    before, path = digests(copied), copied / f"{module}.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    after = digests(copied)
    assert kinds <= {kind for kind in KINDS if after[kind] != before[kind]}
