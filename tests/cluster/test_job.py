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

from tests.cluster.over_ssh import answers, wait_for
from tests.conftest import ROOT, all_rows

BIN = Path(sys.prefix) / "bin"
Submit = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Head:
    """A Ray head of two CPUs in processes of its own."""

    folder: Path  # its home folder, and where it keeps everything
    gcs: str  # host:port
    dashboard: str
    token: dict[str, str]  # the environment of those who may use it

    def environment(self) -> dict[str, str]:
        """That of somebody without the token."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = os.pathsep.join((str(BIN), os.environ.get("PATH", "")))  # a job runs the head's `python`
        return kept | {"HOME": str(self.folder), "PATH": path}


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
            command, env=found.environment() | token, cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_for(lambda: answers("127.0.0.1", dashboard) or process.poll() is not None, "the dashboard", 90)
        assert process.poll() is None, (folder / "head.log").read_text()
        yield found
    finally:
        end(process)
        shutil.rmtree(folder, ignore_errors=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    if process.poll() is not None:
        return
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

    def call(
        *arguments: object, timeout: float = 200, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        entry = ["python", "-m", "orchestrator", *map(str, arguments)]
        command = [str(BIN / "ray"), "job", "submit", "--address", head.dashboard, "--working-dir", "."]
        return subprocess.run(
            [*command, "--", *entry],
            cwd=ROOT,
            env=head.environment() | (environment or head.token),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return call


def test_a_job_runs_a_grid_of_the_folder_it_came_with(head: Head, submit: Submit) -> None:
    done = submit("run", "grids/digits.yaml", "--limit", 3, "--address", "auto", "--results", "from-a-job")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 988 tasks are done" in done.stdout
    again = "ray job submit --working-dir . -- python -m orchestrator run grids/digits.yaml --address auto"
    assert f"985 are left: `{again} --results from-a-job` goes on." in done.stdout
    lasting = head.folder / "lethe" / "from-a-job"  # relative paths of a job: below its home folder
    assert f"from-a-job: taken as {lasting}" in done.stdout
    assert [row["status"] for row in all_rows(lasting)] == ["done"] * 3
    assert not (ROOT / "from-a-job").exists()


def test_a_mistake_in_a_job_is_one_line_and_a_failure(submit: Submit) -> None:
    done = submit("run", "grids/nothing.yaml", "--address", "auto")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "\ngrids/nothing.yaml: no such file.\n" in done.stdout
    assert "failed with exit code 2" in done.stdout  # Ray itself ends with 1 whatever the job's code was
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "Missing authentication token"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "guessed"}, "Invalid authentication token"),
    ],
    ids=["none", "wrong"],
)
def test_without_the_token_a_job_is_refused(submit: Submit, environment: dict[str, str], reason: str) -> None:
    done = submit("--version", **environment)
    assert done.returncode == 1
    assert reason in done.stderr
    assert "submitted successfully" not in done.stdout


@pytest.mark.long
def test_without_the_token_a_driver_is_refused(head: Head, tmp_path: Path) -> None:
    """From outside, with --address HOST:PORT; Ray tries for 20 seconds."""
    command = [sys.executable, "-m", "orchestrator", "run", "grids/digits.yaml", "--address", head.gcs]
    done = subprocess.run(
        [*command, "--results", str(tmp_path / "results")],
        cwd=ROOT,
        env=head.environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "RAY_AUTH_MODE=token" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "results").exists()


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_job_runs_the_whole_demonstration(head: Head, submit: Submit) -> None:
    """The command of README.md, after the job above: it goes on where that one ended."""
    done = submit(*("run", "grids/digits.yaml", "--address", "auto", "--results", "from-a-job"), timeout=1100)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = all_rows(head.folder / "lethe" / "from-a-job")
    assert [row["status"] for row in rows] == ["done"] * 988
    assert {row["attempt"] for row in rows} == {1}
