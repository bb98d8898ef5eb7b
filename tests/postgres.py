"""A PostgreSQL server of Debian's packages for tests: found or installed, started, stopped."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

PASSWORD = "s3cret{%}"  # with signs that addresses and templates could trip over
QUOTED = "s3cret%7B%25%7D"


def apt_install(*packages: str) -> str:
    """Install Debian packages once; why that cannot be, '' where it was done."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return "not root, or no apt-get"
    quiet = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, "capture_output": True}
    try:
        subprocess.run(["apt-get", "update", "-qq"], timeout=60, **quiet)
        done = subprocess.run(["apt-get", "install", "-y", "-qq", *packages], timeout=150, **quiet)
    except subprocess.TimeoutExpired:
        return f"apt-get install {' '.join(packages)} took too long"
    return "" if done.returncode == 0 else f"apt-get install {' '.join(packages)} failed"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def binaries() -> Path:
    """The folder of initdb and pg_ctl; skips the test, with the reason, where there is none."""

    def found() -> list[Path]:
        return sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))

    why = "" if found() else apt_install("postgresql")
    if not found():
        pytest.skip(f"PostgreSQL is not installed ({why or 'the package has no initdb'})")
    return found()[-1].parent


def _unprivileged() -> tuple[list[str], str | None]:
    """How to run a command as a user that the server accepts: words before it, and the user's name."""
    if os.geteuid() != 0:
        return [], None
    if shutil.which("runuser") is None:
        pytest.skip("PostgreSQL refuses to run as root, and there is no runuser")
    return ["runuser", "-u", "postgres", "--"], "postgres"


@contextmanager
def server() -> Iterator[str]:
    """Run a server with the user lethe and an empty database lethe; gives its address with the password."""
    programs = binaries()
    before, user = _unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="lethe-pg-", dir="/tmp"))
    secret = folder / "password"
    secret.write_text(PASSWORD + "\n")
    if user:
        for path in (folder, secret):
            shutil.chown(path, user)

    def call(words: Sequence[str | Path]) -> None:
        done = subprocess.run(
            [*before, *map(str, words)], cwd=folder, timeout=60, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout

    port, data = free_port(), folder / "data"
    login = ["--auth=scram-sha-256", f"--pwfile={secret}", "--username=lethe", "--no-sync", "--encoding=UTF8"]
    call([programs / "initdb", "-D", data, *login, "--locale=C"])
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    try:
        call(
            [programs / "pg_ctl", "-D", data, "-w", "-t", "30", "-l", folder / "log", "-o", options, "start"]
        )
        url = f"postgresql://lethe:{QUOTED}@127.0.0.1:{port}/lethe"
        _create_database(url)
        yield url
    finally:
        call([programs / "pg_ctl", "-D", data, "-m", "immediate", "stop"])
        shutil.rmtree(folder, ignore_errors=True)


def _create_database(url: str) -> None:
    import psycopg

    with psycopg.connect(
        url.replace("/lethe", "/postgres").replace("//postgres", "//lethe"), autocommit=True
    ) as one:
        one.execute("CREATE DATABASE lethe")
