"""The results of a sweep, a row per trial: store -> pandas."""

import functools
import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sgan.checks import ConfigError, difference
from sgan.evaluation.measures import BEST, LEADING, MEASURES, Measure
from sgan.store.local import Store
from sweeps.planning import manifest
from sweeps.planning.trials import alarm_of, of_real_features, records_of, scores_of, state_of

OUTCOMES = (LEADING, "recall", "inception_score")
"""The scores of the first table and of its contrasts, named before any run is made: quality and diversity together,
diversity, and the paper's score."""
SCORES: dict[str, Measure] = {
    **MEASURES,
    **{f"{BEST}{name}": MEASURES[name]._replace(heading=f"Best {MEASURES[name].heading}") for name in OUTCOMES},
    "train_seconds": Measure("Training (s)", 0, "lower"),
    "generator_images": Measure("Generator images", 0, ""),
    "discriminator_steps": Measure("D steps", 0, ""),
    "generator_steps": Measure("G steps", 0, ""),
    "flops": Measure("FLOPs", -1, "lower"),
}
"""The numbers of a trial that tables have, in their order."""
COLUMNS = ["trial", "variant", "seed", "cuts", "outcome", "reason", "alarm", "fingerprint", "commit", "devices"]
ABSENT = "–"
Fingerprint = dict[str, dict[str, Any]]
Statistics = Mapping[tuple[str, str], float]
"""Statistics of one variant or config: (score, "mean" | "std" | "count") -> value, NaN if there is none. The std is
that of a sample (ddof=1), NaN with one trial."""


@dataclass(frozen=True)
class Sweep:
    """A sweep with its results from the store.

    Attributes:
        manifest: the sweep's record, with only the requested variants and trials.
        trials: the table of its trials, as from `table`.
        explored: the same for the configs of a search's first phase, with their numbers and titles.
        real: scores of real data: held-out images, and after "train/" training images.
        fingerprint: what the scores were computed with, for each judge; empty before anything is scored."""

    store: Store
    manifest: dict[str, Any]
    trials: pd.DataFrame
    explored: pd.DataFrame
    real: dict[str, float]
    fingerprint: Fingerprint

    @property
    def done(self) -> pd.DataFrame:
        return pd.DataFrame(self.trials[self.trials["outcome"] == "done"])

    @property
    def titles(self) -> dict[str, str]:
        """Name -> title of each variant, in the order of tables."""
        return {variant["name"]: variant["title"] for variant in self.manifest["variants"]}

    @property
    def reference(self) -> str:
        """The variant that all others are compared with: the first that changes nothing (SGAN, or the default config of
        a search), or the first."""
        variants = self.manifest["variants"]
        return next((each["name"] for each in variants if not each["changes"]), next(iter(self.titles), ""))

    @property
    def reference_title(self) -> str:
        """The title of the reference, or "the default" in a search, where that title is long."""
        title = self.titles.get(self.reference, "others")
        return "the default" if title.endswith("(default)") else title

    @property
    def leading(self) -> str:
        """The score that orders the variants: a search's objective, or LEADING."""
        return self.manifest.get("score", LEADING)

    @property
    def outcomes(self) -> list[str]:
        return list(dict.fromkeys((self.leading, *OUTCOMES)))

    @property
    def columns(self) -> list[str]:
        return [name for name in SCORES if name in self.real or known(self.trials, name)]

    @functools.cached_property
    def summary(self) -> dict[str, Statistics]:
        """The statistics of each variant over its finished trials; those that diverged or failed are left out."""
        statistics = self.done.groupby("variant")[list(SCORES)].agg(["mean", "std", "count"])
        return pd.DataFrame(statistics.reindex(list(self.titles))).to_dict("index")

    @property
    def ranking(self) -> dict[str, float]:
        """Mean of the leading score of each variant that has one, the best first."""
        means = {name: each[self.leading, "mean"] for name, each in self.summary.items()}
        found = {name: mean for name, mean in means.items() if not math.isnan(mean)}
        return dict(sorted(found.items(), key=lambda item: item[1], reverse=SCORES[self.leading].better == "higher"))

    def of(self, variant: str) -> pd.DataFrame:
        return pd.DataFrame(self.trials[self.trials["variant"] == variant])

    def values(self, variant: str, score: str) -> np.ndarray:
        """A score of a variant's finished trials, (n,)."""
        return self.of(variant)[score].dropna().to_numpy()


def known(rows: pd.DataFrame, score: str) -> bool:
    return bool(rows[score].notna().to_numpy().any())


def read(
    store: Store, key: str, variants: Collection[str] | None = None, seeds: Collection[int] | None = None
) -> Sweep:
    """Read a sweep, or the named variants and seeds of it. StoreError where a file of it is missing or damaged;
    ConfigError where its scores were computed in different ways, and cannot stand in one column."""
    record = manifest.read(store, key)
    # A score of the seed that chose a config is biased: tables have only confirmed scores.
    rows = [row for row in record["trials"] if row["phase"] != "explore"]
    explored = [row for row in record["trials"] if row["phase"] == "explore"]
    rows = [row for row in rows if variants is None or row["variant"] in variants]
    rows = [row for row in rows if seeds is None or row["seed"] in seeds]
    kept = {row["variant"] for row in rows}
    record |= {"trials": rows, "variants": [each for each in record["variants"] if each["name"] in kept]}
    trials = table(store, rows)
    real, real_fingerprint = {}, {}
    for judge in filter(store.has, record["judges"]):  # scores of a later judge replace earlier ones
        facts = store.facts(judge)
        real |= {name: value for name, value in facts["scores"].items() if value is not None}
        real_fingerprint |= facts["fingerprint"]
    fingerprint = _one_fingerprint(trials["fingerprint"].dropna(), real_fingerprint)
    of_config = {name: [row.get(name) for row in explored] for name in ("number", "title")}
    return Sweep(store, record, trials, table(store, explored).assign(**of_config), real, fingerprint)


def curves(sweep: Sweep, score: str) -> pd.DataFrame:
    """A score during training, a row for each evaluation of a finished trial: variant, seed, point (its number), alone
    (as from `of_real_features`), images, flops, value. The joint stage goes on with the image level, so its images are
    added to those of the level.
    FLOPs are those of all GAN stages so far: a stack trains its upper levels before its first image."""
    rows, done = [], set(sweep.done["trial"])
    for trial in [each for each in sweep.manifest["trials"] if each["name"] in done]:
        records, judges = records_of(sweep.store, trial), {"", *(stage["name"] for stage in trial["stages"])}
        of, images, flops, point = {"variant": trial["variant"], "seed": trial["seed"]}, 0.0, 0.0, 0
        for stage in trial["stages"]:
            facts = sweep.store.facts(stage["name"])
            before, seen = 0, 0.0
            for line in records[stage["label"]] if facts.get("generator_images") else ():
                # A discriminator's step has that many steps of the generator, on average since the last line.
                seen += (line["images"] - before) * line["metrics"].get("generator_steps", 0.0)
                before, value = line["images"], line["metrics"].get(score)
                if value is None or line.get("judge", "") not in judges:  # a judge of another command scored here
                    continue
                spent = flops + facts.get("flops", 0) * before / max(facts["images"], 1)
                at = {"point": point, "alone": of_real_features(trial, stage["label"])}
                rows.append({**of, **at, "images": images + seen, "flops": spent, "value": value})
                point += 1
            images, flops = images + seen, flops + facts.get("flops", 0)
    return pd.DataFrame(rows, columns=["variant", "seed", "point", "alone", "images", "flops", "value"])


def table(store: Store, trials: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """COLUMNS and SCORES of trials, a row each; those that have not finished have no scores. Fingerprints are JSON."""
    rows = []
    for trial in trials:
        state = state_of(store, trial)
        row = {"trial": trial["name"], **{name: trial[name] for name in ("variant", "seed", "cuts")}}
        row |= {"outcome": state.outcome, "reason": state.reason, "alarm": alarm_of(store, trial, state)}
        if state.outcome == "done":
            devices = sorted({f"{facts['machine']}, torch {facts['torch']}" for facts in state.facts})
            row |= {"fingerprint": json.dumps(state.facts[-1]["fingerprint"]), "devices": devices}
            row |= {"commit": state.facts[-1]["commit"], **scores_of(state)}
        rows.append(row)
    return pd.DataFrame(rows, columns=[*COLUMNS, *SCORES]).astype(dict.fromkeys(SCORES, float))


def _one_fingerprint(texts: Iterable[str], real: Fingerprint) -> Fingerprint:
    """The fingerprint that all finished trials have, and real data, too, except for the number of their images."""
    fingerprints = [json.loads(text) for text in dict.fromkeys(texts)]
    first = fingerprints[0] if fingerprints else {}
    for other in (*fingerprints, *([real] if real else [])):
        for part, fields in first.items():
            found = difference(fields, other.get(part, {}) | ({"samples": fields["samples"]} if other is real else {}))
            if found:
                raise ConfigError(
                    f"scores of one table must be computed in one way, but {found[0]} of {part} is {found[1]!r} in "
                    f"some and {found[2]!r} in others; report the trials apart (--variants and --seeds of "
                    "ablation.py, or another store), or score them again with one command"
                )
    return first
