"""The list of the best configs, from the store of an ablation and of a search, and the choice of one of them."""

import dataclasses
import shlex
import shutil
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import tyro
from conftest import tiny_recipe
from mlflow import MlflowClient

from sgan.checks import ConfigError
from sgan.command_line import python
from sgan.presets import DATASETS, VARIANTS, Weights, configure
from sgan.stages import graph
from sgan.store.local import MODELS, Store
from sweeps import best, tracking
from sweeps.mlflow_view.connection import default_uri
from sweeps.mlflow_view.runs import BEST
from sweeps.planning import config_file, manifest
from sweeps.planning.options import Sweep
from sweeps.planning.trials import Trial, trial

PRINT, OTHER = {"scores": {"network": "a"}}, {"scores": {"network": "b"}}
RECIPE = dataclasses.replace(tiny_recipe(), name="laptop")


def options(variant: str, cuts: tuple[str, ...], weights: tuple[float, float, float]) -> Sweep:
    return Sweep(dataset="digits", recipe="laptop", variants=(variant,), cuts=cuts, weights=weights)


def described(title: str, phase: str, base_variant: str, again: Sweep) -> dict[str, Any]:
    """What the record of a trial has beside what follows from its config."""
    row = VARIANTS[again.variants[0]]
    about = {"title": title, "paper": row.paper, "base": row.base, "changes": row.changes, "rank": 0}
    return about | {"phase": phase, "base_variant": base_variant, "rerun": config_file.words(again)}


ROWS = [  # name, variant, cuts, weights, phase, fingerprint, {seed: (IS, FID)}
    ("sgan", "sgan", ("fc3",), (1.0, 1.0, 10.0), "ablation", PRINT, {0: (8.0, 20.0), 1: (8.4, 22.0), 2: (8.8, 24.0)}),
    ("config-4", "sgan", ("pool1", "fc3"), (2.0, 0.5, 3.0), "explore", PRINT, {1000: (9.9, 9.0)}),
    ("config-4", "sgan", ("pool1", "fc3"), (2.0, 0.5, 3.0), "confirm", PRINT, {1001: (9.0, 30.0), 1003: (9.2, 32.0)}),
    ("dcgan-adv", "dcgan-adv", (), (1.0, 0.0, 0.0), "ablation", PRINT, {0: (6.0, 70.0)}),
    ("sgan", "sgan", ("fc3",), (1.0, 1.0, 10.0), "ablation", OTHER, {5: (5.0, 50.0)}),
]


def finished(store: Store, made: Trial, fingerprint: dict, inception: float, fid: float) -> None:
    """Publish the stages of a trial, without what training leaves in them."""
    for label, name in ((stage["label"], stage["name"]) for stage in made.record["stages"]):
        if store.has(name):
            continue
        folder = store.begin(name)
        facts = {"kind": label.rstrip("0123456789"), "status": "done", "reason": None, "images": 10, "seconds": 1.0}
        facts |= {"generator_images": 10 * (label == "level0"), "commit": "abc123", "machine": "a", "torch": "2"}
        if label == "score":
            (folder / MODELS / "last").mkdir(parents=True)
            (folder / MODELS / "last" / "model.json").write_text("{}")
            facts |= {"scores": {"inception_score": inception, "fid": fid}, "fingerprint": fingerprint}
            facts["scores"] |= {"collapsed_classes": 0.5 if made.seed == 1003 else 0.0, "diversity": inception / 10}
        store.publish(name, facts)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    made = Store(tmp_path_factory.mktemp("best"))
    for key in ("ab12", "cd34"):  # a second sweep has the same trials: they count once
        rows = []
        for name, variant, cuts, weights, phase, fingerprint, seeds in ROWS[: len(ROWS) if key == "ab12" else 1]:
            for seed, (inception, fid) in seeds.items():
                shared = (DATASETS["digits"], "f00d", RECIPE, VARIANTS[variant].variant)
                about = described(name, phase, variant, options(variant, cuts, weights))
                one = trial(name, seed, configure(*shared, seed, Weights(*weights), cuts), **about)
                finished(made, one, fingerprint, inception, fid)
                rows.append(one.record)
        settings = {"dataset": "digits", "recipe": "laptop", "override": []}
        head = {"key": key, "title": key, "command": "python sweeps/ablation.py", "commit": "abc123", "machine": "a"}
        head |= {"started": time.time(), "settings": settings, "judges": [], "paper_real": ""}
        manifest.write(made, head | {"trials": rows})
    return made.root


def listed(store: Path, capsys, **options) -> list[list[list[str]]]:
    """The rows of each table that is printed."""
    assert best.main(str(store), **options) == 0
    return tables(capsys.readouterr().out)


def tables(text: str) -> list[list[list[str]]]:
    found: list[list[list[str]]] = []
    for line in text.splitlines():
        if line.startswith("|   ") and "Variant" in line:
            found.append([])
        elif line.startswith("| "):
            found[-1].append([cell.strip() for cell in line.split("|")[1:-1]])
    return found


def column(rows: Iterable[list[str]], index: int) -> list[str]:
    return [row[index] for row in rows]


def test_confirmed_configs_best_first_as_mean_and_std_over_their_seeds(store: Path, capsys):
    same, other = sorted(listed(store, capsys, by="inception_score"), key=len, reverse=True)
    assert column(same, 1) == ["sgan", "sgan", "dcgan-adv"]
    assert column(same, 2) == ["pool1+fc3", "fc3", "none"]
    assert column(same, 3) == ["2 : 0.5 : 3", "1 : 1 : 10", "1 : 0 : 0"]
    means = [f"{statistics.fmean(v):.2f} ± {statistics.stdev(v):.2f}" for v in ([9.0, 9.2], [8.0, 8.4, 8.8])]
    assert column(same, 4) == [*means, "6.00"]
    assert column(same, 7) == ["2", "3", "1"]
    assert column(other, 4) == ["5.00"]  # another judge: a list of its own
    assert sorted(column([*same, *other], 0)) == ["1", "2", "3", "4"]


def test_another_score_another_order(store: Path, capsys):
    (same, _) = sorted(listed(store, capsys), key=len, reverse=True)
    assert column(same, 2) == ["fc3", "pool1+fc3", "none"]
    assert column(same, 4)[0] == "22.00 ± 2.00"


def test_more_diversity_is_better(store: Path, capsys):
    (same, _) = sorted(listed(store, capsys, by="diversity"), key=len, reverse=True)
    assert column(same, 4) == ["0.91 ± 0.01", "0.84 ± 0.04", "0.60"]


def test_the_commands_run_the_seeds_of_a_config_again(store: Path, capsys):
    best.main(str(store), by="inception_score")
    lines = [line for line in capsys.readouterr().out.splitlines() if "--variants sgan " in line][:3]
    start = f"{python()} sweeps/ablation.py --recipe laptop --dataset digits"
    split = "--cuts pool1 fc3"
    assert lines == [
        f"1  {start} {split} --weights 2.0 0.5 3.0 --variants sgan --seeds 1 --first-seed 1001 --store {store}",
        f"1  {start} {split} --weights 2.0 0.5 3.0 --variants sgan --seeds 1 --first-seed 1003 --store {store}",
        f"2  {start} --weights 1.0 1.0 10.0 --variants sgan --seeds 3 --first-seed 0 --store {store}",
    ]
    sweep = tyro.cli(Sweep, args=shlex.split(lines[2])[3:])
    assert (sweep.dataset, sweep.variants, sweep.weights) == ("digits", ("sgan",), (1.0, 1.0, 10.0))
    assert (sweep.seed_range, sweep.store) == (range(3), str(store))


def test_a_config_that_other_code_trained_is_noted(store: Path, capsys, monkeypatch):
    best.main(str(store))
    assert "other code" not in capsys.readouterr().out
    monkeypatch.setattr(graph, "code_digest", lambda kind: f"edited {kind}")
    graph.name.cache_clear()
    try:
        best.main(str(store))
    finally:
        graph.name.cache_clear()
    assert "1  trained by other code: its command trains it anew\n" in capsys.readouterr().out


def test_an_alarm_is_noted(store: Path, capsys):
    best.main(str(store))
    (note,) = [line for line in capsys.readouterr().out.splitlines() if "alarm" in line]
    assert note[3:] == "alarm in 1: collapse: 50% of the classes are missed or repeat themselves"


def test_nothing_that_has_finished_says_what_to_do(store: Path, capsys):
    assert best.main(str(store), by="kid") == 0
    assert "No config has finished" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["nowhere", "http://127.0.0.1:1"])
def test_no_store_is_one_error(where: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=where):
        best.main(where)


@pytest.mark.parametrize("number", [0, 9])
def test_a_number_that_is_not_in_the_list_is_one_error(number: int, store: Path):
    with pytest.raises(ConfigError, match=f"--promote {number} is no config of the list, which has 4"):
        best.main(str(store), promote=number)


def test_a_search_without_cuts_is_promoted_as_its_own_variant_and_lost_seeds_are_noted(store: Path, tmp_path, capsys):
    """It is listed as the DCGAN that it is, but only the search's variant has its options."""
    opened, weights = Store(shutil.copytree(store, tmp_path / "store")), (1.0, 1.0, 10.0)
    for seed in (1001, 1002):
        shared = (DATASETS["digits"], "f00d", RECIPE, VARIANTS["sgan"].variant)
        about = described("config-7", "confirm", "dcgan-adv-cond-ent", options("sgan", (), weights))
        one = trial("config-7", seed, configure(*shared, seed, Weights(*weights), ()), **about)
        if seed == 1001:
            finished(opened, one, PRINT, 9.0, 1.0)
        else:
            name = next(stage["name"] for stage in one.record["stages"] if stage["label"] == "level0")
            facts = {"kind": "level", "status": "diverged", "reason": "g_adv is nan", "images": 10, "seconds": 1.0}
            opened.begin(name)
            opened.publish(name, facts | {"generator_images": 10, "commit": "abc123", "machine": "a", "torch": "2"})
        manifest.write_trial(opened, "ab12", one.record)
    assert best.main(str(opened.root)) == 0
    text = capsys.readouterr().out
    (rows,) = [rows for rows in tables(text) if len(rows) > 1]
    assert rows[0][1] == "dcgan-adv-cond-ent"
    assert "1  1 more diverged\n" in text
    assert best.main(str(opened.root), promote=1) == 0
    chosen = config_file.read(opened.root / "best.yaml")
    assert (chosen.variant, chosen.options.cuts, chosen.config.variant.cuts) == ("sgan", (), ())


def test_the_model_that_was_promoted_last_is_the_best(store: Path, tmp_path):
    opened = Store(shutil.copytree(store, tmp_path / "store"))
    for number in (1, 2, 1):
        assert best.main(str(opened.root), promote=number) == 0
    client = MlflowClient(default_uri(opened))
    run = client.get_model_version_by_alias("sgan-digits", BEST).run_id
    assert [each.info.run_id for each in client.search_runs(["1"], "tags.best LIKE 'sgan%'")] == [run]
    assert run
    assert client.get_run(run).data.metrics["fid"] == 20.0
    for _ in range(2):
        assert tracking.sync(str(opened.root)) == 0
    assert len(client.search_model_versions("name = 'sgan-digits'")) == 2  # one for each config that was chosen
    client.delete_registered_model("sgan-digits")  # as a person may do in MLflow's page
    assert best.main(str(opened.root), promote=1) == 0
    assert client.get_model_version_by_alias("sgan-digits", BEST).run_id == run


@pytest.mark.parametrize("number", [1, 2])
def test_a_promoted_config_is_in_best_yaml_and_its_best_seeds_model_is_registered(store, number, tmp_path, capsys):
    """The second is a search's, whose weights and cuts are its own."""
    shutil.copytree(store, tmp_path / "store")
    assert best.main(str(tmp_path / "store"), promote=number) == 0
    path, opened = tmp_path / "store" / "best.yaml", Store(tmp_path / "store")
    assert f"{python()} sweeps/ablation.py --config {path} --store {opened.root}\n" in capsys.readouterr().out
    chosen = config_file.read(path)
    cuts, weights = [(("fc3",), (1.0, 1.0, 10.0)), (("pool1", "fc3"), (2.0, 0.5, 3.0))][number - 1]
    assert (chosen.config.variant.cuts, chosen.options.weights) == (cuts, weights)
    assert Sweep(**vars(config_file.read(path).options)).cuts == cuts
    client = MlflowClient(default_uri(opened))
    version = client.get_model_version_by_alias("sgan-digits", BEST)
    assert version.run_id
    run = client.get_run(version.run_id)
    assert run.data.metrics["fid"] == [20.0, 30.0][number - 1]
    assert run.data.tags["best"] == "sgan-digits, version 1"
    (parent,) = client.search_runs(["1"], "tags.`sgan.sweep` = 'ab12' and tags.`mlflow.runName` = 'ab12'")
    assert "best.yaml" in {file.path for file in client.list_artifacts(parent.info.run_id)}
