# SPDX-License-Identifier: Apache-2.0
"""A management port on 127.0.0.1: real TLS, answers from a table, remembers what it was asked."""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cube_attestation import jcs
from fakepki import ec_key, issue, spki

Answer = tuple[int, dict[str, str], bytes]
Handler = Callable[[bytes], Answer]


def ok(value: object) -> Answer:
    return 200, {"Content-Type": "application/json"}, jcs.dumps(value)


@dataclass
class Machine:
    """``routes``: "METHOD path" → handler of the body. ``seen``: what was really asked, in order."""

    routes: dict[str, Handler]
    role: str = "tls"
    seen: list[tuple[str, bytes]] = field(default_factory=list)
    address: str = ""

    @property
    def spki(self) -> str:
        return spki(ec_key(self.role))


def server_context(role: str, *, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    identity = issue("machine", ec_key(role))
    private = ec_key(role).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = newest
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "both.pem"
        path.write_bytes(identity.pem + private)
        context.load_cert_chain(path)
    return context


@contextlib.contextmanager
def running(machine: Machine, *, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> Iterator[Machine]:
    """Serve ``machine`` until the block ends."""

    class Served(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            machine.seen.append((f"{self.command} {self.path}", body))
            handler = machine.routes.get(f"{self.command} {self.path}")
            status, headers, content = handler(body) if handler else (404, {}, b"{}")
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = answer

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Clients that hang up are what some tests are about."""

    server = Server(("127.0.0.1", 0), Served)
    server.socket = server_context(machine.role, newest=newest).wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    machine.address = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield machine
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@contextlib.contextmanager
def raw_server(behave: Callable[[socket.socket], None]) -> Iterator[str]:
    """One connection at a time, handed to ``behave``; the address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        stop = threading.Event()

        def loop() -> None:
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                connection.settimeout(5)
                with connection, contextlib.suppress(OSError):
                    behave(connection)

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            thread.join(10)
