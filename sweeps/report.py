"""The table of a sweep, made from what MLflow has: pandas -> Markdown. No number in it is typed by hand.

python sweeps/report.py STORE [STORE ...] --out RESULTS.md [--mlflow URI]
"""

import datetime
import itertools
import math
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import tyro
from tyro.conf import Positional

from sgan.checks import ConfigError
from sgan.files import StoreError, inside, sha256
from sweeps import connection, tracking
from sweeps.results import SCORES, Sweep, read

HEAD = "# Results"
BESIDE = ("inception_score", "fid", "diversity")
"""Scores of the table that has default and tuned lambdas."""
BASELINE = "sgan"
FEW_SEEDS = 5
ABSENT = "–"
MEANING = (
    "Mean ± standard deviation over n training seeds, of the weights at the end of training; Best: of those at the "
    + "best of the evaluations while training, scored again on fresh samples. Training time is that of all stages of a "
    + "trial, shared or not.",
    "Diversity: mean distance of two images within a class, relative to the training images. Collapsed: share of the "
    + "classes that are missed or whose samples lie closer together than a third of that distance. Accuracy: share of "
    + "samples in which the trial's own encoder, against which it was trained, and the dataset's classifier see the "
    + "label asked for; – where none is asked for.",
    "Real data: Inception score of the training images; all else of the test images, against the training images.",
)
PAPERS_NETWORK, PAPERS_WEIGHTS = "inception-v3-compat", "6726825d"  # SHA-256 of torch-fidelity's file begins so
ANOTHER_NETWORK = (
    "The paper's column was scored by another network, on CIFAR-10: its order can be compared, its numbers never."
)


def summary(sweep: Sweep) -> pd.DataFrame:
    """One row a variant in the manifest's order: (score, "mean" | "std" | "count") over its finished trials.

    The std is that of a sample (ddof=1), NaN with one trial; trials that diverged or failed enter nothing.
    """
    done = sweep.trials[sweep.trials["outcome"] == "done"]
    order = [variant["name"] for variant in sweep.manifest["variants"]]
    return pd.DataFrame(done.groupby("variant")[list(SCORES)].agg(["mean", "std", "count"]).reindex(order))


def markdown(sweep: Sweep, plots: str = "") -> str:
    """The section of a sweep: its title, the table by variant with real data last, and what to know about it; of a
    search also its plots, which lie in the folder `plots`, as seen from the file that the section stands in."""
    scores = summary(sweep)
    shown = [name for name in SCORES if name in sweep.real or not bool(sweep.trials[name].isna().all())]
    papers = any(variant["paper"] for variant in sweep.manifest["variants"])
    rows = [["Variant", *(SCORES[name][0] for name in shown), "n", *(["Paper's IS (CIFAR-10)"] * papers)]]
    for variant in sweep.manifest["variants"]:
        own = sweep.trials[sweep.trials["variant"] == variant["name"]]
        outcomes = [str(outcome) for outcome in own["outcome"]]
        row = [_cell(scores, variant["name"], name, outcomes.count("done")) for name in shown]
        rows.append([variant["title"], *row, _count(outcomes), *([variant["paper"] or ABSENT] * papers)])
    real = [f"{sweep.real[name]:.{SCORES[name][1]}f}" if name in sweep.real else ABSENT for name in shown]
    rows.append(["Real data", *real, ABSENT, *([sweep.manifest["paper_real"]] * papers)])
    facts = "\n".join(f"- {fact}" for fact in [*MEANING, *_scored(sweep), *_findings(sweep, scores), *_origin(sweep)])
    parts = [f"## {sweep.manifest['title']}", aligned(rows), *_beside(sweep, scores), facts, *_plots(sweep, plots)]
    return "\n\n".join(parts) + "\n"


def _beside(sweep: Sweep, scores: pd.DataFrame) -> list[str]:
    """The scores without and with what a search chose, side by side; or how to get the former."""
    if not sweep.manifest.get("default"):
        return []
    if sweep.default is None or sweep.default.fingerprint != sweep.fingerprint:
        return [f"The same at the default lambdas, for a table of both: `{sweep.manifest['default_command']}`"]
    before = summary(sweep.default)
    rows = [["Variant", *(f"{SCORES[name][0]}, {which}" for name in BESIDE for which in ("default", "tuned")), "n"]]
    for variant in sweep.manifest["variants"]:
        row = [variant["title"]]
        counts = []
        for each, table in ((sweep.default, before), (sweep, scores)):
            own = each.trials[each.trials["variant"] == variant["name"]]
            outcomes = [str(outcome) for outcome in own["outcome"]]
            counts.append(_count(outcomes))
            row.append([_cell(table, variant["name"], name, outcomes.count("done")) for name in BESIDE])
        rows.append([row[0], *itertools.chain(*zip(*row[1:], strict=True)), " / ".join(counts)])
    return ["Default and tuned lambdas side by side, on the same seeds:", aligned(rows)]


def _plots(sweep: Sweep, folder: str) -> list[str]:
    """A search's plots: the slices, of which there are many, as links."""
    names = list(sweep.manifest.get("plotted", ())) if folder else []
    slices = [name for name in names if name.startswith("slice-")]
    links = [f"[{name.removeprefix('slice-').removesuffix('.png')}]({folder}/{quote(name)})" for name in slices]
    shown = [f"![{name.removesuffix('.png')}]({folder}/{quote(name)})" for name in names if name not in slices]
    return [*shown, *([f"Score against each weight, a split: {', '.join(links)}"] if links else [])]


def _column(scores: pd.DataFrame, score: str, statistic: str) -> dict[str, float]:
    """A column of the summary, by variant, without the variants that lack it."""
    return {str(name): value for name, value in scores.to_dict()[score, statistic].items() if not math.isnan(value)}


def _cell(scores: pd.DataFrame, variant: str, score: str, done: int) -> str:
    """Mean ± std, with the number of values where it is not that of the finished trials."""
    mean, std, count = (_column(scores, score, name).get(variant) for name in ("mean", "std", "count"))
    if mean is None:
        return ABSENT
    digits = SCORES[score][1]
    spread = "" if std is None else f" ± {std:.{digits}f}"
    return f"{mean:.{digits}f}{spread}" + ("" if count == done else f" ({count:.0f})")


def _count(outcomes: list[str]) -> str:
    """The number of finished trials; with the others, where there are any: "2 of 3; 1 diverged"."""
    done, others = outcomes.count("done"), {name: outcomes.count(name) for name in ("diverged", "failed")}
    others["unfinished"] = len(outcomes) - done - sum(others.values())
    named = [f"{number} {name}" for name, number in others.items() if number]
    return "; ".join([f"{done} of {len(outcomes)}", *named]) if named else str(done)


def aligned(rows: list[list[str]]) -> str:
    """Rows of cells, the heading first, as a Markdown table."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _scored(sweep: Sweep) -> list[str]:
    """What the scores were computed with."""
    lines, papers = [], False
    if sweep.fingerprint:
        scores, classes = (sweep.fingerprint[part] for part in ("scores", "classes"))
        papers = scores["network"] == PAPERS_NETWORK and scores["weights"].startswith(PAPERS_WEIGHTS)
        lines = [f"Inception score and FID by {_by(scores)}."]
        lines += (
            [f"Diversity, collapse and accuracy by {_by(classes)}."] if classes["weights"] != scores["weights"] else []
        )
    cifar = sweep.manifest["settings"]["dataset"] == "cifar10"
    told = any(variant["paper"] for variant in sweep.manifest["variants"])
    return [*lines, *([ANOTHER_NETWORK] if told and not (papers and cifar) else [])]


def _by(fields: dict[str, Any]) -> str:
    return (
        f"{fields['network']} (weights {fields['weights'][:12]}), {fields['samples']:,} samples in {fields['splits']} "
        f"splits, {fields['shuffle']}, resize {fields['resize']}, against {fields['reference']}"
    )


def _alarmed(sweep: Sweep) -> list[str]:
    """Which variants raised an alarm, in how many seeds, and the first one's words."""
    lines = []
    for variant in sweep.manifest["variants"]:
        own = [row for row in sweep.trials.to_dict("records") if row["variant"] == variant["name"]]
        told = [row["alarm"] for row in own if isinstance(row["alarm"], str) and row["alarm"] != "none"]
        told += [row["reason"] for row in own if row["outcome"] == "diverged"]
        if told:
            lines.append(f"Alarm: {variant['title']}, {len(told)} of {len(own)} seeds: {told[0]}.")
    return lines


def _findings(sweep: Sweep, scores: pd.DataFrame) -> list[str]:
    """What follows from the means alone: the order, which variants catch up with SGAN, and how sure one can be."""
    titles = {variant["name"]: variant["title"] for variant in sweep.manifest["variants"]}
    base = titles.get(BASELINE)
    inception, fid = _column(scores, "inception_score", "mean"), _column(scores, "fid", "mean")
    spread = {score: _column(scores, score, "std").get(BASELINE) for score in ("inception_score", "fid")}
    found = [f"By mean FID, best first: {', '.join(titles[name] for name in sorted(fid, key=fid.__getitem__))}."]
    if spread["inception_score"] is not None and spread["fid"] is not None:
        lowest, highest = inception[BASELINE] - spread["inception_score"], fid[BASELINE] + spread["fid"]
        near = {
            "Inception score": [titles[name] for name in inception if inception[name] >= lowest and name != BASELINE],
            "FID": [titles[name] for name in fid if fid[name] <= highest and name != BASELINE],
        }
        said = "; ".join(f"by {score} {', '.join(names) or 'none'}" for score, names in near.items())
        found.append(
            f"Variants that catch up with {base} (a mean no worse than {base}'s by more than {base}'s standard "
            f"deviation): {said}."
        )
    elif base:
        found.append(f"Which variants catch up with {base} cannot be said from fewer than two finished seeds of it.")
    seeds = sweep.trials.loc[sweep.trials["outcome"] == "done", "seed"].nunique()
    if seeds <= FEW_SEEDS:
        found.append(
            f"With {seeds} paired seed{'s' * (seeds > 1)} the smallest two-sided p of an exact sign-flip test is "
            f"2/2^{seeds} = {2 / 2**seeds:g}."
        )
    done = sweep.trials.dropna(subset=["generator_images"])
    seen = dict(zip(done["variant"], done["generator_images"], strict=True))
    rows = [f"{titles[name]} {seen[name]:,.0f}" for name in titles if name in seen]
    found.append(
        f"Training images seen by the generator of images: {', '.join(rows)}. A joint stage comes on top of the "
        "levels, as in the paper."
    )
    return [*_alarmed(sweep), *(found if seeds else ["No trial has finished."])]


def _origin(sweep: Sweep) -> list[str]:
    manifest, settings = sweep.manifest, sweep.manifest["settings"]
    searched = []
    if "explored" in manifest:
        searched.append(
            f"A search: {manifest['explored']} configs were explored at seed {settings['seed']} (sampler "
            f"{settings['sampler']}); only what is confirmed on other seeds is shown, since the score of a seed that "
            "chose a config says nothing of it."
        )
    commits = list(dict.fromkeys(sweep.trials.loc[sweep.trials["outcome"] == "done", "commit"].dropna()))
    date = datetime.datetime.fromtimestamp(manifest["started"], datetime.UTC).date()
    return [
        *searched,
        f"Command: `{manifest['command']}`",
        f"Commit{'s' * (len(commits) > 1)} {', '.join(commits or [manifest['commit']])}; {manifest['machine']}; "
        + f"{date}; sweep {manifest['key']}.",
    ]


def write(stores: Sequence[str], out: str | Path, uri: str | None = None) -> None:
    """Write the report of all sweeps in the stores to the file `out`, the plots of searches to the folder of its name;
    StoreError where a store holds none, LookupError where MLflow lacks one. Of a report that is there already, sections
    with other titles stay: their stores may be on another machine.

    Args:
        stores: output stores, each with the SQLite file of its own unless `uri` names a tracking server for all.
    """
    sections, out = [], Path(out)
    for address in stores:
        store, keys = tracking.sweeps_of(address)
        for key in keys:
            found = read(uri or connection.default_uri(store), key, store=store)
            digests, origin = found.manifest.get("plotted", {}), f"the manifest of the sweep {key}"
            folder = inside(out.with_suffix(""), key, origin) if digests else None
            if folder:
                plots = inside(store.root / "sweeps", found.manifest.get("plots"), origin)
                store.fetch(plots)
                folder.mkdir(parents=True, exist_ok=True)
                for name, digest in digests.items():
                    drawn = inside(plots, name, origin)
                    if not drawn.exists() or sha256(drawn)[:16] != digest:
                        raise StoreError(f"{drawn} is missing or damaged; the search's command draws it again")
                    shutil.copyfile(drawn, inside(folder, name, origin))
            sections.append(markdown(found, f"{out.stem}/{key}" if folder else ""))
    # Paths of this machine and addresses of its servers mean nothing to a reader.
    named = [Path(path).name if Path(path).is_absolute() else path.partition("?")[0] for path in (*stores, str(out))]
    command = f"python sweeps/report.py {shlex.join(named[:-1])} --out {shlex.quote(named[-1])}"
    all_sections = merged(_sections(out), sections)
    kept = "\nTables of other stores stay as they were made, each at the commit that it names.\n"
    head = (
        f"{HEAD}\n\nEvery table below is made from the recorded runs, and every score in it from their images.\n\n"
        f"```\n{command}{' --mlflow URI' if uri else ''}\n```\n{kept if len(all_sections) > len(sections) else ''}"
    )
    out.write_text("\n".join([head, *all_sections]))


def _sections(out: Path) -> list[str]:
    """The sections of a report that was written before; none where there is no such file."""
    text = out.read_text() if out.exists() else ""
    return [f"## {section.rstrip()}\n" for section in text.split("\n## ")[1:]] if text.startswith(HEAD) else []


def merged(before: Sequence[str], sections: Sequence[str]) -> list[str]:
    """Sections of a report: new ones in the place of those with their title, then those that are new altogether."""
    new: dict[str, list[str]] = {}
    for section in sections:
        new.setdefault(_title(section), []).append(section)
    titles, found = set(new), list[str]()
    for old in before:
        found += new.pop(_title(old), [] if _title(old) in titles else [old])
    return [*found, *itertools.chain(*new.values())]


def _title(section: str) -> str:
    return section.partition("\n")[0]


def main(stores: Positional[tuple[str, ...]], out: Path, mlflow: str | None = None) -> int:
    """Write the tables of all sweeps in the named stores.

    Args:
        stores: Output stores.
        out: The Markdown file to write; tables in it with other titles stay.
        mlflow: Tracking URI of all stores; by default $MLFLOW_TRACKING_URI or the SQLite file inside each.
    """
    try:
        write(stores, out, mlflow or os.environ.get("MLFLOW_TRACKING_URI"))
    except (LookupError, ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
