"""Gradients of single samples, layer by layer: those of all weights of a net are never held at once.

What a sample adds to the gradient of a linear layer or of a convolution is a sum over positions l (tokens,
pixels) of outer products of what comes in, u_l, and of the derivative by what goes out, δ_l:

    g = Σ_l δ_l u_lᵀ,   u_l = (a patch of the input, 1): the last column is the gradient of the bias.

One vectorised pass over samples finds the inputs and δ of such layers, and the gradients of all other
parameters as they are: these count as layers of one position with u = 1. What methods need follows from these
factors, either of outer products never made or of g made explicitly, whichever is cheaper:

    Σ_n g_n²      = Σ_n Σ_{l,m} (δ_l δ_m)(u_l u_m)ᵀ,  products by element       (`sum_squares`)
    ⟨g_n, g_n'⟩   = Σ_{l,m} ⟨u_l, u'_m⟩ ⟨δ_l, δ'_m⟩                             (`add_products`)

Goodfellow 2015, arXiv 1510.01799; Rochette, Manoel, Tramel 2019, arXiv 1912.06015. Always in float32: a
vectorised BatchNorm takes no mixed types; nor can fused attention be vectorised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from methods.factored_layers import Layer, Taps, read

ENTRIES = 2**28  # of the factors of many samples that are held at once: 1 GiB
PASS = 2**26  # of what a pass over samples holds, and of gradients made explicitly for products
PIECE = 2**22  # of what is made of factors and used up at once, near the size of a cache
# What else can be done in the time of a multiplication in a product of matrices in float32: costs are counted
# in these, as measured on a CPU.
MEMORY = 24  # for an entry of a result that is written and read again
DOUBLE = 4  # for a multiplication in float64

Outputs = Callable[[Tensor, Tensor], Tensor]  # of logits (C,) and label (): () or (c,)


class SampleGradients:
    """Gradients of single samples of a model whose samples do not mix (`steady`)."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.weights = {name: weight.detach() for name, weight in model.named_parameters()}
        self.layers: list[Layer] = []
        self.saved = self.largest = 0  # entries kept of a sample for its backward pass, and of one tensor

    @torch.no_grad()
    def add_squares(
        self, total: dict[str, Tensor], images: Tensor, labels: Tensor, outputs: Outputs, c: int
    ) -> None:
        """Add to each parameter's `total` the sum of g² over samples and the c `outputs` (c,) of each."""
        self._read(images)
        some = max(1, min(c, PASS // self._entries(self.layers, 1)))
        for part in cuts(len(images), PASS // self._entries(self.layers, some)):
            for chosen in cuts(c, some):
                chosen_outputs = partial(_some, outputs, chosen)
                for factors in self.factors(self.layers, images[part], labels[part], chosen_outputs):
                    for name, found in factors.layer.split(sum_squares(factors)).items():
                        total[name] += found

    @torch.no_grad()
    def gram(self, images: Tensor, labels: Tensor, vector: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """GGᵀ (n, n) and Gv (n,) in float64, G the gradients of the cross-entropy of n samples in rows.
        vector: v, by parameter.
        """
        self._read(images)
        square = images.new_zeros(len(images), len(images), dtype=torch.float64)
        along = images.new_zeros(len(images), dtype=torch.float64)
        for layers, size in self._groups(len(images)):
            parts = list(cuts(len(images), size))

            def held(part: slice, layers: list[Layer] = layers) -> tuple[list[Factors], Tensor]:
                return self._held(layers, images[part], labels[part], vector)

            for i, part in enumerate(parts):
                along[part] += _add_part(square, held, part, parts[:i])
        return square.tril() + square.tril(-1).T, along

    def combine(self, images: Tensor, labels: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Gᵀw, by parameter: one plain backward pass. weights: w (n,)."""
        total = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        own = {name: weight.detach().requires_grad_() for name, weight in self.weights.items()}
        for part in cuts(len(images), PASS // (self.saved + 1)):
            with torch.enable_grad():
                logits = functional_call(self.model, own, (images[part],))
                loss = weights[part] @ cross_entropy(logits, labels[part], reduction="none")
            found = torch.autograd.grad(loss, list(own.values()), allow_unused=True)
            for name, gradient in zip(own, found, strict=True):
                if gradient is not None:
                    total[name] += gradient
        return total

    def _read(self, images: Tensor) -> None:
        if not self.layers:
            self.layers, saved = read(self.model, self.weights, images[:1])
            self.saved, self.largest = sum(saved), max(saved)

    # ---- passes ------------------------------------------------------------------------------------------

    def factors(
        self, layers: list[Layer], images: Tensor, labels: Tensor, outputs: Outputs = cross_entropy
    ) -> list[Factors]:
        """The factors of the derivatives of each sample's `outputs` with respect to some layers."""
        weights = {layer.names[0]: self.weights[layer.names[0]] for layer in layers}
        tapped = {layer.names[0]: layer for layer in layers if type(layer) is not Layer}
        names = {id(weights[name]): name for name in tapped}
        noughts = {name: weights[name].new_zeros(layer.output_shape) for name, layer in tapped.items()}
        others = {name: weight for name, weight in weights.items() if name not in tapped}

        def of_one(
            noughts: dict[str, Tensor], others: dict[str, Tensor], image: Tensor, label: Tensor
        ) -> tuple[Tensor, dict[str, Tensor]]:
            with Taps(names, noughts) as taps:
                logits = functional_call(self.model, self.weights | others, (image[None],))
            return outputs(logits[0], label), taps.inputs

        each = vmap(jacrev(of_one, argnums=(0, 1), has_aux=True), in_dims=(None, None, 0, 0))
        with sdpa_kernel(SDPBackend.MATH):
            (deltas, gradients), inputs = each(noughts, others, images, labels)
        found, ones = deltas | gradients, images.new_ones(len(images), 1)
        return [
            Factors(
                layer,
                inputs.get(layer.names[0], ones),
                found[layer.names[0]].reshape(len(images), -1, *layer.output_shape),
            )
            for layer in layers
        ]

    def _entries(self, layers: list[Layer], c: int) -> int:
        """What a pass holds for a sample with c outputs: what a backward pass needs, inputs and δ of layers,
        and a few intermediate derivatives.
        """
        inputs = sum(math.prod(layer.input_shape) for layer in layers)
        outputs = sum(math.prod(layer.output_shape) for layer in layers)
        return self.saved + inputs + c * (outputs + 4 * self.largest)

    def _groups(self, n: int) -> Iterator[tuple[list[Layer], int]]:
        """Layers whose factors of n samples can be held at once; of one too large for it, fewer samples."""
        group: list[Layer] = []
        free = per_sample = ENTRIES // n
        for layer in self.layers:
            if layer.held > per_sample:
                yield [layer], ENTRIES // (2 * layer.held)
                continue
            if layer.held > free:
                yield group, n
                group, free = [], per_sample
            group.append(layer)
            free -= layer.held
        if group:
            yield group, n

    def _held(
        self, layers: list[Layer], images: Tensor, labels: Tensor, vector: Mapping[str, Tensor]
    ) -> tuple[list[Factors], Tensor]:
        """The factors of the gradients of many samples, and what these layers add to Gv."""
        held: list[Factors] = []
        along = images.new_zeros(len(images))
        for part in cuts(len(images), PASS // self._entries(layers, 1)):
            for i, found in enumerate(self.factors(layers, images[part], labels[part])):
                along[part] += found.along(vector)
                small = found.compact()
                if i == len(held):
                    held.append(small.room(len(images)))
                held[i].x[part], held[i].deltas[part] = small.x, small.deltas
        return held, along


def _add_part(
    square: Tensor, held: Callable[[slice], tuple[list[Factors], Tensor]], part: slice, others: list[slice]
) -> Tensor:
    """Adds the products of a part with itself and with others, of which one is held at a time; its Gv."""
    left, along = held(part)
    for factors in left:
        add_products(square[part, part], factors, factors)
    for other in others:
        for one, two in zip(left, held(other)[0], strict=True):
            add_products(square[part, other], one, two)
        del two
    return along


def _some(outputs: Outputs, chosen: slice, logits: Tensor, label: Tensor) -> Tensor:
    return outputs(logits, label)[chosen]


def cuts(n: int, size: int) -> Iterator[slice]:
    """0 … n − 1 in parts of `size`, at least 1."""
    size = max(1, size)
    return (slice(start, min(n, start + size)) for start in range(0, n, size))


# ---- sums over factors -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Factors:
    """Of the derivatives of b samples with respect to a layer, for c outputs."""

    layer: Layer
    x: Tensor  # (b, *input_shape)
    deltas: Tensor  # (b, c, *output_shape)

    def both(self, part: slice) -> tuple[Tensor, Tensor]:
        """The u and δ of some samples."""
        return self.layer.inputs(self.x[part]), self.layer.deltas(self.deltas[part])

    def along(self, vector: Mapping[str, Tensor]) -> Tensor:
        """⟨g, v⟩ of each sample (b,); c is 1."""
        return (self.deltas[:, 0] * self.layer.call(self.x, vector)).flatten(1).sum(1)

    def compact(self) -> Factors:
        """The same, or the gradients themselves if they are smaller; c is 1."""
        if type(self.layer) is Layer or self.layer.held < self.layer.size:
            return self
        size = (self.layer.size,)
        gradients = rows(*self.both(slice(None))).reshape(len(self.x), 1, *size)
        return Factors(Layer((), size, (), size), self.x.new_ones(len(self.x), 1), gradients)

    def room(self, n: int) -> Factors:
        """Empty factors of n samples."""
        x, deltas = (tensor.new_empty((n, *tensor.shape[1:])) for tensor in (self.x, self.deltas))
        return replace(self, x=x, deltas=deltas)


def rows(u: Tensor, delta: Tensor) -> Tensor:
    """The gradients made explicitly: (b, groups, c, o, d)."""
    if u.shape[-1] == 1:
        return delta * u.mT[:, :, None]
    return (delta.flatten(2, 3) @ u.mT).unflatten(2, delta.shape[2:4])


def sum_squares(factors: Factors) -> Tensor:
    """Σ g² over samples and outputs: a matrix (groups, o, d)."""
    u, delta = factors.both(slice(0, 1))
    (groups, d, positions), (c, o) = u.shape[1:], delta.shape[2:4]
    size, factor = groups * o * d, groups * (o + d)
    pairs = positions * (positions + 1) // 2
    if positions == 1:
        sum_up, entries = _squares_of_one, c * factor
    elif DOUBLE * pairs * (size + MEMORY * factor) < c * size * (positions + MEMORY):
        sum_up, entries = _squares_by_pairs, factor * positions**2
    else:
        sum_up, entries = _squares_by_rows, c * size + groups * d * positions
    total = u.new_zeros(groups, o, d)
    for part in cuts(len(factors.x), PIECE // entries):
        total += sum_up(*factors.both(part))
    return total


def _squares_of_one(u: Tensor, delta: Tensor) -> Tensor:
    return torch.einsum("bgol,bgdl->god", delta.square().sum(2), u.square())


def _squares_by_pairs(u: Tensor, delta: Tensor) -> Tensor:
    """In float64, since terms of both signs can sum to next to nothing."""
    u, delta = u.double(), delta.double()
    one, two = torch.triu_indices(u.shape[-1], u.shape[-1], device=u.device)
    by_output = torch.einsum("bgcol,bgcom->bgolm", delta, delta)[..., one, two] * (2 - (one == two).double())
    return torch.einsum("bgoq,bgdq->god", by_output, u[..., one] * u[..., two]).float()


def _squares_by_rows(u: Tensor, delta: Tensor) -> Tensor:
    total = u.new_zeros(u.shape[1], delta.shape[3], u.shape[2])
    for part in cuts(delta.shape[2], PIECE // (total.numel() * len(u))):
        total += rows(u, delta[:, :, part]).square_().sum((0, 2))
    return total


def add_products(square: Tensor, left: Factors, right: Factors) -> None:
    """Add ⟨g_n, g_n'⟩ of the samples of two (n, n'), for one output each; of a set with itself, only the
    lower half is.
    """
    u, delta = left.both(slice(0, 1))
    (groups, d, positions), o = u.shape[1:], delta.shape[3]
    size, n = groups * d * o, len(left.x)
    made = size * (1 + 2 * (positions + MEMORY) / n)
    if groups * positions**2 * (d + o + MEMORY) < made:
        _add_by_positions(square, left, right, positions * math.isqrt(groups))
    else:
        _add_by_rows(square, left, right, groups * d, o)


def _add_by_positions(square: Tensor, left: Factors, right: Factors, width: int) -> None:
    size = math.isqrt(PIECE) // width
    for part in cuts(len(left.x), size):
        u, delta = (_flat(factor) for factor in left.both(part))
        for other in cuts(part.stop if left is right else len(right.x), size):
            v, epsilon = (_flat(factor) for factor in right.both(other))
            both = (u @ v.mT).mul_(delta @ epsilon.mT)
            sides = (len(both), part.stop - part.start, -1, other.stop - other.start)
            square[part, other] += both.view(*sides, both.shape[2] // sides[3]).sum((0, 2, 4))


def _flat(factor: Tensor) -> Tensor:
    """(b, groups, …, d, positions) with one output -> (groups, b · positions, d)."""
    return factor.flatten(2, -2).permute(1, 0, 3, 2).flatten(1, 2)


def _add_by_rows(square: Tensor, left: Factors, right: Factors, width: int, o: int) -> None:
    """Gradients of some outputs o of the layer for all samples at a time."""
    for part in cuts(o, PASS // (width * (len(left.x) + len(right.x)))):
        if left is right:
            _add_half(square, _some_rows(left, part))
        else:
            square += _some_rows(left, part) @ _some_rows(right, part).T


def _add_half(square: Tensor, made: Tensor) -> None:
    for part in cuts(len(made), -(-len(made) // 8)):
        square[part, : part.stop] += made[part] @ made[: part.stop].T


def _some_rows(factors: Factors, part: slice) -> Tensor:
    u, delta = factors.both(slice(0, 1))
    made = u.new_empty(len(factors.x), delta[:, :, 0, part, 0].numel() * u.shape[2])
    for some in cuts(len(made), PIECE // u.numel()):
        u, delta = factors.both(some)
        made[some] = rows(u, delta[..., part, :]).flatten(1)
    return made
