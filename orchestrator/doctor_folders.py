"""The folders of a run: whether they can be written to, how much is free, and whether their clock agrees."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.doctor import Check, first_line
from orchestrator.errors import UserError
from orchestrator.store import Store

LITTLE = 5e9  # bytes
APART_S = 60.0  # of two clocks: a lock goes stale after 120 s, and object stores refuse after 15 minutes


def results(uri: str, clock: Callable[[], float] = time.time) -> Iterator[Check]:
    """Write permission, clock and space of the results folder, or of where it would be made."""
    try:
        store = _existing(uri)
        before = clock()
        stamped = _written(store)
        after = clock()
    except (OSError, UserError) as error:
        text = (
            f"{uri}: cannot be written to ({first_line(error)}). Mend that or name another --results folder."
        )
        yield Check("results-write", "FAIL", text)
        return
    yield Check("results-write", "ok", f"a file was written in {store.uri} and removed")
    yield _clock(uri, max(before - stamped, 0.0) or min(after - stamped, 0.0))
    yield _space("results-disk", store)


def data(folder: str) -> Iterator[Check]:
    """The same of the folder of datasets, where runs only read."""
    try:
        store = _existing(folder)
        _written(store)
    except (OSError, UserError) as error:
        text = f"{folder}: cannot be written to ({first_line(error)}). Runs only read there; `lethe prepare`"
        yield Check("data-write", "warn", f"{text} needs another --data folder.")
        return
    yield Check("data-write", "ok", f"a file was written in {store.uri} and removed")
    yield _space("data-disk", store)


def _existing(uri: str) -> Store:
    """The folder, or the nearest one above it that is there; NotADirectoryError if that is a file."""
    store = Store(uri)
    if not store.local:
        return store
    path = Path(store.root)
    while not path.exists():
        path = path.parent
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is a file, not a folder")
    return Store(str(path))


def _written(store: Store) -> float:
    """Write a file, remove it, and return when it was written by the clock of the file system or server."""
    name = f".lethe-doctor-{uuid.uuid4().hex}"
    store.write(name, b"lethe doctor" * 1000)
    try:
        return float(store.fs.get_file_info(store.path(name)).mtime_ns / 1e9)
    finally:
        store.delete(name)


def _clock(uri: str, ahead_s: float) -> Check:
    """ahead_s: by how much the clock of this machine is ahead of that of the results."""
    if abs(ahead_s) <= APART_S:
        return Check("clock", "ok", f"agrees with that of {uri} to {max(1.0, abs(ahead_s)):.0f} s")
    way = "ahead of" if ahead_s > 0 else "behind"
    text = f"{abs(ahead_s):.0f} s {way} that of {uri}; at most {APART_S:g} s is safe. Set it, as with"
    return Check("clock", "FAIL", f"{text} `timedatectl set-ntp true`.")


def _space(name: str, store: Store) -> Check:
    if not store.local:
        return Check(name, "ok", f"{store.uri}: an object store tells no limit")
    free = shutil.disk_usage(store.root).free
    text = f"{free / 1e9:,.1f} GB free at {store.uri}"
    if free >= LITTLE:
        return Check(name, "ok", text)
    return Check(name, "warn", f"{text}, less than {LITTLE / 1e9:g} GB. Make room, or name another folder.")
