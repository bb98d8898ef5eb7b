"""CT: convolution transpose.

Fifth place of the NeurIPS 2023 Machine Unlearning Challenge on Kaggle, benchmarked in arXiv 2410.01276. All
convolution kernels are mirrored at their diagonal, which keeps what is symmetric and breaks the rest, and the
net is repaired on the retain set:

    w[o, i, h, v] ← w[o, i, v, h],   then   min_θ  E_{(x,y) ∈ D_R} CE(f_θ(x), y)

Kernels of 1×1 do not change; a net without convolutions is only fine-tuned.

Deviation: batches are augmented as in training; the reference leaves augmentation out. Kernels that are not
square, whose transpose has another shape, stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from methods.base import Data, Method, fit, hp, layers, sgd
from methods.schedules import cosine


@dataclass(frozen=True)
class ConvolutionTranspose(Method):
    """Transposed kernels, then SGD on the retain set with a learning rate annealed by epoch."""

    name = "convolution_transpose"
    label = "CT"
    paper = "arXiv:2410.01276"
    version = 1
    needs = ("retain",)
    cost = {"retain": "epochs"}

    epochs: int = hp(3, 1, 37)
    batch_size: int = hp(64, choices=(64, 128, 256))
    learning_rate: float = hp(0.001, 1e-5, 1e-1, log=True)
    momentum: float = hp(0.9, 0.0, 0.99)
    weight_decay: float = hp(5e-4, 1e-5, 1e-1, log=True)

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        transpose_kernels(model)
        fit(
            sgd(model, self.learning_rate, self.momentum, self.weight_decay),
            lambda: data.retain(self.batch_size),
            lambda images, labels: cross_entropy(model(images), labels),
            epochs=self.epochs,
            schedule=cosine,
            pure=True,
        )
        return model


@torch.no_grad()
def transpose_kernels(model: nn.Module) -> None:
    """Swap the two spatial axes of every square convolution kernel, in place."""
    for _, layer in layers(model, nn.Conv2d):
        if layer.kernel_size[0] == layer.kernel_size[1]:
            layer.weight.copy_(layer.weight.transpose(2, 3).clone())
