"""The command and the commit that a sweep notes, the latter also in copies without a git folder."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sgan.stages.graph import code_version
from sgan.store.local import Store
from sweeps.planning import manifest
from sweeps.planning.ablation import plan_ablation
from sweeps.planning.manifest import command
from sweeps.planning.options import Sweep

ROOT = Path(__file__).parents[2]
ORIGIN = {"command": "python sweeps/ablation.py", "commit": "commit", "machine": "here"}


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


def test_a_copy_without_git_knows_the_commit_that_was_noted(checkout, tmp_path, monkeypatch):
    def commit(root: Path) -> str:
        monkeypatch.setattr(manifest, "ROOT", root)
        return manifest.commit()

    head = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    expected = head.stdout[:12]
    assert commit(checkout) == expected
    (checkout / "clusters" / "COMMIT").write_text(f"{expected} {code_version()}\n")  # as `make commit` writes it
    assert commit(checkout) == expected  # the note is no change of the checkout

    copy = tmp_path / "copy"
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git"))
    assert commit(copy) == expected
    (copy / "clusters" / "COMMIT").write_text(f"{expected} 0123456789abcdef\n")  # before an edit of the code
    assert commit(copy) == f"{expected}-dirty"
    (copy / "clusters" / "COMMIT").unlink()
    assert commit(copy) == "unknown"

    with open(checkout / "sweeps" / "search.py", "a") as file:
        file.write("# other code\n")
    assert commit(checkout) == f"{expected}-dirty"


def test_a_recorded_command_runs_as_it_stands_and_has_no_password(monkeypatch):
    words = ["--store", "/a/b/t", "--data=/a/c", "--override", "gan.generator_steps=[[0.5, 1], [0, 4]]"]
    monkeypatch.setattr(sys, "argv", ["/x/sweeps/ablation.py", *words])
    assert shlex.split(command()) == ["python", "sweeps/ablation.py", *words]
    monkeypatch.setattr(sys, "argv", ["sweeps/search.py", "--mlflow", "https://me:se@cret@host:5000/x"])
    assert command() == "python sweeps/search.py --mlflow https://HIDDEN@host:5000/x"


def test_a_record_that_was_deleted_is_made_again_by_the_command(tmp_path):
    """One trial's file, and then all of it."""
    store, ablation = Store(tmp_path), plan_ablation(Sweep(variants=("dcgan-adv", "sgan"), seeds=1), 0)
    manifest.write(store, ablation.record(ORIGIN))
    before = manifest.read(store, ablation.key)
    assert [row["variant"] for row in before["trials"]] == ["sgan", "dcgan-adv"]
    next((manifest.folder(store, ablation.key) / "trials").glob("sgan-0*")).unlink()
    manifest.write(store, ablation.record(ORIGIN))
    assert manifest.read(store, ablation.key)["trials"] == before["trials"]
    shutil.rmtree(tmp_path / "sweeps")
    manifest.write(store, ablation.record(ORIGIN))
    assert manifest.read(store, ablation.key)["trials"] == before["trials"]
