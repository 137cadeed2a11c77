"""One round of chaos.py: whatever is killed, what comes out is what comes out of a quiet run."""

from pathlib import Path

import chaos
import pytest


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds processes through /proc")
def test_an_ablation_in_chaos_ends_as_a_quiet_one(tmp_path: Path):
    quiet = chaos.undisturbed(tmp_path)
    print(chaos.play(0, 0, quiet, tmp_path / "round"))
