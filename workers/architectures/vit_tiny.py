"""A small vision transformer without BatchNorm or dropout, for tests and demonstrations on a CPU.

Pre-norm blocks after Dosovitskiy et al., An Image is Worth 16x16 Words, 2020, arXiv 2010.11929. It is ours
and not their ViT-Ti (width 192, depth 12, 5.7 M parameters): two blocks of width 48 with 4 heads and an MLP
of width 96, learnt positions, and the mean over patches in place of a class token.
"""

from __future__ import annotations

import torch
from torch import nn

WIDTH, DEPTH, HEADS, MLP = 48, 2, 4, 96


class VitTiny:
    """Patches of size // 4 pixels, thus 16 of them where 4 divides the size: 39,514 parameters for 1×8×8,
    C=10.
    """

    name = "vit_tiny"
    label = "ViT-tiny"
    paper = "arXiv:2010.11929"
    version = 1

    def build(self, num_classes: int, channels: int, size: int) -> nn.Module:
        """A freshly initialised net for images (b, channels, size, size); logits (b, num_classes). Of a size
        that is no multiple of a patch, what is left over at the right and bottom is not seen.
        """
        return VisionTransformer(num_classes, channels, size)


class VisionTransformer(nn.Module):
    """Patch embedding, positions, blocks, norm, and a linear head on the mean token."""

    def __init__(self, num_classes: int, channels: int, size: int) -> None:
        super().__init__()
        patch = max(1, size // 4)
        self.patches = nn.Conv2d(channels, WIDTH, patch, stride=patch)
        self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2, WIDTH) * 0.02)
        self.blocks = nn.Sequential(*(block() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(b, channels, size, size) -> (b, num_classes)."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(1))


def block() -> nn.Module:
    """A pre-norm block of attention and an MLP with GELU: (b, tokens, WIDTH) of the same shape."""
    return nn.TransformerEncoderLayer(
        WIDTH, HEADS, MLP, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
