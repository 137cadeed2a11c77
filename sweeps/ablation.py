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
    """The options of the command line. An option that it does not name has its value in the --config file, if any."""
    known = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    known.add_argument("--config", type=Path, nargs="?")
    known.add_argument("--data", type=Path, nargs="?")  # a config of an image folder is not valid without it
    given = known.parse_known_args()[0]
    default = Sweep(**vars(config_file.read(given.config).options), data=given.data) if given.config else Sweep()
    return parse(lambda: grouped(Sweep, "python sweeps/ablation.py", default), ASKED)


def run() -> int:
    options = options_of()
    if not options.dry_run:
        require_answer(cluster_address())
    from sweeps.execution import jobs  # the training code takes seconds to import, and --help does not need it
    from sweeps.run import run_ablation

    return jobs.run(run_ablation, options)


if __name__ == "__main__":
    sys.exit(status(run))
