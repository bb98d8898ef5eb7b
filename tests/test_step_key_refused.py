"""What of a step cannot be compared is not guessed: it is recorded for its fit alone."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from methods.base import fit, sgd
from methods.finetune import Finetune
from tests.test_step_key import FACTOR, SGD, Made, Net, changed, plain, with_options
from workers.engine import Graphs, Stepper, chosen
from workers.step_key import CannotTell, key_of, private


def hooked(kind: str) -> nn.Module:
    model = Net()
    getattr(model.first, f"register_{kind}")(lambda *_: None)
    return model


def of_a_view() -> nn.Module:
    return changed(Net(), lambda m: m.register_buffer("part", torch.zeros(4, 4)[1]))


def overlapping() -> nn.Module:
    whole = torch.zeros(8)
    return changed(Net(), lambda m: (m.register_buffer("a", whole), m.register_buffer("b", whole.detach())))


def watched_weight(kind: str) -> nn.Module:
    return changed(Net(), lambda m: getattr(m.first.weight, kind)(lambda *_: None))


def with_hook(kind: str) -> Callable[[nn.Module], torch.optim.Optimizer]:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = sgd(model, 0.1)
        getattr(optimizer, f"register_step_{kind}_hook")(lambda *_: None)
        return optimizer

    return make


def scheduled(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = sgd(model, 0.1)
    LambdaLR(optimizer, lambda _: 1.0)
    return optimizer


def inferred() -> nn.Module:
    with torch.inference_mode():
        return changed(Net(), lambda m: m.register_buffer("shift", torch.zeros(4)))


def unset() -> Made:
    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(model(images), labels) + later

    if not FACTOR:
        later = 1.0
    model = Net()
    return loss, sgd(model, 0.1)


def noted() -> Made:
    def nested(value: Tensor) -> Tensor:
        return value * nested.factor

    nested.factor = 1.0
    return plain(nested=nested)


REFUSED: dict[str, Callable[[], Made]] = {
    "unknown object in the loss": lambda: plain(method=object()),
    "list in the loss": lambda: plain(weights=[1.0]),
    "counter in the loss": lambda: plain(weights={"count": 1}),
    "generator in the loss": lambda: plain(weights=torch.Generator()),
    "bound method in the loss": lambda: plain(nested=Finetune().unlearn),
    "attribute of a function": noted,
    "loss that is no function": lambda: (functools.partial(cross_entropy), sgd(Net(), 0.1)),
    "name without a value": unset,
    "unknown object in the net": lambda: plain(Net(scale=object())),
    "forward hook": lambda: plain(hooked("forward_hook")),
    "forward pre-hook": lambda: plain(hooked("forward_pre_hook")),
    "backward hook": lambda: plain(hooked("full_backward_hook")),
    "backward pre-hook": lambda: plain(hooked("full_backward_pre_hook")),
    "hook of a gradient": lambda: plain(watched_weight("register_hook")),
    "hook after a gradient": lambda: plain(watched_weight("register_post_accumulate_grad_hook")),
    "step that is replaced": lambda: plain(optimizer=scheduled),
    "another optimizer": lambda: plain(optimizer=lambda m: torch.optim.RMSprop(m.parameters())),
    "dampening": lambda: with_options(SGD, momentum=0.9, dampening=0.1),
    "parameter the loss does not hold": lambda: plain(optimizer=lambda m: sgd(Net(), 0.1)),
    "view": lambda: plain(of_a_view()),
    "tensors in the same memory": lambda: plain(overlapping()),
    "numbers repeated in memory": lambda: plain(weights=copy.deepcopy(torch.ones(1).expand(3))),
    "tensor of inference mode": lambda: plain(inferred()),
    "result of an operator": lambda: plain(weights=torch.ones(3, requires_grad=True) * 2),
    "tensor of another device": lambda: plain(weights=torch.ones(3, device="meta")),
    "sparse tensor": lambda: plain(weights=torch.ones(3).to_sparse()),
}


HOOKED: dict[str, Callable[[], Made]] = {
    "hook before steps": lambda: plain(optimizer=with_hook("pre")),
    "hook after steps": lambda: plain(optimizer=with_hook("post")),
}


@pytest.mark.parametrize("name", HOOKED)
def test_that_an_optimizer_has_hooks_is_in_its_key(name: str) -> None:
    assert key_of(*HOOKED[name]())[0] != key_of(*plain())[0]


@pytest.mark.parametrize("name", REFUSED)
def test_of_what_is_not_known_nothing_is_guessed(name: str) -> None:
    made = REFUSED[name]()
    with pytest.raises(CannotTell):
        key_of(*made)


def test_hooks_of_all_modules_or_optimizers_are_seen() -> None:
    made = plain()
    for register in (
        nn.modules.module.register_module_forward_hook,
        register_optimizer_step_pre_hook,
        register_optimizer_step_post_hook,
    ):
        handle = register(lambda *_: None)
        with pytest.raises(CannotTell):
            key_of(*made)
        handle.remove()
    key_of(*made)


def test_a_loss_whose_tensors_cannot_be_copied_apart_is_not_lent() -> None:
    """A function among the attributes of a net that refers to the net itself."""
    model = Net()
    model.activation = lambda x: x * model.scale
    made = plain(model)
    key_of(*made)
    with pytest.raises(CannotTell, match="come apart"):
        private(*made)


@pytest.mark.parametrize(
    ("name", "recorded"),
    [
        *[(name, 2) for name in HOOKED],
        *[(name, 0) for name in ("forward hook", "dampening", "view", "another optimizer")],
    ],
)
def test_steps_with_hooks_of_the_optimizer_are_recorded_for_one_fit_and_unknown_ones_not(
    name: str, recorded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, record = [], Stepper._recorded
    monkeypatch.setattr(Stepper, "_recorded", lambda self, b: (sizes.append(len(b[0])), record(self, b))[1])
    graphs, given = Graphs(), [(torch.randn(5, 12), torch.tensor([0, 1, 2, 0, 1]))] * 5
    with chosen(graphs):
        for _ in range(2):
            loss, optimizer = (HOOKED | REFUSED)[name]()
            fit(optimizer, lambda: given, loss, epochs=1, pure=True)
    assert not graphs.free and sizes == [5] * recorded
