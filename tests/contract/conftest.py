"""The toy problem with a convolutional net and with a transformer, trained once per session."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch import Tensor, nn

from tests.contract import toy
from workers.architectures.cnn_small import CnnSmall

torch.set_num_threads(1)


class TinyVit(nn.Module):
    """A pre-norm vision transformer of one block for 1×8×8: 16 patches, width 24, 2 heads, no dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 24, 2, stride=2)
        self.positions = nn.Parameter(torch.randn(1, 16, 24) * 0.02)
        self.block = nn.TransformerEncoderLayer(24, 2, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 4)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.block(tokens)).mean(1))


@pytest.fixture(scope="session")
def cnn() -> toy.Toy:
    return toy.make(lambda: CnnSmall().build(4, 1, 8))


@pytest.fixture(scope="session")
def vit() -> toy.Toy:
    return toy.make(TinyVit)


@pytest.fixture
def both(cnn: toy.Toy, vit: toy.Toy) -> dict[str, toy.Toy]:
    return {"cnn": cnn, "vit": vit}
