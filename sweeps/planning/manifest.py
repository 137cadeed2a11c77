"""The record of a sweep or a search in the store: its settings and trials. Every view of it is made from this."""

import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, with_config
from typing_extensions import TypedDict

from sgan.addresses import masked
from sgan.checks import OPEN, as_json
from sgan.command_line import ROOT
from sgan.presets import REAL_DATA_PAPER
from sgan.stages.graph import Plan, code_version, name
from sgan.store.files import StoreError, inside, read_json, write_json
from sgan.store.local import Store
from sgan.store.s3 import find_store

HEAD = "sweep.json"
REPORT, TEXT = "report.html", "report.md"  # Beside it: the report, and only its verdict and tables
OF_VARIANT = ("title", "paper", "base", "changes")  # Entries of a trial that all seeds of its row have
NOTED = "clusters/COMMIT"  # The file in the checkout with the commit of a cluster's code and its `code_version`


@with_config(OPEN)
class Settings(TypedDict):
    """The settings of a sweep; its record has more than these."""

    dataset: str
    recipe: str


@with_config(OPEN)
class Head(TypedDict):
    """The content of sweep.json; that of a search has more. `started`: in unix seconds. `judges`: names of stages."""

    key: str
    title: str
    command: str
    commit: str
    machine: str
    started: float
    settings: Settings
    judges: list[str]
    paper_real: str


class TrialStage(TypedDict):
    """A stage of a trial: its label in the trial, and its name."""

    label: str
    name: str


@with_config(OPEN)
class TrialRow(TypedDict):
    """A trial in the record of a sweep. `run` names its MLflow run: under some options two variants are the same trial,
    and both have a row. `base_variant`: the row of VARIANTS that it is, or that a search's config is named after.
    `changes`: of its base; a search's config has only fields of the recipe there, and its weights and cuts in `title`.
    `rank`: the place of the variant in tables. `phase`: "ablation", or in a search "explore" or "confirm". `rerun`: the
    options with which sweeps/ablation.py runs its config again, at any seed. `config_key` is the same for all seeds."""

    name: str
    stages: Annotated[list[TrialStage], Field(min_length=1)]
    run: str
    variant: str
    base_variant: str
    title: str
    paper: str
    base: str
    changes: dict[str, Any]
    rank: int
    seed: int
    phase: str
    rerun: Annotated[str, AfterValidator(lambda text: shlex.join(shlex.split(text)))]  # words, no other shell syntax
    cuts: str
    config: dict[str, Any]
    config_key: str


def folder(store: Store, key: str) -> Path:
    """The folder of a sweep: its record (sweep.json, trials/), its report, mlflow.log, and a search's optuna.log."""
    return inside(store.root / "sweeps", key)


def head(key: str, title: str, origin: Mapping[str, str], settings: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """The entries of sweep.json that every sweep has. `origin`: its command, commit and machine; `plan`: of a trial."""
    return {
        "key": key,
        "title": title,
        **origin,
        "started": time.time(),
        "settings": as_json(settings),
        "judges": [name(stage) for stage in plan.judges],
        "paper_real": REAL_DATA_PAPER,
    }


def write(store: Store, manifest: Mapping[str, Any]) -> None:
    """Write the record of a sweep, in the form that `read` returns, without "variants": its head, and every trial that
    is new or has changed. Earlier trials stay."""
    key, path = manifest["key"], folder(store, manifest["key"]) / HEAD
    new = {name: value for name, value in manifest.items() if name not in ("trials", "variants")}
    with store.lock(f"manifest-{key}"):
        store.fetch(path)
        before = read_json(path, key=key) if path.exists() else {}
        new |= {"started": before.get("started", new["started"])}
        if new != before or store.lacks(path):
            write_json(path, new)
            store.save(path)
    for row in manifest["trials"]:
        write_trial(store, key, row)


def write_trial(store: Store, key: str, row: Mapping[str, Any]) -> None:
    """Write a trial of a sweep, unless the record already has it unchanged."""
    path = inside(folder(store, key) / "trials", f"{row['variant']}-{row['seed']}.json")
    if store.lacks(path) or read_json(path) != row:
        write_json(path, row)
        store.save(path)


def read(store: Store, key: str) -> dict[str, Any]:
    """The record of a sweep: the entries of its head; "trials", the records of its trials, by variant and seed;
    and "variants", the name and OF_VARIANT of each row of its table. StoreError if one of its files is damaged or of
    another kind."""
    place = folder(store, key)
    store.fetch(place)
    rows = [read_json(path, TrialRow) for path in (place / "trials").glob("*.json")]
    rows.sort(key=lambda row: (row["rank"], row["variant"], row["seed"]))
    variants = {row["variant"]: {"name": row["variant"], **{each: row[each] for each in OF_VARIANT}} for row in rows}
    return read_json(place / HEAD, Head, key=key) | {"trials": rows, "variants": list(variants.values())}


def keys(store: Store) -> list[str]:
    """The keys of all sweeps in a store, in the order in which they were started."""
    store.fetch(store.root / "sweeps")
    heads = [read_json(path, Head, key=path.parent.name) for path in (store.root / "sweeps").glob(f"*/{HEAD}")]
    return [head["key"] for head in sorted(heads, key=lambda head: head["started"])]


def find(address: str) -> tuple[Store, list[str]]:
    """The store at an address and the keys of its sweeps; StoreError where it holds none."""
    store = find_store(address)
    found = keys(store) if store else []
    if not (store and found):
        raise StoreError(f"{address} holds no sweep; name the folder that the sweep was given as --store")
    return store, found


def command() -> str:
    """The command line of this process, without passwords; started outside the checkout, it includes the folder."""
    words = ["python", f"sweeps/{Path(sys.argv[0]).name}", *map(masked, sys.argv[1:])]
    if Path.cwd() == ROOT:
        return shlex.join(words)
    words[1] = str(ROOT / words[1])
    return f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join(words)}"


def commit() -> str:
    """The commit of this checkout, with "-dirty" if tracked files differ from it. Without a git folder, the commit that
    `make commit` has written, with "-dirty" if the code of stages has changed since; or "unknown"."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"]
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.check_output(words, stderr=subprocess.DEVNULL, text=True).strip()
    with suppress(OSError):
        noted, _, version = (ROOT / NOTED).read_text().strip().partition(" ")
        return noted if version == code_version() else f"{noted.removesuffix('-dirty')}-dirty"
    return "unknown"


if __name__ == "__main__":
    print(commit(), code_version())
