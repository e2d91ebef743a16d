"""A real S3-compatible server for tests: moto behind a lock, with faults that a test may order.

moto checks ``If-None-Match`` and then writes, in two moves; with a thread a request, two writers
can both win. One lock round its handler makes the conditional put atomic, as it is on S3 itself.

The server speaks HTTP on a free port, so other processes can use it too. Import the two fixtures in
a ``conftest.py``: ``s3_server`` lives as long as the session, ``s3_uri`` is a fresh bucket a test.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import pytest

REGION = "us-east-1"
KEYS = {"key": "testing", "secret": "testing"}

_ERROR_BODY = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"


@dataclass
class Fault:
    """What goes wrong with the next requests whose method and path match.

    Attributes:
        method: HTTP method.
        path_part: Text that the decoded path contains.
        status: Status line that the client sees.
        code: S3 error code in the body.
        after: True: the server performs the request first, then answers with the error.
        times: How many requests are hit; each one counts this down.
    """

    method: str
    path_part: str
    status: str
    code: str
    after: bool
    times: int = 1


@dataclass
class S3Server:
    """Address of a running server, the faults it has orders for, and the requests it has seen."""

    endpoint: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)

    @property
    def storage_options(self) -> dict[str, Any]:
        """Options for fsspec's ``s3://`` filesystem."""
        return {
            **KEYS,
            "endpoint_url": self.endpoint,
            "client_kwargs": {"region_name": REGION},
        }

    def client(self) -> Any:
        """A boto3 client of this server."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=KEYS["key"],
            aws_secret_access_key=KEYS["secret"],
        )

    def make_bucket(self) -> str:
        """Create a bucket with a name of its own; s3fs's own ``mkdir`` fails on this server."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return name


class _LockedApp:
    """The server's WSGI application: one request at a time, with ordered faults."""

    def __init__(self, app: Callable[..., Iterable[bytes]], server: S3Server) -> None:
        self._app = app
        self._server = server
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        with self._lock:
            method, path = environ["REQUEST_METHOD"], unquote(environ["PATH_INFO"])
            self._server.requests.append((method, path))
            fault = self._next_fault(method, path)
            if fault is None:
                return list(self._app(environ, start_response))
            if fault.after:
                list(self._app(environ, lambda *args, **kwargs: lambda data: None))
            else:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(fault.status, [("Content-Type", "application/xml")])
            return [_ERROR_BODY.format(code=fault.code).encode()]

    def _next_fault(self, method: str, path: str) -> Fault | None:
        for fault in self._server.faults:
            if fault.times > 0 and fault.method == method and fault.path_part in path:
                fault.times -= 1
                return fault
        return None


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A running server; shut down at the end of the session whatever happens."""
    pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    class QuietHandler(MotoRequestHandler):
        def log(self, *_args: Any, **_kwargs: Any) -> None:
            """Keep the access log out of the test output."""

    state = S3Server(endpoint="")
    app = _LockedApp(DomainDispatcherApplication(create_backend_app), state)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=QuietHandler)
    state.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


@pytest.fixture
def s3_uri(s3_server: S3Server) -> Iterator[str]:
    """URL of a fresh, empty bucket; faults ordered by the test end with it."""
    yield f"s3://{s3_server.make_bucket()}"
    s3_server.faults.clear()
    s3_server.requests.clear()
