"""Each benchmark runs, at its smallest setting, and measures something."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = ("encoder.images=1280", "judge.images=6400", "samples=500", "evaluations=1")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def measured(folder: Path, name: str, *options: str) -> dict[str, float]:
    """What a benchmark measures: measure -> value."""
    output = folder / "rows.json"
    words = [sys.executable, str(BENCHMARKS / f"{name}.py"), *options, "--json", str(output)]
    subprocess.run(words, check=True, capture_output=True)
    return {row["measure"]: row["value"] for row in json.loads(output.read_text())}


SMALLEST = {
    "checkpoints": ("--seconds", "2"),
    "efficiency": ("--seeds", "1", "--budget", "0.1", "--variants", "dcgan-adv", "--override", *SMALL),
    "inception": ("--samples", "30", "--seconds", "1"),
    "growth": ("--batches", "25", "--rounds", "1"),
    "packing": ("--counts", "2", "--levels", "fc3-image", "--rounds", "1"),
    "samplers": ("--problems", "2", "--evaluations", "30"),
    "scale": ("--trials", "2", "--slots", "2", "--seconds", "0.5", "--configs", "2", "--train", "1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_measures_something_at_its_smallest_setting(name, tmp_path):
    rows = measured(tmp_path, name, *SMALLEST[name])
    assert rows
    assert all(math.isfinite(value) for value in rows.values())


@pytest.mark.slow
def test_table_1_goes_on_over_several_calls(tmp_path):
    """The paper's job on the digits: stopped in the middle, it says so, and the next call ends it with its table."""
    small = [*SMALL, "image_level=6400"]
    variants = ["--variants", "sgan-no-joint", "dcgan-adv", "--seeds", "1", "--override", *small, "feature_level=3200"]
    words = [sys.executable, str(BENCHMARKS / "table1.py"), "--store", "store"]
    first = subprocess.run([*words, "--seconds", "3", *variants], cwd=tmp_path, check=False, capture_output=True)
    assert first.returncode == 1, first.stderr
    assert not (tmp_path / "table1.md").exists()
    subprocess.run([*words, *variants], cwd=tmp_path, check=True, capture_output=True)
    text = (tmp_path / "table1.md").read_text()
    assert "2 calls" in text
    assert text.count("| SGAN-no-joint") == 1
    (calls,) = json.loads((tmp_path / "table1.json").read_text()).values()
    assert f"{sum(call['seconds'] for call in calls) / 60:.1f} minutes" in text
