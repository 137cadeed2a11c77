"""The plots of a sweep: pandas -> matplotlib -> PNG. Each is made to be read on a phone: one panel, 5 inches wide."""

import io
import itertools
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image, ImageDraw, ImageFont

from sgan.evaluation.figures import TRIPLES
from sgan.evaluation.grid import unlabelled
from sgan.evaluation.measures import MEASURES
from sgan.store.local import FIGURES
from sweeps.reporting.comparisons import interval
from sweeps.reporting.results import Sweep, curves, known

COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#7F7F7F")
"""Okabe and Ito's palette for the colour-blind, without its yellow, which is hard to see on white."""
STYLES = [(COLOURS[row % 8], "osD^vPX*"[(row + row // 8) % 8]) for row in range(64)]
"""Colour and marker of each row: no two of 64 rows have both alike."""
DPI, WIDTH, HEIGHT = 160, 5.0, 3.6
HEADING = 40  # Letters of the heading of a set of samples, at most
FEW = 10  # Sets of samples that are drawn in two columns; more have four
SAMPLES = {
    "classes": ("Samples", "One row per class (0, 1, ...; mixed for variants without labels), the same noise for every "
    "variant. Look for blur, wrong classes and repeats."),
    "fixed_condition": ("One condition, different noise", "A row has one condition of the image level. If its images "
    "are equal, the noise has no effect."),
    "neighbours": ("Nearest training images", "In threes: a sample, and the training images nearest in pixels and in "
    "features. A sample that equals a training image was memorised."),
}  # fmt: skip
"""Figures of a trial: title, and what to look for."""
ALONE = (
    " Dashed: a stack's image level alone, given features of real images, which is easier. The whole stack is scored "
    "from joint training on."
)
DIVERSITY = ("recall", "coverage", "diversity")
SETTINGS: Any = {"font.size": 9, "text.parse_math": False, "axes.grid": True, "grid.alpha": 0.25}
SETTINGS |= {"axes.spines.top": False, "axes.spines.right": False}


class Plot(NamedTuple):
    """A plot as a PNG file, with its title and what to look for in it."""

    name: str
    title: str
    caption: str
    png: bytes


def draw(sweep: Sweep) -> list[Plot]:
    """The plots of a sweep that the store allows: samples, curves, seeds, diversity against quality, and a search's
    configs."""
    with matplotlib.rc_context(SETTINGS):
        plots = [*_curves(sweep), _seeds(sweep), *_tradeoff(sweep)] if known(sweep.trials, sweep.leading) else []
        return [*_samples(sweep), *plots, *_history(sweep), *_importance(sweep)]


def _samples(sweep: Sweep) -> list[Plot]:
    """The figures of all variants, each at the first seed that has finished, side by side with real images."""
    rows, found = sweep.done.drop_duplicates("variant").set_index("variant").to_dict("index"), []
    trials = [
        (f"{_short(title, HEADING - len(seed))}{seed}", rows[name])
        for name, title in sweep.titles.items()
        if name in rows and (seed := f", seed {rows[name]['seed']}")
    ]
    for name, (title, caption) in SAMPLES.items():
        wanted = [(heading, row["trial"], f"{FIGURES}/{name}.png") for heading, row in trials]
        if name == "classes":
            wanted += [("Real images", row["trial"], f"{FIGURES}/real.png") for _, row in trials[-1:]]
        there = [each for each in wanted if each[2] in sweep.store.facts(each[1])["files"]]
        if there and there[0][0] != "Real images":
            # Without their text, which is too small to read here.
            panels = [(heading, unlabelled(sweep.store.file(trial, file))) for heading, trial, file in there]
            if name == "neighbours":
                panels = [(heading, _apart(picture, TRIPLES)) for heading, picture in panels]
            found.append(Plot(name, title, caption, _compressed(_side_by_side(panels))))
    return found


def _apart(picture: Image.Image, parts: int) -> Image.Image:
    """The picture with gaps between this number of parts of equal width."""
    width = -(-picture.width // parts)
    gap = width // 8
    sheet = Image.new("RGB", (picture.width + (parts - 1) * gap, picture.height), "white")
    for part in range(parts):
        left, right = part * width, min((part + 1) * width, picture.width)
        sheet.paste(picture.crop((left, 0, right, picture.height)), (part * (width + gap), 0))
    return sheet


def _side_by_side(panels: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures with their headings, pixel for pixel: so they stay sharp, and the file small."""
    columns = min(len(panels), 2) if len(panels) <= FEW else 4
    width, height = (max(sizes) for sizes in zip(*(picture.size for _, picture in panels), strict=True))
    font, bar, gap = ImageFont.load_default(width // 21), width // 9, width // 40
    sheet = Image.new("RGB", (columns * (width + gap) - gap, -(-len(panels) // columns) * (bar + height)), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (heading, picture) in enumerate(panels):
        left, top = place % columns * (width + gap), place // columns * (bar + height)
        pen.text((left + width / 2, top + bar / 2), _short(heading, HEADING), "black", font, "mm")
        sheet.paste(picture, (left, top + bar))
    return sheet


def _curves(sweep: Sweep) -> list[Plot]:
    points, found = curves(sweep, sweep.leading), []
    if points.empty:
        return []
    equal = "At equal images, which curve is better, and do bands overlap?"
    late = "A stack's curve begins later: its upper levels train first."
    kinds = [("images", "images", "generator images", "", equal), ("compute", "flops", "FLOPs", ", of GANs", late)]
    for name, column, label, of, what in kinds:
        figure, axes = _axes()
        for (variant, title), (colour, marker) in zip(sweep.titles.items(), itertools.cycle(STYLES), strict=False):
            for second, (alone, part) in enumerate(points[points["variant"] == variant].groupby("alone")):
                # All seeds of a variant are evaluated at the same steps, but the number of generator steps may differ.
                groups = part.groupby("point")
                low, middle, high = (groups["value"].quantile(share) for share in (0.25, 0.5, 0.75))
                at: Any = groups[column].mean()
                look: Any = {"linestyle": "--", "markerfacecolor": "white"} if alone else {}
                look |= {} if second else {"label": title}
                axes.plot(at, middle, color=colour, marker=marker, markersize=3, linewidth=1.4, **look)
                axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
        _score_axis(axes, sweep.leading)
        axes.set_xlabel(f"{label} so far{of}")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        caption = f"Scores during training, on fewer samples. Line: median over seeds; band: middle half. {what}"
        caption += ALONE * bool(points["alone"].to_numpy().any())
        title = f"{MEASURES[sweep.leading].heading} over {label}"
        found.append(Plot(name, title, caption, _png(figure)))
    return found


def _seeds(sweep: Sweep) -> Plot:
    """A dot per seed for every variant, with the mean and its interval; in a search, lines join the dots of a seed."""
    titles, search = sweep.titles, not sweep.explored.empty
    figure, axes = _axes(max(2.2, 0.9 + 0.42 * len(titles)))
    for index, (variant, colour) in enumerate(zip(titles, itertools.cycle(COLOURS), strict=False)):
        values = sweep.values(variant, sweep.leading)
        if len(values):
            axes.scatter(values, [index] * len(values), s=22, color=colour, alpha=0.5, linewidths=0)
            axes.hlines(index, *interval(values), color=colour, linewidth=1.5)
            axes.plot(values.mean(), index, "|", color=colour, markersize=14, markeredgewidth=2)
    for seed in set(sweep.done["seed"]) if search else ():
        own = {row["variant"]: row[sweep.leading] for row in sweep.done.to_dict("records") if row["seed"] == seed}
        axes.plot([own.get(name, np.nan) for name in titles], range(len(titles)), color="grey", linewidth=0.6, zorder=0)
    if sweep.leading in sweep.real:
        axes.axvline(sweep.real[sweep.leading], color="grey", linestyle="--", linewidth=1, label="real held-out images")
    axes.set_yticks(range(len(titles)), [textwrap.fill(title, 24) for title in titles.values()])
    axes.set_ylim(len(titles) - 0.5, -0.5)
    _score_axis(axes, sweep.leading, "x")
    lines = " Grey lines join the scores of a seed." * (search and not sweep.done.empty)
    caption = f"Dot: a seed; bar: the mean; line: its 95% bootstrap interval.{lines} Do the dots of two rows overlap?"
    return Plot("seeds", f"{MEASURES[sweep.leading].heading} of every seed", caption, _png(figure))


def _tradeoff(sweep: Sweep) -> list[Plot]:
    diversity = next((name for name in DIVERSITY if known(sweep.trials, name)), None)
    if diversity is None:
        return []
    figure, axes = _axes()
    for (variant, title), (colour, marker) in zip(sweep.titles.items(), itertools.cycle(STYLES), strict=False):
        own = sweep.of(variant)
        axes.scatter(own[sweep.leading], own[diversity], s=16, alpha=0.45, linewidths=0, color=colour, marker=marker)
        means = (sweep.summary[variant][name, "mean"] for name in (sweep.leading, diversity))
        axes.scatter(*means, s=52, label=title, edgecolors="white", color=colour, marker=marker)
    if {sweep.leading, diversity} <= sweep.real.keys():
        at = sweep.real[sweep.leading], sweep.real[diversity]
        axes.scatter(*at, marker="*", s=180, color="gold", edgecolors="black", label="real held-out images")
    _score_axis(axes, sweep.leading, "x")
    _score_axis(axes, diversity)
    caption = "Small marks: seeds; large marks: means. How far is each from the star in quality and diversity?"
    title = f"{MEASURES[diversity].heading} against {MEASURES[sweep.leading].heading}"
    return [Plot("diversity", title, caption, _png(figure))]


def _history(sweep: Sweep) -> list[Plot]:
    score = sweep.leading
    rows = sweep.explored.dropna(subset=[score])
    if len(rows) < 2:
        return []
    figure, axes = _axes()
    collapsed = rows["collapsed_classes"] > 0  # the search gives them the worst score
    fine = rows[score].mask(collapsed)
    best = (fine.cummin() if MEASURES[score].better == "lower" else fine.cummax()).ffill()
    for chosen, colour, label in ((~collapsed, COLOURS[2], "an explored config"), (collapsed, COLOURS[7], "collapsed")):
        if any(chosen):
            axes.scatter(rows["number"][chosen], rows[score][chosen], s=18, color=colour, label=label)
    if any(fine.notna()):
        axes.step(rows["number"], best, where="post", color=COLOURS[5], label="the best so far")
    _score_axis(axes, score)
    axes.set_xlabel("config, in the order of the search")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    caption = (
        "All on the seed that chose among them, so the best score is partly luck. Is the best so far still improving?"
    )
    return [Plot("history", f"{MEASURES[score].heading} of every explored config", caption, _png(figure))]


def _importance(sweep: Sweep) -> list[Plot]:
    shares = sorted(sweep.manifest.get("importance", {}).items(), key=lambda item: item[1][0])
    if not shares:
        return []
    figure, axes = _axes(max(2.2, 0.9 + 0.42 * len(shares)))
    for place, (_, (share, low, high)) in enumerate(shares):
        axes.barh(place, share, color=COLOURS[6])
        axes.hlines(place, low, high, color="black")
    axes.set_yticks(range(len(shares)), [name for name, _ in shares])
    axes.set_xlim(0, 1)
    axes.set_xlabel("importance (all add up to 1); line: 90% of resampled searches")
    caption = (
        "How much the best tenth of the configs differs from all of them in each parameter. Overlapping lines give no "
        "clear order."
    )
    title = f"Importance of each parameter for {MEASURES[sweep.leading].heading}"
    return [Plot("importance", title, caption, _png(figure))]


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _axes(height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure((WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _score_axis(axes: Axes, score: str, axis: str = "y") -> None:
    """Label a score's axis; if lower is better, it is logarithmic, so that good rows can be told apart."""
    measure = MEASURES[score]
    label = f"{measure.heading} ({measure.better} is better)" if measure.better else measure.heading
    getattr(axes, f"set_{axis}label")(label + ", log scale" * (measure.better == "lower"))
    if measure.better == "lower":
        getattr(axes, f"set_{axis}scale")("log")
        labelled: Axis = getattr(axes, f"{axis}axis")
        # Plain numbers: 1, 2 and 5 times the powers of ten, fewer where it is long.
        labelled.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
        labelled.set_major_formatter("{x:g}")
        labelled.set_minor_formatter(NullFormatter())


def _png(figure: Figure) -> bytes:
    """The figure as a PNG file, with the legend of its axes, if they have one, below it."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        short, lines = [_short(label, 40) for label in labels], -(-len(labels) // 2)
        # A long legend leaves the axes their room.
        figure.set_figheight(figure.get_figheight() + 0.17 * max(0, lines - 4))
        figure.legend(handles, short, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI, format="png")
    return _compressed(Image.open(drawn).convert("RGB"))


def _compressed(picture: Image.Image) -> bytes:
    """The picture as a PNG file in 256 colours, which takes half of the bytes; figures in the store have all."""
    file = io.BytesIO()
    picture.quantize(256).save(file, "png", optimize=True)
    return file.getvalue()
