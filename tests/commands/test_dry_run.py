"""A dry run writes nothing and starts no Ray."""

from pathlib import Path

import pytest
import ray
from command import ended

SPACE = ("--variant", "sgan-no-joint", "--splits", "none", "fc3", "--entropy", "5", "10", "--zeros")
SMALL = ("--override", "judge.images=1280", "encoder.images=1280")


@pytest.mark.parametrize(
    ("script", "words", "told"),
    [
        ("ablation", ("--store", "new/runs"), "18 to run"),
        ("ablation", ("--store", "."), "18 to run"),
        ("search", ("--trials", "5", "--budget", "0.01", *SPACE, *SMALL), "time    about"),
    ],
)
def test_a_dry_run_leaves_everything_as_it_was(script: str, words, told: str, tmp_path: Path, monkeypatch, capsys):
    here = tmp_path / "here"
    here.mkdir()
    (here / "file").write_text("as it was")
    monkeypatch.chdir(here)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "ray"))
    assert ended(f"sweeps/{script}.py", "--dry-run", "--dataset", "digits", *words) == 0
    said = capsys.readouterr().out
    assert told in said
    assert "starting Ray" not in said
    assert not ray.is_initialized()
    assert [path.name for path in here.rglob("*")] == ["file"]
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
