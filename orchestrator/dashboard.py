"""optuna-dashboard on the studies of tuning, to look at while a run is going on.

It only looks: every request that would change a study is refused, so that a click beside a running driver
cannot delete a study or end a trial. Pages, scripts and fonts come from the package: no internet is needed.
"""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.storages import BaseStorage

from orchestrator import studies
from orchestrator.errors import UserError
from orchestrator.store import Store

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
READING = ("GET", "HEAD")


class Server(ThreadingMixIn, WSGIServer):
    """One thread per request; those still at work do not hold up the end."""

    daemon_threads = True
    allow_reuse_port = False


class _IPv6(Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""


def opened(results: str, url: str | None) -> BaseStorage:
    """The storage to show: the database at `url`, else the journal in a results folder. UserError: there is
    none, or no study in it yet.
    """
    kept = studies.storage(None if url else Store.open(results), url, write=False)
    if not kept.get_all_studies():
        where = f"--optuna-storage {studies.shown(url)}" if url else results
        raise UserError(f"{where}: no studies yet. `lethe tune GRID` makes them.")
    return kept


def server(kept: BaseStorage, host: str, port: int) -> Server:
    """A server of the dashboard, bound and not yet started; port 0 takes a free one. UserError: no port."""
    from optuna_dashboard import wsgi

    kind = _IPv6 if ":" in host else Server
    try:
        return make_server(host, port, read_only(wsgi(kept)), server_class=kind, handler_class=_Quiet)
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise UserError(f"--port {port}: in use. Name another one, or 0 for any that is free.") from None
        raise UserError(f"--host {host} --port {port}: cannot be listened on ({error}).") from None


def address(running: Server, host: str) -> str:
    """The address to open in a browser."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{running.server_port}/"


def read_only(app: Application) -> Application:
    """The same application without the requests that change something: those get status 403 and a reason."""

    def guarded(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in READING:
            return app(environ, start)
        start("403 Forbidden", [("Content-Type", "application/json")])
        return [json.dumps({"reason": "This dashboard only looks: studies belong to lethe tune."}).encode()]

    return guarded
