"""Optuna's own plots of a study, as PNG files."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import optuna
from matplotlib import pyplot
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna.visualization import matplotlib as plots

from sweeps.optimization.objective import DONE
from sweeps.optimization.space import Space
from sweeps.optimization.study import OUTCOME

FEWEST = 2
"""Trials that a plot needs."""
SIZE = (12.0, 5.0)  # inches: parallel coordinates of five params do not fit matplotlib's default


def draw(study: optuna.Study, space: Space, folder: Path, scores: Sequence[str]) -> None:
    """Draw PNG files into a folder: for each score the history, the configs as parallel coordinates, the importance of
    params, and for each split a slice against each weight; with several scores the Pareto front.

    Trials that went wrong count in the importance alone: beside the worst value, all others look the same.
    """
    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)

    def keep(file: str, made: Any) -> None:
        figure = (made if not hasattr(made, "flat") else made.flat[0]).figure
        figure.savefig(folder / f"{file}.png", dpi=80, bbox_inches="tight")
        pyplot.close(figure)

    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    done = [trial for trial in trials if trial.user_attrs[OUTCOME] == DONE]
    if len(done) < FEWEST:
        return
    varied = [name for name in space.distributions if len({trial.params[name] for trial in done}) > 1]
    # Optuna's plots call themselves experimental, and set a style of their own.
    with warnings.catch_warnings(action="ignore"), matplotlib.rc_context({"figure.figsize": SIZE}):
        for index, score in enumerate(scores):
            one = _study(study, done, index)
            options: dict[str, Any] = {"target_name": score}
            keep(f"history-{score}", plots.plot_optimization_history(one, **options))
            if len(varied) > 1:
                keep(f"parallel-{score}", plots.plot_parallel_coordinate(one, params=varied, **options))
            if varied and len({trial.values[index] for trial in trials}) > 1:
                every = _study(study, trials, index)
                keep(f"importance-{score}", plots.plot_param_importances(every, params=varied, **options))
            for split in space.splits:
                mine = [_without_dropped(trial, space) for trial in done if trial.params["split"] == split]
                weights = [name for name in space.weights if any(name in trial.params for trial in mine)]
                if len(mine) >= FEWEST:
                    made = plots.plot_slice(_study(study, mine, index), params=weights, **options)
                    keep(f"slice-{score}-{split}", made)
        if len(scores) > 1:
            keep("pareto-front", plots.plot_pareto_front(study, target_names=list(scores)))


def _study(study: optuna.Study, trials: Sequence[FrozenTrial], index: int) -> optuna.Study:
    """Trials with one of their scores."""
    found = optuna.create_study(direction=study.directions[index])
    found.add_trials(
        create_trial(params=trial.params, distributions=trial.distributions, value=trial.values[index])
        for trial in trials
    )
    return found


def _without_dropped(trial: FrozenTrial, space: Space) -> FrozenTrial:
    """A trial without the weights of losses that it left out: they had no effect."""
    kept = [name for name in trial.params if name not in space.weights or name in space.losses[trial.params["losses"]]]
    return create_trial(
        params={name: trial.params[name] for name in kept},
        distributions={name: trial.distributions[name] for name in kept},
        values=trial.values,
    )
