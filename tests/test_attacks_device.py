"""U-LiRA on torch tensors: the numbers of numpy, computed where the tensors are."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import arrays
from attacks.bootstrap import cluster_bootstrap, pair_weights
from attacks.metrics import auc, balanced_accuracy, best_counts, roc, tpr_at_fpr
from attacks.moderation import VariancePrior, log_predictive, moderated_variance, variance_prior
from attacks.ulira import Comparison, compare, leave_pair_out, ulira
from tests.conftest import ROOT

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
)
DEVICES = ["cpu", CUDA]


def worlds(k=6, n=300, seed=0, missing=0.15):
    rng = np.random.default_rng(seed)
    spread, mean = np.exp(rng.normal(0, 0.5, n)), rng.normal(0, 3, n)
    x, y = rng.normal(size=(2, k, n)) * spread + mean
    x += rng.exponential(1, n)
    for world in (x, y):
        world[rng.random((k, n)) < missing] = np.nan
    return x, y


def collapsed():
    """Samples whose scores are equal in one world, or in both."""
    x, y = worlds(n=500, seed=5, missing=0.0)
    x[:, :10] = 4.0
    x[:, 5:10] = y[:, 5:10] = 2.0
    return x, y


def repeated():
    """Every sample three times: scores tie within and between the worlds."""
    x, y = worlds(n=100, seed=6)
    y[:, :20] = x[:, :20]
    return np.tile(x, 3), np.tile(y, 3)


CASES = {
    "complete": worlds(k=12, n=2000, seed=1, missing=0.0),
    "missing": worlds(k=9, n=2000, seed=2),
    "float32": tuple(world.astype(np.float32) for world in worlds(seed=3)),
    "float16": tuple(world.astype(np.float16) for world in worlds(seed=3)),
    "views": tuple(world.reshape(3, 6, 200) for world in worlds(k=18, n=200, seed=4)),
    "collapsed": collapsed(),
    "ties": repeated(),
    "constant": (np.full((4, 20), 3.0), np.full((4, 20), 3.0)),
}


def tensors(pair, device="cpu"):
    return [torch.from_numpy(np.ascontiguousarray(world)).to(device) for world in pair]


def assert_same(found: Comparison, expected: Comparison) -> None:
    for spot in dataclasses.fields(Comparison):
        a, b = getattr(found, spot.name), getattr(expected, spot.name)
        assert type(a) is type(b), spot.name
        if isinstance(a, dict):
            assert a.keys() == b.keys()
            a, b = ([dataclasses.astuple(point) for point in c.values()] for c in (a, b))
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9, err_msg=spot.name)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_tensors_give_the_comparison_of_numpy(case, device):
    expected = compare(*CASES[case], replicates=200, seed=3)
    assert_same(compare(*tensors(CASES[case], device), replicates=200, seed=3), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("strict", [True, False])
def test_the_likelihood_ratios_stay_where_the_scores_are(device, strict):
    pair = tensors(worlds(), device)
    expected = leave_pair_out(*worlds(), strict=strict)
    for llr, numbers in zip(leave_pair_out(*pair, strict=strict), expected, strict=True):
        assert llr.device == pair[0].device and llr.dtype == torch.float64
        np.testing.assert_allclose(llr.cpu().numpy(), numbers, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("device", DEVICES)
def test_few_distinct_scores(device):
    """Evidence that is equal on paper ties or not by the last bit, as with another order of the pairs."""
    x, y = (np.round(world) for world in worlds(k=6, n=500, seed=6))
    expected, found = compare(x, y, replicates=50), compare(*tensors((x, y), device), replicates=50)
    np.testing.assert_allclose(found.llr_positive, expected.llr_positive, rtol=1e-9, atol=1e-9)
    assert found.loss_auc == expected.loss_auc
    assert found.auc == pytest.approx(expected.auc, abs=1e-5)


def test_all_three_comparisons():
    x, y = worlds()
    z = y + 0.1
    expected, found = ulira(x, y, z, replicates=50), ulira(*tensors((x, y, z)), replicates=50)
    assert found.keys() == expected.keys()
    for name, comparison in expected.items():
        assert_same(found[name], comparison)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.zeros((2, 5)), np.zeros((2, 5))),
        (np.zeros((4, 5)), np.zeros((4, 6))),
        (np.zeros((4, 0)), np.zeros((4, 0))),
        (np.zeros(5), np.zeros(5)),
        (np.zeros((2, 4, 5)), np.zeros((1, 4, 5))),
        (np.full((4, 5), np.inf), np.zeros((4, 5))),
        (np.full((4, 5), np.nan), np.zeros((4, 5))),
    ],
)
def test_bad_input_is_refused_with_the_same_words(x, y, device):
    with pytest.raises(ValueError) as expected:
        compare(x, y)
    with pytest.raises(ValueError) as found:
        compare(*tensors((x, y), device))
    assert str(found.value) == str(expected.value)


def test_worlds_in_two_places_are_refused():
    x, y = worlds()
    with pytest.raises(ValueError, match="cpu and numpy are mixed; all numpy, or all on one device"):
        compare(torch.from_numpy(x), y)
    with pytest.raises(ValueError, match="cpu and meta are mixed"):
        compare(torch.from_numpy(x), torch.from_numpy(y).to("meta"))


def test_no_tensor_is_made_on_another_device():
    """What a card would refuse, seen without one: new tensors go elsewhere unless they are told where."""
    x, y = tensors(worlds())
    expected = compare(x, y, replicates=50)
    with torch.device("meta"):
        assert_same(compare(x, y, replicates=50), expected)


def test_nothing_leaves_the_device_but_the_answer(monkeypatch):
    """numpy gets no tensor unasked, as on a card, and what it gets is small but for the LLR of the answer."""

    def refused(*arguments, **options):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    sizes, read = [], torch.Tensor.numpy
    monkeypatch.setattr(torch.Tensor, "__array__", refused)
    monkeypatch.setattr(torch.Tensor, "tolist", refused)
    monkeypatch.setattr(torch.Tensor, "numpy", lambda self: (sizes.append(self.numel()), read(self))[1])
    x, y = tensors(worlds(k=6, n=20_000, missing=0.1))
    compare(x, y, replicates=50)
    *small, first, second = sorted(sizes)
    assert first == second == x.numel()
    assert small[-1] < 51 * 200  # replicates × levels


def test_gradients_and_default_types_play_no_part():
    x, y = worlds()
    expected = compare(x, y, replicates=20)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        a, b = (torch.from_numpy(world).requires_grad_() for world in (x, y))
        assert_same(compare(a, b, replicates=20), expected)
    finally:
        torch.set_default_dtype(before)


def test_the_number_of_threads_changes_no_bit():
    x, y = tensors(worlds(k=3, n=40_000, missing=0.0))  # torch splits sums of more than 32,768 numbers
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(compare(x, y, replicates=5))
    finally:
        torch.set_num_threads(before)
    for spot in dataclasses.fields(Comparison):
        one, two = (getattr(comparison, spot.name) for comparison in found)
        if isinstance(one, dict):
            assert one == two
        else:
            np.testing.assert_array_equal(one, two, err_msg=spot.name)


def test_bfloat16_scores_have_its_step():
    """Rounding in storage is no spread: constant but for the last bit, these samples are below the floor."""
    x, y = worlds(k=6, n=400, seed=7, missing=0.0)
    x[:, :9] = 4 + 0.01 * np.random.default_rng(0).normal(size=(6, 9))
    stored = [torch.from_numpy(world).bfloat16() for world in (x, y)]
    assert compare(*stored, replicates=10).collapsed > compare(x, y, replicates=10).collapsed == 0


# --- the parts
# ---------------------------------------------------------------------------------------------------

SEEDS = st.integers(0, 10_000)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 60), st.integers(1, 60), st.booleans())
def test_metrics(seed, n1, n0, ties):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(0.5, 2, n1), rng.normal(0, 2, n0)
    if ties:
        x, y = np.round(x), np.round(y)
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    assert auc(a, b) == auc(x, y)
    assert balanced_accuracy(a, b) == balanced_accuracy(x, y)
    alphas = np.linspace(0, 1, 21)
    np.testing.assert_array_equal(best_counts(a, b, alphas), best_counts(x, y, alphas))
    assert tpr_at_fpr(a, b, 0.1) == tpr_at_fpr(x, y, 0.1)
    for found, expected in zip(roc(a, b), roc(x, y), strict=True):
        np.testing.assert_array_equal(found, expected)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(1, 40))
def test_quantiles_median_and_spread_are_those_of_numpy(seed, n):
    rng = np.random.default_rng(seed)
    values, shares = np.sort(np.round(rng.normal(size=n), 1)), rng.random(30)
    for given_as in (values, torch.from_numpy(values)):
        found = arrays.host(arrays.quantiles(given_as, shares))
        np.testing.assert_array_equal(found, np.quantile(values, shares))
        assert arrays.median(given_as) == pytest.approx(np.median(values), rel=1e-15)
        assert arrays.mean(given_as) == pytest.approx(values.mean(), abs=1e-15)
        assert arrays.variance(given_as) == pytest.approx(np.var(values, ddof=int(n > 1)), abs=1e-14)


def test_quantiles_of_more_than_torch_allows():
    """torch.quantile refuses more than 2^24 numbers."""
    n = 2**24 + 3
    found = arrays.quantiles(torch.arange(n, dtype=torch.float64), np.array([0.0, 0.5, 1.0]))
    assert found.tolist() == [0.0, (n - 1) / 2, n - 1]


@pytest.mark.parametrize("nu0", [0.0, 3.7, np.inf])
def test_moderation(nu0):
    rng = np.random.default_rng(0)
    x, mean = rng.normal(0, 3, (2, 200))
    s2, count = np.exp(rng.normal(size=200)), rng.integers(2, 9, 200).astype(float)
    prior, given_as = VariancePrior(nu0, 0.7), [torch.from_numpy(a) for a in (x, mean, s2, count)]
    expected = log_predictive(x, mean, s2, count, prior)
    np.testing.assert_allclose(log_predictive(*given_as, prior), expected, rtol=1e-12)
    found = moderated_variance(given_as[2], 4, prior)
    np.testing.assert_allclose(found, moderated_variance(s2, 4, prior), rtol=1e-15)
    for dof in (5, count):
        assert variance_prior(given_as[2], dof) == pytest.approx(variance_prior(s2, dof), rel=1e-9)


def test_replicates_with_an_empty_pair():
    x, y = worlds(k=4, n=50)
    x[3] = y[3] = np.nan
    weights = pair_weights(4, 300)
    expected = cluster_bootstrap(x, y, weights, (0.01, 0.5))
    found = cluster_bootstrap(*tensors((x, y)), weights, (0.01, 0.5))
    assert np.isnan(expected.auc).any()
    for spot in ("auc", "balanced_accuracy", "tpr"):
        np.testing.assert_allclose(getattr(found, spot), getattr(expected, spot), rtol=1e-12)


def test_numpy_scores_do_not_load_torch():
    script = (
        "import sys, numpy as np\nfrom attacks.ulira import compare\n"
        "compare(*np.random.default_rng(0).normal(size=(2, 4, 30)), replicates=10)\n"
        "print('torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.strip() == "False", done.stderr
