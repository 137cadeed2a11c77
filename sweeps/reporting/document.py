"""The report of a sweep: one self-contained HTML file, its Markdown with PNG plots, and its end in the terminal."""

import base64
import shlex
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader
from rich.console import Console
from rich.table import Column, Table, box
from rich.text import Text

from sgan.store.files import write_text
from sgan.store.local import Store
from sweeps.planning import manifest
from sweeps.planning.manifest import REPORT, TEXT
from sweeps.reporting import comparisons, plots, results, tables
from sweeps.reporting.plots import Plot
from sweeps.reporting.results import Sweep


def html(sweep: Sweep, pictures: Sequence[Plot], store: str) -> str:
    """The report as one HTML file that needs no other; `store` is the store's address in its commands."""
    found, loader = comparisons.contrasts(sweep), FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data_uri"] = lambda png: "data:image/png;base64," + base64.b64encode(png).decode()
    environment.globals.update(tables=tables, comparisons=comparisons)
    template = environment.get_template("report.html.j2")
    return template.render(sweep=sweep, found=found, plots=pictures, store=store)


def markdown(sweep: Sweep, pictures: Sequence[Plot] = (), folder: str = "") -> str:
    """The section of a sweep: verdict, tables of at most 100 columns, plots (in `folder` as <name>.png), and notes."""
    found, record = comparisons.contrasts(sweep), sweep.manifest
    lines = [*tables.alarms(sweep), tables.caption(sweep), *tables.facts(sweep)]
    parts = [f"## {record['title']}", comparisons.verdict(sweep, found), tables.aligned(tables.headline(sweep, found))]
    parts.append("\n".join(f"- {line}" for line in lines))
    parts += [f"![{plot.title}]({folder}/{plot.name}.png)\n\n*{plot.title}. {plot.caption}*" for plot in pictures]
    parts += [tables.aligned(tables.comparison(sweep, found)), comparisons.METHOD] if found else []
    return "\n\n".join([*parts, f"```\n{record['command']}\n```\n"])


def keep(store: Store, key: str, address: str, variants: Collection[str], seeds: Collection[int]) -> Sweep:
    """Write a sweep's report into its folder of the store; arguments as `results.read` has them."""
    sweep, folder = results.read(store, key, variants, seeds), manifest.folder(store, key)
    for name, text in ((REPORT, html(sweep, plots.draw(sweep), address)), (TEXT, markdown(sweep))):
        write_text(folder / name, text)
        store.save(folder / name)
    return sweep


def ending(sweep: Sweep, link: str, then: str) -> None:
    """Print the verdict, the table of five columns no wider than the terminal, and three lines: the report, how to open
    MLflow (`link`), and the next step (`then`)."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else tables.WIDEST)
    found = comparisons.contrasts(sweep)
    headings, *rows = tables.headline(sweep, found)
    table = Table(*(Column(Text(text), no_wrap=place > 0) for place, text in enumerate(headings)), box=box.MARKDOWN)
    for row in rows:
        table.add_row(*map(Text, row))
    marks = [f"{mark} {what}." for mark, what in tables.MARKS.items() if any(mark in row[0] for row in rows)]
    words = [sweep.manifest["title"], comparisons.verdict(sweep, found)]
    console.print("", *map(Text, words), table, *map(Text, marks), sep="\n")
    lines = (("Report", manifest.folder(sweep.store, sweep.manifest["key"]) / REPORT), ("MLflow", link), ("Next", then))
    for name, text in lines:
        told = str(text).replace("\n", f"\n{'':8}")
        console.print(Text(f"{name + ':':<8}{told}"), soft_wrap=True)  # a copied command has no line breaks in it


def write(stores: Sequence[str], out: Path) -> None:
    """Write the report of all sweeps in the stores: the Markdown file `out`, and beside it for each sweep a folder
    with its plots and its HTML. ConfigError where a store holds no sweep, something in it is damaged, or its scores
    cannot be compared; OSError where a file cannot be written."""
    # Paths of this machine and addresses of its servers mean nothing to a reader.
    paths = (*stores, str(out))
    *names, name = [Path(path).name if Path(path).is_absolute() else path.partition("?")[0] for path in paths]
    sections = [
        "# Results\n\nEvery table below is made from the recorded runs, and every score in it from their images.\n\n"
        f"```\npython sweeps/report.py {shlex.join(names)} --out {shlex.quote(name)}\n```\n"
    ]
    pages = {}
    for name, address in zip(names, stores, strict=True):
        store, keys = manifest.find(address)
        for sweep in [results.read(store, key) for key in keys]:
            pictures = plots.draw(sweep)
            place = sweep.manifest["key"]
            place += f"-{len(pages)}" if place in pages else ""  # two stores may have the same sweep
            pages[place] = html(sweep, pictures, name), pictures
            where = f"{quote(out.stem)}/{place}"
            sections.append(f"{markdown(sweep, pictures, where)}\n[The report as one page]({where}/{REPORT})\n")
    out.write_text("\n".join(sections))
    for place, (page, pictures) in pages.items():
        folder = out.with_suffix("") / place
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REPORT).write_text(page)
        for plot in pictures:
            (folder / f"{plot.name}.png").write_bytes(plot.png)
