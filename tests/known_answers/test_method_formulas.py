"""Single steps of methods against the formula, worked out by hand on fixed batches."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.base import Batch, plugin


class FixedData:
    """The same batches at each call: 12 retained and 6 forgotten samples of 3 classes."""

    def __init__(self, num_classes: int = 3, seed: int = 0) -> None:
        self.num_classes, self.device = num_classes, torch.device("cpu")
        self.rng = torch.Generator().manual_seed(seed)
        draw = torch.Generator().manual_seed(5)
        self.images = torch.randn(18, 1, 5, 5, generator=draw)
        self.labels = torch.randint(0, num_classes, (18,), generator=draw)
        self.forgotten = torch.arange(18) >= 12

    def retain(self, batch_size: int) -> Iterable[Batch]:
        yield self.images[:12], self.labels[:12]

    def forget(self, batch_size: int) -> Iterable[Batch]:
        yield self.images[12:], self.labels[12:]

    def retain_sample(self, batch_size: int) -> Iterable[Batch]:
        yield self.images[3:9], self.labels[3:9]

    def union(self, batch_size: int) -> Iterable[Batch]:
        yield self.images, self.labels, self.forgotten


def net(classes: int = 3) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 1),
            nn.Flatten(),
            nn.Linear(36, classes),
        )


def unlearned(
    name: str, data: FixedData | None = None, base: nn.Module | None = None, **values: Any
) -> nn.Module:
    """One plain step at rate 0.1, unless said otherwise."""
    chosen = {"epochs": 1, "learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0} | values
    data = data or FixedData()
    model = copy.deepcopy(base) if base is not None else net(data.num_classes)
    return plugin("methods", name)(**chosen).unlearn(model.train(), data)


def gradients(model: nn.Module, value: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, list(model.parameters())))


def assert_weights(model: nn.Module, expected: list[Tensor]) -> None:
    for (name, parameter), value in zip(model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(
            parameter.detach(), value, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_gradient_ascent_goes_up_the_loss_of_the_forget_set() -> None:
    base, data = net(), FixedData()
    up = gradients(base, cross_entropy(base(data.images[12:]), data.labels[12:]))
    expected = [p.detach() + 0.1 * g for p, g in zip(base.parameters(), up, strict=True)]
    assert_weights(unlearned("gradient_ascent"), expected)


def test_neggrad_plus_steps_on_the_difference_in_eval_mode() -> None:
    base, data = net().eval(), FixedData()
    down = gradients(base, cross_entropy(base(data.images[:12]), data.labels[:12]))
    up = gradients(base, cross_entropy(base(data.images[12:]), data.labels[12:]))
    both = zip(base.parameters(), down, up, strict=True)
    model = unlearned("neggrad_plus", alpha=0.9)
    assert_weights(model, [p.detach() - 0.1 * (0.9 * d - 0.1 * u) for p, d, u in both])
    assert model[1].num_batches_tracked == 0, "the forget set moved running statistics"


def test_neggrad_plus_takes_a_step_per_retain_batch_and_cycles_the_forget_batches() -> None:
    class Longer(FixedData):
        def retain(self, batch_size: int) -> Iterable[Batch]:
            for part in range(5):
                yield self.images[2 * part : 2 * part + 2], self.labels[2 * part : 2 * part + 2]

        def forget(self, batch_size: int) -> Iterable[Batch]:
            self.rounds = getattr(self, "rounds", 0) + 1
            yield self.images[12:15], self.labels[12:15]
            yield self.images[15:], self.labels[15:]

    data = Longer()
    unlearned("neggrad_plus", data=data, epochs=2)
    assert data.rounds == 2 * 3, "5 retain batches take 3 rounds of 2 forget batches, in each epoch"


def test_successive_random_labels_with_two_classes_are_the_other_label() -> None:
    base, data = net(2), FixedData(2)
    targets = torch.where(data.forgotten, 1 - data.labels, data.labels)
    down = gradients(base, cross_entropy(base(data.images), targets))
    expected = [p.detach() - 0.1 * g for p, g in zip(base.parameters(), down, strict=True)]
    assert_weights(unlearned("successive_random_labels", data=FixedData(2)), expected)


def test_successive_random_labels_are_never_true_and_otherwise_uniform() -> None:
    from methods.base import wrong_labels

    labels = torch.arange(5).repeat(4000)
    data = FixedData(5)
    drawn = wrong_labels(labels, data)
    counts = torch.zeros(5, 5, dtype=torch.long).index_put_((labels, drawn), torch.tensor(1), accumulate=True)
    assert torch.equal(counts.diagonal(), torch.zeros(5, dtype=torch.long))
    expected = torch.full((5, 5), 1000.0).fill_diagonal_(0)
    assert (counts - expected).abs().max() < 150, "five standard deviations are 137"
    assert not torch.equal(drawn, wrong_labels(labels, data)), "labels are drawn anew at each visit"


def test_convolution_transpose_swaps_the_axes_of_kernels_and_nothing_else() -> None:
    base, model = net(), unlearned("convolution_transpose", epochs=0)
    assert torch.equal(model[0].weight, base[0].weight.transpose(2, 3))
    assert not torch.equal(model[0].weight, base[0].weight)
    rest = {k: v for k, v in base.state_dict().items() if k != "0.weight"}
    assert all(torch.equal(model.state_dict()[k], v) for k, v in rest.items())


def test_convolution_transpose_keeps_kernels_that_are_not_square() -> None:
    base = nn.Sequential(nn.Conv2d(1, 2, (3, 5)), nn.Flatten(), nn.Linear(6, 3))
    assert torch.equal(unlearned("convolution_transpose", base=base, epochs=0)[0].weight, base[0].weight)


def mask_by_hand(base: nn.Module, rho: float) -> list[Tensor]:
    base, data = base.eval(), FixedData()
    kept = cross_entropy(base(data.images[3:9]), data.labels[3:9], reduction="sum")
    gone = cross_entropy(base(data.images[12:]), data.labels[12:], reduction="sum")
    found = gradients(base, kept - gone)
    sizes = [found[i].abs() for i in (0, 4)]  # the weights of the two convolutions
    return [size <= size.flatten().sort().values[round(rho * size.numel()) - 1] for size in sizes]


def test_masked_small_gradients_redraws_the_smallest_and_only_those() -> None:
    base, model = net(), unlearned("masked_small_gradients", epochs=0, rho=0.5)
    convolutions = (0, 3)
    for layer, mask in zip(convolutions, mask_by_hand(net(), 0.5), strict=True):
        assert torch.equal(model[layer].weight != base[layer].weight, mask)
        assert int(mask.sum()) == round(0.5 * mask.numel())
    untouched = {k: v for k, v in base.state_dict().items() if k not in ("0.weight", "3.weight")}
    assert all(torch.equal(model.state_dict()[k], v) for k, v in untouched.items()), "statistics included"


def test_masked_small_gradients_draws_kaiming_normal_fan_out() -> None:
    base = nn.Sequential(nn.Conv2d(1, 400, 3), nn.Flatten(), nn.Linear(3600, 3))
    model = unlearned("masked_small_gradients", base=base, epochs=0, rho=1.0)
    assert model[0].weight.std().item() == pytest.approx((2 / (400 * 9)) ** 0.5, rel=0.05)


def test_masked_small_gradients_damps_the_rest_but_not_weight_decay_nor_other_layers() -> None:
    start = unlearned("masked_small_gradients", epochs=0, rho=0.5).train()
    data = FixedData()
    down = gradients(start, cross_entropy(start(data.images[:12]), data.labels[:12]))
    scales = {0: 0, 4: 1}
    expected = []
    for i, (p, g) in enumerate(zip(start.parameters(), down, strict=True)):
        damping = torch.where(mask_by_hand(net(), 0.5)[scales[i]], 1.0, 0.1) if i in scales else 1.0
        expected.append(p.detach() - 0.1 * (damping * g + 0.5 * p.detach()))
    assert_weights(unlearned("masked_small_gradients", rho=0.5, weight_decay=0.5), expected)
