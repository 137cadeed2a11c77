"""One round of chaos.py: whatever is killed, what comes out is what comes out of quiet runs."""

from pathlib import Path

import chaos
import pytest

ROUND = 8
"""Of seed 0: both drivers, a worker and MLflow are killed, the disk is full, and there is a Ctrl-C; the fewest faults
that a round has."""


@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds processes through /proc")
def test_an_ablation_and_a_search_in_chaos_end_as_quiet_ones(tmp_path: Path):
    quiet = chaos.undisturbed(tmp_path)
    print(chaos.play(0, ROUND, quiet, tmp_path / "round"))
