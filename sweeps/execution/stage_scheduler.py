"""Runs each stage of a sweep once: an actor holds the graph of stages, and Ray runs those that are ready as tasks.

A stage is ready when all stages that it needs have finished. The one with the most work left in its trial starts first.
The actor never trains: it submits tasks, takes their results, and answers the trials that follow it.

Every process that has a handle of the actor imports this file, and Ray pickles the classes that the annotations of its
methods name. So that a trial's process is light, the file imports no torch, and its annotations stay text.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import NodeDiedError, RayError

from sgan.stages.graph import KINDS, Stage, cost, name
from sgan.store.files import StoreError, lack
from sgan.store.local import Store
from sgan.store.s3 import open_store
from sweeps.planning.trials import Trial

if TYPE_CHECKING:
    from sweeps.execution.cluster import Slots

RETRIES = 3  # Restarts of a stage that dies or raises, without a newer checkpoint between them
MOST_STARTS = 20  # A stage starts this many times at most, even if its nodes die
TICK = 1.0  # Seconds between two checks of waiting stages, and between two answers to a trial
POLL = 0.1  # Seconds between two looks whether a trial that is followed has ended
ROOM_WAIT = 3.0  # Seconds until a stage whose store was full starts again: long enough for its trials to say so
GRACE, LONGEST_STEP = 5.0, 60.0  # Seconds that a stopped score stage (it has no steps), and any other, have to end


@dataclass
class Node:
    """A stage in the graph, with the judge (the stage that scores it while it trains), the names of the stages that it
    `needs`, the ids of the `trials` that need it, and the last `progress` that its process reported.

    `status`: unknown (whether the store has it), waiting, held (by another process), full (the store has no room for
    it), running, done, diverged or failed; `reason`: why it is held, full, diverged or failed; `scores`: those of a
    finished stage; `ended`: when its task last ended (time.monotonic). `attempts` are its failures since its checkpoint
    last moved, without those of a node that died."""

    stage: Stage
    judge: Stage
    needs: tuple[str, ...]
    trials: set[str] = field(default_factory=set)
    status: str = "unknown"
    reason: str = ""
    scores: dict[str, Any] = field(default_factory=dict)
    ended: float = 0.0
    attempts: int = 0
    starts: int = 0
    checkpoint: str = ""
    task: ray.ObjectRef | None = None
    progress: dict[str, Any] = field(default_factory=dict)

    def end(self, result: dict[str, Any]) -> None:
        """Take the result of a task (`run_stage_under_claim`), or the facts of a stage that the store has."""
        self.status, self.reason = result["status"], result.get("reason") or ""
        self.scores = result.get("scores") or {}


class StageScheduler:
    """The actor, for the store at `address`. Threads access the store: a slow one delays no answer to a trial.
    `run_stage_task`: the remote function of a stage's task."""

    def __init__(self, address: str, slots: Slots, run_stage_task: Any):
        self.address, self.slots, self.run_stage_task = address, slots, run_stage_task
        self.job: Any = None
        # Opened as soon as possible: the actor may be restarted while its disk is in trouble.
        self.store: Store = None  # pyright: ignore[reportAttributeAccessIssue]
        self.nodes: dict[str, Node] = {}
        self.trials: dict[str, Trial] = {}
        self.followed: set[str] = set()
        self.running: set[asyncio.Task[None]] = set()
        self.changed = asyncio.Event()
        self.stopping, self.trouble = False, ""
        self.loop = asyncio.ensure_future(self._schedule())

    async def add(self, trial: Trial, job: list[ray.ObjectRef]) -> None:
        """Add a trial to the graph. `job`: a list with one reference to the `Job` of every stage; in a list Ray passes
        the reference itself. Every call has it, since a restarted actor might no longer find it."""
        (self.job,) = job
        if trial.id in self.trials:
            return
        self.trials[trial.id] = trial
        for _, stage in trial.plan.stages:
            needs = tuple(map(name, trial.plan.needs(stage)))
            self.nodes.setdefault(name(stage), Node(stage, trial.plan.score.judge, needs)).trials.add(trial.id)
        self.changed.set()

    async def follow(self, trial_id: str) -> dict[str, Any]:
        """The state of a trial, after TICK seconds or as soon as it ends.

        Returns:
            `label` and `share` (0 to 1) of the running stage, with the `scores` of its last evaluation; or `waiting`,
            the label of the stage that the trial waits for, and `blocked`, why it cannot start; at the end `outcome`,
            `reason` and final `scores`; or `lost` if a restarted actor does not know the trial."""
        self.followed.add(trial_id)
        until = time.monotonic() + TICK
        while trial_id in self.trials:
            standing = self._standing(self.trials[trial_id])
            if "outcome" in standing or time.monotonic() > until:
                return standing
            await asyncio.sleep(POLL)
        await asyncio.sleep(TICK)
        return {"lost": True}

    async def leave(self, trial_id: str) -> None:
        """Forget a trial that has ended or is stopped, and stop the stages that only it needs."""
        self.trials.pop(trial_id, None)
        self.followed.discard(trial_id)
        for stage_name, node in list(self.nodes.items()):
            node.trials.discard(trial_id)
            if not node.trials and not node.task:
                del self.nodes[stage_name]
        self.changed.set()

    async def report(self, stage_name: str, progress: dict[str, Any]) -> bool:
        """Take the progress that a stage's process reports; returns whether the stage is to go on."""
        node = self.nodes.get(stage_name)
        if node is None or self.stopping or not node.trials:
            return False
        node.progress |= progress
        return True

    async def stop(self) -> None:
        """Stop all stages, and wait until they have: each ends its step and leaves a checkpoint."""
        self.stopping = True
        self.changed.set()
        for node in self.nodes.values():
            if node.task and not node.progress:  # it has not begun
                ray.cancel(node.task)
        for seconds, kinds in ((GRACE, ("score",)), (LONGEST_STEP - GRACE, KINDS)):
            if self.running:
                await asyncio.wait(self.running, timeout=seconds)
            for node in self.nodes.values():
                if node.task and node.stage.kind in kinds:
                    ray.cancel(node.task, force=True)

    async def _schedule(self) -> None:
        while not self.stopping:
            try:
                await self._start_ready()
                self.trouble = ""
            except Exception as error:  # of the store: it is asked again
                self.trouble = str(error)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), TICK)
            self.changed.clear()

    async def _start_ready(self) -> None:
        self.store = self.store or await asyncio.to_thread(open_store, self.address)
        for stage_name, node in list(self.nodes.items()):
            if node.status in ("unknown", "held", "full"):
                await self._look(stage_name, node)
        ways = self._ways()
        # Trials that Tune has started come first: they end, and others take their places.
        first = {each: (not node.trials & self.followed, -ways[each]) for each, node in self.nodes.items()}
        for stage_name in sorted(filter(self._is_ready, self.nodes), key=first.__getitem__):
            if len(self.running) >= self.slots.count:
                return
            held = await asyncio.to_thread(self.store.held, stage_name)
            if self.stopping or not self._is_ready(stage_name):  # both may have changed
                continue
            node = self.nodes[stage_name]
            if held:
                node.status, node.reason = "held", "another process trains it"
                continue
            task = self.run_stage_task.options(num_cpus=self.slots.cpus, num_gpus=self.slots.gpus, name=stage_name)
            me = ray.get_runtime_context().current_actor
            node.task, node.status, node.progress = task.remote(self.job, node.stage, node.judge, me), "running", {}
            end = asyncio.ensure_future(self._finish(stage_name, node))
            self.running.add(end)
            end.add_done_callback(self.running.discard)

    def _is_ready(self, stage_name: str) -> bool:
        node = self.nodes.get(stage_name)
        waits = node and node.trials and node.status == "waiting"
        return bool(node and waits and all(self.nodes[need].status == "done" for need in node.needs))

    def _ways(self) -> dict[str, float]:
        """Cost of each stage and of the costliest path from it to a trial's end. Stages come after their needs."""
        ways = dict.fromkeys(self.nodes, 0.0)
        for stage_name, node in reversed(self.nodes.items()):
            ways[stage_name] += cost(node.stage)
            for need in filter(ways.__contains__, node.needs):
                ways[need] = max(ways[need], ways[stage_name])
        return ways

    async def _finish(self, stage_name: str, node: Node) -> None:
        """Wait for the end of a stage's task, and record its result."""
        assert node.task is not None
        try:
            result = await node.task
        except (RayError, asyncio.CancelledError) as error:
            result = await self._after_crash(stage_name, node, error)
        node.task, node.ended = None, time.monotonic()
        node.end(result)
        if not node.trials:
            self.nodes.pop(stage_name, None)
        self.changed.set()

    async def _after_crash(self, stage_name: str, node: Node, error: BaseException) -> dict[str, str]:
        """Status and reason of a stage whose process died or raised. It starts again unless it has failed more than
        RETRIES times without a newer checkpoint; a node's death is no failure."""
        if self.stopping or not node.trials:
            return {"status": "waiting"}
        with suppress(Exception):  # of the store
            checkpoint = await asyncio.to_thread(self.store.checkpoint, stage_name)
            if checkpoint != node.checkpoint:
                node.checkpoint, node.attempts = checkpoint, 0
        node.starts += 1
        node.attempts += not isinstance(error, NodeDiedError)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[-1] if "Traceback" in str(error) or "ray::" in lines[0] else lines[0]
        if node.attempts > RETRIES or node.starts >= MOST_STARTS:
            return {"status": "failed", "reason": reason}
        self.store.note("stage retried", stage=stage_name, reason=reason)
        return {"status": "waiting"}

    async def _look(self, stage_name: str, node: Node) -> None:
        """Check whether a stage has finished, here or elsewhere, or is still held by another process."""
        try:
            if await asyncio.to_thread(self.store.has, stage_name):
                node.end(await asyncio.to_thread(self.store.facts, stage_name))
                return
            if node.status == "full" and time.monotonic() < node.ended + ROOM_WAIT:
                return
            if node.status != "held" or not await asyncio.to_thread(self.store.held, stage_name):
                # If the store had no room, the next start shows whether it has some now.
                node.status, node.reason = "waiting", ""
        except StoreError as error:
            if lack(error):
                raise
            node.status, node.reason = "failed", str(error)

    def _standing(self, trial: Trial) -> dict[str, Any]:
        """The state of a trial, as `follow` returns it."""
        waiting: dict[str, str] = {}
        for (label, _), stage_name in zip(trial.plan.stages, trial.plan.names, strict=True):
            node = self.nodes[stage_name]
            if node.status in ("diverged", "failed"):
                reason = f"{label}: {node.reason}" if node.status == "diverged" else node.reason
                return {"outcome": node.status, "reason": reason, "scores": {}}
            if node.status == "running" and node.progress:
                return {"label": label, **node.progress}
            if node.status != "done":
                waiting[label] = node.reason
        if not waiting:
            return {"outcome": "done", "reason": "", "scores": self.nodes[trial.plan.name].scores}
        label = next(filter(waiting.get, waiting), next(iter(waiting)))
        return {"label": "", "waiting": label, "blocked": waiting[label] or self.trouble}
