"""ResNet-18 with a stem for small images: 11,173,962 parameters at 10 classes.

He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, 2015, arXiv 1512.03385. The 7×7 stride-2
convolution and the max-pool of the ImageNet net throw away three quarters of the rows and columns of a 32×32
image before the first block; here the stem is one 3×3 convolution of stride 1, as in the paper's own CIFAR
nets.
"""

from __future__ import annotations

from torch import nn


class Resnet18Cifar:
    """3×3 stride-1 stem without pooling, then the four stages of ResNet-18."""

    name = "resnet18_cifar"
    label = "ResNet-18 (3×3 stem)"
    paper = "arXiv:1512.03385"
    version = 1

    def build(self, num_classes: int, channels: int, size: int) -> nn.Module:
        """A freshly initialised net for images (b, channels, size, size)."""
        from torchvision.models import resnet18

        model = resnet18(weights=None, num_classes=num_classes)
        model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")  # as its others
        model.maxpool = nn.Identity()
        return model
