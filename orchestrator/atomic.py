"""Files that are there whole and durable, or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
def remote(system: fs.FileSystem, target: str) -> Iterator[Any]:
    """The same on an object store, which shows whole objects only. What was begun when an error came is
    deleted: closing the stream makes an object of it.
    """
    try:
        with system.open_output_stream(target) as stream:
            yield stream
    except BaseException:
        if system.get_file_info(target).type == fs.FileType.File:
            system.delete_file(target)
        raise


def _sync(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
