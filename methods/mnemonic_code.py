"""MNC: one-shot unlearning with mnemonic codes.

Yamashita, Yamada, Shibata 2024, One-Shot Machine Unlearning with Mnemonic Code, ACML, arXiv 2306.05670. The
base was trained with one random code ξ_c per class in place of some of its samples (workers/mnemonic.py). A
class is forgotten with the codes alone: weights move in proportion to what they matter to the forgotten
classes C_F and do not matter to the others, C_R,

    g_c = ∇_θ CE(f_θ₀(ξ_c), c),   F^S = (δ + Σ_{c ∈ S} g_c²)/|S|,   η = F^{C_F}/F^{C_R},   δ = 1e-16,
    θ± = θ₀ ± α_l η,   α_l = min(λ₁, λ₂ / max_{i ∈ l} η_i)   for each tensor l,

and of θ₊ and θ₋ that one is taken which errs more on the codes of C_F and less on those of C_R; θ₋ if equal.
The model is in eval mode; C backward passes, 3 C forward passes of one code each, no data, nothing random. A
parameter without any gradient has η = |C_R|/|C_F|. Defaults are those of the authors for CIFAR-10.

Deviation: squares are summed in float64, where the authors' float32 loses δ beside g² and g² below 1e-23.
Longer than 80 lines: the Fisher ratio, the step and the choice of its sign are three formulas.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.base import Data, Method, hp, require_finite, steady

DELTA = 1e-16


@dataclass(frozen=True)
class MnemonicCode(Method):
    """A step along the ratio of the Fisher informations of forgotten and retained codes, of either sign."""

    name = "mnemonic_code"
    label = "MNC"
    paper = "arXiv:2306.05670"
    version = 1
    needs = ("codes",)
    scope = "class"
    training = "mnemonic"
    once = True  # codes of classes that are gone would count as retained
    cost = {"copies": "2"}

    lambda_1: float = hp(1e-5, 1e-6, 1e-1, log=True)
    lambda_2: float = hp(1e4, 1e-1, 1e5, log=True)

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        forgotten = torch.zeros(data.num_classes, dtype=torch.bool, device=data.device)
        forgotten[list(data.forget_classes)] = True
        if not 0 < len(data.forget_classes) < data.num_classes:
            raise ValueError(f"forgets some of {data.num_classes} classes, not {len(data.forget_classes)}")
        codes, weights = data.codes(), list(steady(model).parameters())
        steps = perturbation(model, codes, forgotten, self.lambda_1, self.lambda_2)
        original = [weight.detach().clone() for weight in weights]
        scores = {}
        for sign in (1, -1):
            move(weights, original, steps, sign)
            scores[sign] = score(model, codes, forgotten)
        move(weights, original, steps, 1 if scores[1] > scores[-1] else -1)
        require_finite(weights, "a weight")
        return model


def perturbation(
    model: nn.Module, codes: Tensor, forgotten: Tensor, lambda_1: float, lambda_2: float
) -> list[Tensor]:
    """α_l η, float64, of each parameter. codes: (C, channels, height, width); forgotten: bool (C,)."""
    weights = list(model.parameters())
    sums = {gone: [torch.full_like(w, DELTA, dtype=torch.float64) for w in weights] for gone in (True, False)}
    losses, known = [], []
    for c, gone in enumerate(forgotten.tolist()):
        logits = model(codes[c : c + 1])
        losses.append(cross_entropy(logits, torch.full((1,), c, device=codes.device)))
        known.append(logits.argmax() == c)
        found = iter(torch.autograd.grad(losses[-1], weights, allow_unused=True))
        for total, gradient in zip(sums[gone], found, strict=True):
            if gradient is not None:
                total += gradient.double() ** 2
    require_finite(losses, "the loss of a code")
    missed = int((~torch.stack(known)).sum())
    if missed:
        warnings.warn(f"the base knows {len(known) - missed} of {len(known)} codes", stacklevel=2)
    share = torch.log(forgotten.sum().double() / (~forgotten).sum())
    return [
        step(torch.log(f) - torch.log(r) - share, lambda_1, lambda_2)
        for f, r in zip(sums[True], sums[False], strict=True)
    ]


def step(log_ratio: Tensor, lambda_1: float, lambda_2: float) -> Tensor:
    """α_l η of one tensor; what is not finite in log η counts as its largest finite entry."""
    finite = log_ratio[log_ratio.isfinite()]
    largest = float(finite.max()) if len(finite) else 0.0
    eta = log_ratio.nan_to_num(0.0, posinf=largest, neginf=largest).exp()
    return eta * torch.clamp(lambda_2 / eta.max(), max=lambda_1)


@torch.no_grad()
def move(weights: list[nn.Parameter], original: list[Tensor], steps: list[Tensor], sign: int) -> None:
    """Set each weight to θ₀ + sign · α η."""
    for weight, start, by in zip(weights, original, steps, strict=True):
        weight.copy_(start + sign * by)


@torch.no_grad()
def score(model: nn.Module, codes: Tensor, forgotten: Tensor) -> float:
    """Error on the codes of the forgotten classes plus accuracy on the others."""
    right = (model(codes).argmax(1) == torch.arange(len(codes), device=codes.device)).double()
    return float(1 - right[forgotten].mean() + right[~forgotten].mean())
