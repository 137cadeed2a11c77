"""A trial as Tune sees it: a small process without CPU or GPU that waits for its stages. It imports only Ray."""

from typing import Any

import ray
from ray import tune
from ray.actor import ActorHandle


class LightTrial(tune.Trainable):
    """Asks the `StageScheduler` for the state of its trial until the trial ends. It has no state and no checkpoints.

    It is a class, so that one process serves many trials. Its results are those of `StageScheduler.follow`."""

    def setup(self, config: dict[str, Any], scheduler: ActorHandle) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.scheduler, self.trial = scheduler, config["trial"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.trial = new_config["trial"]
        return True

    def step(self) -> dict[str, Any]:
        standing: Any = ray.get(self.scheduler.follow.remote(self.trial))
        return {**standing, "done": "outcome" in standing}
