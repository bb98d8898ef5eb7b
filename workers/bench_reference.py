"""What training is measured against: the loop of the reference pipeline, and the arithmetic a device can do.

The loop is that of arXiv 2410.01276, as most code of this field has it: each sample is a PIL image that goes
through torchvision's transforms in a worker process of a DataLoader, which are started anew for every pass;
float32, eager, SGD with momentum, and the loss of each step fetched from the device.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 5e-4  # the rate keeps losses of random labels finite
PRODUCTS = {"cpu": 1, "cuda": 10}  # matrix products between two looks at the clock


# ---- the loop --------------------------------------------------------------------------------------------


class Pictures(Dataset[tuple[Tensor, int, int]]):
    """uint8 images (n, channels, height, width) and labels (n,), a PIL image made at each access, as
    torchvision's datasets do.
    """

    def __init__(self, plugin: Any, images: np.ndarray, labels: np.ndarray, augment: bool) -> None:
        grey = images.shape[1] == 1
        self.images = images[:, 0] if grey else np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        self.labels, self.transform = labels.tolist(), _transform(plugin, images.shape[-1], augment)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index], index


def _transform(plugin: Any, size: int, augment: bool) -> Any:
    """Crop and mirror as a dataset plug-in says, if `augment`; then normalise."""
    steps: list[Any] = []
    if augment and plugin.augment_pad:
        steps.append(transforms.RandomCrop(size, padding=plugin.augment_pad))
    if augment and plugin.augment_flip:
        steps.append(transforms.RandomHorizontalFlip())
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(plugin.mean, plugin.std)])


def loader_workers() -> int:
    """Worker processes of a loader: half of the CPUs, as in the reference."""
    return max(1, (os.cpu_count() or 1) // 2)


def loader(pictures: Pictures, device: torch.device, **batches: Any) -> Any:
    """(images, labels, indices) of batches, chosen by `batch_size` and `shuffle` or by a `batch_sampler`."""
    return DataLoader(pictures, num_workers=loader_workers(), pin_memory=device.type == "cuda", **batches)


def train_epoch(model: nn.Module, batches: Any, device: torch.device) -> int:
    """One pass of training over a loader; returns the samples seen."""
    model.train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    seen, total = 0, 0.0
    for images, labels, _ in batches:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(labels)
        seen += len(labels)
    return seen


@torch.no_grad()
def evaluate_epoch(model: nn.Module, batches: Any, device: torch.device) -> int:
    """One pass of evaluation over a loader; returns the samples seen."""
    model.eval()
    seen, total, correct = 0, 0.0, 0
    for images, labels, _ in batches:
        images, labels = images.to(device), labels.to(device)
        logits = model(images)
        total += cross_entropy(logits, labels).item() * len(labels)
        correct += int((logits.argmax(1) == labels).sum().item())
        seen += len(labels)
    return seen


# ---- the arithmetic limit --------------------------------------------------------------------------------


def rate(device: torch.device, precision: str, sizes: tuple[int, ...], repeats: int = 3) -> float:
    """FLOP/s of products of random square matrices of these sizes in 'float32' or 'bfloat16', the best one.

    In float32 on a GPU with TensorFloat32, where torch lets convolutions use it.
    """
    before, best = torch.get_float32_matmul_precision(), 0.0
    torch.set_float32_matmul_precision("high")
    try:
        for size in sizes:
            left, right = (torch.randn(size, size, device=device).to(getattr(torch, precision)) for _ in "ab")
            out = left @ right
            for _ in range(repeats):
                _wait(device)
                start = time.perf_counter()
                for _ in range(PRODUCTS[device.type]):
                    torch.mm(left, right, out=out)
                _wait(device)
                seconds = time.perf_counter() - start
                best = max(best, PRODUCTS[device.type] * 2 * size**3 / seconds)
    finally:
        torch.set_float32_matmul_precision(before)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flops_per_image(model: nn.Module, channels: int, size: int, train: bool = True, batch: int = 2) -> float:
    """FLOPs of convolutions and matrix products for an image (channels, size, size): of the forward pass and,
    if `train`, the backward pass. A multiply-add is two. Counted on the host, attention as plain products, so
    it is the same on every device.
    """
    images = torch.randn(batch, channels, size, size)
    labels = torch.zeros(batch, dtype=torch.int64)
    own = {torch.ops.aten.convolution_backward: _convolution_backward}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=own) as counter:
        if train:
            cross_entropy(model.train()(images), labels).backward()
        else:
            with torch.no_grad():
                model.eval()(images)
    return float(counter.get_total_flops()) / batch


def _convolution_backward(
    out: Any, images: Any, weight: Any, *others: Any, out_shape: Any = None, **_: Any
) -> int:
    """Each of the two gradients of a convolution costs as much as the convolution. torch's own formula was
    seen to count the gradient of a grouped one's weights once per group.
    """
    wanted = others[-1]  # of the images, the weight and the bias
    own_channels, in_channels, *kernel = weight
    of_one = 2 * out[0] * own_channels * in_channels * int(np.prod(kernel)) * int(np.prod(out[2:]))
    return of_one * sum(wanted[:2])
