"""Votes of the visual Turing test (SGAN, section 4.4) in a store: turing/<voter>.jsonl, a line a vote."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import with_config
from scipy.stats import binomtest
from typing_extensions import TypedDict

from sgan.checks import OPEN
from sgan.store.files import inside, sealed, whole_lines, write_text
from sgan.store.local import Store

FOLDER = "turing"


@with_config(OPEN)
class Vote(TypedDict):
    """A vote: the score stage of the model, and whether the image was real and was taken for real."""

    stage: str
    real: bool
    answer: bool


class Tally(NamedTuple):
    """Votes on a model's images and on real ones that were mixed with them."""

    errors: int
    votes: int

    def __str__(self) -> str:
        if not self.votes:
            return "no votes"
        low, high = self.interval()
        return f"error {self.errors / self.votes:.3f} (95 % interval {low:.3f} to {high:.3f}), {self.votes} votes"

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share of errors; there must be a vote."""
        interval = binomtest(self.errors, self.votes).proportion_ci(method="wilson")
        return float(interval.low), float(interval.high)


def keep(store: Store, voter: str, votes: Sequence[Mapping[str, Any]]) -> None:
    """Write all votes of a voter. OSError where the disk does not take it."""
    path = inside(store.root / FOLDER, f"{voter}.jsonl")
    write_text(path, "".join(f"{json.dumps(sealed(vote))}\n" for vote in votes))
    store.save(path)


def read(store: Store, voter: str) -> list[dict[str, Any]]:
    """Return all votes of a voter, without damaged lines."""
    path = inside(store.root / FOLDER, f"{voter}.jsonl")
    store.fetch(path)
    return whole_lines(path, Vote) if path.exists() else []


def results(store: Store) -> dict[str, Tally]:
    """Name of a score stage -> the votes of all voters on its model."""
    store.fetch(store.root / FOLDER)
    found = dict[str, Tally]()
    for path in (store.root / FOLDER).glob("*.jsonl"):
        for vote in whole_lines(path, Vote):
            before = found.get(vote["stage"], Tally(0, 0))
            found[vote["stage"]] = Tally(before.errors + (vote["real"] != vote["answer"]), before.votes + 1)
    return found
