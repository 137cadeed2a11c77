"""Runs every benchmark with short settings, at most ten minutes in all, and writes what they measured into one table.

python benchmarks/all.py [--output bench.md] [--only training_step packing ...]
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from sgan.stages.run import machine

SETTINGS = {
    "startup": ["--rounds", "3"],
    "training_step": ["--rounds", "3"],
    "growth": ["--rounds", "2"],
    "packing": ["--counts", "4", "16", "--rounds", "3"],
    "checkpoints": ["--seconds", "25"],
    "samplers": ["--problems", "8"],
    "scale": ["--trials", "10", "100", "--train", "10"],
    "efficiency": ["--seeds", "1"],
}
"""Benchmark -> arguments."""
LONGEST = 240.0
"""Seconds after which a benchmark is given up."""


def run(name: str, folder: Path) -> tuple[list[dict], str]:
    """The rows of a benchmark, and what went wrong, if anything did."""
    output = folder / f"{name}.json"
    command = [sys.executable, str(Path(__file__).parent / f"{name}.py"), *SETTINGS[name], "--json", str(output)]
    try:
        done = subprocess.run(command, timeout=LONGEST, stderr=subprocess.PIPE, text=True, check=False)
    except subprocess.TimeoutExpired:
        return [], f"gave no result in {LONGEST:.0f} s"
    if done.returncode:
        return [], (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return json.loads(output.read_text()), ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("bench.md"))
    parser.add_argument("--only", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    asked = parser.parse_args()
    began, failed = time.monotonic(), 0
    lines = [
        f"{date.today()}, {machine('cpu')}, Python {platform.python_version()}",
        "",
        "| benchmark | measure | value | unit |",
        "|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.only:
            print(f"== {name} {' '.join(SETTINGS[name])}", flush=True)
            rows, wrong = run(name, Path(folder))
            failed += bool(wrong)
            lines += [f"| {row['benchmark']} | {row['measure']} | {row['value']:.4g} | {row['unit']} |" for row in rows]
            lines += [f"| {name} | not measured: {wrong} | | |"] if wrong else []
    asked.output.write_text("\n".join(lines) + "\n")
    print(f"{asked.output}: {len(lines) - 4} rows in {time.monotonic() - began:.0f} s")
    return failed


if __name__ == "__main__":
    sys.exit(main())
