"""Seconds until a command says something, has planned, and trains.

    python benchmarks/startup.py [--rounds 5] [--what torch help plan stage] [--json FILE]

    torch    Python and torch alone, for comparison
    help     python sweeps/ablation.py --help
    plan     --dry-run of 1,002 trials of the digits, the whole command
    stage    from the command to the first stage that trains, in a new store; once

The first three take turns; the table has medians of the wall time.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from efficiency import ROOT, spans

ABLATION = [str(ROOT / "sweeps" / "ablation.py"), "--dataset", "digits"]
COMMANDS = {
    "torch": ["-c", "import torch"],
    "help": [*ABLATION, "--help"],
    "plan": [*ABLATION, "--seeds", "167", "--dry-run"],
}
STAGE = ["--seeds", "1", "--variants", "dcgan-adv", "--budget", "0.05"]


def wall(words: list[str]) -> float:
    """Seconds of a Python command."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def first_stage() -> float:
    """Seconds until a sweep in a new store has a stage that trains."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        words = [*ABLATION, *STAGE, f"--store={folder}"]
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
        return spans(Path(folder))[0].began - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--what", nargs="+", default=[*COMMANDS, "stage"], choices=[*COMMANDS, "stage"])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    commands = {name: words for name, words in COMMANDS.items() if name in asked.what}
    turns = [{name: wall(words) for name, words in commands.items()} for _ in range(asked.rounds)]
    seconds = {name: statistics.median(turn[name] for turn in turns) for name in commands}
    if "stage" in asked.what:
        seconds["stage"] = first_stage()
    for name, each in seconds.items():
        print(f"{name:<6} {each:6.2f} s")
    if asked.json:
        rows = [{"benchmark": "startup", "measure": name, "value": each, "unit": "s"} for name, each in seconds.items()]
        asked.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
