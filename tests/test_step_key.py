"""Steps that compute something else have another key: one test for each part of it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.base import PRECISION, sgd
from methods.finetune import Finetune
from workers.step_key import Loss, Parts, key_of

FACTOR = 2.0


class Net(nn.Module):
    """An attribute, a buffer that is not saved, and a constant of this file decide what it computes."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.flatten, self.first, self.norm = nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4)
        self.last = nn.Linear(4, changes.pop("classes", 3), bias=changes.pop("bias", True))
        self.drop, self.scale, self.activation = nn.Dropout(0.1), 1.0, torch.relu
        self.register_buffer("shift", torch.zeros(4), persistent=False)
        for name, value in changes.items():
            setattr(self, name, value)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.drop(self.norm(self.first(self.flatten(images)))) + self.shift
        return self.last(self.activation(hidden * self.scale)) * FACTOR


class Squared(float):
    """A number that looks like another one and computes otherwise."""

    def __rmul__(self, other: Any) -> Any:
        return other * float(self) ** 2


class Same(Net):
    """A class of its own that computes the same."""


def classify(model: nn.Module, **held: Any) -> Loss:
    sign, method, teacher, weights, nested, name = (
        held.get(name) for name in ("sign", "method", "teacher", "weights", "nested", "name")
    )

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        value = cross_entropy(model(images), labels, weights, reduction=name or "mean")
        if teacher is not None:
            value = value + (teacher(images) - model(images)).square().mean()
        value = value if nested is None else nested(value)
        return value * (sign or 1) * (method.weight_decay if method is not None else 1)

    return loss


def negated(model: nn.Module) -> Loss:
    return lambda images, labels: -cross_entropy(model(images), labels)


def affirmed(model: nn.Module) -> Loss:
    return lambda images, labels: +cross_entropy(model(images), labels)


def elsewhere(network: nn.Module) -> Loss:
    """`negated` under another name, in another place."""

    def descended(images: Tensor, labels: Tensor) -> Tensor:
        return -cross_entropy(model(images), labels)

    model = network
    return descended


def doubled(model: nn.Module) -> Loss:
    return lambda images, labels: 2 * cross_entropy(model(images), labels)


def tripled(model: nn.Module) -> Loss:
    return lambda images, labels: 3 * cross_entropy(model(images), labels)


def summed(model: nn.Module) -> Loss:
    return lambda images, labels: model(images).sum()


def averaged(model: nn.Module) -> Loss:
    return lambda images, labels: model(images).mean()


def first_of_two(model: nn.Module) -> Loss:
    return lambda images, labels: model(images).mean()


def second_of_two(model: nn.Module) -> Loss:
    return lambda labels, images: model(images).mean()


def inner(model: nn.Module) -> Loss:
    return lambda images, labels: (lambda value: value * FACTOR)(model(images).mean())


def with_default(model: nn.Module, factor: float = 1.0) -> Loss:
    def loss(images: Tensor, labels: Tensor, factor: float = factor, *, power: float = factor) -> Tensor:
        return factor * cross_entropy(model(images), labels) ** power

    return loss


def times(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda value: value * factor


def changed(model: nn.Module, change: Callable[[Any], Any]) -> nn.Module:
    """The model after a change."""
    change(model)
    return model


def tied(to: str) -> nn.Module:
    """A net one layer of which is another one."""
    model: Any = Net()
    model.second = nn.Linear(12, 4)
    model.third = getattr(model, to)
    return model


def frozen(model: Any) -> None:
    model.first.bias.requires_grad_(False)


def grouped(model: nn.Module, *decays: float) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    groups = [parameters[i :: len(decays)] for i in range(len(decays))]
    return torch.optim.SGD(
        [{"params": group, "weight_decay": decay} for group, decay in zip(groups, decays, strict=True)],
        lr=0.1,
    )


Made = tuple[Loss, torch.optim.Optimizer]


def plain(model: nn.Module | None = None, optimizer: Any = None, **held: Any) -> Made:
    model = model or Net()
    return classify(model, **held), (optimizer or (lambda m: sgd(m, 0.1, 0.9)))(model)


def of(loss: Callable[..., Loss], **held: Any) -> Made:
    model = Net()
    return loss(model, **held), sgd(model, 0.1, 0.9)


def with_options(kind: type[torch.optim.Optimizer], **options: Any) -> Made:
    return plain(optimizer=lambda model: kind(model.parameters(), lr=0.1, **options))


SGD, Adam = torch.optim.SGD, torch.optim.Adam
# Two steps that compute different things, or might.
DIFFERENT: dict[str, tuple[Callable[[], Made], Callable[[], Made]]] = {
    "code": (lambda: of(negated), lambda: of(affirmed)),
    "number in the code": (lambda: of(doubled), lambda: of(tripled)),
    "name in the code": (lambda: of(summed), lambda: of(averaged)),
    "order of arguments": (lambda: of(first_of_two), lambda: of(second_of_two)),
    "captured number": (lambda: plain(sign=1.0), lambda: plain(sign=-1.0)),
    "type of a number": (lambda: plain(sign=1), lambda: plain(sign=1.0)),
    "sign of zero": (lambda: plain(sign=0.0), lambda: plain(sign=-0.0)),
    "class of a number": (lambda: plain(sign=1.0), lambda: plain(sign=Squared(1.0))),
    "captured word": (lambda: plain(name="mean"), lambda: plain(name="sum")),
    "hyper-parameter": (
        lambda: plain(method=Finetune()),
        lambda: plain(method=Finetune(weight_decay=0.1)),
    ),
    "captured function": (lambda: plain(nested=times(1.0)), lambda: plain(nested=times(2.0))),
    "other function": (lambda: plain(nested=torch.relu), lambda: plain(nested=torch.tanh)),
    "default": (lambda: of(with_default), lambda: of(with_default, factor=2.0)),
    "teacher": (lambda: plain(), lambda: plain(teacher=Net().requires_grad_(False))),
    "teacher's mode": (
        lambda: plain(teacher=Net().requires_grad_(False)),
        lambda: plain(teacher=Net().requires_grad_(False).eval()),
    ),
    "which tensor": (
        lambda: (lambda m: (classify(m, teacher=m), sgd(m, 0.1)))(Net()),
        lambda: (lambda m: (classify(m, teacher=Net()), sgd(m, 0.1)))(Net()),
    ),
    "class": (lambda: plain(), lambda: plain(Same())),
    "attribute": (lambda: plain(), lambda: plain(Net(scale=2.0))),
    "attribute of a tensor": (
        lambda: plain(changed(Net(), lambda m: setattr(m.shift, "up", 1))),
        lambda: plain(changed(Net(), lambda m: setattr(m.shift, "up", 2))),
    ),
    "name of an attribute": (lambda: plain(Net(up=2.0)), lambda: plain(Net(down=2.0))),
    "attribute of a layer": (lambda: plain(), lambda: plain(Net(drop=nn.Dropout(0.2)))),
    "function as attribute": (lambda: plain(), lambda: plain(Net(activation=torch.tanh))),
    "partial": (
        lambda: plain(Net(activation=functools.partial(torch.clamp, min=0))),
        lambda: plain(Net(activation=functools.partial(torch.clamp, min=1))),
    ),
    "mode": (lambda: plain(), lambda: plain(Net().eval())),
    "mode of a layer": (lambda: plain(), lambda: plain(changed(Net(), lambda m: m.norm.eval()))),
    "length": (lambda: plain(weights=torch.ones(3)), lambda: plain(weights=torch.ones(4))),
    "shape": (lambda: plain(), lambda: plain(Net(classes=4))),
    "without bias": (lambda: plain(), lambda: plain(Net(bias=False))),
    "type": (lambda: plain(), lambda: plain(Net().double())),
    "strides": (
        lambda: plain(nn.Sequential(nn.Conv2d(3, 4, 2))),
        lambda: plain(nn.Sequential(nn.Conv2d(3, 4, 2)).to(memory_format=torch.channels_last)),
    ),
    "what is trained": (
        lambda: plain(optimizer=lambda m: SGD([m.last.weight], lr=0.1)),
        lambda: plain(changed(Net(), frozen), lambda m: SGD([m.last.weight], lr=0.1)),
    ),
    "layers that are one": (
        lambda: plain(changed(tied("first"), lambda m: setattr(m, "third", nn.Linear(12, 4)))),
        lambda: plain(tied("first")),
    ),
    "which layers are one": (lambda: plain(tied("first")), lambda: plain(tied("second"))),
    "kind of optimizer": (lambda: with_options(SGD), lambda: with_options(Adam)),
    "momentum": (lambda: with_options(SGD, momentum=0.9), lambda: with_options(SGD, momentum=0.8)),
    "nesterov": (
        lambda: with_options(SGD, momentum=0.9),
        lambda: with_options(SGD, momentum=0.9, nesterov=True),
    ),
    "weight decay": (lambda: with_options(SGD), lambda: with_options(SGD, weight_decay=0.1)),
    "betas": (lambda: with_options(Adam), lambda: with_options(Adam, betas=(0.8, 0.999))),
    "eps": (lambda: with_options(Adam), lambda: with_options(Adam, eps=1e-3)),
    "fused": (lambda: with_options(SGD, fused=False), lambda: with_options(SGD, fused=True)),
    "groups": (
        lambda: plain(optimizer=lambda m: grouped(m, 0.1, 0.2)),
        lambda: plain(optimizer=lambda m: grouped(m, 0.2, 0.1)),
    ),
    "what is in a group": (
        lambda: plain(optimizer=lambda m: SGD([m.first.weight], lr=0.1)),
        lambda: plain(optimizer=lambda m: SGD([m.last.weight], lr=0.1)),
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_each_part_of_a_step_is_in_its_key(name: str) -> None:
    one, other = DIFFERENT[name]
    keys = [key_of(*make())[0] for make in (one, one, other, other)]
    assert keys[0] == keys[1] and keys[2] == keys[3], "of what is made twice the key is the same"
    assert keys[0] != keys[2]
    assert hash(keys[0]) == hash(keys[1])


def test_the_learning_rate_and_the_values_of_tensors_are_not() -> None:
    keys = [key_of(*plain(optimizer=lambda m, rate=rate: sgd(m, rate)))[0] for rate in (0.1, 0.2)]
    assert keys[0] == keys[1]
    weights = [key_of(*plain(weights=torch.full((3,), value)))[0] for value in (1.0, 2.0)]
    assert weights[0] == weights[1] != key_of(*plain(weights=torch.ones(3, 1)))[0]


def test_what_a_loss_is_called_and_where_it_stands_is_not() -> None:
    """So methods that fine-tune by the same options share a recording."""
    assert key_of(*of(negated))[0] == key_of(*of(elsewhere))[0]


def test_the_device_of_a_tensor_is_in_its_key() -> None:
    keys = [Parts().key(torch.ones(2, device=device)) for device in ("cpu", "cpu", "meta")]
    assert keys[0] == keys[1] != keys[2]


def test_constants_are_seen_that_only_a_function_within_the_loss_reads() -> None:
    model = nn.Linear(12, 3)
    made = inner(model), sgd(model, 0.1)
    before = key_of(*made)[0]
    with attribute(sys.modules[__name__], "FACTOR", 3.0):
        assert key_of(*made)[0] != before
    assert key_of(*made)[0] == before


@contextmanager
def precision(name: str) -> Iterator[None]:
    token = PRECISION.set(name)
    yield
    PRECISION.reset(token)


@contextmanager
def setting(get: Callable[[], Any], change: Callable[[Any], None], value: Any) -> Iterator[None]:
    before = get()
    assert before != value
    change(value)
    yield
    change(before)


@contextmanager
def attribute(of: Any, name: str, value: Any) -> Iterator[None]:
    with setting(lambda: getattr(of, name), lambda new: setattr(of, name, new), value):
        yield


cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
SETTINGS: dict[str, Callable[[], Any]] = {
    "precision": lambda: precision("bfloat16"),
    "default type": lambda: setting(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "products": lambda: setting(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "high"
    ),
    "determinism": lambda: setting(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "autocast on a GPU": lambda: setting(
        lambda: torch.is_autocast_enabled("cuda"), lambda new: torch.set_autocast_enabled("cuda", new), True
    ),
    "autocast on a CPU": lambda: setting(
        lambda: torch.is_autocast_enabled("cpu"), lambda new: torch.set_autocast_enabled("cpu", new), True
    ),
    "cudnn": lambda: attribute(cudnn, "enabled", False),
    "cudnn deterministic": lambda: attribute(cudnn, "deterministic", True),
    "cudnn benchmark": lambda: attribute(cudnn, "benchmark", True),
    "cudnn tf32": lambda: attribute(cudnn, "allow_tf32", False),
    "flash attention": lambda: setting(cuda.flash_sdp_enabled, cuda.enable_flash_sdp, False),
    "memory-efficient attention": lambda: setting(
        cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp, False
    ),
    "plain attention": lambda: setting(cuda.math_sdp_enabled, cuda.enable_math_sdp, False),
    "cudnn attention": lambda: setting(cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp, False),
    "a constant of the net's file": lambda: attribute(sys.modules[__name__], "FACTOR", 3.0),
    "a function of the loss's file": lambda: attribute(sys.modules[__name__], "cross_entropy", torch.relu),
    "the class's forward pass": lambda: attribute(Net, "forward", lambda self, x: self.last(x)),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_in_the_key(name: str) -> None:
    made = plain()
    before = key_of(*made)[0]
    with SETTINGS[name]():
        assert key_of(*made)[0] != before
    assert key_of(*made)[0] == before
