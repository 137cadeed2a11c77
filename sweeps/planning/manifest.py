"""The record of a sweep or a search in the store: what it consists of. Every view of it is made from this."""

import dataclasses
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgan.checks import as_json, content_key, require
from sgan.stages.graph import name
from sgan.store.files import read_json, write_json
from sgan.store.local import Store
from sweeps.planning.trials import Trial

HEAD = "sweep.json"
ROOT = Path(__file__).resolve().parents[2]
NOTED = "clusters/COMMIT"
"""The commit that a cluster has the code of, in the checkout."""


def folder(store: Store, key: str) -> Path:
    """Where the record of a sweep lies: sweep.json, a file a trial in trials/, a search's plots/, and mlflow.log."""
    return store.root / "sweeps" / key


def write(store: Store, manifest: Mapping[str, Any]) -> None:
    """Write the record of a sweep: its head, and every trial that is new or has changed. Earlier trials stay.

    Args:
        manifest: as `read` returns it. "variants" is left out: it follows from the trials.
    """
    key, place = manifest["key"], folder(store, manifest["key"])
    head = {name: value for name, value in manifest.items() if name not in ("trials", "variants")}
    with store.lock(f"manifest-{key}"):
        store.fetch(place / HEAD)
        if (place / HEAD).exists():
            head["started"] = read_json(place / HEAD, key=key)["started"]
        if not (place / HEAD).exists() or head != read_json(place / HEAD, key=key):
            write_json(place / HEAD, head)
            store.save(place / HEAD)
    for row in manifest["trials"]:
        write_trial(store, key, row)


def write_trial(store: Store, key: str, row: Mapping[str, Any]) -> None:
    """Write a trial of a sweep, unless the record has it as it is."""
    path = folder(store, key) / "trials" / f"{row['variant']}-{row['seed']}.json"
    if not path.exists() or read_json(path) != row:
        write_json(path, row)
        store.save(path)


def read(store: Store, key: str) -> dict[str, Any]:
    """The record of a sweep: the entries of its head; "trials", the rows that `trial_row` made, by variant and seed;
    and "variants", the name, title and paper's score of each row of its table.

    Raises:
        StoreError: a file of it is damaged.
    """
    place = folder(store, key)
    store.fetch(place)
    rows = sorted(map(read_json, (place / "trials").glob("*.json")), key=lambda row: (row["rank"], row["seed"]))
    variants = {row["variant"]: {"name": row["variant"], "title": row["title"], "paper": row["paper"]} for row in rows}
    return read_json(place / HEAD, key=key) | {"trials": rows, "variants": list(variants.values())}


def keys(store: Store) -> list[str]:
    """The keys of all sweeps in a store, in the order in which they were started."""
    store.fetch(store.root / "sweeps")
    heads = [read_json(path, key=path.parent.name) for path in (store.root / "sweeps").glob(f"*/{HEAD}")]
    return [head["key"] for head in sorted(heads, key=lambda head: head["started"])]


def trial_row(trial: Trial, phase: str, rerun: str, rank: int, title: str, paper: str = "") -> dict[str, Any]:
    """A trial in the record of a sweep.

    `run` names its run in MLflow: under some options two variants are one and the same trial, and both have a row.
    `config_key` is the same for all seeds of a config.

    Args:
        phase: "ablation", or "explore" or "confirm" in a search.
        rerun: the options of sweeps/ablation.py that run it again.
        rank: the place of its variant in tables.
        title: the variant in tables.
        paper: the variant's Inception score in the paper.
    """
    return {
        "name": trial.plan.name,
        "run": f"{trial.variant}-{trial.seed}-{trial.plan.name}",
        "variant": trial.variant,
        "title": title,
        "paper": paper,
        "rank": rank,
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
