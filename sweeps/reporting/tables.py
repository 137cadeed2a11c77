"""The words and tables of a report: pandas -> text. No number in them is typed by hand."""

import datetime
import math
import shlex
from collections.abc import Sequence
from typing import Any

from sgan.checks import flat
from sgan.store import votes
from sweeps.reporting.comparisons import SURE, Contrast, disagreements, p_value, worse_at_best
from sweeps.reporting.results import ABSENT, SCORES, Statistics, Sweep, known

Rows = list[list[str]]
"""Rows of cells, the heading first."""
WIDEST = 100  # Characters of a line of a Markdown table
ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}
ALARM, AT_BEST = "⚠", "†"
MARKS = {
    ALARM: "an alarm, or a trial that went wrong",
    AT_BEST: "on these seeds, the weights at the best evaluation are worse than those at the end",
}
"""Marks of rows, and their meaning."""
SHORT = {"inception_score": "IS"}
LEGEND = (
    "FID: the distance between samples and real images in a network's features; 0 is best. Recall: the share of real "
    "images that have a sample near them. Inception score (IS): how sure the network is of each sample's class, and "
    "how evenly the classes occur."
)
PAPERS = (
    "The paper's column was scored by an Inception network, on CIFAR-10. With another judge or dataset, compare only "
    "the order of the rows, not the numbers."
)


def spread(statistics: Statistics, score: str) -> str:
    """A score's mean ± standard deviation; the latter is left out if it is NaN."""
    mean, std = (number(score, statistics[score, name]) for name in ("mean", "std"))
    return mean if std == ABSENT else f"{mean} ± {std}"


def number(score: str, value: float) -> str:
    if math.isnan(value):
        return ABSENT
    digits = SCORES[score].decimals
    return f"{value:,.{digits}f}" if digits >= 0 else f"{value:.2e}"


def headline(sweep: Sweep, contrasts: Sequence[Contrast]) -> Rows:
    """The table of five columns: the variant with its marks, the leading score, the difference to the reference, and
    the other outcomes; real data last."""
    scores = [score for score in sweep.outcomes if score in sweep.columns] or [sweep.leading]
    first, *others = scores
    against = {each.variant: interval(each) for each in contrasts if each.outcome == first}
    headings = [f"{SHORT.get(score, SCORES[score].heading)}{ARROWS[SCORES[score].better]}" for score in scores]
    rows = [["Variant", headings[0], f"against {sweep.reference_title}", *headings[1:]]]
    for name, title in sweep.titles.items():
        own, outcomes = sweep.summary[name], list(sweep.of(name)["outcome"])
        done = outcomes.count("done")
        words = [title, *[f"({done}/{len(outcomes)})"] * (done < len(outcomes)), *_notes(sweep, name)]
        cells = [spread(own, first), against.get(name, ABSENT), *(spread(own, score) for score in others)]
        rows.append([" ".join(words), *cells])
    return [*rows, *([title, leading, ABSENT, *cells] for title, leading, *cells in _real(sweep, scores))]


def _real(sweep: Sweep, scores: Sequence[str]) -> Rows:
    kinds = (("", "Real, held out"), ("train/", "Real, training"))
    rows = [[title, *(number(score, sweep.real.get(of + score, math.nan)) for score in scores)] for of, title in kinds]
    return [row for row in rows if set(row[1:]) != {ABSENT}]


def interval(contrast: Contrast) -> str:
    """A contrast as "difference [95% interval]", with a star where its p is below SURE."""
    digits = SCORES[contrast.outcome].decimals
    bounds = "" if contrast.n < 2 else f" [{contrast.low:.{digits}f}, {contrast.high:.{digits}f}]"
    return f"{contrast.mean:+.{digits}f}{bounds}{'*' * (contrast.holm < SURE)}"


def comparison(sweep: Sweep, contrasts: Sequence[Contrast]) -> Rows:
    rows = [["Variant", "Outcome", "n", "Difference [95%]", "p", "p (Holm)", "P(better)"]]
    for each in contrasts:
        outcome = SCORES[each.outcome]
        cells = [sweep.titles[each.variant], outcome.heading + ARROWS[outcome.better], str(each.n), interval(each)]
        rows.append([*cells, *(p_value(p).removeprefix("= ") for p in (each.p, each.holm)), f"{each.better:.2f}"])
    return rows


def everything(sweep: Sweep) -> Rows:
    """The table of all scores: a row a variant, its number of trials, the paper's score; real data last."""
    columns = sweep.columns
    rows = [["Variant", "n", *(SCORES[name].heading + ARROWS[SCORES[name].better] for name in columns), "Paper's IS"]]
    for variant in sweep.manifest["variants"]:
        own, n = sweep.summary[variant["name"]], list(sweep.of(variant["name"])["outcome"]).count("done")
        counts = {score: own[score, "count"] for score in columns}
        cells = [spread(own, score) + f" ({count:.0f})" * bool(0 < count < n) for score, count in counts.items()]
        rows.append([variant["title"], str(n), *cells, variant["paper"] or ABSENT])
    real = zip(_real(sweep, columns), [sweep.manifest["paper_real"], ABSENT], strict=False)
    rows += [[title, ABSENT, *cells, paper] for (title, *cells), paper in real]
    return rows if any(variant["paper"] for variant in sweep.manifest["variants"]) else [row[:-1] for row in rows]


def explored(sweep: Sweep) -> Rows:
    """The table of the configs that a search explored, on one seed each."""
    scores = [score for score in sweep.outcomes if known(sweep.explored, score)]
    rows = [["Config", *(SCORES[score].heading + ARROWS[SCORES[score].better] for score in scores), "Outcome"]]
    for row in sweep.explored.to_dict("records"):
        cells = [number(score, row[score]) for score in scores]
        rows.append([row["title"], *cells, ": ".join(filter(None, (row["outcome"], row["reason"] or row["alarm"])))])
    return rows


def alarms(sweep: Sweep) -> list[str]:
    """The meaning of each mark in the table, a line each."""
    notes = {title: _notes(sweep, name) for name, title in sweep.titles.items()}
    return [f"{mark} {title}: {text}." for title, found in notes.items() for mark, text in found.items()]


def _notes(sweep: Sweep, variant: str) -> dict[str, str]:
    """The marks of a row, and why it has them."""
    own = sweep.of(variant).to_dict("records")
    wrong = [f"{row['outcome']}: {row['reason']}" if row["reason"] else row["alarm"] for row in own]
    wrong = list(filter(None, wrong))
    found = {ALARM: f"{len(wrong)} of {len(own)} seeds went wrong, for example: {wrong[0]}"} if wrong else {}
    worse = worse_at_best(sweep, variant)
    return found | ({AT_BEST: f"{MARKS[AT_BEST]} ({'; '.join(worse)})"} if worse else {})


def caption(sweep: Sweep) -> str:
    n = [len(sweep.values(name, sweep.leading)) for name in sweep.titles] or [0]
    seeds = f"{max(n)} seed{'s' * (max(n) != 1)}" + " or fewer" * (min(n) < max(n))
    few = " (k/n): k of n trials have finished." if len(sweep.done) < len(sweep.trials) else ""
    return (
        f"Mean ± standard deviation over {seeds}, of the weights at the end of training. Difference: paired by seed, "
        f"with 95% bootstrap interval; * p < {SURE} after Holm's correction.{few}"
    )


def facts(sweep: Sweep) -> list[str]:
    """Notes on the scores, a line each: votes of people and other judges, how the scores were computed, how a reader
    could misread them, and where they come from."""
    record, done, lines = sweep.manifest, sweep.done, disagreements(sweep)
    trials = {trial["name"]: f"{trial['title']}, seed {trial['seed']}" for trial in record["trials"]}
    told = {stage: tally for stage, tally in votes.results(sweep.store).items() if stage in trials}
    lines += [f"Visual Turing test: {trials[stage]}: {tally}." for stage, tally in told.items()]
    held, samples = sweep.real.get("held_out_images", math.inf), sweep.fingerprint.get("scores", {}).get("samples", 0)
    if held < samples:
        lines.append(
            f"Real, held out: {held:.0f} images, drawn with repeats to {samples:,} samples. Repeats raise FID and "
            "lower coverage, so a generator of new images can score better than this row."
        )
    judges: dict[str, list[str]] = {}
    for part, each in sweep.fingerprint.items():
        told = {name: str(value)[:12] if name == "weights" else value for name, value in each.items() if value}
        words = ", ".join(f"{name} {value}" for name, value in told.items())
        judges.setdefault(words, []).append(part)
    lines += [f"Judge of {' and '.join(parts)}: {words}." for words, parts in judges.items()]
    if (match := record["settings"].get("match", "none")) != "none":
        work, what = {"flops": ("flops", "FLOPs"), "images": ("generator_images", "generator images")}[match]
        means = [(sweep.summary[name][work, "mean"], title) for name, title in sweep.titles.items()]
        trained = [f"{mean:,.4g} ({title})" for mean, title in sorted(each for each in means if each[0] > 0)]
        lines.append(
            f"Equal {what} are planned, but rules for generator steps decide while training: "
            f"{' to '.join(dict.fromkeys((*trained[:1], *trained[-1:])))}."
        )
    if "explored" in record:
        lines.append(
            f"A search: {record['explored']} configs were explored at seed {record['settings']['seed']}. The table has "
            "scores of other seeds: on the seed that chose a config its score is biased. A row is a config: its "
            "number, the layers at which its stack is cut, and the weights of the adversarial, conditional and entropy "
            "loss."
        )
    lines += [record["chosen"]] if record.get("chosen") else []
    devices = sorted({device for devices in done["devices"] for device in devices})
    if len(devices) > 1:
        lines.append(f"Trained on more than one device or version of torch: {'; '.join(devices)}.")
    commits = list(done["commit"].unique()) or [record["commit"]]
    origin = f"Commit{'s' * (len(commits) > 1)} {', '.join(commits)}; {record['machine']}"
    date = datetime.datetime.fromtimestamp(record["started"], datetime.UTC).date()
    return [*lines, f"{origin}; {date}; sweep {record['key']}."]


def _word(value: Any) -> str:
    return "+".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def changes(sweep: Sweep) -> Rows:
    """The table of what each variant's config changes against the reference's."""
    configs = {trial["variant"]: flat(trial["config"]) for trial in reversed(sweep.manifest["trials"])}
    rows, base = [["Variant", "Changes"]], configs.get(sweep.reference, {})
    for name, title in sweep.titles.items():
        fields = [field for field in {**base, **configs[name]} if field != "seed"]
        values = [(field, base.get(field, ABSENT), configs[name].get(field, ABSENT)) for field in fields]
        told = [
            f"{field.removeprefix('variant.')}: {_word(before)} → {_word(now)}"
            for field, before, now in values
            if before != now
        ]
        rows.append([title, "; ".join(told) or ("the reference" if name == sweep.reference else "none")])
    return rows


def commands(sweep: Sweep, store: str) -> list[str]:
    """Commands for the next steps, as they are typed; `store` is the address as the user gives it."""
    lines, address = [sweep.manifest["command"]], shlex.quote(store)
    for leader in list(sweep.ranking)[:1]:
        trial = next(row["trial"] for row in sweep.of(leader).to_dict("records") if row["outcome"] == "done")
        lines.append(f"python -m sgan.sample {trial} --store {address} --out samples.png")
        words = shlex.split(next(row["rerun"] for row in sweep.manifest["trials"] if row["name"] == trial))
        data = f" --data {shlex.quote(words[words.index('--data') + 1])}" if "--data" in words else ""
        lines.append(f"python -m sgan.turing_test {trial} --store {address}{data}")
    return [*lines, f"python sweeps/best.py {address}", f"python sweeps/report.py {address} --out my-results.md"]


def aligned(rows: Rows) -> str:
    """The rows as a Markdown table."""
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[f" {cell.ljust(width)} " for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines.insert(1, ["-" * (width + 2) for width in widths])
    return "\n".join(f"|{'|'.join(line)}|" for line in lines)
