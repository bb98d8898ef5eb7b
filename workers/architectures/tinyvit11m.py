"""TinyViT-11M, by timm and without pretrained weights: 10,552,462 parameters at 10 classes.

Wu, Zhang, Peng, Liu, Xiao, Fu, Yuan, TinyViT: Fast Pretraining Distillation for Small Vision Transformers,
2022, arXiv 2207.10666. Two 3×3 convolutions of stride 2, two MBConv blocks of width 64 (expansion 4), and
three stages of 2, 6 and 2 blocks of widths 128, 256, 448 with 4, 8, 14 heads in windows of 7, 14 and 7. A
block has attention, a depth-wise 3×3 convolution and an MLP of ratio 4; paths are dropped with a probability
that rises from 0 to 0.1; the head has a LayerNorm. At 32 px the maps are 8, 4, 2 and 1 pixels wide and padded
with zeros to a window, so most of the attention is spent on padding; the parameters are the same at every
size. Counts are those of the reference (arXiv 2410.01276): 10,592,872 at 100 classes, 10,550,217 at 5, in 215
tensors.

Deviation: biases of attention are looked up at every pass. The reference, and timm, keep a copy in eval mode:
there without a gradient, so that methods that train in eval mode leave the biases as they are or crash; in
timm with one that can be used once. Here a gradient reaches them in both modes.
Deviation: the initial weights are those of the paper's rules (normal 0.02 on linear layers, 0 on the last
BatchNorm of an MBConv block and on attention biases), but draws come in timm's order, without those
of a ResNet-18 before them: no seed gives the reference's numbers.
Deviation: attention is torch's fused one, equal up to rounding; merging of patches belongs to the stage after
it in tensor names, there to the one before; one channel is repeated three times.
"""

from __future__ import annotations

from torch import nn

from workers.architectures.resnet18 import GreyToColour
from workers.architectures.timm import create


class TinyVit11m:
    """timm's tiny_vit_11m_224, which takes images of any size."""

    name = "tinyvit11m"
    label = "TinyViT-11M"
    paper = "arXiv:2207.10666"
    version = 1
    requires = ("timm",)

    def build(self, num_classes: int, channels: int, size: int) -> nn.Module:
        """A freshly initialised net for images (b, channels, size, size); CannotBuild without timm."""
        model = create("tiny_vit_11m_224", num_classes=num_classes)
        return model if channels == 3 else nn.Sequential(GreyToColour(), model)
