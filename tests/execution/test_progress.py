"""What a command shows: a view that lives on a terminal, lines elsewhere, and neither ends the command."""

import io
import time

import pytest
from conftest import tiny_plan, tiny_recipe
from rich.console import Console

from sgan.config import Variant, Weights
from sgan.evaluation.measures import MEASURES
from sgan.stages.graph import Plan, name
from sgan.store.local import Store
from sweeps.execution.progress import Progress
from sweeps.planning.trials import ListSource, Trial

VARIANTS = {"sgan": Variant(("fc3",), Weights(), joint=True), "dcgan-adv-cond-ent": Variant((), Weights(), joint=False)}
LOSSES = {"level0/d_adversarial": 1.214, "level0/g_adversarial": 0.933, "level1/d_adversarial": 9.0}


def started(root, console: Console, seeds: int = 3) -> tuple[Progress, dict[str, Trial]]:
    """Six trials: of seed 0, the DCGAN has finished before, and sgan runs its joint stage."""
    store, trials = Store(root), {}
    for variant, row in VARIANTS.items():
        for seed in range(seeds):
            plan = tiny_plan(tiny_recipe(), row, seed)
            trials[f"{variant}-{seed}"] = made(variant, seed, plan)
    finish(store, trials["dcgan-adv-cond-ent-0"])
    progress = Progress(store, ListSource(list(trials.values()), store), console)
    scores = {**LOSSES, "fid": 12.34, "inception_score": 9.5}
    progress.go_on(trials["sgan-0"], {"label": "joint", "share": 0.0, "scores": {}})
    progress.go_on(trials["sgan-0"], {"label": "joint", "share": 0.5, "scores": scores})
    progress.go_on(trials["sgan-2"], {"label": "encoder", "share": 0.25, "scores": {"class_loss": 0.5}})
    progress.go_on(trials["dcgan-adv-cond-ent-2"], {"label": "encoder", "share": 0.25, "scores": {"class_loss": 0.5}})
    return progress, trials


def made(variant: str, seed: int, plan: Plan) -> Trial:
    stages = [{"label": label, "name": name(stage)} for label, stage in plan.stages]
    record = {"run": f"{variant}-{seed}", "name": plan.name, "stages": stages}
    return Trial(variant, seed, None, plan, record)  # type: ignore[arg-type]


def finish(store: Store, trial: Trial) -> None:
    for stage in trial.plan.names:
        store.begin(stage)
        store.publish(stage, {"status": "done", "reason": None, "kind": "score"})


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=40, _environ={"TERM": "xterm"})


def shown(progress: Progress, width: int) -> list[str]:
    plain = Console(file=io.StringIO(), width=width, color_system=None)
    plain.print(progress.view())
    return plain.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_view_has_a_row_a_running_stage_the_leaderboard_and_one_bar(width: int, tmp_path):
    progress, trials = started(tmp_path, terminal(width))
    progress.end(trials["dcgan-adv-cond-ent-0"], "done", "", {"fid": 31.0, "inception_score": 9.0})
    progress.end(trials["dcgan-adv-cond-ent-1"], "done", "", {"fid": 33.0, "inception_score": 9.0})
    heading, leader, *stages, total = lines = shown(progress, width)
    assert max(map(len, lines)) <= width
    assert heading.split() == ["finished", "seeds", "FID", "Inception", "score"]
    fid, score = (MEASURES[each].decimals for each in ("fid", "inception_score"))
    spreads = [f"{32:.{fid}f}", "±", f"{2**0.5:.{fid}f}", f"{9:.{score}f}", "±", f"{0:.{score}f}"]
    assert leader.split() == ["dcgan-adv-cond-ent", "2", *spreads]
    assert [line.split()[0] for line in stages] == ["joint", "encoder"]
    assert "50%" in stages[0]
    assert "D 1.21" in stages[0]
    assert "FID 12.3" in stages[0]
    assert "25%" in stages[1]
    assert "2/5 trials" in total


def test_a_terminal_gets_the_view_and_a_line_a_trial_that_ends(tmp_path, capsys):
    console = terminal(100)
    progress, trials = started(tmp_path, console)
    with progress.live:
        progress.end(trials["sgan-0"], "failed", "no memory", {})
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "sgan seed 0: failed: no memory" in text
    assert "\x1b[" in text


def test_elsewhere_there_is_a_line_a_change(tmp_path, capsys):
    progress, trials = started(tmp_path, Console(file=io.StringIO(), width=80))
    progress.end(trials["sgan-0"], "diverged", "level0: g is nan", {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[2] for line in lines] == [
        "sgan seed 0: joint",
        "sgan seed 2: encoder: loss 0.5",
        "dcgan-adv-cond-ent seed 2: encoder: loss 0.5",
        "sgan seed 0: diverged: level0: g is nan",
    ]
    assert all("%, " in line for line in lines)


def test_a_trial_ends_of_which_a_score_is_missing(tmp_path, capsys):
    progress, trials = started(tmp_path, Console(file=io.StringIO(), width=80))
    progress.end(trials["sgan-0"], "done", "", {"fid": None, "inception_score": 9.0})
    assert capsys.readouterr().out.splitlines()[-1].endswith("| sgan seed 0: done: Inception score 9.00")


def test_the_time_left_does_not_count_the_start_of_processes(tmp_path, monkeypatch):
    """A minute passes before the first stage runs; a quarter of the only one then takes ten seconds."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    plan = tiny_plan(tiny_recipe(), VARIANTS["sgan"], 0)
    trial = made("sgan", 0, plan)
    store = Store(tmp_path)
    for each in plan.names[:-1]:
        store.begin(each)
        store.publish(each, {"status": "done", "reason": None, "kind": "level"})
    progress = Progress(store, ListSource([trial], store), Console(file=io.StringIO(), width=100))
    now[0] += 60
    progress.go_on(trial, {"label": "score", "share": 0.0})
    now[0] += 10
    progress.go_on(trial, {"label": "score", "share": 0.25})
    assert "25%" in shown(progress, 100)[-1]
    assert "0:01:10, about 0:00:30 left" in shown(progress, 100)[-1]


def test_two_lines_that_alternate_are_told_once(tmp_path, capsys):
    """A stage whose holder is dead is held and free in turn until its claim has expired."""
    progress, trials = started(tmp_path, Console(file=io.StringIO(), width=80))
    capsys.readouterr()
    for blocked in 5 * ("another process trains it", ""):
        progress.go_on(trials["sgan-1"], {"label": "", "waiting": "encoder", "blocked": blocked})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[2] for line in lines] == [
        "sgan seed 1: encoder: another process trains it",
        "sgan seed 1: waits for encoder",
    ]
