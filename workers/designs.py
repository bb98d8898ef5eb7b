"""Designs: for every pool sample one of four states, decided by recipes and seeds before anything is trained.

Two recipes make a design. *Members* says who a base is trained on: the whole pool less the validation set
(main track), or one half of a complementary, class-stratified pair (audit track). *Forget* says which members
go. NumPy only.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

OUT, RETAIN, FORGET, VAL = 0, 1, 2, 3


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


def members(dataset: str, labels: np.ndarray, recipe: dict[str, Any]) -> np.ndarray:
    """States (n,) uint8 of a design without a forget set: members RETAIN, the validation set VAL, the rest
    OUT.
    """
    everyone = np.ones(len(labels), dtype=bool)
    size = round(recipe["val_fraction"] * len(labels))
    val = subset(labels, everyone, size, rng("val", *_tuning(recipe), dataset, recipe["val_fraction"]))
    states = np.where(val, VAL, RETAIN).astype(np.uint8)
    if recipe["track"] == "audit":
        half = folds(labels, ~val, 2, rng("pair", dataset, recipe["val_fraction"], recipe["pair"]))
        states[~val & (half != recipe["half"])] = OUT
    return states


def _tuning(recipe: dict[str, Any]) -> tuple[str, ...]:
    """Names that give each phase of tuning splits of its own; none for models that are reported."""
    return ("tune", recipe["phase"]) if recipe["track"] == "tune" else ()


def build(
    dataset: str,
    labels: np.ndarray,
    recipe: dict[str, Any],
    forget: Any,
    key: str,
    draw: dict[str, int] | None,
) -> np.ndarray:
    """The states (n,) uint8 of a design.

    recipe: {"track", "val_fraction"}, for the audit also {"pair", "half"}, for tuning {"phase"}. forget: a
    forget recipe, None for none, and `key` the text that identifies it. draw: forget set `index` of the `of`
    sets of an audit base; None on the main track and in tuning.
    """
    states = members(dataset, labels, recipe)
    if forget is None:
        return states
    common = (dataset, recipe["val_fraction"], key)
    if draw is None:
        states[forget.draw(labels, states == RETAIN, rng("forget", *_tuning(recipe), *common))] = FORGET
        return states
    audited = forget.audited(labels, states != VAL, draw["of"], rng("audited", *common))
    own = rng("forget", *common, recipe["pair"], recipe["half"])
    states[folds(labels, audited & (states == RETAIN), draw["of"], own) == draw["index"]] = FORGET
    return states


def whole_classes(labels: np.ndarray, retain: np.ndarray, forget: np.ndarray) -> tuple[int, ...]:
    """The classes that occur among the forgotten samples and not among the retained ones (index arrays)."""
    return tuple(np.setdiff1d(labels[forget], labels[retain]).tolist())


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
