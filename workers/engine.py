"""Engines: how `methods.base.fit` takes the steps of a pure loss. 'eager': one operator after the other.
'graphs': recorded once as a CUDA graph and replayed.

A step of a small net launches hundreds of kernels of some microseconds each, so the host sets the pace. A
CUDA graph holds them all and is launched at once. It reads and writes the addresses it was recorded with:
weights, optimizer state and running statistics stay where they are, batches are copied into buffers, and the
learning rate is a tensor. Recording follows PyTorch's notes on whole-network capture
(https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).

On a CPU the same code runs with the recorded step called in place of a replay, which is how it is tested: it
gains nothing there. Neither 'graphs' nor its memory format has been measured on a GPU, so 'eager' is the
default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn

from methods.base import ENGINE, Batch, Step

WARM_UP = 3  # real steps before a recording: libraries set up and optimizers make their state in them


@cache
def side_stream(device: torch.device) -> Any:
    """The stream of a device on which steps are recorded: one, since libraries keep a workspace for each."""
    return torch.cuda.Stream(device)


class Stepper:
    """Takes the steps of one optimizer: the first as they are, then by replaying a recorded one. Batches that
    are not of the shapes of the first one, as a ragged last one, are taken as they are.

    step: the plain step on a batch, of a pure loss. The host waits for the device once, at the recording.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, step: Step) -> None:
        self.optimizer, self.step = optimizer, step
        self.device = optimizer.param_groups[0]["params"][0].device
        self.on_gpu = self.device.type == "cuda"
        self.stream = side_stream(self.device) if self.on_gpu else None
        self.buffers: Batch = ()
        self.taken = 0
        self.replay: Callable[[], None] | None = None
        # Fused optimizers read a rate of float32; a CPU's take its number out, which float64 keeps exact.
        kind = torch.float32 if self.on_gpu else torch.float64
        self.rates = [torch.zeros((), dtype=kind, device=self.device) for _ in optimizer.param_groups]
        self.filled = [0.0 for _ in self.rates]

    def __call__(self, batch: Batch) -> None:
        if not self.buffers:
            self.buffers = tuple(torch.empty_like(tensor) for tensor in batch)
        if [t.shape for t in batch] != [b.shape for b in self.buffers]:
            self.step(batch)
        elif self.taken < WARM_UP:
            self.taken += 1
            self._step_aside(batch)
        else:
            self.replay = self.replay or self._recorded()
            for buffer, tensor in zip(self.buffers, batch, strict=True):
                buffer.copy_(tensor)
            self._fill_rates()
            self.replay()

    def _step_aside(self, batch: Batch) -> None:
        """A step on the stream that records: what autograd and libraries keep belongs to the stream they ran
        on, and a recording must not wait for another one.
        """
        if not self.on_gpu:
            return self.step(batch)
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            self.step(batch)
        current.wait_stream(self.stream)
        return None

    def _recorded(self) -> Callable[[], None]:
        """What takes a step on the buffers. Recording takes none."""
        if not self.on_gpu:
            return self._step_on_buffers
        graph = torch.cuda.CUDAGraph()
        # Other threads of a worker may use the device meanwhile, hence the mode.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            self._step_on_buffers()
        return graph.replay

    def _step_on_buffers(self) -> None:
        with self._rates_as_tensors():
            self.step(self.buffers)

    @contextmanager
    def _rates_as_tensors(self) -> Iterator[None]:
        """The optimizer as it is recorded; outside it has plain numbers, which schedules set."""
        groups = self.optimizer.param_groups
        kept = [dict(group) for group in groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate
            if "capturable" in group:  # Adam refuses to be recorded without
                group["capturable"] = self.on_gpu
        try:
            yield
        finally:
            for group, before in zip(groups, kept, strict=True):
                group.update(before)

    def _fill_rates(self) -> None:
        for i, group in enumerate(self.optimizer.param_groups):
            if group["lr"] != self.filled[i]:
                self.rates[i].fill_(group["lr"])
                self.filled[i] = group["lr"]


ENGINES: dict[str, Callable[[torch.optim.Optimizer, Step], Step] | None] = {"eager": None, "graphs": Stepper}


@contextmanager
def chosen(name: str) -> Iterator[None]:
    """Inside, `fit` takes its steps by the engine of this name."""
    token = ENGINE.set(ENGINES[name])
    try:
        yield
    finally:
        ENGINE.reset(token)


def checked(name: str) -> str:
    """`name`, or ValueError if there is no such engine."""
    if name not in ENGINES:
        raise ValueError(f"engine: {name!r} is unknown. Allowed: {', '.join(ENGINES)}.")
    return name


def placed(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` on the device, a convolutional net with its channels last: on a CPU, where such nets train and
    score 1.05 to 1.5 times as fast (docs/LOG.md), and for 'graphs' on a GPU, which is not measured. Weights
    are saved contiguous all the same.
    """
    model = model.to(device)
    if device.type == "cpu" or ENGINE.get() is not None:
        return channels_last(model)
    return model


def channels_last(model: nn.Module) -> nn.Module:
    """A net of at least as many convolutions as linear layers with its channels last, in place; others as
    they are.
    """
    convolutions, linear = (
        sum(isinstance(module, kind) for module in model.modules()) for kind in (nn.Conv2d, nn.Linear)
    )
    if convolutions < linear:
        return model
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
