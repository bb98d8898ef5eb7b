"""MSG: masked small gradients.

Second place of the NeurIPS 2023 Machine Unlearning Challenge on Kaggle, benchmarked in arXiv 2410.01276. In
each convolution, weights that matter little to the difference of retained and forgotten samples are redrawn:

    g = Σ_{S ⊂ D_R, |S| = |D_F|} ∇CE − Σ_{D_F} ∇CE,  M = the fraction ρ of least |g|,  w_M ~ N(0, 2/fan-out)

then SGD on D_R at a triangular rate, the gradients of convolution weights outside M damped to a tenth.

Deviation: g is taken in eval mode, so that D_F does not enter BatchNorm's statistics, and sums over samples;
the reference sums means of retain batches of 64 and forget batches of B, of unlike weight unless B = 64.
Batches are augmented as in training; the reference leaves augmentation out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.base import Data, Method, accumulate_gradient, fit, hp, layers, sgd, smallest
from methods.schedules import triangular

DAMPING = 0.1


@dataclass(frozen=True)
class MaskedSmallGradients(Method):
    """Convolution weights of small gradient re-initialised, then SGD on the retain set, mostly on these."""

    name = "masked_small_gradients"
    label = "MSG"
    paper = "arXiv:2410.01276"
    version = 1
    needs = ("retain", "forget")
    cost = {"retain": "epochs + min(1, forget_size / retain_size)", "forget": "1", "copies": "1"}

    epochs: int = hp(5, 1, 37)
    batch_size: int = hp(64, choices=(64, 128, 256))
    learning_rate: float = hp(0.001, 1e-5, 1e-1, log=True)
    momentum: float = hp(0.9, 0.0, 0.99)
    weight_decay: float = hp(5e-4, 1e-5, 1e-1, log=True)
    rho: float = hp(0.3, 0.0, 1.0)

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        def loss(images: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
            return cross_entropy(model(images), labels, reduction=reduction)

        model.eval()
        accumulate_gradient(model, data.retain_sample(self.batch_size), lambda x, y: loss(x, y, "sum"))
        accumulate_gradient(model, data.forget(self.batch_size), lambda x, y: -loss(x, y, "sum"))
        weights = [layer.weight for _, layer in layers(model, nn.Conv2d)]
        masks = [smallest(weight.grad, self.rho) for weight in weights]
        redraw(weights, masks, data.rng)
        model.train()
        optimizer = sgd(model, self.learning_rate, self.momentum, self.weight_decay)
        optimizer.register_step_pre_hook(lambda *_: damp(weights, masks))
        batches = partial(data.retain, self.batch_size)
        fit(optimizer, batches, loss, epochs=self.epochs, schedule=triangular, pure=True)
        return model


@torch.no_grad()
def redraw(weights: list[Tensor], masks: list[Tensor], rng: torch.Generator) -> None:
    """Fresh Kaiming-normal values (fan-out, ReLU) where the masks are true, in place."""
    for weight, mask in zip(weights, masks, strict=True):
        fresh = nn.init.kaiming_normal_(torch.empty_like(weight), 0, "fan_out", "relu", rng)
        weight.copy_(torch.where(mask, fresh, weight))


def damp(weights: list[Tensor], masks: list[Tensor]) -> None:
    """Scale the gradients outside the masks."""
    for weight, mask in zip(weights, masks, strict=True):
        weight.grad.copy_(torch.where(mask, weight.grad, DAMPING * weight.grad))
