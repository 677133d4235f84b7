"""The exporter's server and deliberately slow clients, on real sockets."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from souvenirs_metrics.server import Server
from tests import servers

LIMIT = 0.5  # seconds that the server gives a client
PACE = 0.05  # seconds between the bytes of a slow client, so that no timeout per read fires
AMPLE = 3  # seconds that the server gives a client that must be in time, even on a slow machine
PATIENCE = 20  # seconds that a test waits for an event; slow clients continue for longer
BUFFER = 1 << 17  # bytes of unread response that the system buffers
HEADER = b"GET /-/healthy HTTP/1.1\r\nX: " + 10_000 * b"x"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("certificate")
    servers.certificate(path)
    return path


@pytest.fixture(params=["http", "https"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(scheme: str, certificate: Path) -> Iterator[Server]:
    """A server that handles one client at a time."""
    tls = None
    if scheme == "https":
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate / "cert", certificate / "key")
    with Server("127.0.0.1", 0, tls, client_seconds=LIMIT, max_requests=1) as server:
        # inherited by its clients' sockets
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def connect(server: Server, scheme: str = "http") -> socket.socket:
    if scheme == "http":
        return connect_socket(server)
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return trusting().wrap_socket(connect_socket(server))
        except OSError:  # on a slow machine the handshake may take longer than the server waits
            if time.monotonic() > deadline:
                raise


def connect_socket(server: Server) -> socket.socket:
    client = socket.socket()
    client.settimeout(PATIENCE)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    client.connect(("127.0.0.1", server.server_port))
    return client


def drip(client: socket.socket, data: bytes) -> None:
    """Send byte by byte, until the server closes the connection or everything is sent."""
    client.setblocking(True)
    with suppress(OSError):
        for n in range(len(data)):
            client.sendall(data[n : n + 1])
            time.sleep(PACE)


def client_hello() -> bytes:
    """The first bytes that a TLS client sends."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        trusting().wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


@contextmanager
def background(work: Callable[..., None], *args: Any) -> Iterator[None]:
    thread = threading.Thread(target=work, args=args, daemon=True)
    thread.start()
    yield
    thread.join(PATIENCE)


def healthy(server: Server, scheme: str) -> requests.Response:
    url = f"{scheme}://127.0.0.1:{server.server_port}/-/healthy"
    with requests.Session() as session:
        session.trust_env = False
        return session.get(url, verify=False, timeout=PATIENCE)


def is_served_again(server: Server, scheme: str) -> bool:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with suppress(requests.ConnectionError):
            return healthy(server, scheme).ok
    return False


pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")


def test_server__closes_connections_that_send_headers_byte_by_byte(
    server: Server, scheme: str
) -> None:
    with connect(server, scheme) as client, background(drip, client, HEADER):
        assert is_served_again(server, scheme)


@pytest.mark.parametrize("scheme", ["https"], indirect=True)
def test_server__closes_connections_that_send_the_handshake_byte_by_byte(
    server: Server, scheme: str
) -> None:
    hello = client_hello()
    assert len(hello) * PACE > LIMIT
    with connect(server) as client, background(drip, client, hello + HEADER):
        assert is_served_again(server, scheme)


def test_server__closes_silent_connections(server: Server, scheme: str) -> None:
    with connect(server):
        assert is_served_again(server, scheme)


@pytest.mark.parametrize("scheme", ["https"], indirect=True)
def test_server__closes_connections_that_are_silent_after_the_handshake(
    server: Server, scheme: str
) -> None:
    with connect(server, scheme):
        assert is_served_again(server, scheme)


def test_server__closes_connections_that_read_the_response_bit_by_bit(
    server: Server, scheme: str
) -> None:
    size = 1 << 26
    served = threading.Event()

    def large(environ: Any, start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("Content-Length", str(size))])
        return [bytes(size)]

    def sip(client: socket.socket) -> None:
        with suppress(OSError):
            while not served.is_set() and client.recv(BUFFER):
                time.sleep(PACE)

    application = server.get_app()
    server.set_app(large)
    server.client_seconds = AMPLE
    with connect(server, scheme) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert client.recv(1) == b"H"
        server.set_app(application)
        server.client_seconds = LIMIT
        with background(sip, client):
            assert is_served_again(server, scheme)
            served.set()


def test_server__header_names_no_version(server: Server, scheme: str) -> None:
    server.client_seconds = PATIENCE
    assert healthy(server, scheme).headers["Server"] == "souvenirs_exporter"
    with connect(server, scheme) as client:
        client.sendall(b"NONSENSE\r\n")
        answer = client.makefile("rb").read()
    assert b"400" in answer
    assert b"Python" not in answer
    assert b"WSGIServer" not in answer
