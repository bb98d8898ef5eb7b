"""One driver per results folder: a lock with its owner and age.

On a local folder the lock is the kernel's (flock), so it is gone the moment its owner is, however that one
died. On an object store it is a file with a heartbeat, void when the heartbeat is old; two drivers that start
within the same second are not kept apart there.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import socket
import time
from types import TracebackType

from orchestrator.errors import UserError
from orchestrator.store import Store

NAME = "LOCK"
STALE_S = 120.0  # heartbeats come with every flush, at least every 30 s


class Lock:
    """Hold the right to write into a store while inside the `with` block."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._file: int | None = None
        self._owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "user": _user(),
            "started_at": time.time(),
        }

    def __enter__(self) -> Lock:
        if self.store.local:
            self._file = os.open(self.store.path(NAME), os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(self._file)
                raise self._refusal(self._read()) from None
        else:
            other = self._read()
            if other and time.time() - float(str(other.get("heartbeat_at", 0))) < STALE_S:
                raise self._refusal(other)
        self.beat()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.ftruncate(self._file, 0)
            os.close(self._file)
        else:
            self.store.delete(NAME)

    def beat(self) -> None:
        """Renew the heartbeat."""
        data = json.dumps({**self._owner, "heartbeat_at": time.time()}).encode()
        if self._file is not None:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, data, 0)
        else:
            self.store.write(NAME, data)

    def _read(self) -> dict[str, object]:
        try:
            return dict(json.loads(self.store.read(NAME)))
        except (OSError, ValueError):
            return {}

    def _refusal(self, owner: dict[str, object]) -> UserError:
        age = time.time() - float(str(owner.get("started_at", time.time())))
        who = (
            f"process {owner.get('pid')} of {owner.get('user')} on {owner.get('host')}"
            if owner
            else "another process"
        )
        return UserError(
            f"{self.store.uri}: {who} has been running on these results for {age:.0f} s, so nothing was run."
            " Wait for it, stop it, or name another --results folder."
        )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
