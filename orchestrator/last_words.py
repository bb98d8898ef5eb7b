"""What a worker process leaves when it is gone: where it ran, and the end of its standard error.

Ray writes the standard error of each worker into a file on its node, where a crash leaves the stacks of its
threads. It is read there by a small task of Ray's, wherever the driver is.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

TAIL = 8192  # bytes
READ_S = 5.0
STACKS_S = 0.3  # for a process to write its stacks

Place = dict[str, str]


def introduce() -> Place:
    """Called in a worker: its host, node, pid and the file of its standard error. From then on it answers
    SIGUSR1 with the stacks of its threads.
    """
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    try:
        stderr = os.readlink("/proc/self/fd/2")
    except OSError:  # not Linux
        stderr = ""
    node = ray.get_runtime_context().get_node_id()
    return {"host": socket.gethostname(), "node": node, "pid": str(os.getpid()), "stderr": stderr}


def place_of(introduction: Any) -> Place:
    """What an actor said of itself, {} if it died before."""
    try:
        return dict(ray.get(introduction))
    except RayError:
        return {}


def of(place: Place, *, hangs: bool = False) -> str:
    """The end of the standard error of a worker; hangs: the worker lives and writes its stacks first."""
    if not place:
        return "The worker had not started."
    where = f"process {place['pid']} on {place['host']}, {place['stderr']}"
    try:
        if place["node"] == ray.get_runtime_context().get_node_id():
            text = _tail(place, hangs)
        else:
            there = NodeAffinitySchedulingStrategy(place["node"], soft=False)
            reader = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_tail)
            text = ray.get(reader.remote(place, hangs), timeout=READ_S)
    except (OSError, RayError) as error:
        text = f"cannot be read: {' '.join(str(error).split())[:300]}"
    return f"Standard error of {where}:\n{text or '(empty)'}"


def _tail(place: Place, hangs: bool) -> str:
    """The last bytes of a file on this node."""
    if hangs:
        with contextlib.suppress(OSError):  # gone, or somebody else's: its file may still tell
            os.kill(int(place["pid"]), signal.SIGUSR1)
        time.sleep(STACKS_S)
    return Path(place["stderr"]).read_bytes()[-TAIL:].decode(errors="replace").strip()
