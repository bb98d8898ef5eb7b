"""WRN-16-4, the wide residual net of the unlearning papers on CIFAR: 2,748,890 parameters at 10 classes.

Zagoruyko, Komodakis, Wide Residual Networks, 2016, arXiv 1605.07146: depth 16 = three groups of two blocks,
width 4 = 64, 128 and 256 channels, pre-activation blocks without dropout, Kaiming-normal convolutions.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

DEPTH, WIDTH = 16, 4


class WideResnet16x4:
    """3×3 stem of 16 channels, three groups of two blocks at strides 1, 2, 2, mean over pixels, linear."""

    name = "wide_resnet16_4"
    label = "WRN-16-4"
    paper = "arXiv:1605.07146"
    version = 1

    def build(self, num_classes: int, channels: int, size: int) -> nn.Module:
        """A freshly initialised net for images (b, channels, size, size)."""
        return WideResnet(num_classes, channels)


class WideResnet(nn.Module):
    """The net; blocks follow each other in one sequence."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        widths = [16, *(width * WIDTH for width in (16, 32, 64))]
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        blocks = []
        for group, (before, after) in enumerate(pairwise(widths)):
            for block in range((DEPTH - 4) // 6):
                first = block == 0
                blocks.append(Block(before if first else after, after, 2 if first and group else 1))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(b, channels, h, w) -> logits (b, num_classes)."""
        features = relu(self.norm(self.blocks(self.stem(images))))
        return self.head(torch.mean(features, dim=(2, 3)))


class Block(nn.Module):
    """BN, ReLU, 3×3, BN, ReLU, 3×3, plus the input; where the width changes, a 1×1 of the activated input."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.shortcut = None if before == after else nn.Conv2d(before, after, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(b, before, h, w) -> (b, after, h / stride, w / stride)."""
        active = relu(self.norm1(x))
        skip = x if self.shortcut is None else self.shortcut(active)
        return skip + self.conv2(relu(self.norm2(self.conv1(active))))
