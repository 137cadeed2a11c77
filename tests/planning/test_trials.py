"""The order in which a sweep's trials start: on a model of slots that train their trials' stages, each once."""

import heapq
import shutil
from pathlib import Path

import pytest

from sgan.stages.graph import name
from sgan.store.local import Store
from sweeps.planning.ablation_options import Sweep
from sweeps.planning.ablation_plan import resolve
from sweeps.planning.trials import Trial, ended, in_order, missing, work


def played(order: list[Trial], slots: int) -> tuple[float, float]:
    """Wall and waiting, in units of `work`, where each slot takes the next trial and trains its first stage that is
    ready and that nobody trains."""
    taken, finished, waited = set[str](), dict[str, float](), 0.0
    free = [(0.0, slot, [], 0.0) for slot in range(slots)]  # when, which, what its trial still needs, since when idle
    heapq.heapify(free)
    queue = list(order)
    while free:
        now, slot, stages, _ = heapq.heappop(free)
        stages = [stage for stage in stages if finished.get(name(stage), now + 1) > now]
        if not stages:
            if queue:
                heapq.heappush(free, (now, slot, [stage for _, stage in queue.pop(0).plan.stages], now))
            continue
        done = {each for each, when in finished.items() if when <= now}
        mine = next(
            (s for s in stages if name(s) not in taken and done.issuperset(name(parent) for parent in s.parents)), None
        )
        if mine is None:
            until = min(when for when in finished.values() if when > now)
            waited += until - now
            heapq.heappush(free, (until, slot, stages, now))
        else:
            taken.add(name(mine))
            finished[name(mine)] = now + work(mine)
            heapq.heappush(free, (now + work(mine), slot, stages, now))
    return max(finished.values()), waited


def trials(seeds: int, *variants: str) -> list[Trial]:
    sweep = Sweep(seeds=seeds, variants=variants) if variants else Sweep(seeds=seeds)
    return list(resolve(sweep, gpus=0).trials)


def test_two_slots_are_busy_to_the_end(tmp_path: Path):
    some = trials(10)
    needed = {name(stage): work(stage) for trial in some for _, stage in trial.plan.stages}
    wall, waited = played(in_order(some, Store(tmp_path), 2), 2)
    assert sum(needed.values()) / (2 * wall) > 0.98
    assert waited / (2 * wall) < 0.01


def test_two_trials_that_need_two_levels_train_one_each(tmp_path: Path):
    order = in_order(trials(1, "sgan", "sgan-no-joint"), Store(tmp_path), 2)
    plan = {label: work(stage) for label, stage in order[0].plan.stages}
    longest = plan["encoder"] + max(plan["level0"], plan["level1"]) + plan["joint"] + plan["score"]
    assert played(order, 2)[0] == pytest.approx(max(longest, plan["scorer"] - plan["encoder"] + longest))


def test_a_finished_trial_makes_a_stage_again_that_was_deleted(tmp_path: Path):
    store, (one,) = Store(tmp_path), trials(1, "sgan")
    for _, stage in one.plan.stages:
        store.begin(name(stage))
        store.publish(name(stage), {"status": "done"})
    assert ended(one, store)
    level = dict(one.plan.stages)["level1"]
    shutil.rmtree(store.stage(name(level)))
    assert not ended(one, store)
    assert missing([one], store) == {name(level): level}


def test_the_longest_way_starts_first_however_many_slots_there_are(tmp_path: Path):
    some = trials(3)
    chain = sum(work(stage) for label, stage in in_order(some, Store(tmp_path), 18)[0].plan.stages)
    for slots in (4, 8, 12, 18):
        needed = {name(stage): work(stage) for trial in some for _, stage in trial.plan.stages}
        wall, _ = played(in_order(some, Store(tmp_path), slots), slots)
        assert wall < 1.15 * max(chain, sum(needed.values()) / slots)
