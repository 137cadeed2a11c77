"""What the store has of a sweep, a row a trial: store -> pandas."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sgan.checks import ConfigError, difference
from sgan.evaluation.measures import MEASURES, measure
from sgan.store.local import Store
from sweeps.planning import manifest
from sweeps.planning.state import TRAINING, alarm_of, scores_of, state_of

SCORES = {  # column -> (heading, decimals)
    **{name: (each.heading, each.decimals) for name, each in MEASURES.items()},
    "best_fid": (measure("best_fid").heading, measure("best_fid").decimals),
    "train_seconds": ("Training time (s)", 0),
}
NUMBERS = list(dict.fromkeys([*SCORES, *TRAINING]))
COLUMNS = ["trial", "variant", "seed", "cuts", "outcome", "reason", "alarm", "fingerprint", "commit", "devices"]
Fingerprint = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Sweep:
    """A sweep as the store has it.

    Attributes:
        manifest: the sweep's record, its variants and trials restricted to those asked for.
        trials: one row a trial of the record, in its order: COLUMNS and NUMBERS (NaN where absent).
        real: scores of the real data.
        fingerprint: what the scores were computed with: of "scores" (Inception score, FID ...) and of "classes"
            (diversity, accuracy ...); empty before anything is scored.
        default: of a sweep whose config a search chose: the same variants and seeds without what it chose; None where
            the store has no such sweep.
    """

    manifest: dict[str, Any]
    trials: pd.DataFrame
    real: dict[str, float]
    fingerprint: Fingerprint
    default: "Sweep | None" = None

    @property
    def done(self) -> pd.DataFrame:
        """The rows of finished trials."""
        return pd.DataFrame(self.trials[self.trials["outcome"] == "done"])


class Incomparable(ConfigError):
    """Scores of one table were computed in different ways; the message names the difference."""


def read(
    store: Store, key: str, variants: Collection[str] | None = None, seeds: Collection[int] | None = None
) -> Sweep:
    """Read a sweep, or the named variants and seeds of it.

    Raises:
        StoreError: a file of it is missing or damaged.
        Incomparable: its scores cannot stand in one column.
    """
    record = manifest.read(store, key)
    # A score of the seed that chose a config says nothing of it: only confirmed ones are published.
    rows = [row for row in record["trials"] if row["phase"] != "explore"]
    rows = [row for row in rows if variants is None or row["variant"] in variants]
    rows = [row for row in rows if seeds is None or row["seed"] in seeds]
    kept = {row["variant"] for row in rows}
    record |= {"trials": rows, "variants": [each for each in record["variants"] if each["name"] in kept]}
    trials = pd.DataFrame([_row(store, row) for row in rows], columns=[*COLUMNS, *NUMBERS])
    real, real_fingerprint = {}, {}
    for judge in filter(store.has, record["judges"]):  # the scores of a later one stand
        facts = store.facts(judge)
        real |= {name: value for name, value in facts["scores"].items() if value is not None}
        real_fingerprint |= facts["fingerprint"]
    fingerprint = _one_fingerprint(trials["fingerprint"].dropna(), real_fingerprint)
    default, default_key = None, record.get("default")
    if default_key and default_key in manifest.keys(store):
        default = read(store, default_key, kept, {row["seed"] for row in rows})
    return Sweep(record, trials.astype(dict.fromkeys(NUMBERS, float)), real, fingerprint, default)


def _row(store: Store, trial: Mapping[str, Any]) -> dict[str, Any]:
    """COLUMNS of a trial, and of a finished one its scores; the fingerprint is JSON."""
    state = state_of(store, trial)
    row = {"trial": trial["name"], **{name: trial[name] for name in ("variant", "seed", "cuts")}}
    row |= {"outcome": state.outcome, "reason": state.reason, "alarm": alarm_of(store, trial, state)}
    if state.outcome == "done":
        devices = sorted({f"{facts['machine']}, torch {facts['torch']}" for facts in state.facts})
        row |= {"fingerprint": json.dumps(state.facts[-1]["fingerprint"]), "commit": state.facts[-1]["commit"]}
        row |= {"devices": devices, **scores_of(state)}
    return row


def _one_fingerprint(texts: Iterable[str], real: Fingerprint) -> Fingerprint:
    """The fingerprint that all finished trials have, and real data but for the number of their images."""
    fingerprints = [json.loads(text) for text in dict.fromkeys(texts)]
    first = fingerprints[0] if fingerprints else {}
    for other in (*fingerprints, *([real] if real else [])):
        for part, fields in first.items():
            found = difference(fields, other.get(part, {}) | ({"samples": fields["samples"]} if other is real else {}))
            if found:
                raise Incomparable(
                    f"scores of one table must be computed in one way, but {found[0]} of {part} is {found[1]!r} in "
                    f"some and {found[2]!r} in others; report the trials apart (--variants, --seeds, another "
                    "store), or score them again with one command"
                )
    return first
