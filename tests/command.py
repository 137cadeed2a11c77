"""Commands: in this process, for a new one takes seconds to import torch, or in one of their own; what they leave."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from sgan.store.files import read_json

ROOT = Path(__file__).parents[1]


def ended(file: str, *words: str | int | Path) -> int:
    """The exit status of `python FILE WORDS`, a file of this repository; it prints where this process does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [file, *map(str, words)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / file), run_name="__main__")
    return int(end.value.code or 0)


def started(file: str, *words: str | int | Path) -> subprocess.Popen[str]:
    """`python FILE WORDS` in a process and a session of its own."""
    command = [sys.executable, str(ROOT / file), *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finished(process: subprocess.Popen[str]) -> str:
    """All that it prints; it must end well."""
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    return output


def stages(store: Path) -> dict[str, float]:
    """Finished stages, and when each was finished."""
    return {path.parent.name: read_json(path)["finished"] for path in (store / "stages").glob("*/stage.json")}


def runs(store: Path) -> list:
    """All of MLflow's runs of a store."""
    client = MlflowClient(tracking_uri=f"sqlite:///{store / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("sgan")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))
