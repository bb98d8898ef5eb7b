"""Files that are there whole and durable, or not at all."""

from __future__ import annotations

import mmap
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs


@contextmanager
def local(target: str) -> Iterator[Any]:
    """A binary file to write into, which gets its name once the block is left without error."""
    folder = os.path.dirname(target)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync(folder)


@contextmanager
def collected(put: Callable[[pa.Buffer], None]) -> Iterator[Any]:
    """A binary file to write into, whose content `put` is given once the block is left without error."""
    with tempfile.TemporaryFile() as file:
        yield file
        file.flush()
        size = file.seek(0, os.SEEK_END)
        put(pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""))


def upload(system: fs.FileSystem, target: str, data: bytes | pa.Buffer) -> None:
    """Write an object, of which others see all or nothing. In one call: interrupted between two, closing the
    stream would make an object of the first.
    """
    with system.open_output_stream(target) as stream:
        stream.write(data)


def _sync(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
