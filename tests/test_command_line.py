"""The frame of every command: one line for a wrong option, and output that never ends a command."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sgan import command_line
from sgan.checks import ConfigError

ROOT = Path(__file__).parents[1]
COMMAND = """
import sys
from dataclasses import dataclass
import tyro
from sgan.command_line import grouped, parse, status

@dataclass(frozen=True)
class Length:
    '''How long.'''
    seeds: int = 3
    '''Number.'''

@dataclass(frozen=True)
class Place:
    '''Where.'''
    store: str = "runs"
    '''A folder.'''

@dataclass(frozen=True)
class All(Length, Place):
    '''Does all.

    Examples:

        python command.py --seeds 5
    '''

def main():
    asked = {"--epochs": "--budget does it", "--seeds": "--seeds is a number"}
    options = parse(lambda: grouped(All, "python command.py", All(store="there")), asked)
    print(options, flush=True)
    for line in range(LINES):
        print(f"{line} █ 1 ± 0.5 – 日本", flush=True)
    print("done", file=sys.stderr)

sys.exit(status(main))
"""


def run(*words: str, lines: int = 2, stdout: Any = subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess:
    code = COMMAND.replace("LINES", str(lines))
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
        timeout=60,
        check=False,
    )


def test_options_of_all_groups_and_their_defaults():
    ended = run("--seeds", "5")
    assert ended.stdout.splitlines()[0] == "All(store='there', seeds=5)"
    assert (ended.returncode, ended.stderr) == (0, "done\n")
    told = run("--help").stdout
    for part in ("Does all.", "python command.py --seeds 5", "length options", "How long.", "(default: there)"):
        assert part in told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--epochs", "3"), "--epochs is not known here: --budget does it"),
        (("--epochs=3",), "--epochs=3 is not known here: --budget does it"),
        (("--seeds", "0", "1", "2"), "1 is not known here: --seeds is a number"),
        (("--seeds", "x"), "--seeds: invalid literal for int() with base 10: 'x'; --help shows all options"),
        (
            ("--stor", "x" * 200),
            f"Unrecognized options: --stor, {'x' * 200}; perhaps --store; --help shows all options",
        ),
        (("word",), "Unrecognized options: word; --help shows all options"),
    ],
)
def test_a_wrong_option_is_one_line(words: tuple[str, ...], said: str):
    ended = run(*words, COLUMNS="40")
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", f"error: {said}\n")


def test_the_version():
    assert run("--version").stdout.startswith("sgan 0.")


def test_a_character_that_the_terminal_lacks_ends_nothing():
    ended = run(PYTHONIOENCODING="ascii")
    assert ended.stdout.splitlines()[1:] == ["0 ? 1 ? 0.5 ? ??", "1 ? 1 ? 0.5 ? ??"]
    assert ended.returncode == 0


def test_a_pipe_that_closes_ends_nothing():
    reader, writer = os.pipe()
    os.close(reader)
    ended = run(lines=5000, stdout=writer)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "done\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
def test_a_full_disk_below_the_output_ends_nothing():
    with open("/dev/full", "w") as full:
        ended = run(lines=5000, stdout=full)
    assert (ended.returncode, ended.stderr) == (0, "done\n")


@pytest.mark.parametrize("words", [["--data", ""], ["--data="], ["--mlflow", "", "--dry-run"]])
def test_an_empty_value_is_named_before_it_is_read_as_a_folder(words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ablation.py", *words])
    with pytest.raises(ConfigError, match=f"^{words[0].rstrip('=')} is empty"):
        command_line.parse(lambda: None)
