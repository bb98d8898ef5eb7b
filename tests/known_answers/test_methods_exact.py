"""Methods where a formula determines the answer: Fisher information, influence, freezing, weights, rates."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.base import Batch, plugin, reinitialise, stages
from methods.catastrophic_forgetting_k import freeze_all_but
from methods.fisher_forgetting import fisher_diagonal
from methods.influence_unlearning import solve
from methods.noise_finetune import class_weights
from methods.schedules import cosine, step_decay
from workers.architectures.cnn_small import CnnSmall
from workers.architectures.resnet18 import Resnet18


class FixedData:
    """11 retained samples in uneven batches and 4 forgotten ones, of 4 classes; there is none of the last."""

    num_classes, device = 4, torch.device("cpu")

    def __init__(self, shape: tuple[int, ...] = (5,), seed: int = 0) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        draw = torch.Generator().manual_seed(5)
        self.images = torch.randn(15, *shape, generator=draw)
        self.labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 0, 1, 2, 2])

    def retain(self, batch_size: int) -> Iterable[Batch]:
        cuts = (slice(0, 7), slice(7, 11)) if batch_size < 100 else (slice(0, 11),)
        return ((self.images[cut], self.labels[cut]) for cut in cuts)

    def forget(self, batch_size: int) -> Iterable[Batch]:
        return iter([(self.images[11:], self.labels[11:])])


def seeded(build: Any, seed: int = 3) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return build()


def logistic() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(5, 4)))


def transformer() -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(8, 4, 2, 2, 16, 32, num_classes=4)


def residual() -> nn.Module:
    return Resnet18().build(4, 1, 8)


def small() -> nn.Module:
    return CnnSmall().build(4, 1, 8)


def unlearned(name: str, model: nn.Module, data: FixedData, **values: Any) -> nn.Module:
    return plugin("methods", name)(**values).unlearn(copy.deepcopy(model).train(), data).eval()


def changed(one: nn.Module, other: nn.Module) -> set[str]:
    """The entries of the state dict that differ."""
    return {
        name for name, value in one.state_dict().items() if not torch.equal(value, other.state_dict()[name])
    }


# ---- FF --------------------------------------------------------------------------------------------------


def fisher_by_hand(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Of logistic regression: E_y (1{y=c} − p_c)² x_j² = p_c (1 − p_c) x_j², mean over samples."""
    p = model(images).softmax(1).detach()
    variance = p * (1 - p)
    return torch.einsum("ic,ij->cj", variance, images**2) / len(images), variance.mean(0)


def test_fisher_diagonal_of_logistic_regression() -> None:
    model, data = logistic(), FixedData()
    weight, bias = fisher_by_hand(model, data.images[:11])
    found = fisher_diagonal(model, data)
    torch.testing.assert_close(found["0.weight"], weight)
    torch.testing.assert_close(found["0.bias"], bias)


def test_fisher_forgetting_adds_noise_of_the_stated_size() -> None:
    model, data = logistic(), FixedData()
    weight, _ = fisher_by_hand(model, data.images[:11])
    steps = torch.stack(
        [
            unlearned("fisher_forgetting", model, FixedData(seed=i), alpha=0.02)[0].weight - model[0].weight
            for i in range(400)
        ]
    ).detach()
    expected = 0.02 * (weight + 1e-8) ** -0.25
    assert ((steps.std(0) / expected - 1).abs() < 0.18).all(), "five standard errors of a deviation"
    assert (steps.mean(0) / expected).abs().max() < 0.25, "five standard errors of a mean"


def test_fisher_forgetting_gives_a_weight_without_information_the_noise_of_the_floor() -> None:
    """An input that is always 0 has F = 0: noise of deviation α · (1e-8)^(−1/4) = 100 α."""
    model, data = logistic(), FixedData()
    data.images = data.images.clone()
    data.images[:, 0] = 0
    steps = []
    for seed in range(200):
        data.rng = torch.Generator().manual_seed(seed)
        steps.append(
            unlearned("fisher_forgetting", model, data, alpha=0.001)[0].weight[:, 0] - model[0].weight[:, 0]
        )
    found = torch.stack(steps).detach().std(0)
    assert ((found / 0.1 - 1).abs() < 0.25).all(), "five standard errors of a deviation"


# ---- IU --------------------------------------------------------------------------------------------------


def recursion(rows: Tensor, damping: float) -> Tensor:
    """WoodFisher's inverse, sample after sample."""
    inverse = torch.eye(rows.shape[1], dtype=rows.dtype) / damping
    for g in rows:
        column = inverse @ g
        inverse = inverse - torch.outer(column, column) / (len(rows) + g @ column)
    return inverse


def solved(rows: Tensor, vector: Tensor, damping: float) -> Tensor:
    return solve(rows @ rows.T, rows @ vector, lambda weights: weights @ rows, vector, damping)


def test_influence_inverts_as_woodfishers_recursion_does() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(30, 12, generator=draw, dtype=torch.float64)
    vector = torch.randn(12, generator=draw, dtype=torch.float64)
    found = solved(rows, vector, 0.05)
    torch.testing.assert_close(found, recursion(rows, 0.05) @ vector)
    dense = 0.05 * torch.eye(12, dtype=torch.float64) + rows.T @ rows / 30
    torch.testing.assert_close(found, torch.linalg.solve(dense, vector))


def test_influence_step_of_linear_regression_is_retraining() -> None:
    """With residuals of ±1, GᵀG/N is the Hessian of ½(x·θ − y)², and one step is the exact optimum."""
    draw = torch.Generator().manual_seed(1)
    residuals = torch.randint(0, 2, (40,), generator=draw).double() * 2 - 1
    x = torch.randn(40, 6, generator=draw, dtype=torch.float64)
    x = x - torch.outer(residuals, residuals @ x) / 40  # the gradient over all samples vanishes at θ₀
    start = torch.randn(6, generator=draw, dtype=torch.float64)
    y = x @ start - residuals
    rows = residuals[:, None] * x
    kept, gone = rows[:30], rows[30:]
    vector = 10 / 40 * (gone.mean(0) - kept.mean(0))
    found = start + solved(kept, vector, 1e-9)
    retrained = torch.linalg.lstsq(x[:30], y[:30, None]).solution[:, 0]
    torch.testing.assert_close(found, retrained, rtol=1e-5, atol=1e-5)
    assert (start - retrained).abs().max() > 0.05


def test_influence_unlearning_of_logistic_regression() -> None:
    model, data = logistic(), FixedData()

    def rows(part: slice) -> Tensor:
        x, p = data.images[part], model(data.images[part]).softmax(1).detach()
        error = p - nn.functional.one_hot(data.labels[part], 4)
        return torch.cat([torch.einsum("ic,ij->icj", error, x).flatten(1), error], 1)

    kept, gone = rows(slice(0, 11)), rows(slice(11, 15))
    vector = 4 / 15 * (gone.mean(0) - kept.mean(0))
    step = 0.3 * torch.linalg.solve(0.1 * torch.eye(24) + kept.T @ kept / 11, vector)
    result = unlearned("influence_unlearning", model, data, alpha=0.3, damping=0.1)
    torch.testing.assert_close(
        result[0].weight.detach(), model[0].weight.detach() + step[:20].view(4, 5), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        result[0].bias.detach(), model[0].bias.detach() + step[20:], rtol=1e-4, atol=1e-5
    )


# ---- CF-k, EU-k ------------------------------------------------------------------------------------------

LAST = {  # what the last one, two and three stages are
    small: (["8"], ["3", "4"], ["0", "1"]),
    residual: (["1.fc"], ["1.layer4.1"], ["1.layer4.0"]),
    transformer: (
        ["heads.head"],
        ["encoder.layers.encoder_layer_1", "encoder.ln"],
        ["encoder.layers.encoder_layer_0"],
    ),
}
NETS = pytest.mark.parametrize("build", LAST)


def last(model: nn.Module, build: Any, k: int) -> set[str]:
    """The entries of the state dict that belong to the last k stages."""
    prefixes = tuple(name + "." for stage in LAST[build][:k] for name in stage)
    return {name for name in model.state_dict() if name.startswith(prefixes)}


def images_for(build: Any) -> FixedData:
    return FixedData((3 if build is transformer else 1, 8, 8))


@NETS
def test_stages_hold_every_layer_once_in_order(build: Any) -> None:
    model = seeded(build)
    inside = [id(p) for stage in stages(model) for module in stage for p in module.parameters()]
    assert len(inside) == len(set(inside))
    outside = [name for name, p in model.named_parameters() if id(p) not in inside]
    assert outside == (["class_token", "encoder.pos_embedding"] if build is transformer else [])
    assert len(stages(model)) == {small: 3, residual: 10, transformer: 4}[build]


@NETS
@pytest.mark.parametrize("k", [1, 2, 3])
def test_catastrophic_forgetting_k_changes_the_last_k_stages_and_nothing_else(build: Any, k: int) -> None:
    model, data = seeded(build), images_for(build)
    with torch.no_grad():
        list(model.parameters())[-2].add_(
            0.1 * torch.randn(list(model.parameters())[-2].shape, generator=data.rng)
        )
    result = unlearned("catastrophic_forgetting_k", model, data, epochs=1, learning_rate=0.1, k=k)
    assert changed(model, result) == last(model, build, k)


@NETS
@pytest.mark.parametrize("k", [1, 2, 3])
def test_exact_unlearning_k_draws_exactly_the_last_k_stages_anew(build: Any, k: int) -> None:
    model, data = seeded(build), images_for(build)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(7)  # which no initialiser gives
    result = unlearned("exact_unlearning_k", model, data, epochs=0, k=k)
    assert changed(model, result) == last(model, build, k)
    assert not any((result.state_dict()[name] == 7).any() for name in last(model, build, k))


def test_exact_unlearning_k_resets_statistics_and_follows_those_of_fresh_weights() -> None:
    model, data = seeded(small), FixedData((1, 8, 8))
    fresh = unlearned("exact_unlearning_k", model, data, epochs=0, k=2)
    assert torch.equal(fresh[4].running_mean, torch.zeros(32)) and fresh[4].num_batches_tracked == 0
    trained = unlearned("exact_unlearning_k", model, data, epochs=2, batch_size=64, k=2)
    assert trained[4].num_batches_tracked == 4 and trained[1].num_batches_tracked == 0


def test_reinitialise_draws_as_a_new_layer_does_without_touching_the_global_generator() -> None:
    layer, state = nn.Linear(100, 400), torch.get_rng_state()
    with torch.no_grad():
        layer.weight.fill_(7)
    reinitialise(layer, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert layer.weight.abs().max() <= 0.1 and layer.weight.std().item() == pytest.approx(
        0.1 / 3**0.5, rel=0.02
    )


def test_all_stages_are_the_whole_model_with_its_positions() -> None:
    model = seeded(transformer)
    assert freeze_all_but(model, 4) == [model] and all(p.requires_grad for p in model.parameters())
    before = copy.deepcopy(model)
    reinitialise(model, torch.Generator().manual_seed(0))
    assert "encoder.pos_embedding" in changed(before, model)


def test_step_decay_at_half_at_four_fifths_and_at_nine_tenths() -> None:
    rates = [step_decay(0.1)(epoch, 10) for epoch in range(10)]
    assert rates == pytest.approx([1] * 5 + [0.1] * 3 + [0.01, 0.001])
    assert [step_decay(0.5)(0, 1), step_decay(0.5)(0, 2), step_decay(0.5)(1, 2)] == [1, 1, 0.5]
    assert [cosine(epoch, 4) for epoch in range(4)] == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)


# ---- CFW, RNI --------------------------------------------------------------------------------------------


def test_class_weights_are_balanced_and_an_absent_class_does_no_harm() -> None:
    found = class_weights(FixedData(), 64)
    assert found[:3].tolist() == pytest.approx([11 / (4 * 6), 11 / (4 * 3), 11 / (4 * 2)])
    assert torch.isfinite(found).all()


def test_noise_finetune_steps_on_the_weighted_mean_of_a_batch() -> None:
    model, data = logistic(), FixedData()
    weights = torch.tensor([11 / 24, 11 / 12, 11 / 8, 1.0])[data.labels[:11]]
    losses = cross_entropy(model(data.images[:11]), data.labels[:11], reduction="none")
    gradient = torch.autograd.grad((weights * losses).sum() / weights.sum(), model[0].weight)[0]
    plain = {"momentum": 0.0, "weight_decay": 0.0, "sigma": 0.0, "sigma_last": 0.0}
    result = unlearned("noise_finetune", model, data, epochs=1, batch_size=128, learning_rate=0.5, **plain)
    torch.testing.assert_close(result[0].weight, model[0].weight - 0.5 * gradient)


@pytest.mark.parametrize(
    ("build", "stem"), [(small, "0"), (residual, "1.conv1"), (transformer, "conv_proj"), (logistic, "0")]
)
def test_noise_finetune_disturbs_the_stem_of_every_architecture(build: Any, stem: str) -> None:
    model = seeded(build)
    result = unlearned("noise_finetune", model, images_for(build), epochs=0, sigma=0.5)
    assert changed(model, result) == {f"{stem}.weight"}


def test_noise_finetune_disturbs_again_before_the_last_epoch() -> None:
    def weight(epochs: int, sigma_last: float) -> Tensor:
        values = {"learning_rate": 0.0, "sigma": 0.0, "sigma_last": sigma_last, "batch_size": 64}
        return unlearned("noise_finetune", logistic(), FixedData(), epochs=epochs, **values)[0].weight

    assert torch.equal(weight(3, 0.0), logistic()[0].weight)
    noise = weight(3, 2.0) - logistic()[0].weight
    assert noise.std().item() == pytest.approx(2.0, rel=0.5)
    torch.testing.assert_close(weight(1, 2.0) - logistic()[0].weight, noise)  # once, however many epochs


def test_random_noise_injection_redraws_the_head_and_leaves_norms_without_noise() -> None:
    model = seeded(residual)
    values = {"learning_rate": 0.0, "fine_learning_rate": 0.0, "sigma": 0.1, "selected": 1.0, "nu": 1.0}
    result = unlearned(
        "random_noise_injection", model, images_for(residual), noisy_epochs=2, fine_epochs=1, **values
    )
    norms = {
        f"{n}.{p}"
        for n, m in model.named_modules()
        if isinstance(m, nn.BatchNorm2d)
        for p in ("weight", "bias")
    }
    names = {name for name, _ in model.named_parameters()}
    assert changed(model, result) & names == names - norms, "down-sampling norms included"
    step = result[1].layer3[0].conv1.weight - model[1].layer3[0].conv1.weight
    assert step.std().item() == pytest.approx(0.1, rel=0.02), "noise once: not in the first epoch"
