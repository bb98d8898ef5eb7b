"""A small convolutional net with BatchNorm for tests and demonstrations on a CPU."""

from __future__ import annotations

from torch import nn


class CnnSmall:
    """Two 3×3 convolutions of 16 and 32 channels, pooled to 4×4, and a linear head: 9,978 parameters for
    1×8×8, C=10.
    """

    name = "cnn_small"
    label = "CNN-small"
    paper = ""
    version = 1

    def build(self, num_classes: int, channels: int, size: int) -> nn.Module:
        """A freshly initialised net for images (b, channels, size, size); logits (b, num_classes)."""
        return nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(32 * 16, num_classes),
        )
