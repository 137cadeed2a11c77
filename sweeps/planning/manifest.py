"""What a sweep or a search consists of, as a file in the store: tracking and report read it, and nothing else."""

import dataclasses
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgan.checks import as_json, content_key, require

if TYPE_CHECKING:
    from sgan.stages.graph import Stage
    from sgan.store.local import Store
    from sweeps.planning.trials import Trial

ROOT = Path(__file__).resolve().parents[2]
NOTED = "clusters/COMMIT"
"""The commit that a cluster has the code of, in the checkout."""


def write_manifest(
    store: "Store",
    key: str,
    title: str,
    command: str,
    commit: str,
    machine: str,
    settings: Mapping[str, Any],
    judges: "Iterable[Stage]",
    variants: Sequence[Mapping[str, str]],
    trials: Iterable[Mapping[str, Any]],
    more: Mapping[str, Any],
) -> None:
    """Write the manifest of a sweep; trials that it had before stay.

    Args:
        settings: the options that all trials share.
        judges: the stages that score.
        variants: the rows of its table, in order: name, title, and the paper's Inception score; those that no trial is
            of are left out.
        trials: rows made by `trial_row`.
        more: further entries.
    """
    from sgan.stages.graph import name
    from sgan.store.files import read_json, write_json

    path, order = store.sweep(key), [variant["name"] for variant in variants]
    with store.lock(f"manifest-{key}"):
        store.fetch(path)
        earlier = read_json(path, key=key) if path.exists() else {"trials": [], "started": time.time()}
        rows = {(row["variant"], row["seed"]): row for row in [*earlier["trials"], *trials]}
        kept = sorted(rows.values(), key=lambda row: (order.index(row["variant"]), row["seed"]))
        write_json(
            path,
            {
                "key": key,
                "title": title,
                "command": command,
                "commit": commit,
                "machine": machine,
                "started": earlier["started"],
                "settings": dict(settings),
                "judges": [name(stage) for stage in judges],
                "variants": [dict(row) for row in variants if any(trial["variant"] == row["name"] for trial in kept)],
                "trials": kept,
                **more,
            },
        )


def trial_row(trial: "Trial", phase: str, rerun: str) -> dict[str, Any]:
    """A trial in the manifest.

    `run` names its run in MLflow: under some options two variants are one and the same trial, and both have a row.
    `config_key` is the same for all seeds of a config.

    Args:
        phase: "ablation", or "explore" or "confirm" in a search.
        rerun: the options of sweeps/ablation.py that run it again.
    """
    from sgan.stages.graph import name

    return {
        "name": trial.plan.name,
        "run": f"{trial.variant}-{trial.seed}-{trial.plan.name}",
        "variant": trial.variant,
        "seed": trial.seed,
        "phase": phase,
        "rerun": rerun,
        "cuts": ",".join(trial.config.variant.cuts) or "none",
        "config": as_json(trial.config),
        "config_key": content_key(dataclasses.replace(trial.config, seed=0)),
        "stages": [{"label": label, "name": name(stage)} for label, stage in trial.plan.stages],
    }


def command(script: str) -> str:
    """The command line that was given, without folders of this machine."""
    words = [word if "://" in word else re.sub(r"(^|=)/.*/", r"\1", word) for word in sys.argv[1:]]
    words = [re.sub(r"//[^/@]*@", "//", word) for word in words]  # nor passwords
    return shlex.join(["python", f"sweeps/{script}", *words])


def commit() -> str:
    """The commit of this checkout, with "-dirty" where tracked files differ from it. Where the code was copied without
    its git folder: what `note_commit` noted, if this is the code that it was noted of; otherwise "unknown"."""
    return _git_commit() or _noted_commit() or "unknown"


def note_commit() -> str:
    """Note the commit of this checkout in a file that goes to a cluster with the code; returns it.

    Raises:
        ConfigError: this is no git checkout.
    """
    found = _git_commit()
    require(bool(found), f"{ROOT} is no git checkout, so there is no commit to note")
    (ROOT / NOTED).write_text(f"{found} {_code()}\n")
    return found


def _git_commit() -> str:
    """ "" outside of git."""
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("-dirty" if changes.stdout.strip() else "")


def _noted_commit() -> str:
    """ "" where none was noted, or of other code."""
    path = ROOT / NOTED
    found, _, code = path.read_text().partition(" ") if path.exists() else ("", "", "")
    return found if code.strip() == _code() else ""


def _code() -> str:
    """Hash of all Python files of the packages."""
    files = sorted(path for package in ("sgan", "sweeps") for path in (ROOT / package).rglob("*.py"))
    return content_key([[str(path.relative_to(ROOT)), path.read_text()] for path in files])


if __name__ == "__main__":
    print(f"{ROOT / NOTED}: {note_commit()}")
