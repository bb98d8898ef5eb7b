"""The lock of a results folder on an object store, which has no locks: claims, an object for each driver.

A driver writes a claim that says it wants the folder, then lists all claims. A list shows what was written
before it, so of two drivers at least one sees the other. One that sees the folder held, or wanted by a claim
of a lower id, takes its own away; one that sees claims of higher ids alone waits until these have given way;
one that sees none holds the folder. So never do two hold it, and of several that start at once one wins.

A claim is void when it was not renewed for STALE_S, by the times that the store gives its objects, or when
its process is known to be dead. Whoever takes over deletes it, and its owner, should it live after all, sees
that at its next renewal, which is due before its next write.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pyarrow import fs

from orchestrator import atomic
from orchestrator.store import Store

FOLDER = "LOCK"
STALE_S = 120.0
RENEW_S = 20.0  # renewed this often, by a thread
LATE_S = 60.0  # nothing is written on the strength of a claim that was renewed longer ago
GIVE_WAY_S = 15.0  # what a driver waits for others that started at the same time
POLL_S = 0.2
READ_TRIES = 4

Owner = dict[str, Any]


class Held(Exception):
    """Another driver holds the folder, or comes first. owner: what it says of itself, {} if unreadable."""

    def __init__(self, owner: Owner) -> None:
        super().__init__("held")
        self.owner = owner


@dataclass
class _Seen:
    """A claim in the list; written_at by the clock of the store, None where that tells no times."""

    written_at: datetime | None
    owner: Owner


class Claim:
    """This driver's claim. Made by `take`; `renew` raises Held once somebody else has the folder."""

    def __init__(self, store: Store, owner: Owner) -> None:
        self.store, self.owner = store, owner | {"machine": machine()}
        self.id = uuid.uuid4().hex
        self.renewed = since_boot()
        self._void: set[str] = set()  # claims that were taken over

    def take(self) -> None:
        """Hold the folder; Held if somebody else does."""
        try:
            self._write(held=False)
            deadline = time.monotonic() + GIVE_WAY_S
            while others := self._living():
                first = [c for id, c in others.items() if c.owner.get("held", True) or id < self.id]
                if first or time.monotonic() > deadline:
                    raise Held((first or list(others.values()))[0].owner)
                time.sleep(POLL_S)
                self._write(held=False)
            self._write(held=True)
            self.renew()  # was it suspended on the way here, somebody else may have come
        except BaseException:
            self.release()
            raise

    def renew(self) -> None:
        """Say that the owner lives; Held if the folder was taken over."""
        now = since_boot()
        claims = self._list()
        for id in self._void & claims.keys():
            self._delete(id)
        held = [
            c.owner for id, c in claims.items() if c.owner.get("held") and id not in {self.id, *self._void}
        ]
        if held or self.id not in claims:
            raise Held(held[0] if held else {})
        self._write(held=True)
        self.renewed = now

    def late(self) -> bool:
        """Whether it has to be renewed before anything is written."""
        return since_boot() - self.renewed > LATE_S

    def release(self) -> None:
        """Take the claim away; where that fails it goes stale."""
        try:
            self._delete(self.id)
        except OSError:
            return

    def _living(self) -> dict[str, _Seen]:
        """The claims of others that are not void; the void ones are deleted."""
        claims = self._list()
        mine = claims.pop(self.id, None)
        now = mine.written_at if mine is not None else None  # written a moment ago
        void = {id for id, claim in claims.items() if _is_void(claim, now)}
        for id in void:
            self._delete(id)
        self._void |= void
        return {id: claim for id, claim in claims.items() if id not in void}

    def _list(self) -> dict[str, _Seen]:
        selector = fs.FileSelector(self.store.path(FOLDER), allow_not_found=True)
        found = {}
        for info in self.store.fs.get_file_info(selector):
            if info.type == fs.FileType.File and info.extension == "json":
                owner = self.owner if info.base_name == f"{self.id}.json" else self._read(info.path)
                if owner is not None:
                    found[info.base_name.removesuffix(".json")] = _Seen(info.mtime, owner)
        return found

    def _read(self, path: str, tries: int = READ_TRIES) -> Owner | None:
        """What a claim says, {} if that is not readable, None if it is gone by now."""
        try:
            with self.store.fs.open_input_stream(path) as stream:
                return dict(json.loads(stream.read()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            return {}
        except OSError:  # also where it is written anew between the look at its size and the reading
            if tries == 1:
                raise
            return self._read(path, tries - 1)

    def _write(self, *, held: bool) -> None:
        data = json.dumps(self.owner | {"held": held, "heartbeat_at": time.time()}).encode()
        atomic.upload(self.store.fs, self._path(self.id), data)

    def _delete(self, id: str) -> None:
        try:
            self.store.fs.delete_file(self._path(id))
        except FileNotFoundError:
            return

    def _path(self, id: str) -> str:
        return self.store.path(FOLDER, f"{id}.json")


def _is_void(claim: _Seen, now: datetime | None) -> bool:
    """Whether nobody renews a claim any more. now: when the claim of the one who asks was written."""
    if now and claim.written_at and (now - claim.written_at).total_seconds() > STALE_S:
        return True
    here = machine()
    return bool(here) and claim.owner.get("machine") == here and _is_gone(claim.owner.get("pid"))


def _is_gone(pid: object) -> bool:
    """Whether no process has this id, of whatever user."""
    try:
        os.kill(int(str(pid)), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return False


def machine() -> str:
    """What tells where a process id means a process: this boot of this machine, and the container; '' where
    that cannot be told.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def since_boot() -> float:
    """Seconds that nobody sets and that go on while the machine sleeps, where the system has such a clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)
