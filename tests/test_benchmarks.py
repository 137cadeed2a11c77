"""A guard: the cheap ratios of the benchmarks, with limits so wide that only a step twice as slow as it was fails."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_a_training_step_is_still_faster_than_the_plain_loop(tmp_path):
    output = tmp_path / "rows.json"
    choice = ["--datasets", "mnist", "--levels", "label-fc3", "--rounds", "5", "--json", str(output)]
    subprocess.run([sys.executable, str(BENCHMARKS / "training_step.py"), *choice], check=True, capture_output=True)
    rows = {row["measure"]: row["value"] for row in json.loads(output.read_text())}
    # 3.4 and 5.5 where nothing else runs (docs/performance.md).
    assert rows["mnist label-fc3 plain: faster"] == 1
    assert rows["mnist label-fc3 float32: faster"] > 1.7
    assert rows["mnist label-fc3 bfloat16: step"] > 0
