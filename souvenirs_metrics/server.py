"""The HTTP server of the standalone exporter, which serves the metrics beside the site."""

from __future__ import annotations

import io
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from django.core.handlers.wsgi import WSGIRequest
from django.db import connections
from django.http import HttpRequest, HttpResponse, HttpResponseNotFound
from django.views.decorators.http import require_safe

from souvenirs_metrics import landing, views
from souvenirs_metrics.upkeep import roll_up_forever

logger = logging.getLogger("souvenirs_metrics")

# How long a client may take to send its request, including the TLS handshake, and as long again to
# receive the response. Prometheus allows 10 seconds for a whole scrape by default
CLIENT_SECONDS = 10
SHUTDOWN_SECONDS = 10  # how long requests, and a step of rolling up, may take to finish
MAX_REQUESTS = 256  # maximum concurrent requests; further clients wait
QUEUE_SECONDS = 1  # how long further clients wait before their connection is closed
NAME = "souvenirs_exporter"  # for the Server header, which should not reveal versions


@require_safe
def healthy(request: HttpRequest) -> HttpResponse:
    """Answer that the exporter is running. souvenirs_up says whether it can read the database."""
    return HttpResponse("Healthy\n", "text/plain")


PAGES: dict[str, Callable[[HttpRequest], HttpResponse]] = {
    "/": landing.landing,
    "/metrics": views.metrics,
    "/souvenirs/usage.json": views.usage_json,
    "/-/healthy": healthy,
}


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The WSGI application: the pages, without the site's URLs and middleware."""
    environ.pop("CONTENT_TYPE", None)  # Django raises for some charsets, and no page reads a body
    try:
        request = WSGIRequest(environ)
        page = PAGES.get(request.path_info)
        response = page(request) if page else HttpResponseNotFound("Not found\n", "text/plain")
    except Exception as error:
        logger.exception("A page failed: %r", error)
        response = HttpResponse("Internal error\n", "text/plain", status=500)
    finally:
        connections.close_all()  # this thread ends with the request
    body = b"" if environ["REQUEST_METHOD"] == "HEAD" else response.content
    length = str(len(response.content))
    headers = {"Server": NAME, **response.headers, "Content-Length": length}
    start_response(f"{response.status_code} {response.reason_phrase}", list(headers.items()))
    return [body]


class ClientStream(io.RawIOBase):
    """A client's connection as a file, with one deadline for all reads and one for all writes.

    A socket timeout starts again with each read or write, so a client that makes a little progress
    each time could hold the connection forever. Raises TimeoutError at the deadline.

    seconds: for all reads, from now on; and for all writes, from the first write on.
    """

    def __init__(self, client: socket.socket, seconds: float) -> None:
        self._client = client
        self._seconds = seconds
        self._read_until = time.monotonic() + seconds
        self._write_until: float | None = None

    def _limit(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the client was too slow")
        self._client.settimeout(left)

    def handshake(self) -> None:
        if isinstance(self._client, ssl.SSLSocket):
            self._limit(self._read_until)
            self._client.do_handshake()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._limit(self._read_until)
        return self._client.recv_into(buffer)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self._write_until is None:
            self._write_until = time.monotonic() + self._seconds
        sent, view = 0, memoryview(data)
        while sent < len(view):
            self._limit(self._write_until)
            sent += self._client.send(view[sent:])
        return sent


class Handler(WSGIRequestHandler):
    server: Server

    def setup(self) -> None:
        stream = ClientStream(self.request, self.server.client_seconds)
        stream.handshake()
        self.connection = self.request
        self.rfile = io.BufferedReader(stream)
        self.wfile = stream  # type: ignore[assignment]  # writes completely, like a buffered writer

    def version_string(self) -> str:
        return NAME

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


class Server(ThreadingMixIn, WSGIServer):
    """A server with a thread for each request.

    Raises OSError if the address is in use or does not belong to this machine.

    port: 0 for any free port, which is then in `server_port`.
    tls: None for plain HTTP.
    client_seconds: see CLIENT_SECONDS.
    """

    request_queue_size = 128
    daemon_threads = True  # `run` waits for them, but not forever

    def __init__(
        self,
        address: str,
        port: int,
        tls: ssl.SSLContext | None = None,
        *,
        client_seconds: float = CLIENT_SECONDS,
        max_requests: int = MAX_REQUESTS,
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.tls = tls
        self.client_seconds = client_seconds
        self.max_requests = max_requests
        self._slots = threading.BoundedSemaphore(max_requests)
        super().__init__((address, port), Handler)
        self.set_app(application)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's would look up our name in the DNS
        self.server_name, self.server_port = self.socket.getsockname()[:2]
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        client, address = super().get_request()
        if self.tls is not None:
            # The handshake happens in the request's thread, because a client may be slow or silent
            client = self.tls.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        return client, address

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(timeout=QUEUE_SECONDS):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except Exception:  # no thread could be started
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("A client disconnected: %r", client_address, exc_info=True)

    def run(self) -> None:
        """Serve, and keep the history rolled up, until another thread calls `shutdown`."""
        stop = threading.Event()
        roller = threading.Thread(target=roll_up_forever, args=[stop], daemon=True)
        roller.start()
        try:
            self.serve_forever(poll_interval=0.1)
        finally:
            stop.set()
            self.server_close()
            end = time.monotonic() + SHUTDOWN_SECONDS
            for _ in range(self.max_requests):  # until all requests have ended
                self._slots.acquire(timeout=max(0, end - time.monotonic()))
            roller.join(max(0, end - time.monotonic()))
