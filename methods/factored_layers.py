"""Layers whose gradients are sums of outer products, found in a net by how its parameters are used.

A linear layer or a convolution with its bias, called once in a pass, is one, whichever module it belongs to;
any other parameter counts as a layer of its own. No architecture is named: calls are watched, not modules.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import conv2d, linear, pad, unfold
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Layer:
    """Parameters and how their gradients are made of factors; here those of any parameter: u = 1, δ = g."""

    names: tuple[str, ...]  # of the weight and, where there is one, of the bias
    shape: tuple[int, ...]  # of the weight
    input_shape: tuple[int, ...]  # of one sample
    output_shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of parameters."""
        return math.prod(self.shape) + (self.shape[0] if len(self.names) > 1 else 0)

    @property
    def held(self) -> int:
        """Entries that are kept of a sample: factors, or its gradient where that is smaller."""
        return min(self.size, math.prod(self.input_shape) + math.prod(self.output_shape))

    def inputs(self, x: Tensor) -> Tensor:
        """The u of b samples: (b, groups, d, positions). x: (b, *input_shape)."""
        return x[:, :, None, None]

    def deltas(self, found: Tensor) -> Tensor:
        """The δ of b samples with c outputs: (b, groups, c, o, positions). found: (b, c, *output_shape)."""
        return found[:, None, :, :, None]

    def call(self, x: Tensor, vector: Mapping[str, Tensor]) -> Tensor:
        """The layer, which is linear in its parameters, with others: (b, *output_shape), or broadcast."""
        return vector[self.names[0]].reshape(1, -1)

    def split(self, matrix: Tensor) -> dict[str, Tensor]:
        """The parameters whose entries are in a matrix (groups, o, d)."""
        if len(self.names) == 1:
            return {self.names[0]: matrix.reshape(self.shape)}
        return {
            self.names[0]: matrix[..., :-1].reshape(self.shape),
            self.names[1]: matrix[..., -1].flatten(),
        }

    def _with_one(self, columns: Tensor) -> Tensor:
        return pad(columns, (0, 0, 0, 1), value=1.0) if len(self.names) > 1 else columns


@dataclass(frozen=True)
class Linear(Layer):
    """torch.nn.functional.linear: all but the last dimension are positions."""

    def inputs(self, x: Tensor) -> Tensor:
        return self._with_one(x.reshape(len(x), 1, -1, x.shape[-1]).mT)

    def deltas(self, found: Tensor) -> Tensor:
        return found.reshape(*found.shape[:2], -1, found.shape[-1]).mT[:, None]

    def call(self, x: Tensor, vector: Mapping[str, Tensor]) -> Tensor:
        return linear(x, *(vector[name] for name in self.names))


@dataclass(frozen=True)
class Conv2d(Layer):
    """torch.nn.functional.conv2d on (k, channels, height, width) of each sample, k being 1 in most nets."""

    options: Mapping[str, Any]  # stride, padding, dilation, groups

    def inputs(self, x: Tensor) -> Tensor:
        images, padding, dilation = x.flatten(0, 1), self.options["padding"], self.options["dilation"]
        if padding == "same":
            steps = [dilation] * 2 if isinstance(dilation, int) else dilation
            excess = [step * (k - 1) for step, k in zip(steps, self.shape[2:], strict=True)]
            images = pad(images, [side for e in reversed(excess) for side in (e // 2, e - e // 2)])
        margin = 0 if isinstance(padding, str) else padding
        patches = unfold(images, self.shape[2:], dilation, margin, self.options["stride"])
        columns = patches.reshape(*x.shape[:2], self.options["groups"], -1, patches.shape[-1])
        return self._with_one(columns.permute(0, 2, 3, 1, 4).flatten(3))

    def deltas(self, found: Tensor) -> Tensor:
        pixels = found.reshape(*found.shape[:3], self.options["groups"], -1, math.prod(found.shape[-2:]))
        return pixels.permute(0, 3, 1, 4, 2, 5).flatten(4)

    def call(self, x: Tensor, vector: Mapping[str, Tensor]) -> Tensor:
        found = conv2d(x.flatten(0, 1), *[vector[name] for name in self.names], **self.options)
        return found.reshape(*x.shape[:2], *found.shape[1:])


def read(model: nn.Module, weights: dict[str, Tensor], image: Tensor) -> tuple[list[Layer], list[int]]:
    """The layers by which every parameter with a part in the logits is covered once, and the entries of each
    tensor that is saved for a backward pass of a sample.

    What is not found to be used once, and in a linear layer or a convolution, is a layer of its own: it is
    looked for in the graph of a pass in which those layers are cut off from their parameters.
    """
    own = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    places, saved = {weight.data_ptr() for weight in weights.values()}, [0]

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in places:
            saved.append(tensor.numel())
        return tensor

    keep = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), keep, Cut(own) as cut:
        start = image.detach().requires_grad_()
        logits = functional_call(model, own, (start.clone(),))
        # Of the image too: asked for its weights alone, a GroupNorm in channels_last crashes torch 2.11.
        ways = torch.autograd.grad(logits.sum(), [*own.values(), start], allow_unused=True)
    calls = Counter(name for layer in cut.layers for name in layer.names)
    elsewhere = {name for name, number in calls.items() if number > 1}
    elsewhere |= {name for name, way in zip(own, ways, strict=False) if way is not None}
    layers = [layer for layer in cut.layers if elsewhere.isdisjoint(layer.names)]
    covered = {name for layer in layers for name in layer.names}
    others = [name for name in weights if name not in covered and (name in elsewhere or name in calls)]
    whole = [Layer((name,), tuple(weights[name].shape), (), (weights[name].numel(),)) for name in others]
    return layers + whole, saved


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    return input, weight, bias, {}


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return input, weight, bias, options


CALLS: dict[Any, Callable[..., Any]] = {linear: _linear, conv2d: _conv2d}


class Cut(TorchFunctionMode):
    """Finds layers by their calls, and cuts them off from their parameters, so that what the graph still
    reaches is used elsewhere. weights: by name, the very tensors that are used.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.names = {id(weight): name for name, weight in weights.items()}
        self.layers: list[Layer] = []

    def __torch_function__(self, function: Any, _: Any, given: Any = (), named: Any = None) -> Any:
        named = named or {}
        if function not in CALLS:
            return function(*given, **named)
        x, weight, bias, options = CALLS[function](*given, **named)
        parameters = [weight] if bias is None else [weight, bias]
        if not all(id(p) in self.names for p in parameters) or (function is conv2d and x.dim() != 4):
            return function(*given, **named)
        found = function(x, *(p.detach() for p in parameters), **options)
        names = tuple(self.names[id(p)] for p in parameters)
        shapes = [tuple(tensor.shape) for tensor in (weight, x, found)]
        self.layers.append(Conv2d(names, *shapes, options) if function is conv2d else Linear(names, *shapes))
        return found


class Taps(TorchFunctionMode):
    """Adds noughts to what layers give, by which to differentiate, and keeps their inputs. names: by the id
    of a weight.
    """

    def __init__(self, names: dict[int, str], noughts: dict[str, Tensor]) -> None:
        super().__init__()
        self.names, self.noughts, self.inputs = names, noughts, dict[str, Tensor]()

    def __torch_function__(self, function: Any, _: Any, given: Any = (), named: Any = None) -> Any:
        named = named or {}
        found = function(*given, **named)
        if function not in CALLS:
            return found
        x, weight, *_ = CALLS[function](*given, **named)
        name = self.names.get(id(weight))
        if name is None:
            return found
        self.inputs[name] = x
        return found + self.noughts[name]
