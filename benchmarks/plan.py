"""Predicted against actual seconds of the stages that a search has run, by kind.

python benchmarks/plan.py [the options of the search, --store included]

The prediction is made now, so the machine should be as busy as it was then.
"""

import statistics

import tyro

from sgan.stages.graph import LevelStage, name, plan
from sgan.store.s3 import open_store
from sweeps.execution import cluster
from sweeps.execution import scheduler as schedule
from sweeps.optimization.phases import Running
from sweeps.optimization.study import finished
from sweeps.planning.basis import prepare
from sweeps.search import Search


def main(search: Search) -> None:
    store = open_store(search.store)
    cluster.connect()
    slots = cluster.slots(search.slots, search.trials_per_gpu)
    basis = prepare(search, slots.all_gpus)
    running = Running(search, basis, search.space(basis), store, slots)
    trials = [running.explored(each) for each in finished(running.open())]
    seconds, start = schedule.measure([one.config for one in trials], basis.data, slots, basis.inception_weights)
    stages = {name(stage): stage for one in trials for _, stage in plan(one.config).stages if store.has(name(stage))}
    kinds: dict[str, list[str]] = {}
    for stage_name, stage in stages.items():
        kind = f"level of {stage.low}" if isinstance(stage, LevelStage) else stage.kind
        kinds.setdefault(kind, []).append(stage_name)
    print(f"| {'Stage':<15} | Predicted (s) | Actual (s) | n  |\n|{'-' * 17}|---------------|------------|----|")
    for kind, names in kinds.items():
        means = [
            statistics.fmean(each)
            for each in zip(*((seconds[n], store.facts(n)["seconds"]) for n in names), strict=True)
        ]
        print(f"| {kind:<15} | {means[0]:<13.2f} | {means[1]:<10.2f} | {len(names):<2} |")
    print(f"Workers took {start:.1f} s to start.")


if __name__ == "__main__":
    main(tyro.cli(Search))
