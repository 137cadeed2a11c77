"""Predicted against actual seconds of the stages that a search has run, by kind.

python benchmarks/plan.py [the options of the search, --store included]

The prediction is made now, so the machine should be as busy as it was then.
"""

import tyro

from sgan.stages.cost import seconds_per_unit
from sgan.stages.graph import LevelStage, cost
from sgan.store.s3 import open_store
from sweeps.optimization.phases import SearchRun
from sweeps.optimization.search_options import Search
from sweeps.planning.basis import prepare


def main(search: Search) -> None:
    store = open_store(search.store)
    basis = prepare(search, 0)
    run = SearchRun(search, basis, store, 1)
    trials = [run.trial(row["number"], row["params"]) for row in run.replay().rows]
    rate = seconds_per_unit(next(iter(run.templates.values())), basis.data, "cpu")
    stages = {each: stage for one in trials for each, (_, stage) in zip(one.plan.names, one.plan.stages, strict=True)}
    kinds: dict[str, list[tuple[float, float]]] = {}
    for name, stage in stages.items():
        if store.has(name):
            kind = f"level of {stage.level.low}" if isinstance(stage, LevelStage) else stage.kind
            kinds.setdefault(kind, []).append((rate * cost(stage), store.facts(name)["seconds"]))
    kinds["all"] = [pair for pairs in kinds.values() for pair in pairs]
    print(f"| {'Stage':<15} | Predicted (s) | Actual (s) | n  |\n|{'-' * 17}|---------------|------------|----|")
    for kind, pairs in kinds.items():
        predicted, actual = (sum(each) for each in zip(*pairs, strict=True))
        print(f"| {kind:<15} | {predicted:<13.2f} | {actual:<10.2f} | {len(pairs):<2} |")


if __name__ == "__main__":
    main(tyro.cli(Search))
