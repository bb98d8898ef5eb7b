"""`ray job submit`, as README tells it, to a cluster that wants a token."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from orchestrator.store import Store
from tests.conftest import ROOT, all_rows, results_table

BIN = Path(sys.prefix) / "bin"
Submit = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Head:
    """A Ray head of two CPUs in processes of its own."""

    folder: Path  # its home folder, and where it keeps everything
    gcs: str  # host:port
    dashboard: str
    token: dict[str, str]  # the environment of those who may use it

    def environment(self, token: bool) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = os.pathsep.join((str(BIN), os.environ.get("PATH", "")))  # a job runs the head's `python`
        return kept | {"HOME": str(self.folder), "PATH": path} | (self.token if token else {})


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, none twice."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Not below pytest's folder: paths of sockets may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="lethe-ray-"))
    gcs, dashboard, client, agent = free_ports(4)
    (folder / "token").write_text(secrets.token_hex(32))
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    found = Head(folder, f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", token)
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1"),
        *(f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder}", "--disable-usage-stats"),
        "--object-store-memory=100000000",
    ]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            command, env=found.environment(token=True), cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield found
    finally:
        end(process)
        shutil.rmtree(folder, ignore_errors=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(children, timeout=10)
    for child in alive:
        child.kill()
    process.kill()
    process.wait()


@pytest.fixture
def submit(head: Head) -> Submit:
    """Call `ray job submit --working-dir . -- python -m orchestrator …` in the project's folder."""

    def call(*arguments: object, token: bool = True) -> subprocess.CompletedProcess[str]:
        entry = ["python", "-m", "orchestrator", *map(str, arguments)]
        command = [str(BIN / "ray"), "job", "submit", "--address", head.dashboard, "--working-dir", "."]
        return subprocess.run(
            [*command, "--", *entry],
            cwd=ROOT,
            env=head.environment(token),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    return call
