"""What makes one model fast on a CPU, measured on one thread: python -m benchmarks.cpu_engine PART

    gather       seconds of a batch gathered, augmented and normalised in steps and in one, and the operators
                 that PyTorch dispatches for it
    formats      training steps with contiguous and with channels_last memory
    compile      training steps eager and compiled, the seconds a first compiled step takes, and after how
                 many models of 20 epochs of 1,200 images these are earned, if every model could use it
    evaluation   images scored per second by size of batch, in inference mode and without, and with contiguous
                 memory
    step         seconds of a whole training step (batch made, forward, backward, update) and the share of
                 each part

But where both are compared, nets have the memory format that workers give them. Seconds are CPU seconds,
which a busy machine changes least. The last line printed is JSON, a list of rows.
`--only NAME` restricts to an architecture.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from methods.base import descend, sgd
from workers.architectures import architecture
from workers.data import Arrays, DeviceDataset, View
from workers.engine import placed
from workers.run_task import generator

CPU = torch.device("cpu")
SHAPES = {"digits": (1, 8, 0, False), "cifar": (3, 32, 4, True)}  # channels, size, padding, whether mirrored
CASES = (
    ("cnn_small", "digits", 64),
    ("vit_tiny", "digits", 64),
    ("cnn_small", "cifar", 64),
    ("resnet18", "cifar", 64),
    ("resnet18", "cifar", 256),
    ("resnet18_cifar", "cifar", 64),
    ("tinyvit11m", "cifar", 64),
)
DEMO_IMAGES = 20 * 1200  # what a base of the digits demonstration trains on, epochs times samples
Row = dict[str, Any]


class Counter(TorchDispatchMode):
    """Counts operators that launch work: views do not."""

    VIEWS = ("view", "unfold", "slice", "select", "expand", "unsqueeze", "permute", "alias", "detach")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, given: tuple[Any, ...] = (), named: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if name not in self.VIEWS:
            self.names.append(name)
        return function(*given, **(named or {}))


def dataset(shape: str, count: int = 4096) -> DeviceDataset:
    """Random pixels of a shape."""
    channels, size, pad, flip = SHAPES[shape]
    plugin = type("Random", (), {"name": shape, "num_classes": 10, "augment_pad": pad, "augment_flip": flip})
    plugin.mean, plugin.std = (0.5,) * channels, (0.25,) * channels  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, channels, size, size)).astype(np.uint8)
    labels = rng.integers(0, 10, count)
    return DeviceDataset(plugin, Arrays(images[:-2], labels[:-2], images[-2:], labels[-2:]), CPU)


def race(ways: list[Callable[[], object]], seconds: float = 8.0, least: int = 4) -> list[float]:
    """The least CPU seconds of a call of each way, in turns: what else the machine does strikes all alike."""
    found: list[list[float]] = [[] for _ in ways]
    for work in ways:
        work()
    end = time.perf_counter() + seconds
    while len(found[0]) < least or time.perf_counter() < end:
        for work, times in zip(ways, found, strict=True):
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
    return [min(times) for times in found]


def gather(_: str) -> Iterator[Row]:
    for shape, size in (("digits", 64), ("cifar", 64), ("cifar", 256)):
        data, rng = dataset(shape), generator(0, CPU)
        ids = torch.randint(len(data), (size,))
        ways: list[Callable[[], object]] = [
            lambda d=data, i=ids, r=rng: d.normalised(d.augmented(d.gather(i)[0], r)),
            lambda d=data, i=ids, r=rng: d.gather_augmented(i, r),
        ]
        counts = []
        for work in ways:
            with Counter() as counter:
                work()
            counts.append(len(counter.names))
        stepwise, once = (round(seconds * 1e6) for seconds in race(ways, 2.0, 20))
        facts: Row = {"shape": shape, "batch": size, "stepwise_us": stepwise, "at_once_us": once}
        yield facts | {"stepwise_operators": counts[0], "at_once_operators": counts[1]}


def trainer(
    name: str, shape: str, size: int, last: bool | None, compiled: bool = False
) -> Callable[[], None]:
    """A training step of an architecture on a fixed batch; last: channels_last memory, None: as workers have
    it.
    """
    channels, pixels, *_ = SHAPES[shape]
    torch.manual_seed(0)
    model = architecture(name).build(10, channels, pixels).train()
    images, labels = torch.randn(size, channels, pixels, pixels), torch.randint(10, (size,))
    if last is None:
        model = placed(model, CPU)
    elif last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = sgd(model, 0.01, 0.9, 5e-4)
    run: Any = torch.compile(model) if compiled else model
    return lambda: descend(optimizer, cross_entropy(run(images), labels))


def formats(only: str) -> Iterator[Row]:
    for name, shape, size in CASES:
        if only in ("", name):
            plain, last = race([trainer(name, shape, size, way) for way in (False, True)])
            rates = {"contiguous": round(size / plain, 1), "channels_last": round(size / last, 1)}
            yield {
                "architecture": name,
                "shape": shape,
                "batch": size,
                **rates,
                "gain": round(plain / last, 3),
            }


def compile(only: str) -> Iterator[Row]:
    for name, shape, size in CASES:
        if only not in ("", name):
            continue
        torch.compiler.reset()
        step = trainer(name, shape, size, None, compiled=True)
        before = os.times()
        step()
        after = os.times()
        first = sum(after[:4]) - sum(before[:4])  # of this process and of compilers it waited for
        eager, fast = race([trainer(name, shape, size, None), step])
        saved = (eager - fast) * DEMO_IMAGES / size
        yield {
            "architecture": name,
            "shape": shape,
            "batch": size,
            "eager": round(size / eager, 1),
            "compiled": round(size / fast, 1),
            "gain": round(eager / fast, 3),
            "first_step_s": round(first, 1),
            "first_step_wall_s": round(after.elapsed - before.elapsed, 1),
            "models_to_break_even": round(first / saved, 1) if saved > 0 else None,
        }


def evaluation(only: str) -> Iterator[Row]:
    for name, shape in dict.fromkeys((name, shape) for name, shape, _ in CASES):
        if only not in ("", name):
            continue
        channels, pixels, *_ = SHAPES[shape]
        plain, data = architecture(name).build(10, channels, pixels).eval(), dataset(shape)
        model = placed(deepcopy(plain), CPU)
        images = data.normalised(data.images[:2048])

        def scored(size: int, mode: Any, model: Any = model, images: Tensor = images) -> Tensor:
            with mode():
                return torch.cat([model(part) for part in images.split(size)])

        sizes = (2048, 1024, 512, 256, 128, 64, 32)
        ways = [partial(scored, size, torch.inference_mode) for size in sizes]
        others = {"256, no_grad": partial(scored, 256, torch.no_grad)}
        others |= {
            f"{size}, contiguous": partial(scored, size, torch.inference_mode, plain) for size in (256, 2048)
        }
        seconds = race([*ways, *others.values()], 8.0, 1)
        whole = ways[0]()
        row: Row = {"architecture": name, "shape": shape}
        for size, way in zip(sizes, ways, strict=True):
            row[f"{size} differs by"] = float((way() - whole).abs().max())
        yield row | {str(k): round(len(images) / s) for k, s in zip((*sizes, *others), seconds, strict=True)}


def step(only: str) -> Iterator[Row]:
    for name, shape, size in CASES:
        if only not in ("", name):
            continue
        channels, pixels, *_ = SHAPES[shape]
        data = dataset(shape)
        model = placed(architecture(name).build(10, channels, pixels).train(), CPU)
        view = View(data, np.arange(size * 8), generator(0, CPU), augment=True)
        optimizer, batches = sgd(model, 0.01, 0.9, 5e-4), iter(())
        spent = dict.fromkeys(("gather", "forward", "backward and update"), 0.0)
        steps = 0
        end = time.perf_counter() + 4.0
        while steps < 4 or time.perf_counter() < end:
            marks = [time.process_time()]
            batch: Any = next(batches, None)
            if batch is None:
                batches = view.batches(size)
                continue
            marks.append(time.process_time())
            loss: Tensor = cross_entropy(model(batch[0]), batch[1])
            marks.append(time.process_time())
            descend(optimizer, loss)
            marks.append(time.process_time())
            steps += 1
            for part, a, b in zip(spent, marks[:-1], marks[1:], strict=True):
                spent[part] += b - a
        total = sum(spent.values())
        shares = {part: round(seconds / total, 3) for part, seconds in spent.items()}
        yield {
            "architecture": name,
            "shape": shape,
            "batch_size": size,
            "ms": round(total / steps * 1e3, 2),
            **shares,
        }


PARTS = {"gather": gather, "formats": formats, "compile": compile, "evaluation": evaluation, "step": step}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--only", default="", help="an architecture")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for row in PARTS[given.part](given.only):
        print(row, flush=True)
        rows.append(row)
    print(json.dumps(rows))
