"""The command line's options: what they mean, and that a bad one ends in one clear error before any compute."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from command import ended
from hypothesis import given
from hypothesis import strategies as st

from sgan.checks import ConfigError
from sgan.config import INNER_TAPS
from sgan.presets import DATASETS, VARIANTS
from sgan.stages.graph import name
from sgan.store.local import Store
from sweeps.planning.ablation import plan_ablation
from sweeps.planning.manifest import read, write
from sweeps.planning.options import Sweep

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"variants": ("sgan", "gan")}, "gan"),
        ({"variants": ()}, "--variants"),
        ({"dataset": "imagenet"}, "imagenet"),
        ({"recipe": "best"}, "best"),
        ({"judge": "human"}, "human"),
        ({"judge_weights": Path("nowhere.pth")}, "nowhere.pth"),
        ({"judge": "held-out", "judge_weights": Path(__file__)}, "--judge held-out"),
        ({"cuts": ("fc3", "conv1")}, "fc3 conv1"),
        ({"cuts": ("fc3", "fc3")}, "fc3 fc3"),
        ({"cuts": ("fc4",)}, "fc4"),
        ({"cuts": ("layer9",)}, "layer9"),
        ({"weights": (1.0, -1.0, 10.0)}, "-1"),
        ({"weights": (math.nan, 1.0, 10.0)}, "nan"),
        ({"weights": (1.0, math.inf, 10.0)}, "inf"),
        ({"weights": (0.0, 0.0, 0.0)}, "0"),
        ({"seeds": 0}, "0"),
        ({"seeds": -3}, "-3"),
        ({"first_seed": -1}, "-1"),
        ({"budget": 0.0}, "0"),
        ({"budget": math.nan}, "nan"),
        ({"width": -1.0}, "-1"),
        ({"width": 9.0}, "9"),
        ({"slots": 0}, "0"),
        ({"trials_per_gpu": 0}, "0"),
        ({"data": Path("nowhere/at/all")}, "nowhere/at/all"),
    ],
)
def test_a_bad_option_is_one_error_that_names_its_value(options: dict, named: str):
    with pytest.raises(ConfigError, match=named.replace("-", r"\-").replace("/", r"\/")):
        Sweep(**options)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("gan.no_such_field=1", "no_such_field"),
        ("gan=1", "gan"),
        ("samples", "FIELD=VALUE"),
        ("samples=many", "many"),
        ("samples=1.5", "1.5"),
        ("gan.fresh_noise=2", "2"),
        ("gan.image_noise=-1", "-1"),
        ("gan.adam.learning_rate=NaN", "nan"),
        ("gan.adversarial=wasserstein", "wasserstein"),
        ("gan.generator_steps=[[0.5,1]]", "0.5"),
    ],
)
def test_a_bad_override_is_one_error_that_names_it(change: str, named: str):
    with pytest.raises(ConfigError, match=named):
        Sweep(dataset="digits", recipe="paper", override=(change,))


def test_overrides_reach_their_field_and_no_other():
    sweep = Sweep(
        override=("gan.image_noise=0", "joint.adam.learning_rate=2e-5", "gan.generator_steps=[[0.5,1],[0,4]]")
    )
    plain, recipe = (each.build_recipe(DATASETS["digits"], "paper", 1347) for each in (Sweep(), sweep))
    assert (recipe.gan.image_noise, recipe.joint.adam.learning_rate) == (0.0, 2e-5)
    assert recipe.gan.generator_steps == ((0.5, 1), (0, 4))
    assert (recipe.encoder, recipe.judge) == (plain.encoder, plain.judge)
    assert recipe.joint.image_noise == plain.joint.image_noise


@given(st.lists(st.sampled_from(INNER_TAPS), max_size=5))
def test_cuts_are_taken_just_when_they_are_in_order(cuts: list[str]):
    in_order = [tap for tap in INNER_TAPS if tap in cuts]
    if cuts == in_order:
        assert Sweep(cuts=tuple(cuts)).cuts == tuple(cuts)
    else:
        with pytest.raises(ConfigError):
            Sweep(cuts=tuple(cuts))


def test_the_largest_job_that_the_hardware_carries():
    assert Sweep().choose(gpus=0)[:2] == ("digits", "laptop")
    assert Sweep().choose(gpus=8)[:2] == ("cifar10", "released")
    assert "no GPU" in Sweep().choose(gpus=0)[2]
    assert "8 GPUs" in Sweep().choose(gpus=8)[2]
    assert Sweep(dataset="mnist").choose(gpus=0)[:2] == ("mnist", "laptop")
    assert Sweep(dataset="mnist", recipe="paper").choose(gpus=8)[:2] == ("mnist", "paper")


def test_default_is_six_variants_and_three_seeds():
    resolved = plan_ablation(Sweep(), gpus=0)
    assert [(trial.variant, trial.seed) for trial in resolved.trials] == [
        (variant, seed) for seed in (0, 1, 2) for variant in list(VARIANTS)[:6]
    ]


def test_a_variant_keeps_zero_where_it_lacks_a_loss_and_takes_the_sweeps_weights_elsewhere():
    trials = {t.variant: t.config.variant for t in plan_ablation(Sweep(weights=(2.0, 3.0, 4.0), seeds=1), 0).trials}
    weights = {name: (v.weights.adversarial, v.weights.conditional, v.weights.entropy) for name, v in trials.items()}
    assert weights == {
        "sgan": (2, 3, 4),
        "sgan-no-joint": (2, 3, 4),
        "dcgan-adv-cond-ent": (2, 3, 4),
        "dcgan-adv-cond": (2, 3, 0),
        "dcgan-adv-ent": (2, 0, 4),
        "dcgan-adv": (2, 0, 0),
    }
    assert [name for name, variant in trials.items() if not variant.labels] == ["dcgan-adv-ent", "dcgan-adv"]


def test_more_seeds_or_variants_are_the_same_sweep_and_anything_else_is_another():
    key = plan_ablation(Sweep(), 0).key
    assert plan_ablation(Sweep(seeds=5, variants=("sgan",)), 0).key == key
    others = [
        Sweep(budget=2.0),
        Sweep(width=0.5),
        Sweep(cuts=("pool1",)),
        Sweep(weights=(1.0, 1.0, 5.0)),
        Sweep(recipe="paper"),
        Sweep(override=("samples=200",)),
    ]
    keys = [plan_ablation(other, 0).key for other in others]
    assert len({key, *keys}) == len(others) + 1


def test_data_that_digits_do_not_use_is_refused(tmp_path: Path):
    for options in (Sweep(data=tmp_path), Sweep(dataset="digits", data=tmp_path)):
        with pytest.raises(ConfigError, match=f"digits do not use --data {tmp_path}"):
            plan_ablation(options, 0)


def test_a_misspelled_field_is_told_with_the_nearest_one():
    for field, near in (("gan.imagenoise", "gan.image_noise"), ("sample", "samples")):
        with pytest.raises(ConfigError, match=rf"no field '{field}'; perhaps {near};"):
            Sweep(override=(f"{field}=1",))


def test_the_manifest_keeps_the_trials_of_earlier_commands(tmp_path: Path):
    store = Store(tmp_path)
    first = plan_ablation(Sweep(seeds=1, variants=("dcgan-adv",)), 0)
    more = plan_ablation(Sweep(seeds=2, variants=("sgan",)), 0)
    write(store, first.record({"command": "", "commit": "abc", "machine": "a machine"}))
    write(store, more.record({"command": "", "commit": "abc", "machine": "a machine"}))
    manifest = read(store, first.key)
    assert [(row["variant"], row["seed"]) for row in manifest["trials"]] == [
        ("sgan", 0),
        ("sgan", 1),
        ("dcgan-adv", 0),
    ]
    assert [row["name"] for row in manifest["variants"]] == ["sgan", "dcgan-adv"]
    json.dumps(manifest, allow_nan=False)


@pytest.mark.parametrize(("arguments", "named"), [(["--variants", "gan"], "gan"), (["--seeds", "none"], "none")])
def test_the_command_ends_with_status_2_and_one_line(arguments: list[str], named: str, capsys):
    assert ended("sweeps/ablation.py", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--variants", "gan"], "gan"),
        pytest.param(["--store", "file/inside"], "inside", marks=pytest.mark.slow),  # Ray has started
    ],
)
def test_a_command_of_its_own_process_ends_without_a_traceback(arguments: list[str], named: str, tmp_path: Path):
    (tmp_path / "file").write_text("")
    words = [sys.executable, str(ROOT / "sweeps" / "ablation.py"), *arguments]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_torn_mnist_file_ends_the_command_before_any_compute(tmp_path: Path, capsys):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").write_bytes(bytes((0, 0, 8, 3, 0, 0, 0, 9, 0, 0, 0, 28, 0, 0, 0, 28)) + b"torn")
    assert ended("sweeps/ablation.py", "--dataset", "mnist", "--data", tmp_path, "--store", tmp_path / "runs") == 2
    said = capsys.readouterr().err
    assert "MNIST cannot be read from" in said
    assert str(tmp_path) in said
    assert not list(tmp_path.glob("runs/stages/*"))


@pytest.mark.parametrize("script", ["ablation", "search", "tracking"])
def test_help_imports_nothing_that_takes_seconds(script: str):
    heavy = ("torch", "ray", "mlflow", "pandas", "sklearn", "matplotlib")
    code = (
        f"import runpy, sys; sys.argv = ['{script}.py', '--help']\n"
        f"try: runpy.run_path('{ROOT}/sweeps/{script}.py', run_name='__main__')\n"
        f"finally: print(*[name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "usage" in done.stdout
    assert done.stderr.split() == []


def test_one_judge_scores_every_recipe_and_width():
    sweeps = [Sweep(recipe=recipe, seeds=1) for recipe in ("laptop", "paper", "released")] + [Sweep(width=0.5)]
    judges = [plan_ablation(sweep, 0).trials[0].plan.score.judge for sweep in sweeps]
    assert len({name(dataclasses.replace(judge, samples=1)) for judge in judges}) == 1
    assert {judge.samples for judge in judges} == {10_000, 50_000}  # real images are scored at the count of samples
