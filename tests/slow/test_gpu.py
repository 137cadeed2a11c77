"""What only a GPU can show (`pytest tests -m gpu`), as far as a CPU can it on a CPU too."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import contents, make_context, run_trial, tiny_plan, tiny_recipe
from test_resume import DEEP

from sgan.stages.run import be_deterministic
from sgan.training import checkpoint
from sweeps.execution import worker
from sweeps.execution.cluster import Slots

ROOT = Path(__file__).parents[2]
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]


@pytest.fixture
def deterministic():
    be_deterministic(True)
    yield
    be_deterministic(False)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_a_deterministic_trial_that_is_stopped_in_every_stage_ends_the_same_bit_for_bit(
    device, deterministic, tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "SPARSE", 0)
    trial = tiny_plan(tiny_recipe(steps=30, evaluations=2), DEEP)

    def context(root: str):
        made = make_context(tmp_path / root)
        return replace(made, data=made.data.to(device), device=device)

    for _ in run_trial(trial, context("quiet")):
        pass
    for label, _ in trial.stages:
        events = run_trial(trial, context("stopped"))
        for reached, progress in events:
            if reached == label and progress.images > 0:
                break
        events.close()
    for _ in run_trial(trial, context("stopped")):
        pass
    assert contents(trial, tmp_path / "stopped") == contents(trial, tmp_path / "quiet")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_stage_that_lacks_a_gpus_memory_says_what_there_is():
    with pytest.raises(torch.OutOfMemoryError) as lacking:
        torch.empty(2**43, dtype=torch.uint8, device="cuda")
    text = worker.out_of_memory(lacking.value, tiny_plan().stages[-2][1], Slots(6, 1, 1 / 6, 1, "here"))
    assert f"capacity of {torch.cuda.mem_get_info()[1] / 2**30:.2f} GiB" in text
    assert "): --trials-per-gpu 3 leaves each stage twice the memory; or change the config" in text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_six_trials_share_a_gpu_under_ray(tmp_path):
    options = ["--dataset", "digits", "--recipe", "laptop", "--seeds", "1", "--budget", "0.05", "--trials-per-gpu", "6"]
    command = [sys.executable, str(ROOT / "sweeps" / "ablation.py"), *options, "--store", str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stdout.count(": done") == 6
