"""Every command and every code block of README.md and docs/: those that end soon on a laptop run on a finished sweep,
ablations and searches plan, and of the rest the options are looked up."""

import importlib
import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from conftest import run_trial
from data.test_datasets import mnist
from mlflow import MlflowClient
from models.test_released import arrays, save

from sgan.stages.context import Context
from sgan.store.local import Store
from sweeps import run as sweeps_run
from sweeps.mlflow_view.connection import default_uri
from sweeps.mlflow_view.runs import find
from sweeps.mlflow_view.sync import sync
from sweeps.planning import config_file, manifest
from sweeps.planning.ablation import plan_ablation
from sweeps.planning.options import Sweep

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = ("python", "make", "ray", "export", "mlflow", "optuna-dashboard", "pre-commit")
SMALL = ("encoder.images=1280", "judge.images=12800", "samples=500")
DIAGRAMS = 2
"""Blocks that are neither commands nor code: the flow and the layers of docs/architecture.md."""


@dataclass(frozen=True)
class Block:
    """A block of a page: lines of commands, or Python, or neither."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The commands without comments; of a session (`$ command`) those with a prompt."""
        lines = self.text.splitlines()
        if self.text.startswith("$ "):
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        plain = [re.sub(r"\s+#\s.*", "", line).removeprefix(".venv/bin/") for line in lines]
        return [part for line in plain for part in line.split(" && ") if line] if self.is_shell else []

    @property
    def is_shell(self) -> bool:
        return not self.language and self.text.removeprefix("$ ").removeprefix(".venv/bin/").startswith(COMMANDS)


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            found.append(Block(page, text[: match.start()].count("\n") + 2, match[1], match[2]))
    return found


def titled(block: Block, text: str) -> Any:
    return pytest.param(text, id=f"{block.page.name}:{block.line}: {text[:60]}")


SHELL = [
    titled(*item) for item in {command: (block, command) for block in blocks() for command in block.commands}.values()
]
PYTHON = [titled(block, block.text) for block in blocks() if block.language == "python"]


def test_every_block_is_a_command_or_python_or_a_known_diagram():
    other = [block for block in blocks() if not block.is_shell and block.language != "python"]
    assert [block.page.name for block in other] == ["architecture.md"] * DIAGRAMS


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder with a finished sweep in runs/, data and files that the pages name; and what the names that the pages
    have for examples are there."""
    folder = tmp_path_factory.mktemp("docs")
    store = Store(folder / "runs")
    ablation = plan_ablation(Sweep(variants=("sgan",), seeds=1, budget=0.01, override=SMALL), 0)
    for trial in ablation.trials:
        list(run_trial(trial.plan, Context(store, ablation.basis.data, "cpu", "test")))
    manifest.write(store, ablation.record({"command": "test", "commit": "test", "machine": "two cores"}))
    sync(store, ablation.key, default_uri(store))
    _, runs = find(MlflowClient(default_uri(store)), ablation.key)
    (run,), stage = runs.values(), ablation.trials[0].plan.name
    for name in ("sweeps", "benchmarks", "cluster.yaml"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("data", "docs"):
        (folder / name).mkdir()
    mnist(folder / "data", 300, 100)
    save(folder / "encoder.npz", arrays("mnist"))
    best = Sweep(dataset="digits", recipe="laptop", judge="held-out", variants=("sgan",), weights=(1.0, 1.0, 5.0))
    config_file.write(store, "sgan", best, plan_ablation(best, 0).trials[0].config, {"study": "s", "commit": "c"})
    names = {"RUN": run.info.run_id, "RUN_OR_PATH": stage, "DIR": "data", "KEY": ablation.key}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sweeps_run, "measured_here", lambda *config: 1e-4)  # test_dry_run.py lets it measure
        patch.setenv("MLFLOW_TRACKING_URI", default_uri(store))
        yield folder, {**names, "score-0123456789abcdef": stage, "/path/to/runs": str(store.root)}


def filled(text: str, names: dict[str, str]) -> str:
    """A text with the names of this store, and with this store where a page names one of several."""
    for name, value in names.items():
        text = re.sub(rf"(?<![\w-]){name}\b", value, text)
    return re.sub(r"runs/(search-)?(digits|mnist)\S*", "runs", text)


def run(words: list[str], capsys) -> str:
    """What a command `python FILE ...` or `python -m MODULE ...` prints in this process; it must end with 0."""
    name, argument = words[0], words[1:]
    if name == "-m":
        name, *argument = argument
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *argument])
        with pytest.raises(SystemExit) as end:
            runpy.run_module(name, {}, "__main__") if words[0] == "-m" else runpy.run_path(name, {}, "__main__")
    printed = capsys.readouterr()
    assert end.value.code in (0, None), printed.err
    return printed.out


def options_of(words: list[str], capsys) -> str:
    """All options that a command has, as its own help has them."""
    if words[0] == "python":
        size = 2 if words[1] == "-m" else 1
        return run([*words[1 : 1 + size], "--help"], capsys)
    if words[0] in ("ray", "mlflow"):
        module: Any = importlib.import_module({"ray": "ray.scripts.scripts", "mlflow": "mlflow.cli"}[words[0]])
        group = module.cli
        command = group.get_command(click.Context(group), words[1])
        return " ".join(option for each in command.params for option in each.opts)
    command = [str(Path(sys.executable).with_name(words[0])), "--help"]
    if words[0] == "pre-commit":
        pytest.skip("pre-commit is no part of the environment")
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.filterwarnings("ignore")  # of modules that are run a second time, and of MLflow's imports
@pytest.mark.parametrize("command", SHELL)
def test_a_command_runs_or_has_the_options_that_it_is_given(command, place, capsys):
    words = shlex.split(filled(command, place[1]))
    if words[:3] == ["python", "-m", "mlflow"]:
        words = words[2:]
    if words[0] == "export":
        return
    if words[0] == "make":
        goals = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert goals.returncode == 0, goals.stderr
    elif words[1] in ("sweeps/ablation.py", "sweeps/search.py"):
        plan = run([*words[1:], *["--dry-run"][: "--dry-run" not in words]], capsys)
        assert "trials" in plan
    elif (words[:2] == ["python", "-m"] and words[2] == "sgan.sample") or words[1].startswith("sweeps/"):
        run(words[1:], capsys)
    else:  # it needs a cluster, weights from a network, hours or a person
        known = options_of(words, capsys)
        given = words[: words.index("--")] if "--" in words else words
        for option in [word.partition("=")[0] for word in given if word.startswith("-") and word != "-m"]:
            assert option in known, option


SESSIONS = [block.text for block in blocks() if block.text.startswith("$ ")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("session", SESSIONS)
def test_a_session_prints_what_the_page_says(session, place, capsys):
    """All but the lines that tell of the machine."""
    command, *told = session.splitlines()
    printed = run(shlex.split(command.partition("python ")[2]), capsys).splitlines()
    machine = ("  slots ", "  time ")
    assert any(line.startswith("  time    about 0:") for line in printed)
    assert [line for line in printed if not line.startswith(machine)] == [
        line for line in told if not line.startswith(machine)
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("code", PYTHON)
def test_python_runs(code, place):
    exec(compile(filled(code, place[1]), "block", "exec"), {})


@pytest.mark.slow
def test_the_notebook_runs(place):
    """All code in order, as a script, on the finished sweep."""
    cells = json.loads((ROOT / "docs" / "pick_a_config.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    options = ["--variants", "sgan", "--seeds", "1", "--budget", "0.01", "--override", *SMALL]
    code, replaced = re.subn("^OPTIONS = .*$", f"OPTIONS = {options}", code, flags=re.MULTILINE)
    assert replaced == 1
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, cwd=place[0])
    assert done.returncode == 0, done.stderr
    assert "torch.Size([3, 1, 8, 8]) torch.uint8" in done.stdout
    assert place[1]["RUN_OR_PATH"] in done.stdout
