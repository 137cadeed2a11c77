"""Optuna's study of a search: where it is kept, who suggests, which trials are best."""

import json
import os
import statistics
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sgan.checks import ConfigError, content_key
from sgan.store.files import SEAL, StoreError, sealed
from sgan.store.local import Store
from sweeps.optimization.bridge import DONE_WELL, OUTCOME, Among
from sweeps.planning.manifest import without_password

SECONDS = "seconds"
"""User attribute of a study: seconds of wall time that its search has taken so far."""
FEWEST_PEERS = 4
"""Trials that must have ended before one is stopped early."""
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


def open_study(
    place: str | Path,
    store: Store,
    name: str,
    directions: Mapping[str, str],
    sampler: str,
    seed: int,
    grace: int | None,
    first: Mapping[str, Any],
    kept: bool = True,
) -> optuna.Study:
    """The study, made if it is not there; ConfigError where its storage does not answer or is damaged.

    Args:
        place: address of a database, or the path of a journal file in the store.
        directions: score -> "maximize" or "minimize".
        sampler: a name of SAMPLERS.
        grace: stop trials early, none before it has seen so many images in its last training stage; None: never.
        first: the params that are tried first.
        kept: in its storage; otherwise the study is a copy in memory, and what is done to it leaves no trace.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            storage=_storage(place, store) if kept else _copy(place, store, name),
            study_name=name,
            directions=[StudyDirection[way.upper()] for way in directions.values()],
            load_if_exists=True,
        )
    except ConfigError:
        raise
    except Exception as error:  # SQLAlchemy's, the driver's, the file system's and the journal's
        said = " ".join(str(error).split("(Background on")[0].split())[:300]
        raise ConfigError(
            f"Optuna's study cannot be opened at {without_password(str(place))} ({without_password(said)}); "
            + ("" if isinstance(place, str) else f"if it is damaged, {_advice(place)}; or ")
            + "check --study-storage"
        ) from error
    study.sampler = Seeded(SAMPLERS[sampler], seed)
    study.pruner = optuna.pruners.NopPruner()
    if grace is not None:
        study.pruner = Among(optuna.pruners.MedianPruner(FEWEST_PEERS, n_warmup_steps=grace), "split")
    study.enqueue_trial(dict(first), skip_if_exists=True)
    return study


class Seeded(BaseSampler):
    """Suggests each trial's config by a sampler made for it, whose seed is that of the search and the trial's number:
    what is suggested depends on what the study holds alone, so that a search goes on after a kill as it would have.

    Args:
        make: a sampler from its seed.
        seed: the search's.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int):
        self.make, self.seed = make, seed
        self.number, self.sampler = -1, make(seed)

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        if trial.number != self.number:  # asked again for the same trial, it goes on with other numbers
            self.number = trial.number
            self.sampler = self.make(int(content_key([self.seed, trial.number])[:8], 16))
        return self.sampler

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)


class _Kept(JournalFileBackend):
    """A journal that lasts as long as the store in which it lies, waits for room there, and knows its own lines."""

    def __init__(self, path: Path, store: Store):
        super().__init__(str(path))
        self.path, self.store, self.torn = path, store, True
        self._cut()

    def _cut(self) -> None:
        """Cut half a line off, which a power cut or a full disk has left: nothing behind it would be read."""
        self._lock.acquire()
        try:
            whole = self.path.read_bytes().rpartition(b"\n")
            if whole[2]:
                os.truncate(self.path, len(whole[0]) + len(whole[1]))
            self.torn = False
        finally:
            self._lock.release()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = [sealed(json.loads(json.dumps(log))) for log in logs]

        def write() -> None:
            if self.torn:
                self._cut()
            self.torn = True
            super(_Kept, self).append_logs(lines)
            self.torn = False

        self.store.when_there_is_room(write)
        self.store.save(self.path)

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        for log in super().read_logs(log_number_from):
            # Lines of other tools, such as Optuna's dashboard, have no seal.
            if SEAL in log and sealed(log) != log:
                raise StoreError(f"{self.path} is not as it was written; {_advice(self.path)}")
            yield log


def _advice(journal: Path) -> str:
    return f"delete {journal}, and the same command makes the study again from the trials in the store"


def _storage(place: str | Path, store: Store) -> BaseStorage:
    if isinstance(place, str):
        return RDBStorage(place)
    store.fetch(place)
    return JournalStorage(_Kept(place, store))


def _copy(place: str | Path, store: Store, name: str) -> BaseStorage:
    """A storage in memory with a copy of the study, if there is one."""
    memory = InMemoryStorage()
    if isinstance(place, Path):
        store.fetch(place)
    if isinstance(place, str) or place.exists():
        there = _storage(place, store)
        if name in optuna.get_all_study_names(there):
            optuna.copy_study(from_study_name=name, from_storage=there, to_storage=memory)
    return memory


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that have ended."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def mean_seconds(study: optuna.Study) -> float:
    """Mean wall time of the trials that have ended, on their slots; 0 before there are any."""
    took = [each.duration.total_seconds() for each in finished(study) if each.duration]
    return statistics.fmean(took) if took else 0.0


def best_first(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that did not go wrong, best first; with several scores front after front, each by the second score,
    which is FID."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    trials = [trial for trial in trials if trial.user_attrs.get(OUTCOME) == DONE_WELL]
    return [trials[index] for index in order([costs(study.directions, trial.values) for trial in trials])]


def costs(directions: list[StudyDirection], values: list[float]) -> list[float]:
    """Values as costs: less is better in each."""
    signs = [1 if direction == StudyDirection.MINIMIZE else -1 for direction in directions]
    return [sign * value for sign, value in zip(signs, values, strict=True)]


def order(rows: list[list[float]]) -> list[int]:
    """Indices of rows of costs, best first; of several costs Pareto front after front, each by the second."""
    left, found = list(range(len(rows))), []
    if rows and len(rows[0]) == 1:
        return sorted(left, key=lambda index: rows[index])
    while left:
        front = [one for one in left if not any(_dominates(rows[other], rows[one]) for other in left)]
        found += sorted(front, key=lambda index: rows[index][1])
        left = [index for index in left if index not in front]
    return found


def _dominates(one: list[float], other: list[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other
