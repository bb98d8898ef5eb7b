"""The views a sample is scored in. Without torch, so that the metadata of stored scores can list them."""

from __future__ import annotations

from typing import Any

View = tuple[bool, int, int]  # mirrored, pixels down, pixels to the right


def mirrors(spec: dict[str, Any], usual: bool) -> bool:
    """Whether the training behind a task's model mirrors images: what its specification says, else the
    `usual` of its dataset.
    """
    told = spec.get("training", spec).get("flip")
    return usual if told is None else bool(told)


def views_of(flip: bool, strong: bool = False) -> list[View]:
    """The views a sample is scored in, the same for every model: the image as it is; mirrored too, where
    training mirrors (`flip`); strong: each of these also moved by one pixel in the eight directions.

    The strong views begin with the others, so a view's number means the same in both.
    """
    moves = [(0, 0)]
    if strong:
        moves += [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right]
    return [(mirror, *move) for move in moves for mirror in ((False, True) if flip else (False,))]
