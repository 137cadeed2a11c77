"""Writes the report of all sweeps in output stores: a Markdown file, and beside it their plots and pages.

python sweeps/report.py STORE [STORE ...] --out my-results.md
"""

import sys
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from sgan.checks import ConfigError, require
from sgan.command_line import later, parse, status


def main(stores: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="STORE...")], out: Path) -> None:
    """Write the report of all sweeps in the named stores: tables, plots and, for each sweep, a page.

    Args:
        stores: Output stores.
        out: The Markdown file to write, with plots and pages in a folder of its name; existing files are replaced.
    """
    require(len(stores) > 0, "name at least one output store, such as runs")
    require(out.parent.is_dir(), f"the folder of --out {out} does not exist; name a file in an existing folder")
    require(bool(out.suffix), f"--out {out} needs a suffix, as {out}.md has: a folder without it is for the plots")
    from sweeps.reporting import document  # pandas takes a second to import

    try:
        document.write(stores, out)
    except OSError as error:
        raise ConfigError(f"{error}; --out must name a file in a folder that can be written") from error
    print(f"{out}, with plots and pages in {out.with_suffix('')}")


if __name__ == "__main__":
    sys.exit(status(lambda: parse(lambda: tyro.cli(later(main), prog="python sweeps/report.py"))()))
