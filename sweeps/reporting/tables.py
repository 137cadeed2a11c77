"""The section of a sweep in a report: pandas -> Markdown. No number in it is typed by hand."""

import datetime
import math
from collections.abc import Iterable, Mapping
from urllib.parse import quote

import pandas as pd

from sweeps.reporting.results import SCORES, Sweep

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


Statistics = Mapping[tuple[str, str], float]
"""Of one variant or config: (score, "mean" | "std" | "count") -> value, NaN where there is none."""


def summary(sweep: Sweep) -> pd.DataFrame:
    """One row a variant in the record's order: (score, "mean" | "std" | "count") over its finished trials.

    The std is that of a sample (ddof=1), NaN with one trial; trials that diverged or failed enter nothing.
    """
    order = [variant["name"] for variant in sweep.manifest["variants"]]
    statistics = sweep.done.groupby("variant")[list(SCORES)].agg(["mean", "std", "count"])
    return pd.DataFrame(statistics.reindex(order))


def markdown(sweep: Sweep, plots: str = "") -> str:
    """The section of a sweep: its title, the table by variant with real data last, and what to know about it.

    Args:
        plots: of a search, the folder of its plots, as seen from the file that the section stands in; "": none.
    """
    columns = [name for name in SCORES if name in sweep.real or any(sweep.trials[name].notna())]
    paper = any(variant["paper"] for variant in sweep.manifest["variants"])
    rows = [["Variant", *(SCORES[name][0] for name in columns), "n", "Paper's IS (CIFAR-10)"], *_rows(sweep, columns)]
    default, hints = sweep.default, []
    if default and default.fingerprint == sweep.fingerprint:
        rows += [[f"{title}, default lambdas", *cells] for title, *cells in _rows(default, columns)]
    elif sweep.manifest.get("default"):
        hints = [f"The same at the default lambdas, for a table of both: `{sweep.manifest['default_command']}`"]
    real = [f"{sweep.real[name]:.{SCORES[name][1]}f}" if name in sweep.real else ABSENT for name in columns]
    rows.append(["Real data", *real, ABSENT, sweep.manifest["paper_real"]])
    table = aligned([row if paper else row[:-1] for row in rows])
    facts = [*MEANING, *_scored(sweep), *_alarms(sweep), *_seen(sweep), *_origin(sweep), *hints]
    parts = [table, "\n".join(f"- {fact}" for fact in facts), *_plots(sweep, plots)]
    return "\n\n".join([f"## {sweep.manifest['title']}", *parts]) + "\n"


def aligned(rows: list[list[str]]) -> str:
    """Rows of cells, the heading first, as a Markdown table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[f" {cell.ljust(width)} " for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines.insert(1, ["-" * (width + 2) for width in widths])
    return "\n".join(f"|{'|'.join(line)}|" for line in lines)


def spread(statistics: Statistics, score: str) -> str:
    """A score's mean ± standard deviation, without what is NaN."""
    mean, std, digits = statistics[score, "mean"], statistics[score, "std"], SCORES[score][1]
    return ABSENT if math.isnan(mean) else f"{mean:.{digits}f}" + ("" if math.isnan(std) else f" ± {std:.{digits}f}")


def _rows(sweep: Sweep, columns: Iterable[str]) -> list[list[str]]:
    """Of each variant its title, its scores, its number of trials as in "2 of 3; 1 diverged", and the paper's score."""
    rows, scores = [], summary(sweep).to_dict("index")
    for variant in sweep.manifest["variants"]:
        statistics = scores[variant["name"]]
        outcomes = list(sweep.trials.loc[sweep.trials["variant"] == variant["name"], "outcome"])
        done, others = outcomes.count("done"), {name: outcomes.count(name) for name in ("diverged", "failed")}
        others["unfinished"] = len(outcomes) - done - sum(others.values())
        notes = "".join(f"; {number} {name}" for name, number in others.items() if number)
        counts = {score: statistics[score, "count"] for score in columns}
        cells = [spread(statistics, score) + f" ({n:.0f})" * bool(0 < n < done) for score, n in counts.items()]
        counted = f"{done} of {len(outcomes)}{notes}" if notes else str(done)
        rows.append([variant["title"], *cells, counted, variant["paper"] or ABSENT])
    return rows


def _plots(sweep: Sweep, folder: str) -> list[str]:
    names = list(sweep.manifest.get("plotted", ())) if folder else []
    slices = [name for name in names if name.startswith("slice-")]
    links = [f"[{name.removeprefix('slice-').removesuffix('.png')}]({folder}/{quote(name)})" for name in slices]
    images = [f"![{name.removesuffix('.png')}]({folder}/{quote(name)})" for name in names if name not in slices]
    return [*images, *([f"Score against each weight, a split: {', '.join(links)}"] if links else [])]


def _scored(sweep: Sweep) -> list[str]:
    lines, judges = [], sweep.fingerprint
    for part, kinds in (("scores", "Inception score and FID"), ("classes", "Diversity, collapse and accuracy")):
        if judges and (part == "scores" or judges[part]["weights"] != judges["scores"]["weights"]):
            each = judges[part]
            lines.append(
                f"{kinds} by {each['network']} (weights {each['weights'][:12]}), {each['samples']:,} samples in "
                f"{each['splits']} splits, {each['shuffle']}, resize {each['resize']}, against {each['reference']}."
            )
    scores = judges.get("scores", {"network": "", "weights": ""})
    the_papers = scores["network"] == PAPERS_NETWORK and scores["weights"].startswith(PAPERS_WEIGHTS)
    compared = any(variant["paper"] for variant in sweep.manifest["variants"])
    another = not the_papers or sweep.manifest["settings"]["dataset"] != "cifar10"
    return [*lines, *([ANOTHER_NETWORK] if compared and another else [])]


def _alarms(sweep: Sweep) -> list[str]:
    lines = []
    for variant in sweep.manifest["variants"]:
        own = sweep.trials[sweep.trials["variant"] == variant["name"]]
        alarms = [*own.loc[own["alarm"] != "", "alarm"], *own.loc[own["outcome"] == "diverged", "reason"]]
        if alarms:
            lines.append(f"Alarm: {variant['title']}, {len(alarms)} of {len(own)} seeds: {alarms[0]}.")
    return lines


def _seen(sweep: Sweep) -> list[str]:
    done, variants = sweep.done, sweep.manifest["variants"]
    if done.empty:
        return ["No trial has finished."]
    lines, seeds = [], len(set(done["seed"]))
    if seeds <= FEW_SEEDS:
        lines.append(
            f"With {seeds} paired seed{'s' * (seeds > 1)} the smallest two-sided p of an exact sign-flip test is "
            f"2/2^{seeds} = {2 / 2**seeds:g}."
        )
    seen = {name: rows["generator_images"].mean() for name, rows in done.groupby("variant")}
    images = ", ".join(f"{each['title']} {seen[each['name']]:,.0f}" for each in variants if each["name"] in seen)
    return [
        *lines,
        f"Images that the generator of images was trained with, the mean over seeds: {images}. A joint stage comes on "
        "top of the levels, as in the paper.",
    ]


def _origin(sweep: Sweep) -> list[str]:
    record, settings, done = sweep.manifest, sweep.manifest["settings"], sweep.done
    lines = []
    if "explored" in record:
        lines.append(
            f"A search: {record['explored']} configs were explored at seed {settings['seed']} (sampler "
            f"{settings['sampler']}); only what is confirmed on other seeds is shown, since the score of a seed that "
            "chose a config says nothing of it."
        )
    devices = sorted({device for devices in done["devices"] for device in devices})
    if len(devices) > 1:
        lines.append(f"Trained on more than one device or version of torch: {'; '.join(devices)}.")
    commits = list(done["commit"].unique()) or [record["commit"]]
    date = datetime.datetime.fromtimestamp(record["started"], datetime.UTC).date()
    return [
        *lines,
        f"Command: `{record['command']}`",
        f"Commit{'s' * (len(commits) > 1)} {', '.join(commits)}; {record['machine']}; {date}; sweep {record['key']}.",
    ]
