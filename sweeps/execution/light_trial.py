"""A trial as Tune sees it: a small process without CPU or GPU that follows its stages. It imports Ray alone."""

from typing import Any

import ray
from ray import tune
from ray.actor import ActorHandle


class LightTrial(tune.Trainable):
    """Asks the scheduler of stages where a trial stands until it has ended. It keeps nothing, and has no checkpoints.

    A class, so that one process serves many trials. Results are what `StageScheduler.follow` answers."""

    def setup(self, config: dict[str, Any], scheduler: ActorHandle) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.scheduler, self.trial = scheduler, config["trial"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.trial = new_config["trial"]
        return True

    def step(self) -> dict[str, Any]:
        standing: Any = ray.get(self.scheduler.follow.remote(self.trial))
        return {**standing, "done": "outcome" in standing}
