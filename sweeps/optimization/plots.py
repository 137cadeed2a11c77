"""Plots of a study as PNG files: what Optuna knows and a store does not."""

import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import optuna
from matplotlib import pyplot
from matplotlib.axes import Axes
from optuna.importance import get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna.visualization import matplotlib as plots

from sweeps.optimization.objective import DONE
from sweeps.optimization.space import Space
from sweeps.optimization.study import OUTCOME

FEWEST = 2
"""Trials that a plot needs."""
RESAMPLES = 100
"""Bootstrap samples of the trials: how sure an importance is."""
SIZE = (5.0, 3.6)  # inches, to be read on a phone


def draw(study: optuna.Study, space: Space, folder: Path, scores: Sequence[str]) -> None:
    """Draw PNG files into a folder: for each score the importance of params with its uncertainty, and with several
    scores the Pareto front. Trials that went wrong count, with the worst values."""
    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)

    def keep(file: str, made: Any) -> None:
        figure = (made if not hasattr(made, "flat") else made.flat[0]).figure
        figure.savefig(folder / f"{file}.png", dpi=100, bbox_inches="tight")
        pyplot.close(figure)

    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    done = [trial for trial in trials if trial.user_attrs[OUTCOME] == DONE]
    if len(done) < FEWEST:
        return
    varied = [name for name in space.distributions if len({trial.params[name] for trial in done}) > 1]
    # Optuna's plots call themselves experimental, and set a style of their own.
    with warnings.catch_warnings(action="ignore"), matplotlib.rc_context({"figure.figsize": SIZE}):
        for index, score in enumerate(scores):
            if varied and len({trial.values[index] for trial in trials}) > 1:
                keep(f"importance-{score}", _importance(study, trials, index, varied))
        if len(scores) > 1:
            keep("pareto-front", plots.plot_pareto_front(study, target_names=list(scores)))


def _importance(study: optuna.Study, trials: Sequence[FrozenTrial], index: int, params: list[str]) -> Axes:
    """The share of a score's variance that each param explains (PED-ANOVA), with the 90 % interval of resampled trials:
    a search of few trials says little."""
    found, rng = get_param_importances(_study(study, trials, index), params=params), random.Random(0)
    drawn = [_study(study, rng.choices(trials, k=len(trials)), index) for _ in range(RESAMPLES)]
    again = [get_param_importances(one, params=params) for one in drawn if len({t.value for t in one.trials}) > 1]
    names = sorted(found, key=lambda name: found[name])
    _, axes = pyplot.subplots()
    axes.barh(names, [found[name] for name in names], color="#56B4E9")
    for place, name in enumerate(names):
        axes.hlines(place, *np.quantile([each.get(name, 0.0) for each in again], (0.05, 0.95)), color="black")
    axes.set_xlabel("share of the variance explained; line: 90 % of resampled searches")
    axes.set_xlim(0, 1)
    return axes


def _study(study: optuna.Study, trials: Sequence[FrozenTrial], index: int) -> optuna.Study:
    """Trials with one of their scores."""
    found = optuna.create_study(direction=study.directions[index])
    found.add_trials(
        create_trial(params=trial.params, distributions=trial.distributions, value=trial.values[index])
        for trial in trials
    )
    return found
