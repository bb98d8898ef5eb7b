"""A real S3-compatible server (moto) on a port of its own for tests, with faults to switch on.

pytest_plugins or: from tests.s3 import s3_server, bucket  # fixtures
"""

from __future__ import annotations

import importlib.util
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from pyarrow import fs

from orchestrator.store import Store

# What a client needs to know; no region is looked up and no machine's own credentials are asked for.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}

Environ = dict[str, Any]
Matches = Callable[[str, str], bool]  # (method, path) -> whether a fault strikes the request


def every(method: str, path: str) -> bool:
    return True


@dataclass
class Faults:
    """Middleware before the server. `status`: answered, instead of what was asked for, where `matches` says
    so and `until` (monotonic) is not over; delay_s: before each answer.
    """

    app: Any
    status: int | None = None
    matches: Matches = every
    until: float = float("inf")
    delay_s: float = 0.0
    requests: list[tuple[str, str]] = field(default_factory=list)
    failed: int = 0

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        asked = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append(asked)
        time.sleep(self.delay_s)
        if self.status is not None and time.monotonic() < self.until and self.matches(*asked):
            self.failed += 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            code = {403: "AccessDenied", 503: "SlowDown"}.get(self.status, "InternalError")
            start_response(f"{self.status} {code}", [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>a fault of a test</Message></Error>".encode()]
        return self.app(environ, start_response)

    def fail(self, status: int, matches: Matches = every, seconds: float = float("inf")) -> None:
        """Answer matching requests with this status, for a time."""
        self.status, self.matches, self.until = status, matches, time.monotonic() + seconds

    def mend(self) -> None:
        self.status, self.delay_s, self.failed = None, 0.0, 0


@dataclass
class Server:
    """A running server: `faults` to switch on, `environment` for processes that are to use it."""

    port: int
    faults: Faults

    @property
    def environment(self) -> dict[str, str]:
        return CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}

    def make_bucket(self) -> str:
        """A new bucket's name."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        endpoint = {"endpoint_override": f"127.0.0.1:{self.port}", "scheme": "http", "region": "us-east-1"}
        keys = {"access_key": "key", "secret_key": "secret"}
        fs.S3FileSystem(**endpoint, **keys, allow_bucket_creation=True).create_dir(name)
        return name


@pytest.fixture(scope="module")
def s3_server() -> Iterator[Server]:
    """One server for the tests of a module; skipped where moto is not installed."""
    if importlib.util.find_spec("moto") is None:
        pytest.skip("no S3 server: install moto, as the extra `test` does")
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each request
    faults = Faults(DomainDispatcherApplication(create_backend_app))
    serving = make_server("127.0.0.1", 0, faults, threaded=True)
    thread = threading.Thread(target=serving.serve_forever, daemon=True)
    thread.start()
    try:
        yield Server(serving.server_port, faults)
    finally:
        serving.shutdown()
        serving.server_close()
        thread.join(10)


@pytest.fixture
def s3(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server without faults; this process, and those it starts, find it by their environment."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3_server.faults.requests.clear()
    yield s3_server
    s3_server.faults.mend()


@pytest.fixture
def bucket_uri(s3: Server) -> str:
    """s3://BUCKET/results in a new bucket."""
    return f"s3://{s3.make_bucket()}/results"


@pytest.fixture
def s3_store(bucket_uri: str) -> Store:
    return Store.create(bucket_uri)
