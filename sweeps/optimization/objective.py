"""What a search optimises: an SGAN's trial as the bridge's objective, and what a trial that has ended is told as."""

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

from sgan.evaluation.alarms import COLLAPSED as COLLAPSED_CLASSES
from sgan.evaluation.alarms import alarms
from sgan.stages.graph import name
from sgan.store.local import Store
from sgan.store.record import read_record
from sgan.store.s3 import open_store
from sweeps.execution.worker import REPORT_SECONDS, Job
from sweeps.optimization.bridge import COLLAPSED, DIVERGED, FAILED, OUTCOME, Outcome, Point
from sweeps.optimization.space import Space
from sweeps.planning.trials import Trial, trial

OBJECTIVES = {
    "inception-score": {"inception_score": "maximize"},
    "fid": {"fid": "minimize"},
    "pareto": {"inception_score": "maximize", "fid": "minimize", "diversity": "maximize"},
}
"""Of each objective the scores and their directions."""
FLOOR = {"inception_score": 1.0, "fid": 500.0, "diversity": 0.0}
"""The worst value of each score: told for a trial that diverged or collapsed. 1 is the least Inception score there is;
an FID has no worst value, and 500 is beyond what noise scores."""


@dataclass(frozen=True)
class SganObjective:
    """Trains and scores a config: the bridge's objective.

    Attributes:
        scores: what is told of a score stage, in the order of the study's directions.
        early: yield the score at every evaluation of the last training stage.
    """

    space: Space
    job: Job
    seed: int
    scores: tuple[str, ...]
    early: bool

    def trial(self, params: Mapping[str, Any], number: int) -> Trial:
        """The trial of the study's config of this number."""
        return trial(variant(number), self.seed, self.space.config(dict(params), self.seed))

    def __call__(self, params: Mapping[str, Any]) -> Generator[Any, None, Outcome]:
        mine, store, told = self.trial(params, 0), open_store(self.job.store), set()
        last_label, last = mine.plan.stages[-2]
        # Who may stop a trial early looks at every point.
        for result in self.job.results(mine, 0.0 if self.early else REPORT_SECONDS):
            if result.get(OUTCOME) == FAILED:
                return Outcome((), FAILED, result["reason"])
            if result.get(OUTCOME) is None:
                yield result
            if self.early and result.get("label") == last_label:
                for line in read_record(store.work(name(last))):
                    score = line["metrics"].get(self.scores[0])
                    if score is not None and line["images"] > 0 and line["images"] not in told:
                        told.add(line["images"])
                        yield Point(line["images"], score)
        found = outcome(mine, store, self.scores)
        assert found is not None
        return found


def variant(number: int) -> str:
    """The name of the study's config of this number, as a row of a table."""
    return f"config-{number}"


def outcome(trial: Trial, store: Store, scores: tuple[str, ...]) -> Outcome | None:
    """What a trial that has ended is told as; None where it has not."""
    for _, stage in trial.plan.stages:
        if store.has(name(stage)) and store.facts(name(stage))["status"] == "diverged":
            return Outcome((), DIVERGED, store.facts(name(stage))["reason"])
    if not store.has(trial.plan.name):
        return None
    found = store.facts(trial.plan.name)["scores"]
    # Inception score does not see that a class repeats itself: searched by it alone, such configs would win.
    collapsed = alarms({COLLAPSED_CLASSES: found.get(COLLAPSED_CLASSES, 0.0)})
    if collapsed:
        return Outcome((), COLLAPSED, collapsed[0])
    values = {score: found.get(score) if found.get(score) is not None else math.nan for score in scores}
    if "diversity" in values:
        values["diversity"] = min(values["diversity"], 1.0)  # as diverse as real data is enough
    return Outcome(tuple(values.values()))
