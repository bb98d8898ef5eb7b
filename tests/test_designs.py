"""Designs: packing, stratified subsets and folds, members and their complementary halves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers import designs
from workers.designs import FORGET, OUT, RETAIN, VAL
from workers.forget.random import Random

LABELS = st.lists(st.integers(0, 4), min_size=4, max_size=120).map(np.array)
SEEDS = st.integers(0, 2**32 - 1)


def among(labels: np.ndarray, seed: int) -> np.ndarray:
    mask = np.random.default_rng(seed).random(len(labels)) < 0.8
    mask[0] = True
    return mask


@given(st.lists(st.integers(0, 3), max_size=50))
def test_unpack_is_the_inverse_of_pack(states: list[int]) -> None:
    packed = designs.pack(np.array(states, dtype=np.uint8))
    assert len(packed) == -(-len(states) // 4)
    assert designs.unpack(packed, len(states)).tolist() == states


def test_pack_puts_the_first_sample_in_the_lowest_bits() -> None:
    assert designs.pack(np.array([1, 2, 3, 0, 2], dtype=np.uint8)) == bytes([0b00_11_10_01, 0b10])


def test_sha256_sees_every_state() -> None:
    states = np.zeros(9, dtype=np.uint8)
    other = states.copy()
    other[8] = FORGET
    assert designs.sha256(states) != designs.sha256(other)
    assert designs.sha256(states) == designs.sha256(states.astype(np.int64))


@settings(max_examples=60)
@given(LABELS, SEEDS, st.integers(1, 6))
def test_folds_are_a_partition_even_in_size_and_class(labels: np.ndarray, seed: int, count: int) -> None:
    mask = among(labels, seed)
    fold = designs.folds(labels, mask, count, np.random.default_rng(seed))
    assert np.all(fold[~mask] == -1) and np.all((fold[mask] >= 0) & (fold[mask] < count))
    for group in [mask] + [mask & (labels == c) for c in np.unique(labels)]:
        sizes = np.bincount(fold[group], minlength=count)
        assert sizes.max() - sizes.min() <= 1


@settings(max_examples=60)
@given(LABELS, SEEDS, st.floats(0, 1))
def test_subset_has_the_exact_size_and_the_share_of_every_class(
    labels: np.ndarray, seed: int, share: float
) -> None:
    mask = among(labels, seed)
    size = round(share * int(mask.sum()))
    chosen = designs.subset(labels, mask, size, np.random.default_rng(seed))
    assert chosen.sum() == size and not np.any(chosen & ~mask)
    for c in np.unique(labels):
        group = mask & (labels == c)
        assert abs(chosen[group].sum() - size * group.sum() / mask.sum()) <= 1


def test_subset_gives_every_sample_the_same_chance() -> None:
    labels, mask = np.repeat([0, 1, 2], [7, 11, 5]), np.ones(23, dtype=bool)
    times = sum(designs.subset(labels, mask, 5, np.random.default_rng(i)).astype(int) for i in range(4000))
    assert np.abs(times / 4000 - 5 / 23).max() < 0.03, "four standard deviations are 0.026"


def test_rng_streams_are_named() -> None:
    one, same, other = (designs.rng(*parts).integers(2**60) for parts in (("a", 1), ("a", 1), ("a", 2)))
    assert one == same != other


LABELS_500 = np.random.default_rng(0).integers(0, 10, 500)


def audit(pair: int, half: int) -> dict[str, object]:
    return {"track": "audit", "val_fraction": 0.1, "pair": pair, "half": half}


@pytest.mark.parametrize("pair", [0, 1, 7])
def test_halves_of_a_pair_are_complementary(pair: int) -> None:
    one, other = (designs.members("toy", LABELS_500, audit(pair, half)) for half in (0, 1))
    assert np.array_equal(one == VAL, other == VAL) and (one == VAL).sum() == 50
    rest = one != VAL
    assert np.array_equal(one[rest] == RETAIN, other[rest] == OUT)
    assert abs(int((one == RETAIN).sum()) - int((other == RETAIN).sum())) <= 1
    counts = [np.bincount(LABELS_500[states == RETAIN], minlength=10) for states in (one, other)]
    assert np.abs(counts[0] - counts[1]).max() <= 1


def test_pairs_differ_and_share_the_validation_set_of_the_main_track() -> None:
    main = designs.members("toy", LABELS_500, {"track": "main", "val_fraction": 0.1})
    one, other = (designs.members("toy", LABELS_500, audit(pair, 0)) for pair in (0, 1))
    assert np.array_equal(main == VAL, one == VAL) and np.array_equal(main == VAL, other == VAL)
    assert set(np.unique(main)) == {RETAIN, VAL}
    agreement = np.mean((one == RETAIN)[main != VAL] == (other == RETAIN)[main != VAL])
    assert 0.4 < agreement < 0.6, "halves of two pairs are independent"


def test_forget_set_depends_on_the_recipe_and_on_nothing_else() -> None:
    def gone(fraction: float, key: str) -> np.ndarray:
        recipe = {"track": "main", "val_fraction": 0.1}
        return designs.build("toy", LABELS_500, recipe, Random(fraction), key, None) == FORGET

    assert gone(0.1, "a").sum() == 45
    assert np.array_equal(gone(0.1, "a"), gone(0.1, "a")) and not np.array_equal(
        gone(0.1, "a"), gone(0.1, "b")
    )


@pytest.mark.parametrize("draw", [None, {"index": 2, "of": 5}])
def test_states_are_exclusive_and_only_members_are_forgotten(draw: dict[str, int] | None) -> None:
    recipe = {"track": "main", "val_fraction": 0.1} if draw is None else audit(0, 1)
    before = designs.members("toy", LABELS_500, recipe)
    states = designs.build("toy", LABELS_500, recipe, Random(0.1), "key", draw)
    assert states.dtype == np.uint8 and set(np.unique(states)) <= {OUT, RETAIN, FORGET, VAL}
    changed = states != before
    assert np.all(before[changed] == RETAIN) and np.all(states[changed] == FORGET) and changed.any()
