"""Teachers, masks and mixed losses against the formula, worked out by hand on fixed batches."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, softmax

from methods.base import Batch, plugin, sgd
from tests.known_answers.test_method_formulas import FixedData, assert_weights, gradients, net, unlearned


def kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """The batch mean of Σ q (log q − log p), written out."""
    q, p = softmax(teacher / temperature, 1), softmax(student / temperature, 1)
    return (q * (q.log() - p.log())).sum(1).mean()


def stepped(base: nn.Module, value: Tensor, rate: float = 0.1) -> list[Tensor]:
    """The parameters of `base` after a plain step down the gradient of `value`."""
    return [p.detach() - rate * g for p, g in zip(base.parameters(), gradients(base, value), strict=True)]


class Batches(FixedData):
    """Retained samples in batches of two, forgotten ones in two uneven batches, for validation the same."""

    def retain(self, batch_size: int) -> Iterable[Batch]:
        for start in range(0, 12, 2):
            yield self.images[start : start + 2], self.labels[start : start + 2]

    def forget(self, batch_size: int) -> Iterable[Batch]:
        yield self.images[12:16], self.labels[12:16]
        yield self.images[16:], self.labels[16:]

    def val(self, batch_size: int) -> Iterable[Batch]:
        yield self.images[12:], self.labels[12:]


# ---- BT ------------------------------------------------------------------------------------------


def test_bad_teacher_mixes_two_teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    from methods import bad_teacher

    def blank(module: nn.Module, rng: torch.Generator) -> None:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()

    monkeypatch.setattr(bad_teacher, "reinitialise", blank)
    monkeypatch.setattr(bad_teacher, "adam", lambda model, rate, decay: sgd(model, rate))
    base, data = net(), FixedData()
    good = net().eval()(data.images).detach()
    target = torch.where(data.forgotten[:, None], torch.zeros(18, 3), good)
    expected = stepped(base, kl(target, base(data.images), 2.0))
    model = bad_teacher.BadTeacher(epochs=1, learning_rate=0.1, temperature=2.0).unlearn(net().train(), data)
    assert_weights(model, expected)


# ---- SalUN ---------------------------------------------------------------------------------------


def salient_by_hand(tau: float, data: FixedData) -> list[Tensor]:
    base = net().eval()
    total = cross_entropy(base(data.images[12:]), data.labels[12:], reduction="sum")
    found = gradients(base, total)
    sizes = torch.cat([g.abs().flatten() for g in found])
    least = sizes.sort(descending=True).values[round(tau * len(sizes)) - 1]
    return [g.abs() >= least for g in found]


@pytest.mark.parametrize("tau", [0.1, 0.37, 1.0])
def test_salun_keeps_the_fraction_tau_of_largest_summed_gradients(tau: float) -> None:
    from methods.salun import salient

    model, data = net(), Batches()
    found = [mask for _, mask in salient(model, data, 3, tau)]
    assert sum(int(mask.sum()) for mask in found) == round(tau * sum(mask.numel() for mask in found))
    for mask, expected in zip(found, salient_by_hand(tau, data), strict=True):
        assert torch.equal(mask, expected), "the sum over the samples of both batches"
    assert model[1].num_batches_tracked == 0, "the forget set moved running statistics"


def test_salun_moves_salient_weights_alone() -> None:
    base, data = net(), Batches()
    model = unlearned("salun", data=data, tau=0.3, epochs=3, momentum=0.9, weight_decay=0.1)
    for before, after, mask in zip(
        base.parameters(), model.parameters(), salient_by_hand(0.3, data), strict=True
    ):
        assert torch.equal(before[~mask], after[~mask]), "a masked weight moved"
        assert not bool((before[mask] == after[mask]).any()) or before.dim() == 1


def test_salun_steps_on_wrong_labels_and_decays_salient_weights() -> None:
    base, data = net(2), FixedData(2)
    masks = [torch.ones_like(p, dtype=torch.bool) for p in base.parameters()]
    targets = torch.where(data.forgotten, 1 - data.labels, data.labels)
    down = gradients(base, cross_entropy(base(data.images), targets))
    model = unlearned("salun", data=FixedData(2), tau=1.0, weight_decay=0.5)
    moved = zip(base.parameters(), down, masks, strict=True)
    assert_weights(model, [p.detach() - 0.1 * m * (g + 0.5 * p.detach()) for p, g, m in moved])


# ---- SCRUB ---------------------------------------------------------------------------------------


def test_scrub_leaves_its_teacher_on_forgotten_samples_then_follows_it_on_retained() -> None:
    student, data = net(), FixedData()
    teacher = net().eval()(data.images).detach()
    away = -4 * kl(teacher[12:], student(data.images[12:]), 2.0)
    values = stepped(student, away)
    with torch.no_grad():
        for parameter, value in zip(student.parameters(), values, strict=True):
            parameter.copy_(value)
    logits = student(data.images[:12])
    towards = 0.7 * cross_entropy(logits, data.labels[:12]) + 0.3 * 4 * kl(teacher[:12], logits, 2.0)
    model = unlearned("scrub", learning_rate=100.0, gamma=0.7, alpha=0.3, temperature=2.0, rewind=False)
    assert_weights(model, stepped(student, towards))  # the rate of one epoch out of one is a thousandth


@pytest.mark.parametrize(
    ("epochs", "exponents"),
    [(10, [0, 0, 0, 0, 0, 1, 1, 1, 2, 3]), (5, [0, 0, 1, 1, 3]), (2, [0, 3])],
)
def test_scrub_decays_by_step(epochs: int, exponents: list[int]) -> None:
    from methods.scrub import step_decay

    assert [step_decay(e, epochs) for e in range(epochs)] == pytest.approx([0.1**s for s in exponents])


def test_scrub_rewinds_to_the_nearest_error_the_first_of_equals(monkeypatch: pytest.MonkeyPatch) -> None:
    from methods import scrub

    errors, seen = iter([0.1, 0.4, 0.4, 0.9, 0.35]), []

    def scripted(model: nn.Module, *_: Any) -> Tensor:
        seen.append([p.detach().clone() for p in model.parameters()])
        return torch.tensor(next(errors))

    monkeypatch.setattr(scrub, "error", scripted)
    model = unlearned("scrub", data=Batches(), epochs=4, forget_epochs=4)
    assert_weights(model, seen[1])
    assert not torch.equal(seen[1][0], seen[2][0])


def test_scrub_measures_errors_of_the_chosen_classes_in_eval_mode() -> None:
    from methods.scrub import error

    class Given(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert not self.training
            return images

    logits = torch.eye(3)[[0, 0, 1, 2, 2]]  # says 0 0 1 2 2
    batches = [(logits[:2], torch.tensor([0, 1])), (logits[2:], torch.tensor([0, 2, 1]))]
    every, some = torch.tensor([True, True, True]), torch.tensor([False, True, True])
    assert error(Given(), batches, every) == pytest.approx(3 / 5)
    assert error(Given(), batches, some) == pytest.approx(2 / 3)


def test_scrub_says_when_there_is_nothing_to_rewind_to() -> None:
    class Elsewhere(Batches):
        def val(self, batch_size: int) -> Iterable[Batch]:
            yield self.images[:3], torch.full((3,), 2)

    data = Elsewhere()
    data.labels = data.labels.clamp(max=1)
    with pytest.raises(ValueError, match="no sample of a forgotten class"):
        unlearned("scrub", data=data)


# ---- FCS -----------------------------------------------------------------------------------------


def test_forget_contrast_strengthen_contrast_of_two_by_two() -> None:
    from methods.forget_contrast_strengthen import dissimilarity

    forgotten = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    retained = torch.tensor([[math.log(3) / 2, 0.0], [0.0, math.log(2) / 2]])
    # Over τ = ½ the products are (log 3, 0) and (log 3, log 2): shares of ¾ and ¼, and of ⅗ and ⅖.
    expected = -(math.log(3 / 4) + math.log(1 / 4) + math.log(3 / 5) + math.log(2 / 5)) / 4
    assert dissimilarity(forgotten, retained, 0.5).item() == pytest.approx(expected, rel=1e-6)


def test_forget_contrast_strengthen_first_flattens_predictions() -> None:
    base, data = net(), FixedData()
    flat = -(log_softmax(base(data.images[12:]), 1).mean(1) + math.log(3)).mean()
    model = unlearned("forget_contrast_strengthen", epochs=0, uniform_learning_rate=0.1)
    assert_weights(model, stepped(base, flat))


def test_forget_contrast_strengthen_round_is_a_contrast_and_a_repair() -> None:
    from methods.forget_contrast_strengthen import dissimilarity

    base, data = net(), FixedData()
    fixed = base(data.images[:12]).detach()
    values = stepped(base, dissimilarity(base(data.images[12:]), fixed, 0.8), 0.02)
    with torch.no_grad():
        for parameter, value in zip(base.parameters(), values, strict=True):
            parameter.copy_(value)
    expected = stepped(base, cross_entropy(base(data.images[:12]), data.labels[:12]))
    chosen = {"uniform_epochs": 0, "contrast_learning_rate": 0.02, "temperature": 0.8}
    assert_weights(unlearned("forget_contrast_strengthen", **chosen), expected)


@pytest.mark.parametrize("floor", [0.0, 0.2, 1.0])
def test_forget_contrast_strengthen_rate_never_rises_and_ends_at_the_floor(floor: float) -> None:
    from methods.forget_contrast_strengthen import annealed

    rates = list(islice(annealed(0.5, 4, floor), 5))
    expected = [0.5 * (floor + (1 - floor) * (1 + math.cos(math.pi * t / 4)) / 2) for t in range(5)]
    assert rates == pytest.approx(expected)
    assert all(later <= earlier for earlier, later in pairwise(rates))


# ---- PRMQ ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.0, 0.25, 0.6, 1.0])
def test_prune_reinitialise_match_quantise_prunes_the_smallest_of_all_layers(rho: float) -> None:
    base = net()
    model = unlearned("prune_reinitialise_match_quantise", epochs=0.0, rho=rho, quantise=False)
    names = [n for n, _ in base.named_parameters() if not n.startswith("1.")]  # BatchNorm's are left alone
    before, after = base.state_dict(), model.state_dict()
    flat = torch.cat([before[n].abs().flatten() for n in names])
    changed = torch.cat([(before[n] != after[n]).flatten() for n in names])
    assert int(changed.sum()) == round(rho * len(flat))
    if 0 < rho < 1:
        assert flat[changed].max() <= flat[~changed].min()
    for n in names:
        fresh = after[n][before[n] != after[n]]
        bound = before[n][0].numel() ** -0.5 if before[n].dim() > 1 else 0.0
        assert bool((fresh.abs() <= bound).all()), n
        assert fresh.numel() < 20 or fresh.abs().max() > 0.8 * bound, n
    assert all(torch.equal(before[n], after[n]) for n in before if n not in names)


def test_prune_reinitialise_match_quantise_prunes_in_place() -> None:
    """An optimizer built before stays valid (appendix of the reference)."""
    from methods.prune_reinitialise_match_quantise import prune

    model = net()
    before = [(id(p), p.data_ptr()) for p in model.parameters()]
    prune(model, 0.5, torch.Generator().manual_seed(0))
    assert [(id(p), p.data_ptr()) for p in model.parameters()] == before


def test_prune_reinitialise_match_quantise_matches_entropies_and_weighs_classes() -> None:
    base, data = net(), FixedData()
    images, labels = data.images[:12], data.labels[:12]
    start = unlearned("prune_reinitialise_match_quantise", epochs=0.0, rho=0.5, quantise=False).train()

    def entropy(logits: Tensor) -> Tensor:
        p = softmax(logits, 1)
        return -(p * p.log()).sum(1)

    counts = torch.tensor([float((labels == c).sum()) for c in range(3)])
    weights = (counts**-0.1)[labels]
    logits = start(images)
    losses = cross_entropy(logits, labels, reduction="none")
    gaps = entropy(logits) - entropy(base.eval()(images).detach())
    expected = stepped(start, (weights * losses).sum() / weights.sum() + (gaps**2).mean())
    model = unlearned("prune_reinitialise_match_quantise", epochs=1.0, rho=0.5, quantise=False)
    assert_weights(model, expected)


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 6), (2.5, 15), (2.34, 14), (0.1, 0)])
def test_prune_reinitialise_match_quantise_counts_epochs_in_fractions(
    epochs: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from methods import prune_reinitialise_match_quantise as prmq

    taken = []
    monkeypatch.setattr(prmq, "entropy", lambda logits: taken.append(1) or logits.sum(1))
    unlearned("prune_reinitialise_match_quantise", data=Batches(), epochs=epochs)
    assert len(taken) == 2 * steps, "6 batches an epoch, an entropy of student and teacher for each"


def test_prune_reinitialise_match_quantise_rounds_to_half_precision() -> None:
    model = unlearned("prune_reinitialise_match_quantise", rho=0.5)
    assert all(torch.equal(p, p.half().float()) and p.dtype == torch.float32 for p in model.parameters())


# ---- KDE -----------------------------------------------------------------------------------------


def fresh_ends(seed: int = 0) -> nn.Module:
    return unlearned("distill_entropy", data=FixedData(seed=seed), epochs=0, warm_up_epochs=0).train()


def test_distill_entropy_starts_stem_and_head_anew_and_nothing_else() -> None:
    base, model, other = net().state_dict(), fresh_ends().state_dict(), fresh_ends(1).state_dict()
    fresh = {name for name in base if not torch.equal(base[name], model[name])}
    assert fresh == {"0.weight", "0.bias", "5.weight", "5.bias"}
    assert not any(torch.equal(model[name], other[name]) for name in fresh)
    assert model["0.weight"].abs().max() <= 1 / 3 and model["5.weight"].abs().max() <= 1 / 6


def test_distill_entropy_repairs_with_labels_and_a_teacher_counted_twice() -> None:
    start, data = fresh_ends(), FixedData()
    images, labels = data.images[:12], data.labels[:12]
    teacher, logits = net().eval()(images).detach(), start(images)
    soft = -(softmax(teacher / 3, 1) * log_softmax(logits / 3, 1)).sum(1).mean()
    value = soft + cross_entropy(logits, labels) + kl(teacher, logits, 3.0)
    model = unlearned("distill_entropy", warm_up_epochs=0, temperature=3.0)
    assert_weights(model, stepped(start, value))


def test_distill_entropy_warms_up_without_labels() -> None:
    start, data = fresh_ends(), FixedData()
    teacher = net().eval()(data.images[:12]).detach()
    expected = stepped(start, kl(teacher, start(data.images[:12]), 3.0))
    chosen = {"warm_up_epochs": 1, "warm_up_learning_rate": 0.1, "epochs": 0, "temperature": 3.0}
    assert_weights(unlearned("distill_entropy", **chosen), expected)


def test_distill_entropy_warms_up_on_a_fifth(monkeypatch: pytest.MonkeyPatch) -> None:
    from methods import distill_entropy

    sizes: list[int] = []
    true = distill_entropy.divergence
    monkeypatch.setattr(distill_entropy, "divergence", lambda *a: sizes.append(len(a[0])) or true(*a))
    plugin("methods", "distill_entropy")(epochs=0, warm_up_epochs=3).unlearn(net().train(), Batches())
    assert sizes == [2, 2] * 3, "the first and the sixth of six batches, in each epoch"
