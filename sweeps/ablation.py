"""The ablation of Stacked GANs: six variants x seeds on Ray, recorded in MLflow, ending in a table.

python sweeps/ablation.py [--help]
"""

import argparse
import sys
from pathlib import Path

from sgan.command_line import grouped, parse, status
from sweeps.execution import cluster_address, require_answer
from sweeps.planning import config_file
from sweeps.planning.options import ASKED, Sweep


def options_of() -> Sweep:
    """The options of the command line; those of --config stand where it names no others."""
    known = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    known.add_argument("--config", type=Path)
    known.add_argument("--data", type=Path)  # which a config of an image folder is not valid without
    given = known.parse_known_args()[0]
    default = Sweep(**vars(config_file.read(given.config).options), data=given.data) if given.config else Sweep()
    return parse(lambda: grouped(Sweep, "python sweeps/ablation.py", default), ASKED)


def run() -> int:
    options = options_of()
    if not options.dry_run:
        require_answer(cluster_address())
    from sweeps.execution import jobs  # what trains takes seconds to import, and --help needs none of it
    from sweeps.run import run_ablation

    return jobs.run(lambda: run_ablation(options), options, "ablation.py")


if __name__ == "__main__":
    sys.exit(status(run))
