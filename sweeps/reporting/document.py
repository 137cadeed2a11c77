"""The report file: a section for each sweep of some stores, and a search's plots beside it."""

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from sgan.store.files import StoreError, is_plain, sha256
from sgan.store.local import Store
from sweeps.planning import manifest
from sweeps.reporting.results import Sweep, read
from sweeps.reporting.tables import markdown


def write(stores: Sequence[str], out: Path) -> None:
    """Write the report of all sweeps in the stores to the file `out`, the plots of searches to the folder of its name.

    Raises:
        StoreError: a store holds no sweep, or something in it is damaged.
        Incomparable: the scores of one table were computed in different ways.
        OSError: the file cannot be written.
    """
    # Paths of this machine and addresses of its servers mean nothing to a reader.
    paths = (*stores, str(out))
    *names, name = [Path(path).name if Path(path).is_absolute() else path.partition("?")[0] for path in paths]
    sections = [
        "# Results\n\nEvery table below is made from the recorded runs, and every score in it from their images.\n\n"
        f"```\npython sweeps/report.py {shlex.join(names)} --out {shlex.quote(name)}\n```\n"
    ]
    for address in stores:
        store, keys = manifest.find(address)
        sweeps = [read(store, key) for key in keys]
        sections += [markdown(sweep, _copy_plots(store, sweep, out)) for sweep in sweeps]
    out.write_text("\n".join(sections))


def _copy_plots(store: Store, sweep: Sweep, out: Path) -> str:
    """Copy a search's plots beside the report; returns their folder as seen from it, "" where there are none."""
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
