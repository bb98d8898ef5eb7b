"""Designs: for every pool sample one of four states, decided by recipes and seeds before anything is trained.

Two recipes make a design. *Members* says who a base is trained on: the whole pool less the validation set
(main track), or one half of a complementary, class-stratified pair (audit track). *Forget* says which members
go. NumPy only; the split of the paper also needs scikit-learn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

OUT, RETAIN, FORGET, VAL = 0, 1, 2, 3
PAPER_SEED = 123


def rng(*parts: object) -> np.random.Generator:
    """A generator seeded by named parts; another part gives an independent stream."""
    seed = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(seed[:16], "big"))


def folds(labels: np.ndarray, among: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """A class-stratified partition of `among` (bool, n) into `count` folds: (n,) with -1 outside `among`.

    Each class is dealt out evenly, one card after the other across classes, so fold sizes differ by one at
    most and so does every class within them.
    """
    order = _by_class(labels, among, generator)
    fold = np.full(len(labels), -1)
    fold[order] = np.arange(len(order)) % count
    return fold


def subset(labels: np.ndarray, among: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """A class-stratified subset of `among` (bool, n) of exactly `size` samples, as a bool mask (n,)."""
    order = _by_class(labels, among, generator)
    if size > len(order):
        raise ValueError(f"a subset of {size} samples was asked of {len(order)}")
    picks = np.floor((np.arange(size) + generator.random()) * len(order) / max(size, 1)).astype(int)
    mask = np.zeros(len(labels), dtype=bool)
    mask[order[picks]] = True
    return mask


def _by_class(labels: np.ndarray, among: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Indices of `among`, shuffled within each class, one class after the other."""
    indices = generator.permutation(np.flatnonzero(among))
    return indices[np.argsort(labels[indices], kind="stable")]


def paper_split(indices: np.ndarray, fraction: float | int) -> tuple[np.ndarray, np.ndarray]:
    """(kept, drawn): one step of the split of arXiv 2410.01276, scikit-learn's shuffle split without strata,
    always with the same seed. `drawn` has ⌈fraction·n⌉ of the n indices, or as many as a whole number says;
    both are in the order it leaves.
    """
    from sklearn.model_selection import train_test_split

    kept, drawn = train_test_split(indices, test_size=fraction, random_state=PAPER_SEED)
    return kept, drawn


def members(dataset: str, labels: np.ndarray, recipe: dict[str, Any]) -> np.ndarray:
    """States (n,) uint8 of a design without a forget set: members RETAIN, the validation set VAL, the rest
    OUT.

    recipe: as of `build`. With samples `listed` (bool, n) by a deletion request, none of them is in the
    validation set, and each half of a pair has half of them.
    """
    listed = recipe.get("listed", np.zeros(len(labels), dtype=bool))
    val = validation(dataset, labels, recipe)
    states = np.where(val, VAL, RETAIN).astype(np.uint8)
    if recipe["track"] == "audit":
        strata = labels + (labels.max() + 1) * listed
        half = folds(strata, ~val, 2, rng("pair", dataset, recipe["val_fraction"], recipe["pair"]))
        states[~val & (half != recipe["half"])] = OUT
    return states


def _tuning(recipe: dict[str, Any]) -> tuple[str, ...]:
    """Names that give each phase of tuning splits of its own; none for models that are reported."""
    return ("tune", recipe["phase"]) if recipe["track"] == "tune" else ()


def validation(dataset: str, labels: np.ndarray, recipe: dict[str, Any]) -> np.ndarray:
    """The validation set as a bool mask (n,), the same on both tracks: stratified by class with a seed of its
    own, none of it `listed`, or, where `recipe` has a split, the paper's. Each phase of tuning has another.
    """
    fraction, everyone = recipe["val_fraction"], np.ones(len(labels), dtype=bool)
    if "split" not in recipe:
        among = ~recipe["listed"] if "listed" in recipe else everyone
        size, own = round(fraction * len(labels)), rng("val", *_tuning(recipe), dataset, fraction)
        return subset(labels, among, size, own)
    kept, _ = paper_split(np.arange(len(labels)), fraction)
    everyone[kept] = False
    return everyone


def build(
    dataset: str,
    labels: np.ndarray,
    recipe: dict[str, Any],
    forget: Any,
    key: str,
    draw: dict[str, int] | None,
) -> np.ndarray:
    """The states (n,) uint8 of a design.

    recipe: {"track", "val_fraction"}, for the audit also {"pair", "half"}, for tuning {"phase"}; "listed"
    (bool, n) where samples are listed, and "split" for the paper's. With it the forget set of the main track
    is the second step of the paper's chain for a forget recipe that has a `paper_draw`; others draw from the
    members as ever. forget: a forget recipe, None for none, and `key` the text that identifies it. draw:
    forget set `index` of the `of` sets of an audit base; None on the main track and in tuning.
    """
    states = members(dataset, labels, recipe)
    if forget is None:
        return states
    gone = forgettable(dataset, labels, recipe, forget, key, draw)
    if draw is not None:
        own = rng("forget", dataset, recipe["val_fraction"], key, recipe["pair"], recipe["half"])
        gone = folds(labels, gone & (states == RETAIN), draw["of"], own) == draw["index"]
    states[gone] = FORGET
    return states


@dataclass(frozen=True)
class By:
    """A forget recipe that chooses by other values (n,) than the labels: subclasses, or who is listed."""

    recipe: Any
    given: np.ndarray

    scope = property(lambda self: self.recipe.scope)

    def draw(self, labels: np.ndarray, members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.recipe.draw(self.given, members, rng)

    def audited(
        self, labels: np.ndarray, pool: np.ndarray, sets: int, rng: np.random.Generator
    ) -> np.ndarray:
        return self.recipe.audited(self.given, pool, sets, rng)


def list_sha256(ids: Iterable[int]) -> str:
    """What identifies a list of sample ids in whatever order: the SHA-256 of the sorted ids, one a line."""
    return hashlib.sha256("\n".join(map(str, sorted(ids))).encode()).hexdigest()


def mask(ids: Iterable[int], size: int) -> np.ndarray:
    """The samples with these ids as a bool mask (size,)."""
    chosen = np.zeros(size, dtype=bool)
    chosen[np.fromiter(ids, dtype=np.int64)] = True
    return chosen


def forgettable(
    dataset: str,
    labels: np.ndarray,
    recipe: dict[str, Any],
    forget: Any,
    key: str,
    draw: dict[str, int] | None,
) -> np.ndarray:
    """The pool samples (bool, n) that a recipe forgets; on the audit track, in each base trained on them."""
    states = members(dataset, labels, recipe)
    common = (dataset, recipe["val_fraction"], key)
    if draw is None and "split" in recipe and hasattr(forget, "paper_draw"):
        order, _ = paper_split(np.arange(len(labels)), recipe["val_fraction"])
        return mask(forget.paper_draw(order), len(labels))
    if draw is None:
        chosen = forget.draw(labels, states == RETAIN, rng("forget", *_tuning(recipe), *common))
    else:
        chosen = forget.audited(labels, states != VAL, draw["of"], rng("audited", *common))
    return np.asarray(chosen, dtype=bool)


def whole_classes(labels: np.ndarray, retain: np.ndarray, forget: np.ndarray) -> tuple[int, ...]:
    """The classes that occur among the forgotten samples and not among the retained ones (index arrays)."""
    return tuple(np.setdiff1d(labels[forget], labels[retain]).tolist())


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: the text that identifies a recipe."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def sha256(states: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(states, dtype=np.uint8).tobytes()).hexdigest()


def pack(states: np.ndarray) -> bytes:
    """Two bits a sample, the first sample in the lowest bits: ceil(n/4) bytes."""
    padded = np.zeros(-(-len(states) // 4) * 4, dtype=np.uint8)
    padded[: len(states)] = states
    quads = padded.reshape(-1, 4)
    return (quads[:, 0] | quads[:, 1] << 2 | quads[:, 2] << 4 | quads[:, 3] << 6).astype(np.uint8).tobytes()


def unpack(data: bytes, size: int) -> np.ndarray:
    """The inverse of `pack`: states (size,) uint8."""
    packed = np.frombuffer(data, dtype=np.uint8)
    return np.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], axis=1).reshape(-1)[:size]
