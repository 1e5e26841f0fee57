"""A proxy before an S3 server that does harm on order, and counts what passes through it."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.servers.s3 import forget_s3, make_bucket, use_s3

CODES = {"403": "AccessDenied", "500": "InternalError", "501": "NotImplemented", "503": "SlowDown"}
FAULTS = (*CODES, "reset", "hang", "slow first byte", "short body", "lost answer")
SLOW_S = 1.5


@dataclass
class _Fault:
    fault: str
    method: str
    kind: str
    key: str
    first: int
    last: int
    seen: int = 0


class FaultProxy:
    """Passes requests on to an S3 server, except those that `inject` was told to spoil.

    counts: requests by (method, kind), also spoilt ones; paths: the (method, path) of each. A kind is "list",
    "uploads" (the listing of them), "upload" (begins, completes or aborts one), "part", "delete" (in bulk) or
    "object".
    """

    def __init__(self, endpoint: str) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.paths: list[tuple[str, str]] = []
        self.before: Callable[[str, str], None] | None = None  # called with (method, kind) of each request
        self._faults: list[_Fault] = []
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, urlsplit(endpoint).netloc))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def inject(
        self,
        fault: str,
        method: str,
        kind: str = "object",
        first: int = 1,
        times: int | None = 1,
        key: str = "",
    ) -> None:
        """Spoil the next `times` matching requests (None: all), from the `first`th on.

        method, kind: "*" for all. key: what the path ends with, before its query; empty for all.

        fault: an HTTP status of CODES; a "reset" of the connection before the request is passed on; a "hang"
        with no answer; a "slow first byte", after SLOW_S; a "short body", cut in half; a "lost answer", where
        the request is done and then the connection reset.
        """
        assert fault in FAULTS
        last = 1 << 60 if times is None else first + times - 1
        self._released.clear()
        self._faults.append(_Fault(fault, method, kind, key, first, last))

    def heal(self) -> None:
        """Spoil no more; hanging requests end."""
        self._faults.clear()
        self._released.set()

    def close(self) -> None:
        self.heal()
        self._server.shutdown()
        self._server.server_close()

    def wait_for_release(self) -> None:
        self._released.wait(300)

    def fault_of(self, method: str, kind: str, path: str) -> str:
        """Count one request; what is to be done to it, or nothing."""
        with self._lock:
            self.counts[method, kind] += 1
            self.paths.append((method, path))
            for fault in self._faults:
                is_meant = fault.method in ("*", method) and fault.kind in ("*", kind)
                if is_meant and path.partition("?")[0].endswith(fault.key):
                    fault.seen += 1
                    if fault.first <= fault.seen <= fault.last:
                        return fault.fault
        return ""


@pytest.fixture
def faults(s3_server: str) -> Iterator[FaultProxy]:
    """A proxy before moto's server; requests reach it through `faulty_bucket`."""
    proxy = FaultProxy(s3_server)
    yield proxy
    proxy.close()


@pytest.fixture
def faulty_bucket(faults: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an empty bucket behind `faults`, with the AWS settings to reach it."""
    use_s3(monkeypatch, faults.endpoint)
    address = make_bucket()
    faults.counts.clear()
    yield address
    forget_s3()


def kind_of(path: str) -> str:
    """Which of FaultProxy's kinds a request's path and query ask for."""
    parts = urlsplit(path)
    query = parse_qs(parts.query, keep_blank_values=True)
    if "partNumber" in query:
        return "part"
    for name in ("uploads", "delete"):
        if name in query:
            has_key = parts.path.strip("/").count("/") > 0
            return "upload" if name == "uploads" and has_key else name
    if "uploadId" in query:
        return "upload"
    return "list" if "list-type" in query else "object"


def _handler(proxy: FaultProxy, upstream: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            kind = kind_of(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if proxy.before:
                proxy.before(self.command, kind)
            fault = proxy.fault_of(self.command, kind, self.path)
            if fault == "hang":
                proxy.wait_for_release()
            if fault in ("reset", "hang"):
                self.reset()
                return
            if fault == "slow first byte":
                time.sleep(SLOW_S)
            if fault in CODES:
                text = f"<Error><Code>{CODES[fault]}</Code><Message>On order.</Message></Error>"
                self.answer(int(fault), [("Content-Type", "application/xml")], text.encode())
                return
            connection = http.client.HTTPConnection(upstream, timeout=60)
            try:
                headers = {name: value for name, value in self.headers.items() if name != "Connection"}
                connection.request(self.command, self.path, body, headers)
                response = connection.getresponse()
                data = response.read()
                kept = [
                    (name, value)
                    for name, value in response.getheaders()
                    if name.lower() not in ("connection", "transfer-encoding")
                ]
            except OSError:  # the store is down: so is the way to it
                self.reset()
                return
            finally:
                connection.close()
            if fault == "lost answer":
                self.reset()
                return
            self.answer(response.status, kept, data, is_cut=fault == "short body")

        def answer(
            self, status: int, headers: list[tuple[str, str]], data: bytes, is_cut: bool = False
        ) -> None:
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            if "content-length" not in {name.lower() for name, _ in headers}:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[: (len(data) + 1) // 2] if is_cut else data)
            self.close_connection = self.close_connection or is_cut

        def reset(self) -> None:
            """Close with RST rather than FIN."""
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

        def finish(self) -> None:
            try:
                super().finish()
            except OSError:  # the connection was reset, on order
                return

        def log_message(self, format: str, *args: object) -> None:
            pass

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    return Handler
