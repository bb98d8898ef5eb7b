"""When two steps of `fit` are the same computation, so that what was recorded of one is right for the other.

A recording has everything built in but the values of tensors, so the key of a step holds everything else that
decides what it computes: the code of the loss, and what its closure holds; of each module its class, forward
pass and every attribute, tensors by shape, strides and type and which of them are the same one; optimizer,
options and groups; precision and torch's settings. Two architectures differ in their key wherever a Python
attribute does, so none needs a name or a version. Of what is not known here nothing is guessed: hooks, views,
objects of other kinds in a closure or a module raise CannotTell, and such a step is not recorded. Hooks of
the optimizer, which a method adds to keep to its update rule, are not looked into: that there are some is in
the key, and `has_hooks` says whether it is of one fit only.

Not seen are global variables that functions read which a loss or a forward pass calls, and attributes of
classes: they are taken to be constant. Nor are random numbers of other generators than torch's own, of which
a pure step draws none.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import functools
from collections.abc import Callable, Hashable
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodDescriptorType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.optim import optimizer as optimizers

from methods.base import PRECISION, Method

Loss = Callable[..., Tensor]
Optimizer = torch.optim.Optimizer

# What state tensors are filled with for a step on them to give, bit for bit, what the first step of a fresh
# optimizer gives. SGD's momentum starts as a copy of the gradient, and -0.0 is what changes no number added
# to it: 0.0 would make 0.0 of a gradient of -0.0.
FRESH: dict[type[Optimizer], float] = {torch.optim.SGD: -0.0, torch.optim.Adam: 0.0}

TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format)
PLAIN = (type(None), type(...), bool, int, float, complex, str, bytes, enum.Enum, *TORCH)
NAMED = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodDescriptorType)  # there is one of each

HOOKS = {name for name in vars(nn.Module()) if "hook" in name}


class CannotTell(Exception):
    """Something takes part in a step of which it is not known how to compare it."""


class Parts:
    """Makes keys of objects, and collects the tensors that are met, in an order that the key decides."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._met: dict[int, int] = {}  # tensors, modules and functions, in the order of their first turn

    def key(self, value: Any) -> Hashable:
        if isinstance(value, PLAIN):
            return type(value), repr(value)  # 1, 1.0 and True are equal, and so are 0.0 and -0.0
        if isinstance(value, tuple | list):
            return type(value), tuple(self.key(item) for item in value)
        if isinstance(value, dict):
            return type(value), tuple((self.key(name), self.key(item)) for name, item in value.items())
        if isinstance(value, set | frozenset):
            return type(value), frozenset(self.key(item) for item in value)
        if isinstance(value, functools.partial):
            return functools.partial, self.key((value.func, value.args, value.keywords))
        if isinstance(value, Method):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return type(value), self.key(fields | vars(value))  # and what was set besides
        if isinstance(value, Tensor | nn.Module) or is_nested(value):
            return self._once(value)
        if isinstance(value, NAMED):
            return value
        raise CannotTell(f"an object of {type(value).__qualname__}")

    def _once(self, value: Tensor | nn.Module | FunctionType) -> Hashable:
        if id(value) in self._met:
            return "met before", self._met[id(value)]
        self._met[id(value)] = len(self._met)
        if isinstance(value, FunctionType):
            return self._function(value)
        return self._tensor(value) if isinstance(value, Tensor) else self._module(value)

    def _tensor(self, tensor: Tensor) -> Hashable:
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
        hooks = tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None)
        repeated = any(step == 0 and n > 1 for step, n in zip(tensor.stride(), tensor.shape, strict=True))
        foreign = tensor._is_view() or tensor.is_inference() or not tensor.is_leaf
        if not plain or hooks or repeated or foreign:
            raise CannotTell("a tensor that is not one of its own: with hooks, a view, or of a special kind")
        self.tensors.append(tensor)
        kind = tensor.dtype, tensor.device, tensor.requires_grad
        return type(tensor), tuple(tensor.shape), tensor.stride(), kind, self.key(vars(tensor))

    def _module(self, module: nn.Module) -> Hashable:
        attributes = vars(module)
        if any(attributes.get(name) for name in HOOKS if "state_dict" not in name):
            raise CannotTell(f"a {type(module).__qualname__} with hooks")
        attributes = {name: value for name, value in attributes.items() if name not in HOOKS}
        return type(module), self._forward(type(module)), self.key(attributes)

    def _forward(self, kind: type[nn.Module]) -> Hashable:
        forward = kind.forward
        if kind.__module__.startswith("torch.") or not isinstance(forward, FunctionType):
            return forward
        return self._once(forward)

    def _function(self, function: FunctionType) -> Hashable:
        """Its code, what it holds, and what names of its module stand for."""
        code, around = function.__code__, function.__globals__
        try:
            cells = [cell.cell_contents for cell in function.__closure__ or ()]
        except ValueError as error:
            raise CannotTell(f"{function.__qualname__} holds a name without a value") from error
        if function.__dict__ or any(isinstance(value, list | dict | set) for value in cells):
            raise CannotTell(f"{function.__qualname__} holds what it could change")
        read = [(name, around[name]) for name in sorted(names_in(code)) if name in around]
        known = tuple((name, value) for name, value in read if isinstance(value, NAMED))
        constants = [(name, value) for name, value in read if not isinstance(value, NAMED)]
        if not all(isinstance(value, (*PLAIN, tuple)) for _, value in constants):
            raise CannotTell(f"{function.__qualname__} reads {[name for name, _ in constants]} of its module")
        return (
            self._code(code),
            known,
            self.key((function.__defaults__, function.__kwdefaults__, cells, constants)),
        )

    def _code(self, code: CodeType) -> Hashable:
        """What of a function's code runs, wherever it was written and whatever it is called."""
        if any(isinstance(constant, CodeType) for constant in code.co_consts):
            return code
        names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
        counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
        return code.co_code, code.co_exceptiontable, self.key(code.co_consts), names, counts

    def optimizer(self, optimizer: Optimizer) -> Hashable:
        """The key of an optimizer whose parameters are all met already."""
        if type(optimizer) not in FRESH or "step" in vars(optimizer):
            raise CannotTell(f"{type(optimizer).__qualname__}, another optimizer than torch's SGD and Adam")
        groups = tuple(self._group(group) for group in optimizer.param_groups)
        return type(optimizer), has_hooks(optimizer), groups

    def _group(self, group: dict[str, Any]) -> Hashable:
        if group.get("momentum") and group["dampening"]:
            raise CannotTell("dampening, which an optimizer's first step leaves out")
        if not all(id(parameter) in self._met for parameter in group["params"]):
            raise CannotTell("a parameter of the optimizer that the loss does not hold")
        options = {name: value for name, value in group.items() if name not in ("params", "lr")}
        return tuple(self._met[id(parameter)] for parameter in group["params"]), self.key(options)


def names_in(code: CodeType) -> set[str]:
    """Names that a function's code, and that of the functions in it, may look up in its module."""
    inner = (names_in(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)


def is_nested(function: Any) -> bool:
    """Whether there may be many functions of this code, each with other contents."""
    return isinstance(function, FunctionType) and (
        function.__closure__ is not None or "<locals>" in function.__qualname__
    )


def has_hooks(optimizer: Optimizer) -> bool:
    """Whether a step has hooks of its optimizer, which may hold anything of their fit."""
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)


def key_of(loss: Loss, optimizer: Optimizer) -> tuple[Hashable, list[Tensor]]:
    """What a step computes, for comparing, and the tensors it reads and writes; CannotTell, with a reason."""
    parts = Parts()
    if not isinstance(loss, FunctionType):
        raise CannotTell(f"a loss that is no function but {type(loss).__qualname__}")
    if (
        modules._has_any_global_hook()
        or optimizers._global_optimizer_pre_hooks
        or optimizers._global_optimizer_post_hooks
    ):
        raise CannotTell("hooks of all modules or optimizers")
    key = parts._once(loss), parts.optimizer(optimizer), settings()
    if len({tensor.device for tensor in parts.tensors}) > 1:
        raise CannotTell("tensors of several devices: of those on the host, values are recorded")
    places = [tensor.untyped_storage().data_ptr() for tensor in parts.tensors if tensor.numel()]
    if len(set(places)) < len(places):
        raise CannotTell("tensors that share their memory")
    return key, parts.tensors


def settings() -> Hashable:
    """Settings of torch that choose how operators compute."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return (
        (PRECISION.get(), torch.get_default_dtype(), torch.get_float32_matmul_precision()),
        (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_autocast_enabled("cuda"),
            torch.is_autocast_enabled("cpu"),
        ),
        (cudnn.enabled, cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32),
        (
            cuda.flash_sdp_enabled(),
            cuda.mem_efficient_sdp_enabled(),
            cuda.math_sdp_enabled(),
            cuda.cudnn_sdp_enabled(),
        ),
    )


def private(loss: Loss, optimizer: Optimizer) -> tuple[Loss, Optimizer]:
    """Copies of a loss and of a fresh optimizer of its kind that share no tensor with them; CannotTell if
    they do.
    """
    memo: dict[int, Any] = {}
    own = _copied(loss, memo)
    groups = [
        group | {"params": [memo.get(id(parameter), parameter) for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    copied = own, type(optimizer)(groups, **optimizer.defaults)
    (key, tensors), (own_key, own_tensors) = key_of(loss, optimizer), key_of(*copied)
    if key != own_key or {id(tensor) for tensor in tensors} & {id(tensor) for tensor in own_tensors}:
        raise CannotTell("a loss that does not come apart from its tensors")
    return copied


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    if not is_nested(value):
        return copy.deepcopy(value, memo)
    if id(value) not in memo:
        cells = tuple(CellType() for _ in value.__closure__ or ())
        own = FunctionType(value.__code__, value.__globals__, value.__name__, None, cells)
        memo[id(value)] = own  # before its contents, among which it may be
        for cell, of in zip(cells, value.__closure__ or (), strict=True):
            cell.cell_contents = _copied(of.cell_contents, memo)
        defaults, named = value.__defaults__ or (), value.__kwdefaults__ or {}
        own.__defaults__ = tuple(_copied(of, memo) for of in defaults) or None
        own.__kwdefaults__ = {name: _copied(of, memo) for name, of in named.items()} or None
    return memo[id(value)]
