"""A dry run writes nothing and starts no Ray."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("ablation", ("--store", "new/runs")),
        ("ablation", ("--store", ".")),
        ("search", ("--trials", "5", "--budget", "0.01", "--override", "judge.images=1280", "encoder.images=1280")),
    ],
)
def test_a_dry_run_leaves_everything_as_it_was(script: str, words: tuple[str, ...], tmp_path: Path):
    here = tmp_path / "here"
    here.mkdir()
    (here / "file").write_text("as it was")
    ended = subprocess.run(
        [sys.executable, str(ROOT / "sweeps" / f"{script}.py"), "--dry-run", *words],
        capture_output=True,
        text=True,
        cwd=here,
        env=os.environ | {"RAY_TMPDIR": str(tmp_path / "ray")},
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "starting Ray" not in ended.stdout
    assert [path.name for path in here.rglob("*")] == ["file"]
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
