"""The list of the best configs, from a real MLflow database that holds runs of an ablation and of a search."""

import json
import random
import shlex
import statistics
from collections.abc import Iterable
from pathlib import Path

import pytest
import tyro
from mlflow import MlflowClient

from sgan.checks import ConfigError
from sweeps import best
from sweeps.mlflow_view import connection
from sweeps.mlflow_view.runs import TRIAL
from sweeps.planning.options import Sweep

PRINT = json.dumps({"scores": {"network": "a"}})
OTHER = json.dumps({"scores": {"network": "b"}})


def options(variant: str, weights: tuple[float, ...]) -> str:
    return f"--dataset digits --variants {variant} --weights {' '.join(map(str, weights))}"


ROWS = [  # name, variant, split, weights, phase, fingerprint, {seed: (IS, FID)}
    ("sgan", "sgan", "fc3", (1.0, 1.0, 10.0), "ablation", PRINT, {0: (8.0, 20.0), 1: (8.4, 22.0), 2: (8.8, 24.0)}),
    ("config-4", "sgan", "pool1,fc3", (2.0, 0.5, 3.0), "explore", PRINT, {1000: (9.9, 9.0)}),
    ("config-4", "sgan", "pool1,fc3", (2.0, 0.5, 3.0), "confirm", PRINT, {1001: (9.0, 30.0), 1003: (9.2, 32.0)}),
    ("dcgan-adv", "dcgan-adv", "none", (1.0, 0.0, 0.0), "ablation", PRINT, {0: (6.0, 70.0)}),
    ("sgan", "sgan", "fc3", (1.0, 1.0, 10.0), "ablation", OTHER, {0: (5.0, 50.0)}),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("best")
    client = MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.create_experiment(connection.EXPERIMENT)
    parent = client.create_run(experiment, tags={"outcome": "done"}).info.run_id
    for copy in range(2):  # a second sweep has the same trials: they count once
        for name, variant, split, weights, phase, fingerprint, seeds in ROWS[: len(ROWS) if copy == 0 else 1]:
            for seed, (inception, fid) in seeds.items():
                tags = {
                    "outcome": "done", "mlflow.parentRunId": parent, TRIAL: f"{name}-{seed}-{copy}",
                    "variant": name, "base_variant": variant, "seed": str(seed), "cuts": split, "phase": phase,
                    "fingerprint": fingerprint,
                    "config_key": f"{variant}{split}{weights}", "dataset": "digits", "recipe": "laptop",
                    "alarm": "score: collapse" if seed == 1003 else "none",
                    "rerun": options(variant, weights),
                }  # fmt: skip
                run = client.create_run(experiment, tags=tags).info.run_id
                for field, value in zip(("adversarial", "conditional", "entropy"), weights, strict=True):
                    client.log_param(run, f"variant.weights.{field}", value)
                client.log_metric(run, "inception_score", inception)
                client.log_metric(run, "fid", fid)
    unfinished = {"outcome": "running", "mlflow.parentRunId": parent, TRIAL: "x", "seed": "5"}
    client.create_run(experiment, tags=unfinished)
    return root


def listed(store: Path, capsys, **filters) -> list[list[list[str]]]:
    """The rows of each table that is printed."""
    assert best.main(best.Filters(str(store), **filters)) == 0
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
    same, other = sorted(listed(store, capsys), key=len, reverse=True)
    assert column(same, 1) == ["sgan", "sgan", "dcgan-adv"]
    assert column(same, 2) == ["pool1+fc3", "fc3", "none"]
    assert column(same, 3) == ["2 : 0.5 : 3", "1 : 1 : 10", "1 : 0 : 0"]
    means = [f"{statistics.fmean(v):.2f} ± {statistics.stdev(v):.2f}" for v in ([9.0, 9.2], [8.0, 8.4, 8.8])]
    assert column(same, 4) == [*means, "6.00"]
    assert column(same, 7) == ["2", "3", "1"]
    assert column(other, 4) == ["5.00"]  # another scorer: a list of its own


def test_another_score_another_order(store: Path, capsys):
    (same, _) = sorted(listed(store, capsys, by="fid"), key=len, reverse=True)
    assert column(same, 2) == ["fc3", "pool1+fc3", "none"]
    assert column(same, 4)[0] == "22.00 ± 2.00"


def test_explored_configs_are_shown_on_request_and_marked(store: Path, capsys):
    (same, _) = sorted(listed(store, capsys, explored=True), key=len, reverse=True)
    assert column(same, 4)[0] == "9.90"
    assert ["explored" in note for note in column(same, -1)] == [True, False, False, False]


@pytest.mark.parametrize(
    ("filters", "splits"),
    [
        ({"variant": "dcgan-adv"}, ["none"]),
        ({"split": "pool1+fc3"}, ["pool1+fc3"]),
        ({"min_seeds": 2}, ["pool1+fc3", "fc3"]),
        ({"min_seeds": 3}, ["fc3"]),
        ({"top": 1, "min_seeds": 2}, ["pool1+fc3"]),
        ({"dataset": "digits", "recipe": "laptop", "min_seeds": 3}, ["fc3"]),
    ],
)
def test_filters(store: Path, capsys, filters: dict, splits: list[str]):
    (rows,) = listed(store, capsys, **filters)
    assert column(rows, 2) == splits


def test_the_commands_run_all_seeds_again_in_one(store: Path, capsys):
    best.main(best.Filters(str(store), min_seeds=2))
    lines = [line for line in capsys.readouterr().out.splitlines() if "sweeps/ablation.py" in line]
    start = "python sweeps/ablation.py --dataset digits --variants sgan"
    assert lines == [
        f"1  {start} --weights 2.0 0.5 3.0 --seeds 3 --first-seed 1001 --store {store}",
        f"2  {start} --weights 1.0 1.0 10.0 --seeds 3 --first-seed 0 --store {store}",
    ]


def test_the_commands_are_options_of_an_ablation(store: Path, capsys):
    best.main(best.Filters(str(store), min_seeds=3))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "sweeps/ablation.py" in line]
    sweep = tyro.cli(Sweep, args=shlex.split(line)[3:])
    assert (sweep.dataset, sweep.variants, sweep.weights) == ("digits", ("sgan",), (1.0, 1.0, 10.0))
    assert (sweep.seed_range, sweep.store) == (range(3), str(store))


@pytest.mark.parametrize("chosen", [None, "elsewhere"])
def test_commands_name_a_store_that_they_do_not_find_by_themselves(store: Path, chosen, capsys, monkeypatch):
    monkeypatch.chdir(store.parent)
    monkeypatch.delenv("SGAN_STORE", raising=False)
    if chosen:
        monkeypatch.setenv("SGAN_STORE", chosen)
    (store.parent / "runs").symlink_to(store)
    try:
        best.main(best.Filters("runs"))
        commands = [line for line in capsys.readouterr().out.splitlines() if "sweeps/ablation.py" in line]
        assert {" --store runs" in command for command in commands} == {bool(chosen)}
        best.main(best.Filters(f"sqlite:///{store}/mlflow.db"))
        assert "--store" not in capsys.readouterr().out
    finally:
        (store.parent / "runs").unlink()


def test_an_alarm_is_noted(store: Path, capsys):
    (rows,) = listed(store, capsys, split="pool1+fc3")
    assert column(rows, -1) == ["alarm in 1: score: collapse"]


def test_nothing_like_that_says_what_to_do(store: Path, capsys):
    assert best.main(best.Filters(str(store), dataset="mnist")) == 0
    assert "--explored" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("where", "named"),
    [("nowhere", "nowhere"), ("http://127.0.0.1:1", "127.0.0.1:1"), ("sqlite:///{tmp}/new.db", "new.db")],
)
def test_no_record_is_one_error(where: str, named: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=named):
        best.main(best.Filters(where.format(tmp=tmp_path)))


@pytest.mark.parametrize("bad", [{"min_seeds": 0}, {"top": -1}])
def test_a_bad_filter_is_one_error(bad: dict):
    with pytest.raises(ConfigError, match="at least 1"):
        best.Filters("runs", **bad)


def test_a_database_damaged_anywhere_is_one_error_or_a_list(store: Path, tmp_path: Path, capsys):
    whole, dice, errors = (store / "mlflow.db").read_bytes(), random.Random(0), []
    for _ in range(10):
        held = bytearray(whole)
        if dice.random() < 0.5:
            del held[dice.randrange(len(held)) :]
        else:
            at = dice.randrange(len(held))
            held[at : at + 4000] = dice.randbytes(4000)
        (tmp_path / "mlflow.db").write_bytes(held)
        try:
            assert best.main(best.Filters(str(tmp_path))) == 0
        except ConfigError as error:
            errors.append(str(error))
    assert errors
    assert not [error for error in errors if "\n" in error or "mlflow.db" not in error]
