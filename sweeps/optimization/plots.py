"""Optuna's own plots of a study, as PNG files."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import optuna
from matplotlib import pyplot
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna.visualization import matplotlib as plots

from sweeps.optimization.objective import DONE
from sweeps.optimization.space import Space
from sweeps.optimization.study import OUTCOME

FEWEST = 2
"""Trials that a plot needs."""
SIZE = (12.0, 5.0)  # inches: parallel coordinates of five params do not fit matplotlib's default


def draw(study: optuna.Study, space: Space, folder: Path, scores: Sequence[str]) -> list[str]:
    """Draw into a folder: for each score the history, the importance of params, parallel coordinates, and for each
    split with enough trials a slice against each weight; with several scores the Pareto front. Trials that went wrong
    count in the importance alone: beside the worst value, which they are told as, all others look the same. Returns the
    names of the files.
    """
    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    names: list[str] = []

    def keep(file: str, made: Any, title: str) -> None:
        axes = made if not hasattr(made, "flat") else made.flat[0]
        for place in ("left", "center"):
            axes.set_title("", loc=place)
        axes.figure.suptitle(title)
        axes.figure.savefig(folder / f"{file}.png", dpi=80, bbox_inches="tight")
        pyplot.close(axes.figure)
        names.append(f"{file}.png")

    told = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    done = [trial for trial in told if trial.user_attrs.get(OUTCOME) == DONE]
    if len(done) < FEWEST:
        return names
    varied = [name for name in space.distributions if len({trial.params[name] for trial in done}) > 1]
    # Optuna's plots call themselves experimental, and set a style of their own.
    with warnings.catch_warnings(action="ignore"), matplotlib.rc_context({"figure.figsize": SIZE}):
        for index, score in enumerate(scores):
            alone = _study([study.directions[index]], done, [index])
            keep(f"history-{score}", plots.plot_optimization_history(alone, target_name=score), f"{score}: history")
            if len(varied) > 1:
                made = plots.plot_parallel_coordinate(alone, params=varied, target_name=score)
                for bar in [axes for axes in made.figure.axes[1:] if axes.get_ylabel() == score]:
                    bar.set_position(bar.get_position().translated(0.15, 0.0))  # beside the names of the splits
                keep(f"parallel-{score}", made, f"{score}: configs")
            if varied and len({trial.values[index] for trial in told}) > 1:
                every = _study([study.directions[index]], told, [index])
                made = plots.plot_param_importances(every, params=varied, target_name=score)
                keep(f"importance-{score}", made, f"{score}: importance of each param")
            for split in space.splits:
                mine = [_without_dropped(trial, space) for trial in done if trial.params["split"] == split]
                weights = [name for name in space.weights if any(name in trial.params for trial in mine)]
                if len(mine) >= FEWEST:
                    made = plots.plot_slice(
                        _study([study.directions[index]], mine, [index]), params=weights, target_name=score
                    )
                    keep(f"slice-{score}-{split}", made, f"{score} against each weight, split {split}")
        if len(scores) > 1:
            front = _study(study.directions, done, range(len(scores)))
            keep("pareto-front", plots.plot_pareto_front(front, target_names=list(scores)), "Pareto front")
    return names


def _study(directions: list[StudyDirection], trials: Sequence[FrozenTrial], indices: Sequence[int]) -> optuna.Study:
    """Trials with some of their scores: given all of several, Optuna's plots of one colour the best ones white."""
    found = optuna.create_study(directions=directions)
    for trial in trials:
        values = [trial.values[index] for index in indices]
        found.add_trial(create_trial(params=trial.params, distributions=trial.distributions, values=values))
    return found


def _without_dropped(trial: FrozenTrial, space: Space) -> FrozenTrial:
    """A trial without the weights of losses that it left out: what the sampler said of them had no effect."""
    kept = [name for name in trial.params if name not in space.weights or name in space.losses[trial.params["losses"]]]
    return create_trial(
        params={name: trial.params[name] for name in kept},
        distributions={name: trial.distributions[name] for name in kept},
        values=trial.values,
    )
