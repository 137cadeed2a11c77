"""The phases of a training step on a GPU, recorded once as CUDA graphs and then played back; and the parts of a phase
that a GPU can do side by side.

A step of these networks is hundreds of short kernels, which a GPU finishes faster than Python launches them; a graph is
one launch. Most of them leave a part of the GPU idle, which another branch of the step can use.
"""

import functools
import itertools
import warnings
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

EAGER = 3
"""Each phase runs at least this often before it is recorded: in these runs, libraries and Adam set themselves up."""
Recorded = tuple[torch.cuda.CUDAGraph, tuple[str, ...], Tensor]  # a phase, and the names and values of its scalars
Phase = Callable[[], dict[str, Tensor]]
"""A part of a step. It reads and writes tensors at fixed addresses, draws from torch's own generators, never waits for
the GPU, and returns scalars."""


@functools.cache
def _streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """The stream of phases and the one beside it. One pair a process, since libraries keep memory for each stream."""
    return torch.cuda.Stream(device), torch.cuda.Stream(device)


class Beside:
    """A second branch of a step. Between `begin` and `join`, calls inside `with beside():` run in parallel with calls
    outside, and so does their backward pass. On a CPU, all calls run in order.

    The inside may read tensors that exist at `begin`. The outside may read the inside's results after `join`. Neither
    side may change tensors that the other one reads."""

    def __init__(self, device: torch.device):
        self.stream = _streams(device)[1] if device.type == "cuda" else None
        if self.stream:  # parameters that both sides use get gradients from two streams, which autograd joins
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)

    def __call__(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self.stream) if self.stream else nullcontext()

    def begin(self) -> None:
        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream())

    def join(self) -> None:
        if self.stream:
            torch.cuda.current_stream().wait_stream(self.stream)


class Phases:
    """Runs phases: on a CPU as they are, on a GPU as CUDA graphs from their fourth time on at the earliest.

    After the same seed, a graph draws the same numbers as the phase itself, and computes with the same kernels. It
    reads an earlier phase's results at the addresses that they had at its recording. Only that phase's graph writes
    there: so phases are recorded in the order of their first calls, and a step must call them in that order.

    Attributes:
        wanted: False runs the phases as they are."""

    def __init__(self, device: torch.device):
        self.wanted, self.beside = device.type == "cuda", Beside(device)
        self.runs, self.recorded = defaultdict[str, int](int), dict[str, Recorded]()
        if self.wanted:
            self.stream, self.pool = _streams(device)[0], torch.cuda.graph_pool_handle()

    def __call__(self, name: str, phase: Phase, instead: Phase | None = None) -> dict[str, Tensor]:
        """Return the result of the phase of this name. `instead`: the phase that runs once after a failed recording,
        where that has used up the phase's input."""
        if not self.wanted:
            return phase()
        if name not in self.recorded:
            self.runs[name] += 1
            earlier = itertools.takewhile(lambda each: each != name, self.runs)
            if self.runs[name] <= EAGER or not all(each in self.recorded for each in earlier):
                return self._aside(phase)
            recorded = self._record(phase)
            if recorded is None:
                return (instead or phase)()
            self.recorded[name] = recorded
        graph, names, values = self.recorded[name]
        graph.replay()
        return dict(zip(names, values.clone().unbind(), strict=True))

    def _aside(self, phase: Phase) -> dict[str, Tensor]:
        """Run the phase on the stream on which it will be recorded."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            report = phase()
        torch.cuda.current_stream().wait_stream(self.stream)
        return report

    def _record(self, phase: Phase) -> Recorded | None:
        """Record the phase as a graph without running it; return None where CUDA cannot record it."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                report = phase()
                values = torch.stack([value.detach().float() for value in report.values()])
        except RuntimeError as error:
            first: BaseException | None = error  # the first error may be the context of later ones
            while first and not isinstance(first, torch.OutOfMemoryError):
                first = first.__context__
            if first:
                raise first from None
            self.wanted, self.beside.stream = False, None  # two streams would keep memory after a failed recording
            self.recorded.clear()
            warnings.warn(f"training goes on without CUDA graphs, slower: {error}", stacklevel=2)
            own = torch.cuda.default_generators[self.stream.device.index]
            fresh = torch.Generator(self.stream.device)  # the old state stays in the recording
            fresh.manual_seed(own.initial_seed())
            own.graphsafe_set_state(fresh.graphsafe_get_state())
            return None
        return graph, tuple(report), values
