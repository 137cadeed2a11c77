"""The phases of a training step on a GPU, recorded once as CUDA graphs and then played back.

A step of these networks is hundreds of short kernels, which a GPU finishes faster than Python launches them; a graph is
one launch.
"""

import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

EAGER = 3
"""Each phase runs so many times before it is recorded: libraries set themselves up, and Adam its states."""
Phase = Callable[[], dict[str, Tensor]]
"""Reads and writes tensors that stay in their places, draws from torch's own generators, never waits for the GPU, and
returns scalars."""


@dataclass(frozen=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    names: tuple[str, ...]
    values: Tensor


class Phases:
    """Runs phases: on a CPU as they are, on a GPU as CUDA graphs from their fourth time on.

    A graph draws the numbers that the phase itself would draw after the same seed, and computes with the same kernels.
    What one phase leaves for another, gradients included, lies in memory that all graphs share, so phases that use it
    must follow in the order in which they were recorded.

    Args:
        device: where the phases run.
        graphs: False runs them as they are on a GPU too.
    """

    def __init__(self, device: torch.device, graphs: bool = True):
        self.wanted = graphs and device.type == "cuda"
        self.runs, self.recorded = defaultdict[str, int](int), dict[str, _Recorded]()
        if self.wanted:
            self.stream, self.pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def __call__(self, name: str, phase: Phase) -> dict[str, Tensor]:
        """What the phase of this name returns."""
        if not self.wanted:
            return phase()
        if name not in self.recorded:
            self.runs[name] += 1
            if self.runs[name] <= EAGER:
                return self._aside(phase)
            recorded = self._record(phase)
            if recorded is None:
                return phase()
            self.recorded[name] = recorded
        found = self.recorded[name]
        found.graph.replay()
        return dict(zip(found.names, found.values.clone().unbind(), strict=True))

    def _aside(self, phase: Phase) -> dict[str, Tensor]:
        """The phase on the stream on which it will be recorded."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            report = phase()
        torch.cuda.current_stream().wait_stream(self.stream)
        return report

    def _record(self, phase: Phase) -> _Recorded | None:
        """The phase as a graph, not yet run; None where CUDA cannot record it."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                report = phase()
                values = torch.stack([value.detach().float() for value in report.values()])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.wanted = False
            warnings.warn(f"training goes on without CUDA graphs, slower: {error}", stacklevel=2)
            fresh = torch.Generator(self.stream.device).graphsafe_get_state()  # the old one is in a recording for ever
            torch.cuda.default_generators[self.stream.device.index].graphsafe_set_state(fresh)
            return None
        return _Recorded(graph, tuple(report), values)
