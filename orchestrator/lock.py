"""One driver per results folder: a lock with its owner and age.

On a local folder the lock is the kernel's (flock), so it is gone the moment its owner is, however that one
died. On an object store it is a claim that a thread renews (claims.py). No machine's clock decides who holds
it. A driver that has lost its lock is stopped by the store's `guard` before it writes anything more.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import socket
import threading
import time
from types import TracebackType

from orchestrator.claims import RENEW_S, Claim, Held, Owner
from orchestrator.errors import UserError
from orchestrator.store import Store

NAME = "LOCK"


class Lock:
    """Hold the right to write into a store while inside the `with` block."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._owner: Owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "user": _user(),
            "started_at": time.time(),
        }
        self._file: int | None = None
        self._claim: Claim | None = None
        self._lost: UserError | None = None
        self._renewing = threading.Lock()
        self._checking = threading.Lock()
        self._ended = threading.Event()

    def __enter__(self) -> Lock:
        if self.store.local:
            self._lock_file()
            self.beat()
        else:
            self._claim = Claim(self.store, self._owner)
            try:
                self._claim.take()
            except Held as held:
                raise self._refusal(held.owner) from None
            threading.Thread(target=self._keep_renewing, name="lock", daemon=True).start()
        self.store.guard = self._check
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.store.guard = lambda: None
        self._ended.set()
        if self._file is not None:
            os.ftruncate(self._file, 0)
            os.close(self._file)
        if self._claim is not None:
            with self._renewing:
                self._claim.release()

    def beat(self) -> None:
        """Say that the owner lives; UserError if the lock is lost. On an object store a thread says so, and
        one that does not answer now is for the next write to wait for.
        """
        if self._claim is None or self._lost is not None:
            self._check()
        if self._file is not None:
            data = json.dumps({**self._owner, "heartbeat_at": time.time()}).encode()
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, data, 0)

    def _check(self) -> None:
        """UserError if the lock is lost. Before each write, of several threads at once."""
        if self.store.local:
            with self._checking:
                if self._lost is None and self._file is not None:
                    self._check_file(self._file)
        elif self._lost is None and self._claim is not None and self._claim.late():
            self._renew(self._claim)
        if self._lost is not None:
            raise self._lost

    # ---- on a local folder --------------------------------------------------------------------------------

    def _lock_file(self) -> None:
        self._file = os.open(self.store.path(NAME), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            self._file = None
            raise self._refusal(self._read()) from None

    def _check_file(self, file: int) -> None:
        """Notice that the file was deleted, which keeps nobody out, and perhaps made by another driver."""
        try:
            same = os.path.samestat(os.stat(self.store.path(NAME)), os.fstat(file))
        except FileNotFoundError:
            self._file = None
            os.close(file)
            self._lock_file()
            return
        owner = {} if same else self._read()  # some file systems number their files anew
        if not same and {name: owner.get(name) for name in self._owner} != self._owner:
            self._lost = self._stop(owner)

    def _read(self) -> Owner:
        try:
            return dict(json.loads(self.store.read(NAME)))
        except (OSError, ValueError):
            return {}

    # ---- on an object store -------------------------------------------------------------------------------

    def _keep_renewing(self) -> None:
        assert self._claim is not None
        while self._lost is None and not self._ended.wait(RENEW_S):
            try:
                self._renew(self._claim)
            except OSError:
                continue  # not to be reached now; before the next write at the latest it has to be

    def _renew(self, claim: Claim) -> None:
        with self._renewing:
            if self._lost is None and not self._ended.is_set():
                try:
                    claim.renew()
                except Held as held:
                    self._lost = self._stop(held.owner)

    # ---- what is said -------------------------------------------------------------------------------------

    def _refusal(self, owner: Owner) -> UserError:
        age = max(0.0, time.time() - float(str(owner.get("started_at", time.time()))))
        return UserError(
            f"{self.store.uri}: {_who(owner)} has been running on these results for {age:.0f} s, so nothing"
            " was run. Wait for it, stop it, or name another --results folder."
        )

    def _stop(self, owner: Owner) -> UserError:
        return UserError(
            f"{self.store.uri}: {_who(owner)} has taken these results over, since this one gave no sign of"
            " life or its lock was deleted. This one stopped and wrote nothing more; what it had recorded is"
            " safe. Run it again once the other has ended."
        )


def _who(owner: Owner) -> str:
    if not owner:
        return "another process"
    return f"process {owner.get('pid')} of {owner.get('user')} on {owner.get('host')}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
