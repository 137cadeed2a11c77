"""How far a command is: on a terminal a view that lives, elsewhere a line for each trial that changes."""

import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from rich import progress
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from sgan.addresses import masked
from sgan.checks import ConfigError
from sgan.evaluation.measures import LEADING, MEASURES
from sgan.stages.cost import cost
from sgan.stages.graph import Stage, name
from sgan.store.files import lack, write_json
from sgan.store.local import Store
from sweeps.planning.trials import End, Trial, TrialSource, clock

SILENCE = 60.0  # Seconds after which a trial that goes on has a line again
GONE = 5.0  # Seconds after which a stage that no trial reports has ended
REFRESH = 0.2  # Seconds between two pictures of the view, at least
LEADERS = 12  # Rows of the leaderboard
LOSSES = {"class_loss": "loss", "d_adversarial": "D", "g_adversarial": "G", "test_accuracy": "accuracy"}
SHOWN = (LEADING, "inception_score")  # Measures of the leaderboard
SCORES = {"feature_fid": "feature FID", "fid": "FID", "inception_score": "IS"}


@dataclass
class Running:
    """A stage that runs: its bar, the ids of the trials that wait for it, when it was heard of, and its newest losses
    and scores."""

    bar: progress.TaskID
    trials: set[str] = field(default_factory=set)
    heard: float = 0.0
    news: dict[str, float] = field(default_factory=dict)

    @property
    def told(self) -> str:
        """The newest losses and scores in words."""
        names = LOSSES | SCORES
        return "  ".join(f"{names[each]} {self.news[each]:.3g}" for each in names if each in self.news)


class Progress:
    """Shows the progress, and writes a file into the store for a trial that failed.

    Trials that are still to come count as much as the mean of those known. `console`: a terminal gets the view that
    lives."""

    def __init__(self, store: Store, source: TrialSource, console: Console | None = None):
        self.store, self.source = store, source
        self.began, self.ended = time.monotonic(), 0
        self.stages: dict[str, Stage] = {}
        self.shares: dict[str, float] = {}
        self.trials: set[str] = set()
        self.last: dict[str, tuple[str, float]] = {}
        self.running: dict[str, Running] = {}
        self.scores: dict[str, list[Mapping[str, float]]] = {}
        console = console or Console(file=sys.stdout)
        lives = console.is_terminal and not console.is_dumb_terminal
        self.live = Live(console=console, auto_refresh=False, transient=True) if lives else None
        self.drawn = 0.0
        self.bars = progress.Progress(
            progress.TextColumn("{task.description}", table_column=Column(ratio=3, no_wrap=True, overflow="ellipsis")),
            progress.BarColumn(12),
            progress.TaskProgressColumn(),
            progress.TimeRemainingColumn(compact=True),
            progress.TextColumn("{task.fields[told]}", table_column=Column(ratio=4, no_wrap=True, overflow="ellipsis")),
            expand=True,
        )
        for trial in source.finished:
            self._score(trial)
        for trial in source.ahead:
            self.begin(trial)

    def __enter__(self) -> "Progress":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.stop()

    def begin(self, trial: Trial) -> None:
        """Take a trial in."""
        if trial.id not in self.trials:
            self.trials.add(trial.id)
            with suppress(OSError):
                self.store.failure(trial.plan.name).unlink(missing_ok=True)
            new = {name(stage): stage for _, stage in trial.plan.stages if name(stage) not in self.stages}
            self.stages |= {each: stage for each, stage in new.items() if not self.store.has(each)}

    def go_on(self, trial: Trial, result: Mapping[str, Any]) -> None:
        """A trial's stage has gone on, or waits."""
        label, stages, told = result.get("label", ""), dict(trial.plan.stages), ""
        if label:
            self.shares |= {name(stages[each]): 1.0 for each in trial.plan.needs[label]}
            stage, share = name(stages[label]), result.get("share", 0.0)
            if stage not in self.running:
                self.running[stage] = Running(self.bars.add_task(f"{label} {trial.title}", total=1.0, told=""))
            seen = self.running[stage]
            seen.trials.add(trial.id)
            self.shares[stage], seen.heard = share, time.monotonic()
            # Of a joint stage those of the image level are shown.
            metrics = {each.removeprefix("level0/"): value for each, value in result.get("scores", {}).items()}
            seen.news |= {each: value for each, value in metrics.items() if each in LOSSES | SCORES}
            more = f"+{len(seen.trials) - 1}  " if len(seen.trials) > 1 else ""
            self.bars.update(seen.bar, completed=share, told=more + seen.told)
            told = f": {seen.told}" if seen.news else ""
        waiting, blocked = result.get("waiting", ""), result.get("blocked", "")
        what = label or (f"{waiting}: {blocked}" if blocked else f"waits for {waiting}")
        if (blocked or not self.live) and self._is_news(trial.id, what):
            self._line(trial, what + told)
        self._draw()

    def end(self, trial: Trial, end: End) -> None:
        """A trial has ended."""
        self.ended += 1
        self.store.renew()  # a node has finished its stages a moment ago
        self.store.note(f"trial {end.outcome}", trial=trial.title, name=trial.plan.name, reason=end.reason)
        self.shares |= {name(stage): 1.0 for _, stage in trial.plan.stages}
        what = f"{end.outcome}: {end.reason}" if end.reason else end.outcome
        with suppress(OSError):  # a full disk must not end the trials that run
            if end.outcome == "done":
                what = f"done: {self._score(trial)}"
            if end.outcome == "failed":
                content = {"trial": trial.plan.name, "error": end.reason, "time": time.time()}
                write_json(self.store.failure(trial.plan.name), content)
        self._line(trial, what)
        self._draw(now=True)

    def _score(self, trial: Trial) -> str:
        """Take the scores of a finished trial in; returns them in words."""
        facts = self.store.facts(trial.plan.name)
        scores = facts["scores"] if facts["status"] == "done" else {}
        if scores:
            self.scores.setdefault(trial.variant, []).append(scores)
        told = [
            f"{MEASURES[each].heading} {scores[each]:.{MEASURES[each].decimals}f}"
            for each in SHOWN
            if scores.get(each) is not None
        ]
        return ", ".join(told)

    def wait(self, error: OSError | ConfigError) -> None:
        """The store does not let the command go on now."""
        if trouble := lack(error):
            what = f"waiting for the store {masked(self.store.address)} ({trouble.strerror})"
        else:
            what = f"the store is in the way: {error}"
        if self._is_news("", what):
            self.say(what)

    def say(self, text: str) -> None:
        """Print a line of its own."""
        print(f"{clock(time.monotonic() - self.began)} {text}", flush=True)

    def _is_news(self, of: str, what: str) -> bool:
        """Whether a line differs from the last one of its kind, or that is long ago."""
        before, when = self.last.get(of, ("", 0.0))
        if what == before and time.monotonic() - when < SILENCE:
            return False
        self.last[of] = what, time.monotonic()
        return True

    def _standing(self) -> tuple[float, str, str]:
        """The share of the work that is done, the time left, and the number of trials."""
        done = sum(cost(stage) * self.shares.get(each, 0.0) for each, stage in self.stages.items())
        known, spent = max(1, len(self.trials)), time.monotonic() - self.began
        total = sum(map(cost, self.stages.values())) * max(known, self.source.expected) / known
        share = done / max(total, 1e-9)
        left = f"about {clock(spent * (1 - share) / share)} left" if share > 0.02 else "estimating the time left"
        return share, left, f"{self.ended}/{max(self.source.expected, self.ended)} trials"

    def _line(self, trial: Trial, what: str) -> None:
        share, left, count = self._standing()
        if self.live:
            self.say(f"{trial.title}: {what}")
            return
        bar = "█" * round(12 * share) + "░" * (12 - round(12 * share))
        self.say(f"{bar} {share:4.0%}, {left} | {count} | {trial.title}: {what}")

    def _draw(self, now: bool = False) -> None:
        if self.live and (now or time.monotonic() - self.drawn > REFRESH):
            self.drawn = time.monotonic()
            self.live.update(self.view(), refresh=True)

    def view(self) -> RenderableType:
        """The leaderboard, a row a running stage, and a bar for all."""
        now, (share, left, count) = time.monotonic(), self._standing()
        for each in [each for each, seen in self.running.items() if now - seen.heard > GONE or self.shares[each] >= 1]:
            self.bars.remove_task(self.running.pop(each).bar)
        total = Table.grid(Column(ratio=1), Column(no_wrap=True), padding=(0, 1), expand=True)
        spent = clock(now - self.began)
        total.add_row(ProgressBar(total=1.0, completed=share), f"{share:.0%}  {count}  {spent}, {left}")
        return Group(*([self._leaderboard()] if self.scores else []), self.bars.get_renderable(), total)

    def _leaderboard(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for heading in ("finished", "seeds", *(MEASURES[each].heading for each in SHOWN)):
            table.add_column(heading, justify="left" if heading == "finished" else "right", no_wrap=True)
        found = {
            variant: {each: [row[each] for row in rows if row.get(each) is not None] for each in SHOWN}
            for variant, rows in self.scores.items()
        }
        order = sorted(found, key=lambda each: statistics.fmean(found[each][LEADING] or [1e9]))  # lower is better
        for variant in order[:LEADERS]:
            cells = [_spread(found[variant][each], MEASURES[each].decimals) for each in SHOWN]
            table.add_row(Text(variant), str(len(self.scores[variant])), *cells)
        return table


def _spread(values: list[float], decimals: int) -> str:
    """Mean ± standard deviation."""
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{decimals}f}{spread}"
