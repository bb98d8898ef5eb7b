"""`lethe prepare image_folder PATH`: reads a folder of pictures and writes its entry for a grid."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.datasets import NAME, plain_name
from orchestrator.errors import UserError
from orchestrator.strict_yaml import as_yaml

SHOWN = 20  # lines on files that were left out for their names


def is_folder(words: Sequence[str], size: int | None, channels: int, name: str | None) -> bool:
    """Whether arguments of `lethe prepare` mean a folder of pictures; UserError when they mean nothing."""
    if NAME not in words:
        if size is not None or name is not None or channels != 3:
            raise UserError(f"--size, --channels and --name are for `lethe prepare {NAME} PATH`.")
        return False
    if words[0] != NAME or len(words) != 2:
        raise UserError(
            f"prepare {' '.join(words)}: write `lethe prepare {NAME} PATH --size N`, one folder at a time."
        )
    if size is None:
        raise UserError(
            f"prepare {NAME}: --size is missing, the side of the images in pixels, e.g. --size 64."
        )
    if channels not in (1, 3):
        raise UserError(f"--channels {channels}: not one of 3 (colour) and 1 (grey).")
    return True


def entry_of(path: str, data: str, size: int, channels: int, name: str | None) -> tuple[str, list[str]]:
    """The entry of a folder, as YAML to be pasted into a grid, and lines on what was found and left out.

    A relative path is taken below the folder `data` as grids do, or else from here; UserError when there is
    nothing in either place.
    """
    from workers.files import why
    from workers.image_folder import UNREADABLE, scan

    given, folder = Path(path).expanduser(), Path(data).expanduser().absolute()
    below, here = (Path(os.path.normpath(start / given)) for start in (folder, Path.cwd()))
    source = below if below.exists() else here
    title = name if name is not None else re.sub(r"[^A-Za-z0-9_-]+", "_", source.stem).strip("_-")[:64]
    try:
        title = plain_name(title)
    except ValueError as error:
        raise UserError(
            f"--name {error}" if name is not None else f"{source}: name it with --name; {error}"
        ) from None
    try:
        found = scan(source, size, channels)
    except FileNotFoundError:
        raise UserError(f"{NAME}: no {below}" + ("." if below == here else f" and no {here}.")) from None
    except UNREADABLE as error:
        raise UserError(f"{NAME}: {source} cannot be used: {why(error)}.") from None
    counts = np.zeros((channels, 256), np.int64)
    for image in found.arrays.pool_images:
        counts += [np.bincount(channel.ravel(), minlength=256) for channel in image]
    mean, std = _moments(counts)
    entry = {
        "name": title,
        "path": str(source.relative_to(folder) if source.is_relative_to(folder) else source),
        "size": size,
        "channels": channels,
        "classes": list(found.classes),
        "pool_size": len(found.arrays.pool_labels),
        "test_size": len(found.arrays.test_labels),
        "mean": mean,
        "std": std,
        "sha256": found.sha256,
    }
    return as_yaml({"datasets": [{NAME: entry}]}), _notes(source, found)


def _moments(counts: Any) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, from how often each of its 256 values occurs; 1 for the
    deviation of a channel that never varies.
    """
    values = np.arange(256) / 255
    total = counts.sum(1)
    means = counts @ values / total
    deviations = np.sqrt((counts * (values - means[:, None]) ** 2).sum(1) / total)
    return [round(float(m), 4) for m in means], [round(float(s), 4) or 1.0 for s in deviations]


def _notes(source: Path, found: Any) -> list[str]:
    pool, test = found.arrays.pool_images, found.arrays.test_images
    split = "test: its own" if found.official else "test: a fifth of each class"
    mib = (pool.nbytes + test.nbytes) / 2**20
    notes = [
        f"{source}: {len(pool) + len(test):,} images of {len(found.classes):,} classes, pool {len(pool):,},"
        f" test {len(test):,} ({split}), {mib:,.1f} MiB on the device."
    ]
    notes += [f"left out: {line}" for line in found.left_out[:SHOWN]]
    if len(found.left_out) > SHOWN:
        notes.append(f"left out: {len(found.left_out) - SHOWN:,} more files.")
    return notes + [f"left out, cannot be read: {line}" for line in found.unreadable]
