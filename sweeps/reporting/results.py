"""What MLflow has of a sweep, a row a trial: MLflow -> pandas."""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sgan.checks import ConfigError
from sgan.store.files import StoreError
from sgan.store.local import Store
from sweeps.mlflow_view import connection
from sweeps.mlflow_view.verify import check_scores

SCORES = {  # column -> (heading, decimals)
    "inception_score": ("Inception score", 2),
    "best_inception_score": ("Best IS", 2),
    "fid": ("FID", 1),
    "best_fid": ("Best FID", 1),
    "kid": ("KID", 4),
    "precision": ("Precision", 3),
    "recall": ("Recall", 3),
    "accuracy": ("Encoder accuracy", 3),
    "scorer_accuracy": ("Scorer accuracy", 3),
    "diversity": ("Diversity", 2),
    "collapsed_classes": ("Collapsed", 2),
    "train_seconds": ("Training time (s)", 0),
}
NUMBERS = [*SCORES, "inception_score_split_std", "generator_images"]
COLUMNS = ["trial", "variant", "seed", "cuts", "outcome", "reason", "alarm", "fingerprint", "commit", "run_id"]


@dataclass(frozen=True)
class Sweep:
    """What MLflow has of a sweep.

    Attributes:
        manifest: the sweep's manifest, its variants and trials restricted to those asked for.
        trials: one row a trial of the manifest, in its order: COLUMNS (outcome absent where the trial has no run yet)
            and NUMBERS (NaN where absent).
        real: scores of the real data.
        fingerprint: what the scores were computed with: of "scores" (Inception score, FID ...) and of "classes"
            (diversity, accuracy ...); empty before anything is scored.
        default: of a sweep whose config a search chose: the same variants and seeds without what it chose; None where
            MLflow has no such sweep.
    """

    manifest: dict[str, Any]
    trials: pd.DataFrame
    real: dict[str, float]
    fingerprint: dict[str, dict[str, Any]]
    default: "Sweep | None" = None


class Incomparable(ConfigError):
    """Scores of one table were computed in different ways; the message names the difference."""


def read(
    uri: str,
    sweep_key: str,
    variants: Iterable[str] | None = None,
    seeds: Iterable[int] | None = None,
    store: Store | None = None,
) -> Sweep:
    """Read a sweep, or the named variants and seeds of it, from MLflow, each score as it is in the store, if given.

    Raises:
        LookupError: MLflow does not have it.
        ConfigError: MLflow does not answer, or has other scores than the store.
        Incomparable: its scores cannot stand in one column.
    """
    with connection.reading(uri):
        return _read(uri, sweep_key, variants, seeds, store)


def _read(
    uri: str, sweep_key: str, variants: Iterable[str] | None, seeds: Iterable[int] | None, store: Store | None
) -> Sweep:
    client = connection.connect(uri)
    parent, children = connection.find(client, sweep_key)
    if parent is None:
        raise LookupError(f"MLflow has no sweep {sweep_key}; send it first: python sweeps/tracking.py sync STORE")
    try:
        manifest = connection.manifest_of(client, parent)
    except StoreError as error:
        raise ConfigError(
            f"{connection.MANIFEST_FILE} of the run {parent.info.run_id} in MLflow at {uri} is damaged; send it again: "
            "python sweeps/tracking.py sync STORE"
        ) from error
    # A score of the seed that chose a config says nothing of it: only confirmed ones are published.
    manifest["trials"] = [trial for trial in manifest["trials"] if trial["phase"] != "explore"]
    kept = {trial["variant"] for trial in manifest["trials"]}
    manifest["variants"] = [variant for variant in manifest["variants"] if variant["name"] in kept]
    names = set(variants) if variants is not None else {variant["name"] for variant in manifest["variants"]}
    numbers = set(seeds) if seeds is not None else {trial["seed"] for trial in manifest["trials"]}
    manifest["variants"] = [variant for variant in manifest["variants"] if variant["name"] in names]
    manifest["trials"] = [
        trial for trial in manifest["trials"] if trial["variant"] in names and trial["seed"] in numbers
    ]
    rows = []
    for trial in manifest["trials"]:
        run = children.get(trial["run"])
        tags, metrics = (run.data.tags, run.data.metrics) if run else ({}, {})
        if run and store:
            check_scores(store, trial, run)
        row = {"trial": trial["name"], **{name: trial[name] for name in ("variant", "seed", "cuts")}}
        row |= {name: tags.get(name) for name in ("outcome", "reason", "alarm", "fingerprint", "commit")}
        row |= {"run_id": run.info.run_id if run else None}
        rows.append(row | {name: metrics.get(name) for name in NUMBERS})
    trials = pd.DataFrame(rows, columns=[*COLUMNS, *NUMBERS]).astype(dict.fromkeys(NUMBERS, float))
    real = {name.removeprefix("real/"): v for name, v in parent.data.metrics.items() if name.startswith("real/")}
    found = json.loads(parent.data.tags.get("fingerprint", "{}"))
    default = None
    if manifest.get("default"):
        with suppress(LookupError):
            default = read(uri, manifest["default"], names, numbers, store)
    return Sweep(manifest, trials, real, _one_fingerprint(trials, found), default)


def _one_fingerprint(trials: pd.DataFrame, real: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The fingerprint that all finished trials have, and real data but for the number of their images."""
    done = [row for row in trials.to_dict("records") if row["outcome"] == "done"]
    prints = [json.loads(text) for text in dict.fromkeys(row["fingerprint"] for row in done)]
    if not prints:
        return {}
    first = prints[0]
    for other in (*prints, *([real] if real else [])):
        for part, fields in first.items():
            for name, value in fields.items():
                theirs = other.get(part, {}).get(name)
                if theirs != value and not (other is real and name == "samples"):
                    raise Incomparable(
                        f"scores of one table must be computed in one way, but {name} of {part} is {value!r} in some "
                        f"and {theirs!r} in others; report the trials apart (--variants, --seeds, another store), or "
                        "score them again with one command"
                    )
    return first


def table(
    uri: str, sweep_key: str, variants: Iterable[str] | None = None, seeds: Iterable[int] | None = None
) -> pd.DataFrame:
    """One row a trial; the columns are those of `Sweep.trials`."""
    return read(uri, sweep_key, variants, seeds).trials
