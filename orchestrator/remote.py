"""Object stores: how one is found by its URI, and what to do while it does not answer.

Each request is tried three times within seconds by pyarrow. What fails even so is tried again by `patient`
for minutes, in this process's own time: Ctrl-C ends the wait.
"""

from __future__ import annotations

import functools
import itertools
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import pyarrow as pa
from pyarrow import fs

from orchestrator.errors import UserError, without_keys

PATIENCE_S = 150.0  # an outage of a minute, or of two, ends no run
WAITS_S = (1.0, 2.0, 4.0, 8.0, 15.0)  # between tries; the last from then on
ANSWER_S = 60.0  # a slow answer is one
AT_ONCE = 32  # files read at the same time
# Waiting does not mend these: no such bucket, no right to it, keys that are wrong or too old, a bad request.
FINAL = re.compile(
    r"ACCESS_DENIED|NO_SUCH_BUCKET|NO_SUCH_KEY|RESOURCE_NOT_FOUND|INVALID_|SIGNATURE|EXPIRED|UNRECOGNIZED"
    r"|MISSING_|HTTP status 4(?!08|29)|Permission denied"
)

log = logging.getLogger("lethe")


class Patient(Protocol):
    """A store; patience_s: for how long a call is tried again, 0 once that was in vain."""

    uri: str
    local: bool
    patience_s: float


S = TypeVar("S", bound=Patient)
P = ParamSpec("P")
R = TypeVar("R")


def from_uri(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URI and the path in it; UserError if that cannot be. Of s3:// the region and the
    endpoint come from the URI (?region=…&endpoint_override=…), else from the environment.
    """
    try:
        found, root = fs.FileSystem.from_uri(uri)
        if isinstance(found, fs.S3FileSystem):
            # As the URI says, but a small object in one request, and with time for a slow answer.
            (options,) = found.__reduce__()[1]
            wanted = {"allow_delayed_open": True, "request_timeout": ANSWER_S}
            known = {
                name: value for name, value in wanted.items() if name in options
            }  # pyarrow 18 has not all
            found = fs.S3FileSystem(**(options | known))
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"--results {uri}: not a folder that can be used ({error}).") from None
    if not root:
        raise UserError(f"--results {uri}: names no bucket or folder.")
    return found, root.rstrip("/")


def may_pass(error: OSError) -> bool:
    """Whether an error of an object store may be gone in a while. Missing files have an errno."""
    return error.errno is None and not FINAL.search(str(error))


def patient(call: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """A method of a store that may be called twice; where an object store does not answer, it is."""

    @functools.wraps(call)
    def trying(store: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        begun: float | None = None  # when it first failed
        for wait in itertools.chain(WAITS_S, itertools.repeat(WAITS_S[-1])):
            try:
                return call(store, *args, **kwargs)
            except OSError as error:
                now = time.monotonic()
                begun = now if begun is None else begun
                deadline = begun + store.patience_s  # which Ctrl-C makes shorter
                if store.local or not may_pass(error):
                    raise
                if now + wait > deadline:
                    store.patience_s = 0.0  # what is called on the way out waits no more
                    raise
                _tell(store, deadline - now, error)
            _sleep(store, wait)
        raise AssertionError("waits without end")

    return trying


def each(store: S, names: Sequence[str], get: Callable[[str], R]) -> Iterator[R]:
    """What `get` makes of each name, in order, of many at once: on an object store each takes several round
    trips, on a disk several cores help.
    """
    if len(names) < 2:
        yield from map(get, names)
        return
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for start in range(0, len(names), AT_ONCE):  # no more in memory than these
            yield from pool.map(get, names[start : start + AT_ONCE])


def _sleep(store: Patient, seconds: float) -> None:
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        store.patience_s = 0.0
        raise


def _tell(store: Patient, left_s: float, error: OSError) -> None:
    text = " ".join(str(error).split())[-200:]
    log.warning(
        "%s does not answer, tried again for %.0f s: %s", without_keys(store.uri), left_s, without_keys(text)
    )
