"""The commit that a sweep notes, in a git checkout and in copies of one without its git folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WHAT = "from sweeps.planning.manifest import commit; print(commit())"


def python(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-P", *words]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A git checkout of the packages."""
    made = tmp_path / "checkout"
    for name in ("sgan", "sweeps", "clusters"):
        shutil.copytree(ROOT / name, made / name, ignore=shutil.ignore_patterns("__pycache__", "COMMIT"))
    (made / ".gitignore").write_text("/clusters/COMMIT\n")
    for words in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "a"],
    ):
        subprocess.run(["git", "-C", str(made), *words], check=True, timeout=60)
    return made


def test_a_copy_without_git_knows_the_commit_that_was_noted_of_its_code(checkout, tmp_path):
    head = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    expected = head.stdout[:12]
    assert python(checkout, "-c", WHAT).stdout.strip() == expected
    noted = python(checkout, "-m", "sweeps.planning.manifest")
    assert noted.stdout.strip().endswith(expected), noted.stderr
    assert python(checkout, "-c", WHAT).stdout.strip() == expected  # the note is no change of the checkout

    copy = tmp_path / "copy"
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git"))
    assert python(copy, "-c", WHAT).stdout.strip() == expected
    with open(copy / "sweeps" / "search.py", "a") as file:
        file.write("# other code\n")
    assert python(copy, "-c", WHAT).stdout.strip() == "unknown"
    (copy / "clusters" / "COMMIT").unlink()
    assert python(copy, "-c", WHAT).stdout.strip() == "unknown"
    assert "is no git checkout" in python(copy, "-m", "sweeps.planning.manifest").stderr

    with open(checkout / "sweeps" / "search.py", "a") as file:
        file.write("# other code\n")
    assert python(checkout, "-m", "sweeps.planning.manifest").stdout.strip().endswith(f"{expected}-dirty")
