"""The report file: a section for each sweep of some stores, and a search's plots beside it."""

import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from sgan.store.files import StoreError, is_plain, sha256
from sgan.store.local import Store
from sgan.store.s3 import find_store
from sweeps.planning import manifest
from sweeps.reporting.results import Sweep, read
from sweeps.reporting.tables import markdown

HEAD = "# Results"
KEPT = "\nTables of other stores stay as they were made, each at the commit that it names.\n"


def write(stores: Sequence[str], out: Path) -> None:
    """Write the report of all sweeps in the stores to the file `out`, the plots of searches to the folder of its name.
    Of a report that is there already, sections with other titles stay: their stores may be on another machine.

    Raises:
        StoreError: a store holds no sweep, or something in it is damaged.
        Incomparable: the scores of one table were computed in different ways.
        OSError: the file cannot be written.
    """
    sections = []
    for address in stores:
        store = find_store(address)
        keys = manifest.keys(store) if store else []
        if store is None or not keys:
            raise StoreError(f"{address} holds no sweep; name the folder that the sweep was given as --store")
        sweeps = [read(store, key) for key in keys]
        sections += [markdown(sweep, copy_plots(store, sweep, out)) for sweep in sweeps]
    # Paths of this machine and addresses of its servers mean nothing to a reader.
    paths = (*stores, str(out))
    *names, name = [Path(path).name if Path(path).is_absolute() else path.partition("?")[0] for path in paths]
    text = out.read_text() if out.exists() else ""
    others = [f"{part.rstrip()}\n" for part in re.split("^(?=## )", text, flags=re.MULTILINE)[1:]]
    by_title = (_by_title(others) if text.startswith(HEAD) else {}) | _by_title(sections)
    all_sections = [section for same_title in by_title.values() for section in same_title]
    head = (
        f"{HEAD}\n\nEvery table below is made from the recorded runs, and every score in it from their images.\n\n"
        f"```\npython sweeps/report.py {shlex.join(names)} --out {shlex.quote(name)}\n```\n"
    )
    out.write_text("\n".join([head + KEPT * (len(all_sections) > len(sections)), *all_sections]))


def _by_title(sections: Sequence[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for section in sections:
        groups.setdefault(section.partition("\n")[0], []).append(section)
    return groups


def copy_plots(store: Store, sweep: Sweep, out: Path) -> str:
    """Copy a search's plots beside the report `out`; returns their folder as seen from it, "" where there are none."""
    digests, key = sweep.manifest.get("plotted"), sweep.manifest["key"]
    if not digests:
        return ""
    plots, folder = manifest.folder(store, key) / "plots", out.with_suffix("") / key
    store.fetch(plots)
    files = {path.name: path for path in plots.glob("*.png") if is_plain(plots, path.name)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, digest in digests.items():
        if name not in files or sha256(files[name])[:16] != digest:
            raise StoreError(f"{plots / name} is missing or damaged; the search's command draws it again")
        shutil.copyfile(files[name], folder / name)
    return f"{out.stem}/{key}"
