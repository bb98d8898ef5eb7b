"""RNI: random noise injection.

Seventh place of the NeurIPS 2023 Machine Unlearning Challenge on Kaggle, benchmarked in arXiv 2410.01276.
The head is drawn anew. In each noisy epoch, the norm layers and a random selection K of all other tensors are
trained on the retain set; from the second on, a random part of K first gets noise. Fine epochs train all:

    w ← w + σ ε  for w in a fraction ν of K,   then one epoch of   min_{K, norms}  E_{D_R} CE(f_θ(x), y)

Each noisy epoch has an optimizer of its own, since K and its weights have changed; the fine epochs share one.

Deviation: epochs are noisy_epochs + fine_epochs, where the reference draws the total, the fine epochs and the
first noisy epoch independently. K is a fraction of the tensors, not nine; norms are told by their type, not
by "bn" in a name; tensors trained before can get noise, without which little is left after some epochs and
none on small nets; the fine rate is one number; momentum lasts through the fine epochs. Batches are
augmented as in training.
Longer than 80 lines: two phases, each with its own rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.base import NORMS, Data, Method, fit, hp, layers, reinitialise, sgd, stages


@dataclass(frozen=True)
class RandomNoiseInjection(Method):
    """A fresh head, epochs of noise on and training of random tensors, then SGD on the retain set."""

    name = "random_noise_injection"
    label = "RNI"
    paper = "arXiv:2410.01276"
    version = 1
    needs = ("retain",)
    cost = {"retain": "noisy_epochs + fine_epochs"}

    noisy_epochs: int = hp(5, 2, 18)
    fine_epochs: int = hp(4, 1, 19)
    batch_size: int = hp(64, choices=(64, 128, 256))
    learning_rate: float = hp(2e-4, 1e-5, 1e-1, log=True)
    fine_learning_rate: float = hp(2e-4, 1e-5, 1e-1, log=True)
    momentum: float = hp(0.9, 0.0, 0.99)
    weight_decay: float = hp(5e-4, 1e-5, 1e-1, log=True)
    selected: float = hp(0.4, 0.1, 1.0)
    nu: float = hp(0.7, 0.0, 1.0)
    sigma: float = hp(0.04, 1e-3, 0.3, log=True)

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        if self.noisy_epochs + self.fine_epochs == 0:
            return model  # nothing would train a fresh head
        for module in stages(model)[-1]:
            reinitialise(module, data.rng)
        norms = {id(p) for _, layer in layers(model, *NORMS) for p in layer.parameters()}
        others = [p for p in model.parameters() if id(p) not in norms]
        for epoch in range(self.noisy_epochs):
            chosen = pick(others, max(1, round(self.selected * len(others))), data.rng)
            noised = pick(chosen, round(self.nu * len(chosen)) if epoch > 0 else 0, data.rng)
            inject(noised, self.sigma, data.rng)
            for p in others:
                p.requires_grad_(any(p is c for c in chosen))
            self.train(model, data, self.learning_rate, 1)
        model.requires_grad_(True)
        self.train(model, data, self.fine_learning_rate, self.fine_epochs)
        return model

    def train(self, model: nn.Module, data: Data, learning_rate: float, epochs: int) -> None:
        """Epochs of SGD on the retain set, with what has a gradient."""
        fit(
            sgd(model, learning_rate, self.momentum, self.weight_decay),
            lambda: data.retain(self.batch_size),
            lambda images, labels: cross_entropy(model(images), labels),
            epochs=epochs,
            pure=True,
        )


def pick(tensors: Sequence[Tensor], count: int, rng: torch.Generator) -> list[Tensor]:
    """A random `count` of the tensors."""
    order = torch.randperm(len(tensors), generator=rng, device=rng.device).tolist()
    return [tensors[i] for i in order[:count]]


@torch.no_grad()
def inject(tensors: Sequence[Tensor], sigma: float, rng: torch.Generator) -> None:
    """Add normal noise of standard deviation `sigma`, in place."""
    for tensor in tensors:
        tensor.add_(sigma * torch.randn(tensor.shape, generator=rng, device=tensor.device))
