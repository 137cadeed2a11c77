"""The progress of a command: a live view on a terminal, otherwise a line for each change of a trial."""

import math
import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from rich import progress
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from sgan.addresses import masked
from sgan.checks import ConfigError
from sgan.evaluation.measures import LEADING, MEASURES
from sgan.stages.graph import Stage, cost, name
from sgan.store.files import lack, write_json
from sgan.store.local import Store
from sweeps.planning.trials import Trial, TrialSource, clock, missing

SILENCE = 60.0  # Seconds between two lines on the same state of a trial, at least
REFRESH = 0.2  # Seconds between two updates of the view, at least
ESTIMABLE = 5.0  # Seconds of training after which the time left is estimated
LEADERS = 12  # Rows of the leaderboard
SHOWN = (LEADING, "inception_score")  # Measures of the leaderboard
NEWS = {
    "class_loss": "loss",
    "d_adversarial": "D",
    "g_adversarial": "G",
    "test_accuracy": "accuracy",
    "feature_fid": "feature FID",
    "fid": "FID",
    "inception_score": "IS",
}
"""Losses and scores that a running stage shows, in this order, and their short names."""


class Progress:
    """Shows the progress, and writes a failure file into the store for each failed trial.

    Each trial that is still to come counts as much work as the mean of the known ones. `live` is the view on a
    terminal, and shows nothing elsewhere."""

    def __init__(self, store: Store, source: TrialSource, console: Console | None = None):
        self.store, self.source = store, source
        self.began, self.ended, self.drawn = time.monotonic(), 0, 0.0
        self.stages_began = 0.0  # when the first stage began: the time left is estimated from then
        self.stages: dict[str, Stage] = {}
        self.shares: dict[str, float] = {}
        self.trials: set[str] = set()
        self.last: dict[tuple[str, str], float] = {}
        self.current: dict[str, str] = {}  # trial id -> the stage of it that runs
        self.rows: dict[str, progress.TaskID] = {}  # stage -> its bar
        self.news: dict[str, dict[str, float]] = {}  # stage -> its newest losses and scores
        self.scores: dict[str, list[Mapping[str, float]]] = {}
        console = console or Console(file=sys.stdout)
        self.lives = console.is_terminal and not console.is_dumb_terminal
        self.bars = progress.Progress(
            progress.TextColumn("{task.description}", table_column=Column(ratio=4, no_wrap=True, overflow="ellipsis")),
            progress.TextColumn("seed {task.fields[seed]}", table_column=Column(no_wrap=True)),  # tells rows apart
            progress.BarColumn(12 if console.width >= 100 else 5),
            progress.TaskProgressColumn(),
            progress.TimeRemainingColumn(compact=True),
            progress.TextColumn("{task.fields[told]}", table_column=Column(ratio=5, no_wrap=True, overflow="ellipsis")),
            expand=True,
        )
        for trial in source.ahead:
            self.begin(trial)
        self.live = Live(console=console, auto_refresh=False, transient=True, get_renderable=self.view)

    def begin(self, trial: Trial) -> None:
        if trial.id not in self.trials:
            self.trials.add(trial.id)
            with suppress(OSError):
                self.store.failure(trial.plan.name).unlink(missing_ok=True)
            with suppress(OSError, ConfigError):  # a store in trouble must not end the command
                self.stages |= missing([trial], self.store)

    def go_on(self, trial: Trial, result: Mapping[str, Any]) -> None:
        """Show that a trial's stage has made progress, or waits; `result` is one of `StageScheduler.follow`."""
        label, blocked, self.current[trial.id] = result["label"], result.get("blocked", ""), ""
        told = self._row(trial, label, result) if label else ""
        what = label or (f"{result['waiting']}: {blocked}" if blocked else f"waits for {result['waiting']}")
        if (blocked or not self.lives) and self._is_news(trial.id, what):
            self._line(trial, f"{what}: {told}" if told else what)
        self._draw()

    def _row(self, trial: Trial, label: str, result: Mapping[str, Any]) -> str:
        """Update the row of a running stage; returns its losses and scores in words."""
        self.stages_began = self.stages_began or time.monotonic()
        running = dict(trial.plan.stages)[label]
        self.shares |= {name(each): 1.0 for each in trial.plan.needs(running)}
        stage = self.current[trial.id] = name(running)
        if stage not in self.rows:
            self.rows[stage] = self.bars.add_task(f"{label} {trial.variant}", total=1.0, seed=trial.seed, told="")
        self.shares[stage], news = result.get("share", 0.0), self.news.setdefault(stage, {})
        # A joint stage shows the values of its image level.
        news |= {each.removeprefix("level0/"): value for each, value in result.get("scores", {}).items()}
        told = "  ".join(f"{word} {news[each]:.3g}" for each, word in NEWS.items() if each in news)
        self.bars.update(self.rows[stage], completed=self.shares[stage], told=told)
        return told

    def end(self, trial: Trial, outcome: str, reason: str, scores: Mapping[str, Any]) -> None:
        self.ended += 1
        self.current.pop(trial.id, None)
        self.store.renew()  # another node may just have finished its stages
        self.store.note(f"trial {outcome}", trial=trial.title, name=trial.plan.name, reason=reason)
        self.shares |= {name(stage): 1.0 for _, stage in trial.plan.stages}
        what = f"{outcome}: {reason}" if reason else outcome
        if outcome == "done":
            self.scores.setdefault(trial.variant, []).append(scores)
            shown = [(MEASURES[each], scores[each]) for each in SHOWN if scores.get(each) is not None]
            what = f"done: {', '.join(f'{of.heading} {score:.{of.decimals}f}' for of, score in shown)}"
        if outcome == "failed":
            with suppress(OSError):  # a store in trouble must not end the running trials
                content = {"trial": trial.plan.name, "error": reason, "time": time.time()}
                write_json(self.store.failure(trial.plan.name), content)
        self._line(trial, what)

    def wait(self, error: OSError | ConfigError) -> None:
        """Say that the command waits, because the store has this error."""
        what = f"waiting because of the store: {error}"
        if trouble := lack(error):
            what = f"waiting for the store {masked(self.store.address)} ({trouble.strerror})"
        if self._is_news("", what):
            self.say(what)

    def say(self, text: str) -> None:
        print(f"{clock(time.monotonic() - self.began)} {text}", flush=True)
        self._draw(now=True)

    def _is_news(self, of: str, what: str) -> bool:
        """Whether this line about a trial was not printed in the last SILENCE seconds; two lines may alternate."""
        now = time.monotonic()
        news = now - self.last.get((of, what), -math.inf) > SILENCE
        if news:
            self.last[of, what] = now
        return news

    def _standing(self) -> tuple[float, str, str]:
        """The finished share of the work, and in words the time left and the number of trials."""
        done = sum(cost(stage) * self.shares.get(each, 0.0) for each, stage in self.stages.items())
        trials, spent = max(1, len(self.trials)), time.monotonic() - self.stages_began
        total = sum(map(cost, self.stages.values())) * max(trials, self.source.expected) / trials
        share = done / max(total, 1e-9)
        known = share > 0.02 and spent > ESTIMABLE
        left = f"about {clock(spent * (1 - share) / share)} left" if known else "estimating the time left"
        return share, left, f"{self.ended}/{max(self.source.expected, self.ended)} trials"

    def _line(self, trial: Trial, what: str) -> None:
        share, left, count = self._standing()
        self.say(f"{'' if self.lives else f'{share:4.0%}, {left} | {count} | '}{trial.title}: {what}")

    def _draw(self, now: bool = False) -> None:
        if self.lives and (now or time.monotonic() - self.drawn > REFRESH):
            self.drawn = time.monotonic()
            self.live.refresh()

    def view(self) -> Group:
        """The leaderboard, a row for each running stage, and a bar for all work."""
        now, (share, left, count) = time.monotonic(), self._standing()
        for each in self.rows.keys() - self.current.values():
            self.bars.remove_task(self.rows.pop(each))
        total = Table.grid(Column(ratio=1), Column(no_wrap=True), padding=(0, 1), expand=True)
        spent = clock(now - self.began)
        total.add_row(ProgressBar(total=1.0, completed=share), f"{share:.0%}  {count}  {spent}, {left}")
        return Group(*([self._leaderboard()] if self.scores else []), self.bars.get_renderable(), total)

    def _leaderboard(self) -> Table:
        headings = ("seeds", *(MEASURES[each].heading for each in SHOWN))
        right = [Column(each, justify="right", no_wrap=True) for each in headings]
        table = Table("finished", *right, box=None, padding=(0, 2, 0, 0))

        def values(variant: str, measure: str) -> list[float]:
            return [row[measure] for row in self.scores[variant] if row.get(measure) is not None]

        order = sorted(self.scores, key=lambda each: statistics.fmean(values(each, LEADING) or [1e9]))  # low is better
        for variant in order[:LEADERS]:
            cells = [_spread(values(variant, each), MEASURES[each].decimals) for each in SHOWN]
            table.add_row(Text(variant), str(len(self.scores[variant])), *cells)
        return table


def _spread(values: list[float], decimals: int) -> str:
    """Mean ± standard deviation."""
    spread = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{decimals}f}{spread}" if values else "–"
