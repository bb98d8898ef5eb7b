"""The Ray cluster a run works on: joining it, how many actors it has room for, asking it to grow.

driver.py, actor.py, metrics.py, last_words.py and bench_driver.py import ray too, and no other file does.
"""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError

from orchestrator.catalogue import ROOT
from orchestrator.errors import UserError

CONNECT_S = 10.0
MOST_HINTS = 1024  # actors that an autoscaler is asked to make room for at once
CONTEXT_MIB = 700  # of GPU memory that a process takes before its first tensor
FULL = 0.9  # share of a GPU's memory that actors may fill
EXCLUDES = [
    ".git",
    ".venv",
    "data",
    "results",
    "**/__pycache__",
]  # what of this folder does not travel to a cluster


@dataclass(frozen=True)
class Resources:
    """How many actors, on what, and how long one task may run (seconds).

    actors_per_gpu: a number, or 'auto': one at first, then as many as the memory of the GPUs has room for.
    device: 'gpu' waits for nodes with GPUs where there are none yet; 'auto' takes CPUs then.
    """

    actors_per_gpu: int | str = 1
    max_actors: int | None = None
    time_limit_s: float = 3600.0
    device: str = "auto"


@dataclass(frozen=True)
class Share:
    """What one actor asks Ray for."""

    cpus: float
    gpus: float

    def options(self) -> dict[str, float]:
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}

    def room(self) -> int:
        """How many actors the cluster has room for as it is now, were it ours alone."""
        there = ray.cluster_resources()
        if self.gpus:
            return int(there.get("GPU", 0) / self.gpus + 1e-6)
        return int(there.get("CPU", 0) / self.cpus)


def share(device: str, actors_per_gpu: int) -> Share:
    """A part of a GPU if there are any, or if GPUs are asked for; else a core. An actor on a GPU claims no
    core: GPUs are what these actors compete for.
    """
    gpus = device == "gpu" or (device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
    return Share(0, 1 / actors_per_gpu) if gpus else Share(1, 0)


def packing(peak_mib: float, device_mib: float, cores_per_gpu: float) -> int:
    """How many actors share a GPU: as many as its memory holds with the largest peak seen, no more than there
    are cores to feed them; at least one.
    """
    if not peak_mib or not device_mib:
        return 1
    return max(1, int(min(FULL * device_mib / (peak_mib + CONTEXT_MIB), cores_per_gpu)))


def cores_per_gpu() -> float:
    """Cores for each GPU on the node that has fewest."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return min((n.get("CPU", 0) / n["GPU"] for n in nodes if n.get("GPU", 0) >= 1), default=1.0)


def ask_for(actors: int, each: Share) -> None:
    """Tell an autoscaler, if there is one, how many actors would have work; 0 takes everything back."""
    bundle = {name: amount for name, amount in (("CPU", each.cpus), ("GPU", each.gpus)) if amount}
    request_resources(bundles=[bundle] * min(actors, MOST_HINTS))


def here() -> Any:
    """Where an actor goes that has to be on this machine."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def several_nodes() -> bool:
    return sum(bool(node["Alive"]) for node in ray.nodes()) > 1


def connect(address: str) -> None:
    """Start Ray here ('local') or join a cluster ('auto', or a host); UserError if there is none."""
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a private instance that ends with this process
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        ray.init(address="local", include_dashboard=False, **quiet)
        return
    _check_reachable(address)
    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ  # `ray job submit` has shipped the code already
    environment = None if inside_job else {"working_dir": str(ROOT), "excludes": EXCLUDES}
    try:
        ray.init(address=address, runtime_env=environment, **quiet)
    except (ConnectionError, RayError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"--address {address}: no Ray cluster answered ({reason})."
            " Use --address local, or start one with `ray start`."
            " One with a token wants RAY_AUTH_MODE=token here, and the same token in ~/.ray/auth_token."
        ) from None


def _check_reachable(address: str) -> None:
    """UserError if nobody listens at host:port; Ray itself tries for minutes before it says so."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return  # 'auto': Ray looks for a cluster on this machine
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        raise UserError(f"--address {address}: nobody answers there ({error}).") from None


def cannot_start(error: RayError) -> UserError:
    return UserError(f"a worker could not start: {str(error).strip().splitlines()[-1]}")


def disconnect() -> None:
    ray.shutdown()
