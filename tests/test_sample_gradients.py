"""Sums over gradients of single samples are those that plain autograd gives sample after sample, for any net
and within the memory that is allowed.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize, relu
from torch.nn.utils.parametrizations import weight_norm
from torch.profiler import ProfilerActivity, profile

from methods import sample_gradients
from methods.base import steady
from methods.factored_layers import Conv2d, Layer, Linear
from methods.fisher_forgetting import weighted
from methods.sample_gradients import Factors, SampleGradients
from workers.architectures import architecture

CLASSES = 3


# ---- nets ------------------------------------------------------------------------------------------------


def convolutions() -> nn.Module:
    """Strides, dilation, groups, margins of all kinds, with and without bias."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=4),
        nn.GroupNorm(3, 12),
        nn.Conv2d(12, 12, (2, 3), padding="same", groups=12, bias=False),
        nn.BatchNorm2d(12),
        nn.Conv2d(12, 6, (1, 3), stride=(1, 2), padding=(0, 1), padding_mode="reflect"),
        nn.Conv2d(6, 6, 2, padding="valid"),
        nn.Flatten(),
        nn.Unflatten(1, (1, 48)),
        nn.Conv1d(1, 2, 3),
        nn.Flatten(),
        nn.LayerNorm(92),
        nn.Linear(92, CLASSES),
    )


class Odd(nn.Module):
    """What belongs to no layer, or to a layer that is used in more ways than one."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))  # of a module that has children
        self.stem = nn.Linear(192, 6)
        self.twice = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.twice.weight
        self.shared_bias = nn.Linear(6, 6)
        self.shared_bias.bias = nn.Parameter(torch.randn(6))
        self.also_bias = nn.Linear(6, 6)
        self.also_bias.bias = self.shared_bias.bias
        self.read_elsewhere = nn.Linear(6, 6)
        self.normed = weight_norm(nn.Linear(6, 6))
        self.named = nn.Linear(6, CLASSES, bias=False)
        self.unused = nn.Linear(6, 6)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images.flatten(1) * self.scale)
        x = relu(self.twice(relu(self.twice(x)))) + self.tied(x)
        x = self.also_bias(relu(self.shared_bias(x)))
        x = self.read_elsewhere(x) + linear(x, self.read_elsewhere.weight.T)
        return self.named(input=self.normed(x))


class Standardised(nn.Conv2d):
    """A convolution whose weight is not the parameter."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, normalize(self.weight, dim=0), self.bias)


class Windows(nn.Module):
    """Parts of a sample as a batch, and a sequence whose first dimension is not the sample's."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = Standardised(3, 4, 3, padding=1)
        self.inside = nn.Conv2d(4, 8, 3, padding=1)
        self.attention = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0)
        self.cross = nn.MultiheadAttention(8, 2, batch_first=False)
        self.query = nn.Parameter(torch.randn(1, 1, 8))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        cut = self.patches(images).unfold(2, 4, 4).unfold(3, 4, 4)  # (b, 4, 2, 2, 4, 4)
        windows = relu(self.inside(cut.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)))
        tokens = windows.amax((2, 3)).unflatten(0, (-1, 4)).transpose(0, 1)  # (windows, b, 8)
        tokens = self.attention(tokens)
        found, _ = self.cross(self.query.expand(1, tokens.shape[1], 8), tokens, tokens)
        return self.head(found[0])


def named(name: str, size: int) -> Any:
    return lambda: architecture(name).build(CLASSES, 3, size)


NETS: dict[str, tuple[Any, int]] = {
    "convolutions": (convolutions, 10),
    "odd": (Odd, 8),
    "windows": (Windows, 8),
    "cnn_small": (named("cnn_small", 8), 8),
    "vit_tiny": (named("vit_tiny", 8), 8),
    "resnet18": (named("resnet18", 16), 16),
    "wide_resnet16_4": (named("wide_resnet16_4", 8), 8),
    "tinyvit11m": (named("tinyvit11m", 8), 8),
}


def seeded(name: str, samples: int = 2) -> tuple[nn.Module, Tensor, Tensor]:
    """A net that no zero hides a gradient of, images and labels."""
    build, size = NETS[name]
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        model = steady(build())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.03)
        return model, torch.randn(samples, 3, size, size), torch.randint(CLASSES, (samples,))


def one_by_one(model: nn.Module, images: Tensor, labels: Tensor, outputs: Any) -> list[list[Tensor]]:
    """For each parameter the derivatives of each output of each sample, in float64."""
    parameters = list(model.parameters())
    found: list[list[Tensor]] = [[] for _ in parameters]
    for image, label in zip(images, labels, strict=True):
        for output in outputs(model(image[None])[0], label).reshape(-1):
            gradients = torch.autograd.grad(output, parameters, retain_graph=True, allow_unused=True)
            for rows, parameter, gradient in zip(found, parameters, gradients, strict=True):
                rows.append(torch.zeros_like(parameter) if gradient is None else gradient)
    return [torch.stack(rows).double() for rows in found]


def assert_near(found: Tensor, expected: Tensor, what: str, terms: Tensor | None = None) -> None:
    """Within the rounding of float32 beside the largest entry, or the largest of what it is a sum of."""
    assert found.shape == expected.shape, what
    error, scale = (found - expected).abs().max(), (expected if terms is None else terms).abs().max()
    assert error <= 2e-5 * scale + 1e-13, f"{what}: {float(error):.2g} beside {float(scale):.2g}"


def check(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """All four sums against autograd."""
    draw = torch.Generator().manual_seed(7)
    vector = {name: torch.randn(p.shape, generator=draw) for name, p in model.named_parameters()}
    weights = torch.randn(len(images), generator=draw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of slow operators
        net = SampleGradients(model)
        sums = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
        net.add_squares(sums, images, labels, weighted, CLASSES)
        square, along = net.gram(images, labels, vector)
        combined = net.combine(images, labels, weights)
    each = one_by_one(model, images, labels, weighted)
    for (name, total), expected in zip(sums.items(), each, strict=True):
        assert_near(total, expected.square().sum(0), f"squares of {name}")
    each = one_by_one(model, images, labels, cross_entropy)
    rows = torch.cat([gradient.reshape(len(labels), -1) for gradient in each], 1)
    assert_near(square, rows @ rows.T, "products")
    assert_near(along, rows @ torch.cat([v.flatten() for v in vector.values()]).double(), "along a vector")
    for (name, total), expected in zip(combined.items(), each, strict=True):
        combination = torch.tensordot(weights.double(), expected, 1)
        assert_near(total, combination, f"combination of {name}", expected)


# ---- any net ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_sums_are_those_of_gradients_one_by_one(name: str) -> None:
    check(*seeded(name))


@pytest.mark.parametrize("name", ["convolutions", "cnn_small", "wide_resnet16_4"])
def test_layout_of_memory_makes_no_difference(name: str) -> None:
    model, images, labels = seeded(name)
    last: Any = torch.channels_last
    check(model.to(memory_format=last), images.contiguous(memory_format=last), labels)


@pytest.mark.parametrize("name", ["convolutions", "odd", "windows"])
@pytest.mark.parametrize(("entries", "held", "piece"), [(1, 1, 1), (300, 4000, 50)])
def test_parts_of_any_size_give_the_same(
    name: str, entries: int, held: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_gradients, "PASS", entries)
    monkeypatch.setattr(sample_gradients, "ENTRIES", held)
    monkeypatch.setattr(sample_gradients, "PIECE", piece)
    check(*seeded(name, 4))


def test_layers_are_told_from_what_is_used_otherwise() -> None:
    def whole(name: str) -> set[str]:
        model, images, _ = seeded(name)
        net = SampleGradients(model)
        net.gram(images, torch.zeros(len(images), dtype=torch.long), dict(model.named_parameters()))
        return {layer.names[0] for layer in net.layers if type(layer) is Layer}

    norms = {"3.weight", "3.bias", "5.weight", "5.bias", "12.weight", "12.bias"}
    assert whole("convolutions") == {"10.weight", "10.bias"} | norms
    model = Odd()
    used = {name for name, _ in model.named_parameters() if not name.startswith("unused")}
    assert whole("odd") == used - {"stem.weight", "stem.bias", "named.weight"}
    assert "inside.weight" not in whole("windows") and "patches.weight" in whole("windows")


# ---- ways to the same sum --------------------------------------------------------------------------------


def factors(c: int) -> list[Factors]:
    """Of 5 samples: a linear layer of 6 tokens and a grouped convolution of 2 windows, with bias."""
    draw = torch.Generator().manual_seed(0)

    def random(layer: Layer) -> Factors:
        shapes = (5, *layer.input_shape), (5, c, *layer.output_shape)
        return Factors(layer, *(torch.randn(shape, generator=draw) for shape in shapes))

    options = {"stride": 1, "padding": 1, "dilation": 1, "groups": 2}
    return [
        random(Linear(("w", "b"), (7, 4), (6, 4), (6, 7))),
        random(Conv2d(("w", "b"), (8, 3, 3, 3), (2, 6, 4, 4), (2, 8, 4, 4), options)),
    ]


@pytest.mark.parametrize("which", [0, 1])
def test_squares_of_products_and_of_rows_agree(which: int) -> None:
    found = factors(3)[which]
    u, delta = found.both(slice(None))
    expected = torch.einsum("bgcol,bgdl->bgcod", delta.double(), u.double()).square().sum((0, 2))
    for way in (sample_gradients._squares_by_pairs, sample_gradients._squares_by_rows):
        torch.testing.assert_close(way(u, delta), expected.float())
    torch.testing.assert_close(sample_gradients.sum_squares(found), expected.float())


@pytest.mark.parametrize("which", [0, 1])
def test_products_by_positions_and_by_rows_agree(which: int) -> None:
    left, right = factors(1)[which], factors(1)[which]
    right.x.mul_(0.5).add_(1)
    rows = [sample_gradients.rows(*f.both(slice(None))).flatten(1).double() for f in (left, right)]
    width = left.both(slice(None))[0][0, ..., 0].numel()
    for other, expected in ((right, rows[0] @ rows[1].T), (left, rows[0] @ rows[0].T)):
        half = torch.ones(5, 5).tril() if other is left else torch.ones(5, 5)
        for way, given in ((sample_gradients._add_by_positions, (6,)), (sample_gradients._add_by_rows, None)):
            square = torch.zeros(5, 5, dtype=torch.float64)
            o = left.both(slice(None))[1].shape[3]
            way(square, left, other, *(given or (width, o)))
            torch.testing.assert_close(square * half, expected * half, rtol=1e-5, atol=1e-4)


def test_gradients_that_cancel_have_squares_of_nothing() -> None:
    """As those of the bias of keys in attention: float32 would leave 1e-7 of the terms, of either sign."""
    u, delta = torch.ones(1, 1, 3, 8) * 11.1, torch.linspace(-70, 70, 8).expand(1, 1, 2, 5, 8)
    assert sample_gradients._squares_by_pairs(u, delta).abs().max() < 1e-7


# ---- memory ----------------------------------------------------------------------------------------------


def most_held(work: Any) -> int:
    """The most bytes that are allocated at once beyond those there are."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    held = most = 0
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def test_memory_stays_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    model = steady(nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 40, 3), nn.Flatten()))
    images, labels = torch.randn(50, 3, 12, 12), torch.randint(40, (50,))
    vector = dict(model.named_parameters())
    net = SampleGradients(model)
    net.gram(images[:2], labels[:2], vector)  # reads the net, whatever the limits
    bound = 4 * (2**17 + 3 * 2**16)
    assert most_held(lambda: net.gram(images, labels, vector)) > 2 * bound
    for name, entries in (("ENTRIES", 2**17), ("PASS", 2**16), ("PIECE", 2**13)):
        monkeypatch.setattr(sample_gradients, name, entries)
    assert most_held(lambda: net.gram(images, labels, vector)) < bound
