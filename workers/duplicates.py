"""Exact and near-duplicates among the images of a dataset, pool and test set together. NumPy and SciPy only.

Exact: equal pixels; labels may differ. Near: a pair is proposed by a 64-bit hash and confirmed by a distance.

    f(x)   the K ≤ 64 lowest DCT coefficients of the grey image at 32×32 pixels or fewer, each times its
           frequency; the constant is left out. So f is the gradient of a small thumbnail, by frequency:
           natural images have about equal energy in each coefficient then, and none decides alone
    hash   the signs of f (perceptual hash of the DCT; C. Zauner, Implementation and Benchmarking of
           Perceptual Image Hash Functions, 2010)
    near   hashes within RADIUS bits;  ‖f(x)/‖f(x)‖ − f(y)/‖f(y)‖‖ ≤ DISTANCE;  contrasts ‖f‖ that differ by a
           factor of CONTRAST at most;  and coarse tints (each channel less grey, 4×4) that differ by TINT
           levels at most in the mean

A pair is also looked for moved by one pixel of the small image in each of eight directions, on the part that
both show, and mirrored where asked for, with hashes within RADIUS_MOVED bits. Images with next to no contrast
(standard deviation below FLAT) have no near-duplicates but exact ones: what is left of them is noise.
docs/duplicates.md has the measurements behind the numbers.

Clusters are connected components, so a chain a ~ b ~ c joins a and c though they may be far apart: the
largest cluster is reported for that reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

version = 1  # of what is found: raise it when the same images give other clusters
SIDE = 32  # of the small grey image
COEFFICIENTS = 64
RADIUS, RADIUS_MOVED = 11, 7  # bits of 64
DISTANCE = 0.26  # a cosine of 0.966
CONTRAST = 1.5
TINT = 12.0  # levels of 255
TINTS = 4  # coarse tints a side
FLAT = 4.0  # levels of 255
MOVES = ((0, 1), (1, 0), (1, 1), (1, -1))  # pixels down and right; the opposite ones by exchanging the pair
MOVABLE = 8  # smallest side of images that are looked for moved
BANDS, BITS = 4, 16
BLOCK = 4096  # images worked on at a time
PAIRS = 1 << 20  # pairs worked on at a time
ALONE = -1

Pairs = tuple[np.ndarray, np.ndarray]
Way = tuple[np.ndarray, np.ndarray, np.ndarray, int, bool]  # the arguments of _confirmed


@dataclass(frozen=True)
class Duplicates:
    """For each sample (n,) int32 the smallest sample id of its cluster, ALONE where it has no duplicate.

    A cluster of exact duplicates lies within one cluster of near ones.
    """

    exact: np.ndarray
    near: np.ndarray


def find(batches: Iterable[np.ndarray], *, mirrored: bool = False) -> Duplicates:
    """The duplicates among uint8 images that come in batches (b, channels, height, width), all of one size,
    in the order of their sample ids. mirrored: an image and its mirror image are near-duplicates too.
    """
    first, small = _read(batches)
    unique = np.flatnonzero(first == np.arange(len(first)))
    edges = [np.stack([np.arange(len(first)), first])]
    waiting = 0
    for pairs in near_pairs(small, unique, mirrored=mirrored):
        edges.append(np.stack(pairs))
        waiting += len(pairs[0])
        if waiting > 4 * PAIRS:  # many alike: what is known so far takes one edge a sample
            edges, waiting = [np.stack([np.arange(len(first)), _components(len(first), edges)])], 0
    return Duplicates(_named(first), _named(_components(len(first), edges)))


# ---- small images ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Small:
    """What is kept of images: grey (n, h, w) uint8 with sides ≤ SIDE, tints (n, channels, 4, 4) int16
    in levels, nothing but zeros for one channel.
    """

    grey: np.ndarray
    tints: np.ndarray


def _read(batches: Iterable[np.ndarray]) -> tuple[np.ndarray, Small]:
    """For each image the id of the first one with equal pixels, and the images made small."""
    ids: dict[bytes, int] = {}
    first, greys, tints = [], [], []
    for batch in batches:
        for image in np.ascontiguousarray(batch):
            digest = hashlib.blake2b(image.data, digest_size=16).digest()
            first.append(ids.setdefault(digest, len(first)))
        for start in range(0, len(batch), 256):
            some = batch[start : start + 256]
            grey = some.mean(axis=1, dtype=np.float32) if some.shape[1] > 1 else some[:, 0]
            greys.append(np.rint(_resized(grey, SIDE)).astype(np.uint8))
            coarse = _resized(some, TINTS)
            tints.append(np.rint(coarse - coarse.mean(axis=1, keepdims=True)).astype(np.int16))
    if not first:
        return np.zeros(0, dtype=np.int64), Small(np.zeros((0, 1, 1)), np.zeros((0, 1, 1, 1)))
    return np.array(first), Small(np.concatenate(greys), np.concatenate(tints))


def _resized(images: np.ndarray, side: int) -> np.ndarray:
    """Images (…, h, w) averaged over areas to sides of `side` pixels, or as they are where that is less."""
    for axis in (-1, -2):
        size = images.shape[axis]
        if size > side:
            averaged = np.moveaxis(images.astype(np.float32), axis, -1) @ _areas(size, side).T
            images = np.moveaxis(averaged, -1, axis)
    return images


def _areas(size: int, parts: int) -> np.ndarray:
    """Weights (parts, size) float32 that average `size` pixels over `parts` equal lengths."""
    edges = np.arange(parts + 1) * size / parts
    pixels = np.arange(size)
    overlap = np.minimum(pixels + 1, edges[1:, None]) - np.maximum(pixels, edges[:-1, None])
    return np.asarray(np.maximum(overlap, 0) * parts / size, dtype=np.float32)


# ---- features and hashes -----------------------------------------------------------------------------------


def _frequencies(height: int, width: int) -> np.ndarray:
    """(K, 2): the COEFFICIENTS lowest frequencies (down, right), lowest first, without (0, 0)."""
    found = np.array([(u, v) for u in range(height) for v in range(width)][1:]).reshape(-1, 2)
    order = np.lexsort((found[:, 1], found[:, 0], (found**2).sum(axis=1)))
    return found[order[:COEFFICIENTS]]


def _basis(shape: tuple[int, int], rows: slice, columns: slice) -> np.ndarray:
    """(h·w, COEFFICIENTS) float32: what images (h·w,) are multiplied with to give f of a part of them."""
    places = (np.arange(shape[0])[rows], np.arange(shape[1])[columns])
    sizes = (len(places[0]), len(places[1]))
    basis = np.zeros((*shape, COEFFICIENTS))
    for place, (u, v) in enumerate(_frequencies(*sizes)):
        down = np.cos(np.pi * u * (np.arange(sizes[0]) + 0.5) / sizes[0])
        right = np.cos(np.pi * v * (np.arange(sizes[1]) + 0.5) / sizes[1])
        scale = np.hypot(u, v) / np.linalg.norm(down) / np.linalg.norm(right)
        basis[np.ix_(*places, [place])] = scale * np.multiply.outer(down, right)[:, :, None]
    return basis.reshape(-1, COEFFICIENTS).astype(np.float32)


def _features(grey: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """f (n, COEFFICIENTS) float32 of grey images (n, h, w)."""
    found = np.empty((len(grey), COEFFICIENTS), dtype=np.float32)
    for start in range(0, len(grey), BLOCK):
        some = grey[start : start + BLOCK]
        found[start : start + BLOCK] = some.reshape(len(some), -1).astype(np.float32) @ basis
    return found


def _contrast(grey: np.ndarray) -> np.ndarray:
    """The standard deviation (n,) of grey images (n, h, w), a block at a time for memory's sake."""
    starts = range(0, len(grey), BLOCK)
    return np.concatenate([grey[i : i + BLOCK].std(axis=(1, 2), dtype=np.float32) for i in starts])


def hashes(features: np.ndarray) -> np.ndarray:
    """The signs of f (n, 64) as uint64 (n,). What is zero but for rounding counts as negative."""
    least = 1e-4 * np.linalg.norm(features, axis=1, keepdims=True)
    return np.packbits(features > least, axis=1).view(np.uint64)[:, 0]


# ---- pairs -------------------------------------------------------------------------------------------------


def near_pairs(small: Small, among: np.ndarray, *, mirrored: bool) -> Iterator[Pairs]:
    """The confirmed pairs of near-duplicates among the samples of these ids, as arrays of ids."""
    if not len(among) or small.grey[0].size < 2:
        return
    among = among[_contrast(small.grey)[among] >= FLAT]
    grey, tints = small.grey[among], small.tints[among]
    shape = grey.shape[1:]
    whole = _features(grey, _basis(shape, slice(None), slice(None)))
    ways = [(whole, whole, tints, RADIUS, True)]
    if mirrored:
        odd = np.zeros(COEFFICIENTS, dtype=bool)
        odd[: len(_frequencies(*shape))] = _frequencies(*shape)[:, 1] % 2 == 1
        ways.append((np.where(odd, -whole, whole), whole, tints[..., ::-1], RADIUS_MOVED, True))
    for one, other, own_tints, radius, once in chain(ways, _moved(grey, tints)):
        for i, j in _confirmed(one, other, own_tints, tints, radius, once=once):
            yield among[i], among[j]


def _moved(grey: np.ndarray, tints: np.ndarray) -> Iterator[Way]:
    """The features of the parts that two images share, when one is the other moved by a pixel."""
    shape = grey.shape[1:]
    for down, right in MOVES if min(shape) >= MOVABLE else ():
        one = _features(grey, _basis(shape, slice(down, None), _part(right)))
        other = _features(grey, _basis(shape, slice(None, -down or None), _part(-right)))
        yield one, other, tints, RADIUS_MOVED, False


def _part(move: int) -> slice:
    """The columns that are still there when an image is moved so many pixels to the left."""
    return slice(move, None) if move >= 0 else slice(None, move)


def _confirmed(
    one: np.ndarray,
    other: np.ndarray,
    one_tints: np.ndarray,
    other_tints: np.ndarray,
    radius: int,
    *,
    once: bool,
) -> Iterator[Pairs]:
    """Pairs (i, j) of places with f of `one` at i near f of `other` at j; once: i < j only, as where the
    relation is symmetric.
    """
    norms = [np.maximum(np.linalg.norm(f, axis=1), 1e-6) for f in (one, other)]
    for i, j in within(hashes(one), hashes(other), radius):
        keep = i < j if once else i != j
        i, j = i[keep], j[keep]
        near = np.zeros(len(i), dtype=bool)
        for start in range(0, len(i), BLOCK):
            block = slice(start, start + BLOCK)
            a, b = i[block], j[block]
            left, right = norms[0][a], norms[1][b]
            cosine = np.einsum("nk,nk->n", one[a], other[b]) / (left * right)
            near[block] = 2 - 2 * cosine <= DISTANCE**2
            near[block] &= np.maximum(left, right) <= CONTRAST * np.minimum(left, right)
        i, j = i[near], j[near]
        alike = np.abs(one_tints[i] - other_tints[j]).reshape(len(i), one_tints[0].size).mean(axis=1) <= TINT
        if alike.any():
            yield i[alike], j[alike]


def within(queries: np.ndarray, index: np.ndarray, radius: int) -> Iterator[Pairs]:
    """All pairs (i, j) with at most `radius` < 64 differing bits between queries[i] and index[j], each once.

    Multi-index hashing (Norouzi, Punjani, Fleet, arXiv 1307.2982): of 4 bands of 16 bits, one at least
    differs in radius // 4 bits or fewer, by the pigeonhole principle; so it is enough to look there. A pair
    is kept in the first band that finds it.
    """
    reach = radius // BANDS
    for band in range(BANDS):
        keys = _band(index, band)
        order = np.argsort(keys, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=1 << BITS))])
        own = _band(queries, band)
        for mask in _masks(reach):
            bucket = own ^ mask
            for i, j in _joined(starts[bucket], starts[bucket + 1], order):
                differing = queries[i] ^ index[j]
                keep = np.bitwise_count(differing) <= radius
                for earlier in range(band):
                    keep &= np.bitwise_count(_band(differing, earlier)) > reach
                if keep.any():
                    yield i[keep], j[keep]


def _band(values: np.ndarray, band: int) -> np.ndarray:
    return (values >> np.uint64(BITS * band) & np.uint64((1 << BITS) - 1)).astype(np.int64)


def _masks(reach: int) -> list[int]:
    """All words of BITS bits with at most `reach` ones."""
    return [sum(1 << bit for bit in bits) for n in range(reach + 1) for bits in combinations(range(BITS), n)]


def _joined(low: np.ndarray, high: np.ndarray, order: np.ndarray) -> Iterator[Pairs]:
    """(i, order[k]) for each i and each k from low[i] to high[i] − 1, about PAIRS at a time."""
    some = np.flatnonzero(high > low)
    ends = np.cumsum((high - low)[some])
    cuts = np.searchsorted(ends, np.arange(PAIRS, ends[-1] if len(ends) else 0, PAIRS))
    for part in np.split(some, np.unique(cuts)):
        counts = (high - low)[part]
        i = np.repeat(part, counts)
        offsets = np.repeat(low[part] - np.cumsum(counts) + counts, counts)
        if len(i):
            yield i, order[offsets + np.arange(len(i))]


# ---- clusters ----------------------------------------------------------------------------------------------


def _components(count: int, edges: list[np.ndarray]) -> np.ndarray:
    """For each of `count` samples the smallest id that edges [(2, m), …] join it with."""
    i, j = np.concatenate(edges, axis=1)
    labels = connected_components(coo_array((np.ones(len(i), bool), (i, j)), (count, count)), False)[1]
    smallest = np.full(labels.max(initial=-1) + 1, count)
    np.minimum.at(smallest, labels, np.arange(count))
    return np.asarray(smallest[labels])


def _named(smallest: np.ndarray) -> np.ndarray:
    """Cluster ids (n,) int32: ALONE for clusters of one."""
    sizes = np.bincount(smallest, minlength=len(smallest))
    return np.where(sizes[smallest] > 1, smallest, ALONE).astype(np.int32)
