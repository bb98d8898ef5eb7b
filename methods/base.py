"""What methods share: the base class, hyper-parameters, and the one epoch loop with its guard.

A method is a frozen dataclass in a file of its own; its fields are its hyper-parameters. It is handed a
private copy of a base model and the data it may see, and returns the unlearned model.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from methods.schedules import Schedule, constant

Batch = tuple[Tensor, ...]


def hp(
    default: Any,
    low: Any = None,
    high: Any = None,
    *,
    log: bool = False,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """A hyper-parameter: the paper's default and the range to search (low–high, log-scaled or not, or
    choices).

    All arguments are literals, because plans read them from the source without importing torch.
    """
    return dataclasses.field(
        default=default, metadata={"low": low, "high": high, "log": log, "choices": choices}
    )


class Data(Protocol):
    """What a method sees of the data, as batches on the device. There is no test set to leak.

    Batches are (images float (b, channels, height, width), labels int64 (b,)), augmented as in training, in a
    fresh random order at every call. No batch has a single sample, which BatchNorm could not take.
    """

    num_classes: int
    forget_classes: tuple[int, ...]  # the classes of which every training sample is to be forgotten
    device: torch.device
    rng: torch.Generator  # on the device, seeded by the task: every random draw of a method comes from it

    def retain(self, batch_size: int) -> Iterable[Batch]: ...
    def forget(self, batch_size: int) -> Iterable[Batch]: ...
    def val(self, batch_size: int) -> Iterable[Batch]: ...
    def union(self, batch_size: int) -> Iterable[Batch]:
        """Retain and forget shuffled together: (images, labels, forgotten bool (b,))."""

    def retain_sample(self, batch_size: int) -> Iterable[Batch]:
        """A random subset of the retain set of the forget set's size."""

    def codes(self) -> Tensor:
        """The mnemonic codes the base was trained with: float (C, channels, height, width)."""


@dataclass(frozen=True)
class Method:
    """An unlearning method. Subclasses add hyper-parameters as fields; what they declare are literals, since
    plans read it from the source.

    needs: what it reads, of retain, forget, val and codes. scope: the forget sets it is made for, 'random'
    (any samples), 'class' (all samples of some classes) or 'both'. training: the training recipe of the bases
    it starts from, 'plain' or one that changes training for the sake of later deletions ('mnemonic'). once:
    whether it cannot go on from a model it has unlearned, as sequential requests need.
    cost: formulas in the hyper-parameters and in retain_size, forget_size and val_size for the passes over
    'retain', 'forget' and 'val', a pass being as many samples read as the set has, and for the further
    'copies' of the model that are held at once. What is left out is 0.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    paper: ClassVar[str]
    version: ClassVar[int]
    needs: ClassVar[tuple[str, ...]]
    scope: ClassVar[str] = "both"
    training: ClassVar[str] = "plain"
    once: ClassVar[bool] = False
    cost: ClassVar[dict[str, str]]

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        """The unlearned model. `model`, a private copy of the base in training mode, may be changed."""
        raise NotImplementedError


class Diverged(Exception):
    """A loss or a weight is no longer finite. This is a result of a method, not a fault of the program."""


# ---- optimizers ------------------------------------------------------------------------------------------


def sgd(
    model: nn.Module, learning_rate: float, momentum: float = 0.0, weight_decay: float = 0.0
) -> torch.optim.SGD:
    """SGD with heavy-ball momentum and coupled weight decay over the trainable parameters of `model`."""
    return torch.optim.SGD(
        _trainable(model),
        lr=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        fused=_on_gpu(model),
    )


def adam(model: nn.Module, learning_rate: float, weight_decay: float = 0.0) -> torch.optim.Adam:
    """Adam with coupled weight decay over the trainable parameters of `model`."""
    return torch.optim.Adam(
        _trainable(model), lr=learning_rate, weight_decay=weight_decay, fused=_on_gpu(model)
    )


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("this model is frozen: an optimizer must not change it")
    return parameters


def _on_gpu(model: nn.Module) -> bool:
    return next(model.parameters()).is_cuda


# ---- the loop --------------------------------------------------------------------------------------------

# What `fit` calls after each epoch: tuning watches a method there, and may end it by an exception.
AFTER_EPOCH: ContextVar[Callable[[], None] | None] = ContextVar("after_epoch", default=None)

Loss = Callable[..., Tensor]
Step = Callable[[Batch], None]
Engine = Callable[[torch.optim.Optimizer, Loss], AbstractContextManager[Step]]

# How steps of a pure loss are taken, e.g. by replaying a recorded one (workers/engine.py). None: as they are.
ENGINE: ContextVar[Engine | None] = ContextVar("engine", default=None)


def fit(
    optimizer: torch.optim.Optimizer,
    batches: Callable[[], Iterable[Batch]],
    loss: Loss,
    *,
    epochs: int,
    schedule: Schedule = constant,
    steps: int | None = None,
    pure: bool = False,
) -> None:
    """The one training loop: for each epoch, a descent step on `loss(*batch)` for each batch of `batches()`.

    The learning rate is its initial value times `schedule(epoch, epochs)`; where the number of `steps` of an
    epoch is given, times `schedule(step, epochs * steps)`, the step counted from the first epoch on. The host
    waits for the device once per epoch, to raise Diverged when some loss was not finite. pure: the loss is of
    its batch and of tensors that it holds and that are changed in place only. Nothing else changes between
    steps, no counter, mode of a module or option of the optimizer, nor does it draw from `data.rng`; hooks of
    the optimizer are operators on such tensors. Such steps can be recorded (ENGINE) and leave no gradients;
    while they are taken, tensors have other memory, of which an earlier `detach()` or `.data` knows nothing.
    """
    initial = [group["lr"] for group in optimizer.param_groups]

    def pace(factor: float) -> None:
        for group, rate in zip(optimizer.param_groups, initial, strict=True):
            group["lr"] = rate * factor

    engine = ENGINE.get() if pure else None
    how = nullcontext(plain_step(optimizer, loss)) if engine is None else engine(optimizer, loss)
    with how as take:
        for epoch in range(epochs):
            if steps is None:
                pace(schedule(epoch, epochs))
            for step, batch in enumerate(batches()):
                if steps is not None:
                    pace(schedule(epoch * steps + step, epochs * steps))
                take(batch)
            check_finite(optimizer)
            if (after := AFTER_EPOCH.get()) is not None:
                after()


def plain_step(optimizer: torch.optim.Optimizer, loss: Loss) -> Step:
    """A step down the gradient of `loss(*batch)`, one operator after the other."""

    def step(batch: Batch) -> None:
        with precision(batch[0].device):
            value = loss(*batch)
        descend(optimizer, value)

    return step


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down the gradient of `loss`; notes on the device whether the loss was finite."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    finite = torch.isfinite(loss.detach())
    optimizer.__dict__.setdefault("all_finite", finite).logical_and_(finite)  # in place: steps are replayed


def check_finite(optimizer: torch.optim.Optimizer) -> None:
    """Raise Diverged if a loss given to `descend` with this optimizer was not finite; a host sync."""
    if not bool(optimizer.__dict__.get("all_finite", True)):
        raise Diverged("the loss is not finite")


PRECISION: ContextVar[str] = ContextVar("precision", default="auto")  # 'auto', 'float32' or 'bfloat16'


def precision(device: torch.device) -> torch.autocast:
    """The context of forward passes that train: by default bfloat16 autocast on a GPU, float32 elsewhere."""
    chosen = PRECISION.get()
    reduced = chosen == "bfloat16" or (chosen == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=reduced)


# ---- models ----------------------------------------------------------------------------------------------


def frozen_copy(model: nn.Module) -> nn.Module:
    """A deep copy in eval mode without gradients, e.g. a teacher. No optimizer of this module accepts it."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def layers(model: nn.Module, *kinds: type[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """The named modules of `model` that are of one of the given kinds, in definition order."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, kinds))


def accumulate_gradient(model: nn.Module, batches: Iterable[Batch], loss: Callable[..., Tensor]) -> None:
    """Add the gradient of `loss(*batch)`, summed over the batches, to the `.grad` of each parameter."""
    for batch in batches:
        with precision(batch[0].device):
            value = loss(*batch)
        value.backward()  # type: ignore[no-untyped-call]


def stem(model: nn.Module) -> nn.Module:
    """The first convolution: of a convolutional net its stem, of a vision transformer its patch embedding."""
    return _one(layers(model, nn.Conv2d), "convolution")


def head(model: nn.Module) -> nn.Module:
    """The last linear layer, which gives the logits."""
    return _one(reversed(list(layers(model, nn.Linear))), "linear layer")


def _one(found: Iterable[tuple[str, nn.Module]], what: str) -> nn.Module:
    for _, layer in found:
        return layer
    raise ValueError(f"this model has no {what}, and the method needs one")


NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def stages(model: nn.Module) -> list[list[nn.Module]]:
    """The parts of `model` that hold weights, in definition order: blocks of a network, the head last.

    Sequential containers and modules around a single part are opened, everything else is a part. A norm
    layer belongs to the part before it. ResNet-18 has ten: stem, eight blocks, head.
    """
    children = _weighted(model)
    if len(children) == 1:
        return stages(children[0])
    found: list[list[nn.Module]] = []
    for part in [part for child in children for part in _parts(child)] or [model]:
        if isinstance(part, NORMS) and found:
            found[-1].append(part)
        else:
            found.append([part])
    return found


def _weighted(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.children() if any(True for _ in child.parameters())]


def _parts(module: nn.Module) -> list[nn.Module]:
    children = _weighted(module)
    blocks = [child for child in children if not isinstance(child, NORMS)]
    if len(blocks) > 1 and not isinstance(module, nn.Sequential | nn.ModuleList):
        return [module]
    inner = [part for child in children for part in _parts(child)]
    own = any(True for _ in module.parameters(recurse=False))
    return [module] if own and len(inner) < 2 else inner


@torch.no_grad()
def reinitialise(module: nn.Module, rng: torch.Generator) -> None:
    """Give each layer in `module` new weights by its own default initialiser, drawn from `rng`, in place.

    Statistics of normalisations start anew. What no layer initialises (class tokens, positions) is drawn from
    N(0, 0.02²). The host waits once for the device.
    """
    seed = int(torch.randint(2**62, (1,), generator=rng, device=rng.device))
    with torch.random.fork_rng([rng.device] if rng.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for layer in reversed(list(module.modules())):  # attention resets some of what its layers draw
            reset = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
            if reset is not None:
                reset()
                continue
            for parameter in layer.parameters(recurse=False):
                nn.init.normal_(parameter, std=0.02)


# ---- what losses are made of -----------------------------------------------------------------------------


def divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """Batch mean of KL(softmax(teacher/T) ‖ softmax(student/T)) of logits (b, C), without a factor T²."""
    target = log_softmax(teacher.float() / temperature, 1)
    logs = log_softmax(student.float() / temperature, 1)
    return kl_div(logs, target, reduction="batchmean", log_target=True)


def wrong_labels(labels: Tensor, data: Data) -> Tensor:
    """For each label (b,) another class, uniformly: the true one moved on by 1 … C − 1 places."""
    steps = torch.randint(1, data.num_classes, labels.shape, generator=data.rng, device=labels.device)
    return (labels + steps) % data.num_classes


def smallest(values: Tensor, fraction: float) -> Tensor:
    """A mask of the `fraction` of entries, rounded to a whole number, that are smallest in absolute value."""
    chosen = values.abs().flatten().argsort()[: round(fraction * values.numel())]
    mask = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    return mask.index_fill_(0, chosen, True).view_as(values)


# ---- gradients of single samples -------------------------------------------------------------------------


def steady(model: nn.Module) -> nn.Module:
    """`model` with its layers in eval mode, so that samples do not mix and nothing is random.

    Modules made of modules that have a `train` of their own stay in training mode: in eval mode some (timm's
    attention biases) cache tensors made of weights until then, which gradients do not reach.
    """
    for module in model.modules():
        caches = type(module).train is not nn.Module.train and any(True for _ in module.children())
        module.training = caches and not isinstance(module, NORMS)
    return model


def require_finite(tensors: Iterable[Tensor], what: str) -> None:
    """Raise Diverged if a number is not finite; one host sync. For methods that take no step."""
    if not bool(torch.stack([torch.isfinite(tensor).all() for tensor in tensors]).all()):
        raise Diverged(f"{what} is not finite")


# ---- discovery -------------------------------------------------------------------------------------------


def plugin(package: str, name: str) -> Any:
    """The class of the plug-in `name` in a package, e.g. plugin("methods", "finetune")."""
    module = importlib.import_module(f"{package}.{name}")
    for value in vars(module).values():
        if (
            isinstance(value, type)
            and value.__module__ == module.__name__
            and vars(value).get("name") == name
        ):
            return value
    raise LookupError(f"{package}/{name}.py: no class with name = {name!r}")
