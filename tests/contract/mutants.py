"""A sound method and mutants of it: bugs of public ports, and others like them.

Each mutant overrides one thing of `Control`.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from methods.base import Batch, Data, Method, fit, frozen_copy, hp, sgd


@dataclass(frozen=True)
class Control(Method):
    """Away from a teacher on the forget set, down the loss on the retain set; every part can be replaced."""

    name = "control"
    label = "control"
    paper = "none"
    version = 1
    needs = ("retain", "forget")
    cost = {"retain": "epochs", "forget": "40 * epochs", "copies": "1"}

    epochs: int = hp(5, 1, 10)
    batch_size: int = hp(64, choices=(32, 64))
    learning_rate: float = hp(0.01, 1e-4, 1e-1, log=True)
    alpha: float = hp(0.3, 0.01, 0.5)

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        teacher = self.teacher(model)
        optimizer = sgd(self.trained(model, teacher), self.learning_rate, 0.9)
        fit(
            optimizer,
            lambda: self.pairs(data),
            lambda x, y, gone, _: self.loss(model, teacher, x, y, gone),
            epochs=self.epochs,
        )
        return model

    def teacher(self, model: nn.Module) -> nn.Module:
        return frozen_copy(model)

    def trained(self, model: nn.Module, teacher: nn.Module) -> nn.Module:
        return model

    def pairs(self, data: Data) -> Iterable[Batch]:
        forget = [batch for _ in range(40) for batch in data.forget(self.batch_size)]
        return (a + b for a, b in zip(data.retain(self.batch_size), forget, strict=False))

    def loss(self, model: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor, gone: Tensor) -> Tensor:
        away = self.divergence(model(gone), teacher(gone))
        return cross_entropy(model(x), y) - self.alpha * away

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        return kl_div(
            log_softmax(student, 1), log_softmax(teacher, 1), log_target=True, reduction="batchmean"
        )


class OptimizerOnTeacher(Control):
    """A copy is evaluated, the other one trained (EasyDUB's SCRUB)."""

    def teacher(self, model: nn.Module) -> nn.Module:
        return copy.deepcopy(model)

    def trained(self, model: nn.Module, teacher: nn.Module) -> nn.Module:
        return teacher


class OptimizerOnFrozenTeacher(Control):
    """The same with a frozen copy, which no optimizer accepts."""

    def trained(self, model: nn.Module, teacher: nn.Module) -> nn.Module:
        return teacher


class ShallowTeacher(Control):
    """Teacher and student share their weights (ERASURE's SCRUB), so that they never differ."""

    def teacher(self, model: nn.Module) -> nn.Module:
        return copy.copy(model)


class RawLogits(Control):
    """Logits where kl_div wants probabilities (MU-Bench's SCRUB): a loss of NaN with finite gradients."""

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        return kl_div(student, teacher, reduction="batchmean")


class IgnoredHyperparameter(Control):
    """A weight that is always what it is (NG+'s anchor)."""

    def loss(self, model: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor, gone: Tensor) -> Tensor:
        return cross_entropy(model(x), y) - 0.3 * self.divergence(model(gone), teacher(gone))


class UnusedForgetData(Control):
    """The forget set is read, and does not enter the gradient."""

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        return super().divergence(student.detach(), teacher)

    def loss(self, model: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor, gone: Tensor) -> Tensor:
        model.eval()
        return super().loss(model, teacher, x, y, gone)


class UnreadForgetData(Control):
    """`needs` names a set that is never read."""

    def pairs(self, data: Data) -> Iterable[Batch]:
        return (batch + batch for batch in data.retain(self.batch_size))


class UndeclaredValidation(Control):
    """It reads a set that it does not name."""

    def pairs(self, data: Data) -> Iterable[Batch]:
        return (a + b for a, b in zip(data.val(self.batch_size), data.forget(self.batch_size), strict=False))


class LeftoverHook(Control):
    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        next(model.children()).register_forward_hook(lambda *_: None)
        return super().unlearn(model, data)


class LeftoverParameterHook(Control):
    """Gradients stay masked for whoever trains this model next."""

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        next(model.parameters()).register_hook(lambda gradient: 0.1 * gradient)
        return super().unlearn(model, data)


class WrappedLayers(Control):
    """The model comes back in a wrapper, under other keys."""

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        return nn.Sequential(super().unlearn(model, data))


class GlobalDraws(Control):
    """Noise from torch's global generator: two runs of one task differ."""

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        with torch.no_grad():
            next(model.parameters()).add_(0.01 * torch.randn_like(next(model.parameters())))
        return super().unlearn(model, data)


class GlobalSeed(Control):
    """It seeds the process instead of using its generator."""

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        torch.manual_seed(123)
        return super().unlearn(model, data)


class PythonShuffle(Control):
    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        random.random()
        return super().unlearn(model, data)


class FixedOrder(Control):
    """One fixed stream for everything, whatever the seed."""

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        data.rng.manual_seed(123)
        return super().unlearn(model, data)


class GradientsOff(Control):
    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        model = super().unlearn(model, data)
        torch.set_grad_enabled(False)
        return model


class DefaultDtype(Control):
    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        model = super().unlearn(model, data)
        torch.set_default_dtype(torch.float64)
        return model


class CudnnBenchmark(Control):
    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
        return super().unlearn(model, data)


class HalfPrecision(Control):
    """Weights of another type than they came in."""

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        return super().unlearn(model, data).half()


class StrayStep(Control):
    """Weights are changed in place before the first epoch, and with no epoch at all."""

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        next(model.parameters()).data.mul_(0.9)
        return super().unlearn(model, data)


class MovedStatistics(Control):
    """A forward pass in training mode that was only meant to look moves BatchNorm's running statistics."""

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        with torch.no_grad():
            for images, _ in data.forget(self.batch_size):
                model(images)
        return super().unlearn(model, data)


class WaitsEachStep(Control):
    """It looks at the loss after each batch, which stalls the device."""

    def loss(self, model: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor, gone: Tensor) -> Tensor:
        value = super().loss(model, teacher, x, y, gone)
        return value if value.item() < 1e9 else value * 0


class SilencedNan(Control):
    """Numbers are made up where there are none."""

    def loss(self, model: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor, gone: Tensor) -> Tensor:
        return torch.nan_to_num(super().loss(model, teacher, x, y, gone))


class DroppedLastBatch(Control):
    """Incomplete batches are dropped, and with them all of a small set."""

    def pairs(self, data: Data) -> Iterable[Batch]:
        return (batch for batch in super().pairs(data) if len(batch[2]) >= self.batch_size)


class SamplesOneByOne(Control):
    """Batches of one, which BatchNorm cannot take."""

    def pairs(self, data: Data) -> Iterable[Batch]:
        for x, y, gone, old in super().pairs(data):
            yield x[:1], y[:1], gone, old


class WrongSign(Control):
    """It forgets what it should retain."""

    def loss(self, model: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor, gone: Tensor) -> Tensor:
        return -super().loss(model, teacher, x, y, gone)


class WrongLabels(Control):
    """It relabels what it should retain."""

    def loss(self, model: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor, gone: Tensor) -> Tensor:
        return cross_entropy(model(x), (y + 1) % 4) + 0 * super().loss(model, teacher, x, y, gone)


class DoesLittle(Control):
    """A thousandth of the learning rate asked for: a base by another name."""

    def trained(self, model: nn.Module, teacher: nn.Module) -> nn.Module:
        for parameter in model.parameters():
            parameter.register_hook(lambda gradient: gradient / 1000)
        return model


def shallow_unlearn(method: Method, base: nn.Module, data: Any) -> tuple[nn.Module, Any]:
    """An `unlearn` that hands the method the base itself in a new shell: the original is no longer one."""
    return method.unlearn(copy.copy(base).train(), data).eval(), None


class OnePassMore(Control):
    """It looks through the retain set once more than it says."""

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        for _ in data.retain(self.batch_size):
            pass
        return super().unlearn(model, data)


class HiddenCopy(Control):
    """It keeps another copy of the weights than it says."""

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        kept = [parameter.detach().clone() for parameter in model.parameters()]
        model = super().unlearn(model, data)
        assert len(kept) > 1
        return model
