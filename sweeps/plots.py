"""Optuna's own plots of a study, as PNG files."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

if TYPE_CHECKING:
    from sweeps.space import Space

FEWEST = 2
"""Trials that a plot needs."""


def draw(study: optuna.Study, space: "Space", folder: Path, scores: Sequence[str]) -> list[str]:
    """Draw into a folder: for each score the history, the importance of params, parallel coordinates, and for each
    split with enough trials a slice against each weight; with several scores the Pareto front. Returns the names
    of the files.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    folder.mkdir(parents=True, exist_ok=True)
    names: list[str] = []

    def keep(title: str, made: Any) -> None:
        axes = made if not hasattr(made, "flat") else made.flat[0]
        axes.figure.savefig(folder / f"{title}.png", dpi=100, bbox_inches="tight")
        pyplot.close(axes.figure)
        names.append(f"{title}.png")

    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < FEWEST:
        return names
    varied = [name for name in space.distributions if len({trial.params[name] for trial in done}) > 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optuna.visualization.matplotlib calls itself experimental
        for index, score in enumerate(scores):

            def target(trial: optuna.trial.FrozenTrial, index: int = index) -> float:
                return trial.values[index]

            about: dict[str, Any] = {"target": target, "target_name": score}
            keep(f"history-{score}", plots.plot_optimization_history(study, **about))
            if len(varied) > 1:
                keep(f"parallel-{score}", plots.plot_parallel_coordinate(study, params=varied, **about))
            if varied and len({target(trial) for trial in done}) > 1:
                keep(f"importance-{score}", plots.plot_param_importances(study, params=varied, **about))
            for split in space.splits:
                mine = [trial for trial in done if trial.params["split"] == split]
                if len(mine) >= FEWEST:
                    part = optuna.create_study(directions=study.directions)
                    part.add_trials(mine)
                    keep(f"slice-{score}-{split}", plots.plot_slice(part, params=list(space.weights), **about))
        if len(scores) > 1:
            keep("pareto-front", plots.plot_pareto_front(study, target_names=list(scores)))
    return names
