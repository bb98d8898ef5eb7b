"""Several models at once on one device: python -m benchmarks.several --device cpu

Training steps (forward, backward, SGD with momentum) on fixed random batches, by three ways:

    processes   one for each model, as `--actors-per-gpu` has it; on a GPU with MPS if the user started it
    threads     one for each model, on a GPU with a stream each; `--engine graphs` replays CUDA graphs
    vectorised  parameters of all models stacked, one batched program (torch.func.vmap) for all of them

A CPU uses one thread for each process or thread. The last line printed is JSON:

    device, torch, cores, mps (whether CUDA_MPS_PIPE_DIRECTORY is set), engine, batch_size
    rows    model, way, n (models at once), images_per_s (all models together), ratio (to the first row
            of the model: by default one model in one process)
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from methods.base import descend, precision, sgd
from workers.architectures import architecture
from workers.engine import ENGINES, Stepper

Step = Callable[[], None]
SHAPES = {"mlp": (1, 8), "cnn_small": (1, 8), "resnet18": (3, 32)}  # channels and size of the images
WIDTH = 128  # of the perceptron's two hidden layers
WARM_UP = 4  # steps before the clock starts: libraries load, graphs are recorded


def build(name: str, seed: int, device: torch.device) -> nn.Module:
    torch.manual_seed(seed)
    channels, size = SHAPES[name]
    if name != "mlp":
        model: nn.Module = architecture(name).build(10, channels, size)
        return model.to(device).train()
    layers = [nn.Linear(channels * size**2, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(WIDTH, 10)).to(device)


def batch(name: str, seed: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    channels, pixels = SHAPES[name]
    images = torch.randn(size, channels, pixels, pixels, generator=draw)
    return images.to(device), torch.randint(10, (size,), generator=draw).to(device)


def single(name: str, seed: int, size: int, device: torch.device, engine: str) -> Step:
    """A training step of one model."""
    model, given = build(name, seed, device), batch(name, seed, size, device)
    optimizer = sgd(model, 0.01, 0.9, 5e-4)

    def plain(given: tuple[Tensor, ...]) -> None:
        with precision(device):
            value = cross_entropy(model(given[0]), given[1])
        descend(optimizer, value)

    take = Stepper(optimizer, plain) if engine == "graphs" else plain
    return lambda: take(given)


class Stacked:
    """A training step of several models at once. Each has its own weights, batch, and, where it has any,
    running statistics, which `vmap` updates in the stack; dropped paths are drawn for each model.
    """

    def __init__(self, name: str, n: int, size: int, device: torch.device) -> None:
        self.device, models = device, [build(name, seed, device) for seed in range(n)]
        self.parameters, self.buffers = stack_module_state(models)  # type: ignore[arg-type]
        self.skeleton = models[0].to("meta")
        given = [batch(name, seed, size, device) for seed in range(n)]
        self.images, self.labels = (torch.stack(parts) for parts in zip(*given, strict=True))
        on_gpu = device.type == "cuda"
        values = list(self.parameters.values())
        self.optimizer = torch.optim.SGD(values, lr=0.01, momentum=0.9, weight_decay=5e-4, fused=on_gpu)

    def __call__(self) -> None:
        def loss(parameters: Any, buffers: Any, images: Tensor, labels: Tensor) -> Tensor:
            logits = functional_call(self.skeleton, (parameters, buffers), (images,))
            return cross_entropy(logits, labels)

        with precision(self.device):
            each = vmap(loss, randomness="different")(self.parameters, self.buffers, self.images, self.labels)
        descend(self.optimizer, each.sum())  # the gradient of a sum is each model's own


# ---- the clock -------------------------------------------------------------------------------------------


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def rate(step: Step, images: int, seconds: float, device: torch.device) -> float:
    """Images per second of a step on so many images."""
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds or steps < 2:
        step()
        steps += 1
        if device.type == "cuda" and steps % 16 == 0:
            wait(device)  # the host must not run ahead of its clock
    wait(device)
    return steps * images / (time.perf_counter() - start)


def warm(step: Step, device: torch.device) -> None:
    for _ in range(WARM_UP):
        step()
    wait(device)


def child(seed: int, name: str, given: argparse.Namespace, barrier: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    device = torch.device(given.device)
    step = single(name, seed, given.batch_size, device, given.engine)
    warm(step, device)
    barrier.wait()
    answers.put(rate(step, given.batch_size, given.seconds, device))


def processes(name: str, n: int, given: argparse.Namespace) -> float:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(n), context.Queue()
    started = [context.Process(target=child, args=(seed, name, given, barrier, answers)) for seed in range(n)]
    for process in started:
        process.start()
    found = sum(answers.get(timeout=600) for _ in started)
    for process in started:
        process.join()
    return found


def threads(name: str, n: int, given: argparse.Namespace) -> float:
    device, found = torch.device(given.device), []
    steps = [single(name, seed, given.batch_size, device, given.engine) for seed in range(n)]
    for step in steps:
        warm(step, device)  # one after the other: recordings must not overlap
    barrier = threading.Barrier(n)

    def run(step: Step) -> None:
        torch.set_num_threads(1)
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        with torch.cuda.stream(stream):
            barrier.wait()
            found.append(rate(step, given.batch_size, given.seconds, device))

    started = [threading.Thread(target=run, args=(step,)) for step in steps]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    if len(found) != n:
        raise RuntimeError(f"{n - len(found)} of {n} threads failed")
    return sum(found)


def vectorised(name: str, n: int, given: argparse.Namespace) -> float:
    device = torch.device(given.device)
    step = Stacked(name, n, given.batch_size, device)
    warm(step, device)
    return rate(step, n * given.batch_size, given.seconds, device)


WAYS = {"processes": processes, "threads": threads, "vectorised": vectorised}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    rows = []
    for name in given.models:
        one = 0.0
        for way in given.ways:
            for n in given.n:
                found = WAYS[way](name, n, given)
                one = one or found
                row = {"model": name, "way": way, "n": n, "images_per_s": round(found, 1)}
                rows.append(row | {"ratio": round(found / one, 2)})
                print(rows[-1], flush=True)
    on_gpu = given.device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "mps": "CUDA_MPS_PIPE_DIRECTORY" in os.environ,
        "engine": given.engine,
        "batch_size": given.batch_size,
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--engine", choices=ENGINES, default="eager")
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--n", nargs="+", type=int, default=[1, 2, 4], help="models at once; 1 first")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    given = parser.parse_args()
    if given.n[0] != 1:
        parser.error("--n: 1 comes first, all others are compared with it")
    if min(*given.n, given.batch_size) < 1 or not given.seconds > 0:
        parser.error("--n, --batch-size and --seconds: must be more than 0")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device cuda: torch {torch.__version__} sees no card. Here: cpu.")
    torch.set_num_threads(1)
    print(json.dumps(measure(given)))


if __name__ == "__main__":
    main()
