"""SCRUB: scalable remembering and unlearning unbound, with rewinding (SCRUB+R).

Kurmanji, Triantafillou, Hayes, Triantafillou 2023, Towards Unbounded Machine Unlearning, arXiv 2302.09880.
The student leaves its teacher, a frozen θ₀, on D_F and follows it on D_R. In epoch e = 1 … E:

    max_θ  d(x), x ∈ D_F  (first M epochs),   then   min_θ  γ · CE(f_θ(x), y) + α · d(x), (x,y) ∈ D_R
    d = T² · mean_x KL(softmax(z_θ₀(x)/T) ‖ softmax(z_θ(x)/T)),   rate η · 0.1^#{t ∈ {.5, .8, .9}: e > ⌊t·E⌋}

Rewinding returns the epoch whose error on D_F is nearest to the final one on validation samples of D_F's
classes. No step is taken on the validation set, but a checkpoint is chosen by an error measured there: scores
of that set are not wholly independent of this method. Without `rewind` it is not read. At θ₀ the gradient of
d is zero but for BatchNorm, which the student has in training mode: other nets forget from epoch 2 on.

Deviation: rewinding chooses among the states after an epoch. The reference (arXiv 2410.01276) counts θ₀ too,
and then returns the last. Batches are augmented as in training, also where errors are measured; there none
are. Two weights without effect are left out, forget batches shuffled. T is searched from 0.5, there from 0.
Longer than 80 lines for rewinding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.base import Batch, Data, Method, divergence, fit, frozen_copy, hp, precision, sgd

State = dict[str, Tensor]


@dataclass(frozen=True)
class Scrub(Method):
    """SGD away from the teacher on the forget set and, after it, towards teacher and labels on the rest."""

    name = "scrub"
    label = "SCRUB"
    paper = "arXiv:2302.09880"
    version = 1
    needs = ("retain", "forget", "val")
    cost = {
        "retain": "epochs",
        "forget": "min(forget_epochs, epochs) + (epochs + 1 if rewind else 0)",
        "val": "1 if rewind else 0",
        "copies": "1 + (epochs if rewind else 0)",
    }

    epochs: int = hp(5, 2, 37)  # a single one would be at a thousandth of the rate
    forget_epochs: int = hp(3, 1, 37)
    retain_batch_size: int = hp(32, choices=(32, 64, 128, 256))
    forget_batch_size: int = hp(64, choices=(32, 64, 128, 256))
    learning_rate: float = hp(5e-4, 1e-5, 1e-1, log=True)
    momentum: float = hp(0.9, 0.0, 0.99)
    weight_decay: float = hp(5e-4, 1e-5, 1e-1, log=True)
    alpha: float = hp(0.5, 0.0, 1.0)
    gamma: float = hp(1.0, 0.0, 1.0)
    temperature: float = hp(2.0, 0.5, 5.0)
    rewind: bool = hp(True, choices=(True, False))

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        teacher, epoch = frozen_copy(model), iter(range(self.epochs))
        history: list[tuple[Tensor, State]] = []
        everything = torch.ones(data.num_classes, dtype=torch.bool, device=data.device)

        def batches() -> Iterator[Batch]:
            if next(epoch) < self.forget_epochs:
                yield from ((images,) for images, _ in data.forget(self.forget_batch_size))
            yield from data.retain(self.retain_batch_size)
            if self.rewind:
                missed = error(model, data.forget(self.forget_batch_size), everything)
                history.append((missed, {name: t.clone() for name, t in model.state_dict().items()}))

        def loss(images: Tensor, labels: Tensor | None = None) -> Tensor:
            logits = model(images)
            distance = self.temperature**2 * divergence(teacher(images), logits, self.temperature)
            if labels is None:
                return -distance
            return self.gamma * cross_entropy(logits, labels) + self.alpha * distance

        optimizer = sgd(model, self.learning_rate, self.momentum, self.weight_decay)
        fit(optimizer, batches, loss, epochs=self.epochs, schedule=step_decay, pure=True)
        if history:
            target = reference_error(model, data, self.forget_batch_size)
            gaps = torch.stack([(missed - target).abs() for missed, _ in history])
            model.load_state_dict(history[int(gaps.argmin())][1])
        return model


def step_decay(epoch: int, epochs: int) -> float:
    """A tenth of the rate for each of 5, 8 and 9 tenths of the epochs, rounded down, that are behind."""
    return 0.1 ** sum(epoch + 1 > tenths * epochs // 10 for tenths in (5, 8, 9))


def reference_error(model: nn.Module, data: Data, batch_size: int) -> Tensor:
    """The error on validation samples of the classes that occur in the forget set."""
    classes = torch.zeros(data.num_classes, dtype=torch.bool, device=data.device)
    for _, labels in data.forget(batch_size):
        classes.index_fill_(0, labels, True)
    found = error(model, data.val(batch_size), classes)
    if bool(found.isnan()):
        raise ValueError("rewinding: the val set has no sample of a forgotten class. Set rewind: false")
    return found


@torch.no_grad()
def error(model: nn.Module, batches: Iterable[Batch], classes: Tensor) -> Tensor:
    """The share of samples that are misclassified in eval mode, among those of the classes that are true."""
    model.eval()
    wrong = count = torch.zeros((), device=classes.device)
    for images, labels in batches:
        with precision(images.device):
            missed = model(images).argmax(1) != labels
        wrong, count = wrong + (missed & classes[labels]).sum(), count + classes[labels].sum()
    model.train()
    return wrong / count
