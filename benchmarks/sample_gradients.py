"""What gradients of single samples cost on one thread.

    python -m benchmarks.sample_gradients METHOD NET IMAGES

    fisher_forgetting      CPU seconds for each retained image, over IMAGES of them
    influence_unlearning   CPU seconds of the whole method with that many samples

and the memory that the process came to take beyond what it held before, in MiB, after a first call with a
small net. Each case is a process of its own. NET is one of CASES. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from methods.base import Batch, plugin
from workers.architectures import architecture

CASES = {  # channels and size
    "cnn_small": (1, 8),
    "vit_tiny": (1, 8),
    "resnet18": (3, 32),
    "wide_resnet16_4": (3, 32),
    "tinyvit11m": (3, 32),
}


class Noise:
    """Images of noise in 10 classes, as many retained as there are, and 10 to forget."""

    num_classes, forget_classes, device = 10, (), torch.device("cpu")

    def __init__(self, count: int, channels: int, size: int) -> None:
        self.rng = torch.Generator().manual_seed(0)
        self.images = torch.randn(count + 10, channels, size, size, generator=self.rng)
        self.labels = torch.randint(10, (count + 10,), generator=self.rng)

    def retain(self, batch_size: int) -> Iterator[Batch]:
        return self._batches(self.images[:-10], self.labels[:-10], batch_size)

    def forget(self, batch_size: int) -> Iterator[Batch]:
        return self._batches(self.images[-10:], self.labels[-10:], batch_size)

    def _batches(self, images: Tensor, labels: Tensor, size: int) -> Iterator[Batch]:
        return zip(images.split(size), labels.split(size), strict=True)


def memory() -> float:
    """The most this process has taken, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def unlearn(method: str, net: str, count: int) -> float:
    """CPU seconds."""
    torch.manual_seed(0)
    channels, size = CASES[net]
    model, data = architecture(net).build(10, channels, size).train(), Noise(count, channels, size)
    options = {"samples": count} if method == "influence_unlearning" else {}
    start = time.process_time()
    plugin("methods", method)(**options).unlearn(model, data)
    return time.process_time() - start


def measure(method: str, net: str, count: int) -> dict[str, float | str]:
    unlearn(method, "cnn_small", 4)
    before = memory()
    seconds = unlearn(method, net, count)
    per = {"seconds": round(seconds, 2), "per_image_ms": round(1e3 * seconds / count, 2)}
    return {"method": method, "net": net, "images": count} | per | {"extra_mib": round(memory() - before)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=("fisher_forgetting", "influence_unlearning"))
    parser.add_argument("net", choices=CASES)
    parser.add_argument("images", type=int)
    given = parser.parse_args()
    if given.images < 1:
        parser.error(f"IMAGES: {given.images} is too few, at least 1.")
    torch.set_num_threads(1)
    print(json.dumps(measure(given.method, given.net, given.images)))
