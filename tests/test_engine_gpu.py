"""What a GPU is asked to record, in which order, and, where there is one, that replays equal plain steps.

python -m pytest tests/test_engine_gpu.py -v      # on a machine with a GPU nothing here may be skipped
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from methods.base import Batch, sgd
from methods.schedules import cosine
from tests.test_engine import OPTIMIZERS, batches, net, trained, with_dropout
from workers.engine import Graphs, Stepper, chosen

GPU = torch.device("cuda")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


class FakeStream:
    def __init__(self, name: str, told: list[Any]) -> None:
        self.name, self.told = name, told

    def wait_stream(self, other: FakeStream) -> None:
        self.told.append(f"{self.name} waits for {other.name}")


def test_recording_follows_the_notes_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: three steps of a shape on a side stream with waits on both sides, then a recording on it
    with the rate as a tensor of float32, then replays, none of which calls the loss.
    """
    told: list[Any] = []
    side, current = FakeStream("side", told), FakeStream("current", told)

    @contextmanager
    def on(stream: FakeStream) -> Iterator[None]:
        told.append(f"on {stream.name}")
        yield

    class Graph:
        def replay(self) -> None:
            told.append("replay")

        def pool(self) -> str:
            return "pool"

    @contextmanager
    def recording(
        graph: Graph, pool: str | None, stream: FakeStream, capture_error_mode: str
    ) -> Iterator[None]:
        told.append(f"record on {stream.name}, {capture_error_mode}, {pool}")
        yield

    for name, fake in {"current_stream": lambda _: current, "stream": on, "graph": recording}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([weight], lr=0.5)

    def step(batch: Batch) -> None:
        group = optimizer.param_groups[0]
        told.append(("step", len(batch[0]), group["lr"], group["capturable"]))

    stepper = Stepper(optimizer, step)
    stepper.on_gpu, stepper.stream, stepper.rates = True, side, [torch.zeros((), dtype=torch.float32)]
    for size in (4, 4, 4, 4, 3, 4, 3, 3, 3):
        stepper((torch.ones(size),))
    plain = ("step", 4, 0.5, False)
    warm = ["side waits for current", "on side", plain, "current waits for side"]
    aside = [*warm[:2], ("step", 3, 0.5, False), warm[3]]
    recorded, ragged = (("step", size, stepper.rates[0], True) for size in (4, 3))
    first, second = (f"record on side, thread_local, {pool}" for pool in (None, "pool"))
    full = [*warm * 3, first, recorded, "replay", *aside, "replay"]
    assert told == [*full, *aside * 2, second, ragged, "replay"], "all graphs of a step share their memory"
    assert stepper.rates[0].item() == 0.5


@pytest.mark.parametrize(("body", "told"), [(torch.OutOfMemoryError, "no room"), (KeyError, "invalidated")])
def test_a_recording_that_fails_for_want_of_memory_says_so(
    body: type[Exception], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the end of the recording raises an error of its own."""

    @contextmanager
    def recording(*_: Any, **__: Any) -> Iterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("capture was invalidated")

    def step(_: Batch) -> None:
        raise body("no room")

    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    stepper = Stepper(sgd(net(), 0.1), step)
    stepper.on_gpu = True
    with pytest.raises(RuntimeError, match=told) as error:
        stepper._recorded(())
    assert isinstance(error.value, torch.OutOfMemoryError) == (told == "no room")


@gpu
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_graph_on_a_gpu_equals_plain_steps(optimizer: str) -> None:
    device = torch.device("cuda")
    recorded, plain = net().to(device), net().to(device)
    given = batches((16,) * 5 + (9,), device)
    for model, how in ((recorded, "graphs"), (plain, "eager")):
        trained(model, OPTIMIZERS[optimizer], given, how, schedule=cosine)
    for a, b in zip(recorded.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@gpu
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_graph_serves_three_models(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, record = [], Stepper._recorded
    monkeypatch.setattr(
        Stepper, "_recorded", lambda self, b: (recorded.append(len(b[0])), record(self, b))[1]
    )
    given, graphs = batches((16,) * 5 + (9,), GPU), Graphs()
    for scale in (1.0, 0.5, 2.0):
        model, plain = net().to(GPU), net().to(GPU)
        with torch.no_grad():
            for weight in (*model.parameters(), *plain.parameters()):
                weight.mul_(scale)
        places = [tensor.data_ptr() for tensor in model.state_dict().values()]
        trained(model, OPTIMIZERS[optimizer], given, graphs, schedule=cosine)
        trained(plain, OPTIMIZERS[optimizer], given, "eager", schedule=cosine)
        for a, b in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
        assert [tensor.data_ptr() for tensor in model.state_dict().values()] == places
    assert sorted(recorded) == [9, 16]


@gpu
def test_seeds_reach_the_random_numbers_of_a_replay() -> None:
    """Dropout: models of equal weights are the same for the same seed, others for another one."""
    found, given = [], batches((16,) * 8, GPU)
    with chosen(Graphs()):
        for seed in (1, 1, 2):
            model = with_dropout().to(GPU)
            trained(model, OPTIMIZERS["sgd"], given, None, seed=seed)
            found.append(model[-1].weight.detach().clone())
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)
    assert (found[2] - found[1]).abs().max() > 1e-2


@gpu
def test_memory_of_recordings_is_given_back() -> None:
    graphs, given = Graphs(), batches((4096,) * 5, GPU)
    trained(net().to(GPU), OPTIMIZERS["sgd"], given, graphs)
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved()
    assert graphs.give_up() and torch.cuda.memory_reserved() < held - 2**24
    trained(net().to(GPU), OPTIMIZERS["sgd"], given, graphs)
    assert not graphs.free
