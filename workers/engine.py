"""Engines: how `methods.base.fit` takes the steps of a pure loss. 'eager': one operator after the other.
'graphs': recorded once as a CUDA graph and replayed, for the models of later tasks too.

A step of a small net launches hundreds of kernels of some microseconds each, so the host sets the pace. A
CUDA graph holds them all and is launched at once. It reads and writes the addresses it was recorded with:
weights, optimizer state and running statistics stay where they are, batches are copied into buffers, and the
learning rate is a tensor. Recording follows PyTorch's notes on whole-network capture
(https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).

So a recording is made of a private copy of model, loss and optimizer, and each fit whose step is the same
computation (workers/step_key.py) borrows it: values are copied in, the model's tensors are those of the
recording until the fit ends, and then values are copied back. A step with hooks of its optimizer is recorded
for its fit alone; one of which it cannot be told what it computes is taken operator by operator.

Random numbers of a recorded step are those of torch's own generator at the time of its replay: a replay sets
seed and offset of the graph to the generator's (CUDAGeneratorState::replay_prologue), so seeds have effect.

On a CPU the same code runs with the recorded step called in place of a replay, which is how it is tested: it
gains nothing there. Neither 'graphs' nor its memory format has been measured on a GPU, so 'eager' is the
default.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import ENGINE, Batch, Engine, Loss, Step, plain_step
from workers.step_key import FRESH, CannotTell, has_hooks, key_of, private

WARM_UP = 3  # real steps before a recording: libraries set up and optimizers make their state in them
SHAPES = 8  # of batches for which a step is recorded: full ones, ragged ones, those of several methods
HELD = 24  # recordings that wait for further models: a base and all methods, which follow each other in turn
ROOM = 0.25  # of the memory of the device, whoever uses it: while less is free, fewer recordings wait


@cache
def side_stream(device: torch.device) -> Any:
    """The stream of a device on which steps are recorded: one, since libraries keep a workspace for each."""
    return torch.cuda.Stream(device)


# ---- recorded steps --------------------------------------------------------------------------------------


class Stepper:
    """Takes the steps of one optimizer: for each shape of batch the first ones as they are, then by replaying
    a recorded one.

    step: the plain step on a batch, of a pure loss. The host waits for the device at each recording.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, step: Step) -> None:
        self.optimizer, self.step = optimizer, step
        self.device = optimizer.param_groups[0]["params"][0].device
        self.on_gpu = self.device.type == "cuda"
        self.stream = side_stream(self.device) if self.on_gpu else None
        self.taken: Counter[Hashable] = Counter()
        self.recorded: dict[Hashable, tuple[Batch, Callable[[], None]]] = {}  # buffers, and what replays
        self.pool: Any = None  # of memory for all graphs: nothing in it outlives a replay
        # Fused optimizers read a rate of float32; a CPU's take its number out, which float64 keeps exact.
        kind = torch.float32 if self.on_gpu else torch.float64
        self.rates = [torch.zeros((), dtype=kind, device=self.device) for _ in optimizer.param_groups]
        self.filled: list[float | None] = [None for _ in self.rates]

    def __call__(self, batch: Batch) -> None:
        shape = tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in batch)
        if shape not in self.recorded:
            if self.taken[shape] < WARM_UP or len(self.recorded) == SHAPES:
                self.taken[shape] += 1
                self._step_aside(batch)
                return
            buffers = tuple(torch.empty_like(tensor) for tensor in batch)
            self.recorded[shape] = buffers, self._recorded(buffers)
        buffers, replay = self.recorded[shape]
        for buffer, tensor in zip(buffers, batch, strict=True):
            buffer.copy_(tensor)
        self._fill_rates()
        replay()

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

    def _recorded(self, buffers: Batch) -> Callable[[], None]:
        """What takes a step on the buffers. Recording takes none."""
        if not self.on_gpu:
            return lambda: self._step_on(buffers)
        graph = torch.cuda.CUDAGraph()
        # Other threads of a worker may use the device meanwhile, hence the mode.
        try:
            with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
                self._step_on(buffers)
        except RuntimeError as error:  # that a recording failed hides why
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise error.__context__ from None
            raise
        self.pool = graph.pool()
        return graph.replay

    def _step_on(self, buffers: Batch) -> None:
        with self._rates_as_tensors():
            self.step(buffers)

    @contextmanager
    def _rates_as_tensors(self) -> Iterator[None]:
        """The optimizer as it is recorded; outside it has plain numbers, which schedules set."""
        groups = self.optimizer.param_groups
        kept = [dict(group) for group in groups]
        try:
            for group, rate in zip(groups, self.rates, strict=True):
                group["lr"] = rate
                if "capturable" in group:  # Adam refuses to be recorded without
                    group["capturable"] = self.on_gpu
            yield
        finally:
            for group, before in zip(groups, kept, strict=True):
                group.update(before)

    def _fill_rates(self) -> None:
        for i, group in enumerate(self.optimizer.param_groups):
            if group["lr"] != self.filled[i]:
                self.rates[i].fill_(group["lr"])
                self.filled[i] = group["lr"]


class StepChanged(RuntimeError):
    """A step is not the one that was recorded any more."""


def places_of(tensors: list[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


@contextmanager
def unchanged(key: Hashable, places: list[int], *steps: tuple[Loss, torch.optim.Optimizer]) -> Iterator[None]:
    """StepChanged if by the end one of the steps has not this key, or not its tensors in these places."""

    def check() -> None:
        if not all(_is_step(key, places, *step) for step in steps):
            raise StepChanged(
                "engine graphs: an attribute of the net or an option of the optimizer changed between the"
                " steps of a fit, or a tensor was replaced instead of changed in place, which a recorded"
                " step does not see. Use the engine eager"
            )

    try:
        yield
    except Exception:  # Diverged and the end of a trial are results, which must not be wrong either
        check()
        raise
    check()


def _is_step(key: Hashable, places: list[int], loss: Loss, optimizer: torch.optim.Optimizer) -> bool:
    try:
        own, tensors = key_of(loss, optimizer)
    except CannotTell:
        return False
    return own == key and places_of(tensors) == places


# ---- recordings that one fit after the other borrows -----------------------------------------------------


class Recording:
    """Copies of a loss and an optimizer with what was recorded of their step; CannotTell if they cannot be
    copied.
    """

    def __init__(self, key: Hashable, loss: Loss, optimizer: torch.optim.Optimizer) -> None:
        self.key = key
        self.loss, self.optimizer = private(loss, optimizer)
        self.tensors = key_of(self.loss, self.optimizer)[1]
        self.places = places_of(self.tensors)
        flag = torch.ones((), dtype=torch.bool, device=self.tensors[0].device)
        self.optimizer.__dict__["all_finite"] = flag
        self.stepper = Stepper(self.optimizer, plain_step(self.optimizer, self.loss))

    @contextmanager
    def lent(self, loss: Loss, optimizer: torch.optim.Optimizer, tensors: list[Tensor]) -> Iterator[Step]:
        """What takes the steps of a loss and an optimizer of the same key, which hold these tensors. Inside,
        the tensors have the memory of the recording's; afterwards their own again, with the new values.
        """
        places = [tensor.data for tensor in tensors]
        try:
            self._load(optimizer, tensors)
            with unchanged(self.key, self.places, (self.loss, self.optimizer), (loss, optimizer)):
                yield lambda batch: self._step(optimizer, batch)
        except StepChanged:
            self.key = None  # of no use to others
            raise
        finally:
            self._unload(optimizer, tensors, places)

    def _step(self, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
        for group, other in zip(self.optimizer.param_groups, optimizer.param_groups, strict=True):
            group["lr"] = other["lr"]
        self.stepper(batch)

    @torch.no_grad()
    def _load(self, optimizer: torch.optim.Optimizer, tensors: list[Tensor]) -> None:
        optimizer.zero_grad(set_to_none=True)
        for own, tensor in zip(self.tensors, tensors, strict=True):
            own.copy_(tensor)
            tensor.data = own.data
        for own, parameter in self._parameters(optimizer):
            given, state = optimizer.state.get(parameter, {}), self.optimizer.state[own]
            for name in state.keys() | given.keys():
                if name not in state:
                    state[name] = given[name].clone()
                elif name in given:
                    state[name].copy_(given[name])
                else:
                    state[name].fill_(FRESH[type(optimizer)])
        flag = self.optimizer.__dict__["all_finite"].fill_(True)
        optimizer.__dict__["all_finite"] = flag.logical_and_(optimizer.__dict__.get("all_finite", flag))
        self.stepper.filled = [None for _ in self.stepper.filled]

    @torch.no_grad()
    def _unload(self, optimizer: torch.optim.Optimizer, tensors: list[Tensor], places: list[Tensor]) -> None:
        for tensor, place in zip(tensors, places, strict=True):
            place.copy_(tensor)
            tensor.data = place
        self.optimizer.zero_grad(set_to_none=True)
        for own, parameter in self._parameters(optimizer):
            state = self.optimizer.state[own]
            optimizer.state[parameter] = {name: value.clone() for name, value in state.items()}
        optimizer.__dict__["all_finite"] = self.optimizer.__dict__["all_finite"].clone()

    def _parameters(self, optimizer: torch.optim.Optimizer) -> Iterator[tuple[Tensor, Tensor]]:
        """Each parameter of the recording's optimizer with that of another one in its place."""
        for group, other in zip(self.optimizer.param_groups, optimizer.param_groups, strict=True):
            yield from zip(group["params"], other["params"], strict=True)


class Graphs:
    """The engine 'graphs': lends its recordings, and keeps those returned last."""

    def __init__(self, held: int = HELD) -> None:
        self.held = held
        self.free: list[Recording] = []  # the one returned last is the last
        self.given_up = False

    @contextmanager
    def __call__(self, optimizer: torch.optim.Optimizer, loss: Loss) -> Iterator[Step]:
        """What takes the steps of a fit."""
        if self.given_up:
            yield plain_step(optimizer, loss)
            return
        try:
            key, tensors = key_of(loss, optimizer)
            recording = None if has_hooks(optimizer) else self._taken(key) or Recording(key, loss, optimizer)
        except CannotTell:
            yield plain_step(optimizer, loss)
            return
        if recording is None:
            with unchanged(key, places_of(tensors), (loss, optimizer)):
                yield Stepper(optimizer, plain_step(optimizer, loss))
            return
        try:
            with recording.lent(loss, optimizer, tensors) as step:
                yield step
        finally:
            if recording.key is not None:
                self.free.append(recording)
            self._keep(self.held)

    def _taken(self, key: Hashable) -> Recording | None:
        """A recording of this key that no fit has at the moment."""
        found = next((recording for recording in self.free if recording.key == key), None)
        if found is not None:
            self.free.remove(found)
        return found

    def _keep(self, count: int) -> None:
        """Drop all but so many recordings, the one returned longest ago first, and more for want of room."""
        while len(self.free) > count or (self.free and is_full(self.free[0].stepper.device)):
            dropped = self.free.pop(0).stepper
            on_gpu = dropped.on_gpu
            if on_gpu:
                torch.cuda.synchronize(dropped.device)  # a replay may be under way
            dropped.recorded.clear()
            del dropped  # with the tensors of its step: only what is free goes back
            if on_gpu:
                torch.cuda.empty_cache()

    def give_up(self) -> bool:
        """Drop all recordings and record no more: steps then need no memory but their own. False if that was
        so already.
        """
        if self.given_up:
            return False
        self.given_up = True
        gc.collect()
        self._keep(0)
        return True


def is_full(device: torch.device) -> bool:
    """Whether little of a GPU's memory is free. What this process keeps for itself counts as used."""
    if device.type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info(device)
    return free < ROOM * total


# ---- by name ---------------------------------------------------------------------------------------------

ENGINES = ("eager", "graphs")


def made(name: str) -> Graphs | None:
    """The engine of a name, with no recordings yet; None for 'eager'. ValueError if there is none such."""
    if name not in ENGINES:
        raise ValueError(f"engine: {name!r} is unknown. Allowed: {', '.join(ENGINES)}.")
    return Graphs() if name == "graphs" else None


@contextmanager
def chosen(engine: str | Engine | None) -> Iterator[None]:
    """Inside, `fit` takes its steps by this engine, or by a new one of this name."""
    token = ENGINE.set(made(engine) if isinstance(engine, str) else engine)
    try:
        yield
    finally:
        ENGINE.reset(token)


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
    they are, and those with GroupNorm, which in that format crashes torch 2.11 where layers before it are
    frozen.
    """
    convolutions, linear, group_norms = (
        sum(isinstance(module, kind) for module in model.modules())
        for kind in (nn.Conv2d, nn.Linear, nn.GroupNorm)
    )
    if convolutions < linear or group_norms:
        return model
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
