"""The search: Optuna over loss weights and stack splits, ending in a config that is confirmed on fresh seeds.

python sweeps/search.py [--help]
"""

import sys

from sgan.command_line import grouped, parse, status
from sweeps.execution import cluster_address, require_answer
from sweeps.optimization.search_options import Search
from sweeps.planning.options import ASKED


def run() -> int:
    search = parse(lambda: grouped(Search, "python sweeps/search.py", Search()), ASKED)
    if not search.dry_run:
        require_answer(cluster_address())
    from sweeps.execution import jobs  # the training code takes seconds to import, and --help does not need it
    from sweeps.run import run_search

    return jobs.run(run_search, search)


if __name__ == "__main__":
    sys.exit(status(run))
