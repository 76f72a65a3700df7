# SPDX-License-Identifier: Apache-2.0
"""The question of `make up`, against a real TLS server with a leaf of an environment's CA."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import chat
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Endpoint(ThreadingHTTPServer):
    """Answers with the statuses in `script`, then streams `events`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[int] = []
        self.events = [
            '{"choices": [{"delta": {"content": "Pa"}}]}',
            '{"choices": [{"delta": {"content": "ris"}}]}',
        ]
        self.asked: list[dict[str, object]] = []
        self.authorization = ""
        self.last = "[DONE]"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.authorization = self.headers["Authorization"]
        status = self.server.script.pop(0) if self.server.script else 200
        self.send_response(status)
        self.end_headers()
        if status != 200:
            self.wfile.write(b'{"error": {"message": "because"}}')
            return
        for event in (*self.server.events, self.server.last):
            self.wfile.write(f"data: {event}\n\n".encode())

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[tuple[Endpoint, str, str]]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
    (tmp_path / "cert.pem").write_text(pem)
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    server = Endpoint()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server, f"https://localhost:{server.server_address[1]}/acme/v1", pem
    server.shutdown()
    thread.join()
    server.server_close()


def ask(base: str, ca: str) -> str:
    return "".join(chat.ask(base, ca, "pat_x", "smollm2", "Where?", lambda _: None))


def test_the_answer_comes_in_parts(endpoint: tuple[Endpoint, str, str]) -> None:
    server, base, ca = endpoint
    assert ask(base, ca) == "Paris"
    assert server.authorization == "Bearer pat_x"
    assert server.asked[0]["model"] == "smollm2"
    assert server.asked[0]["stream"] is True


def test_a_route_that_is_not_open_yet_is_waited_for(endpoint: tuple[Endpoint, str, str]) -> None:
    server, base, ca = endpoint
    server.script = [503, 503]
    assert ask(base, ca) == "Paris"
    assert len(server.asked) == 3


def test_a_refusal_is_shown(endpoint: tuple[Endpoint, str, str]) -> None:
    server, base, ca = endpoint
    server.script = [401]
    with pytest.raises(chat.NoAnswer, match=r"answered 401.*because"):
        ask(base, ca)


def test_another_name_is_not_trusted(endpoint: tuple[Endpoint, str, str]) -> None:
    _, base, ca = endpoint
    with pytest.raises(chat.NoAnswer, match=r"can't be reached.*certificate"):
        ask(base.replace("localhost", "127.0.0.1"), ca)


def test_events_of_another_kind_are_refused(endpoint: tuple[Endpoint, str, str]) -> None:
    server, base, ca = endpoint
    server.events = ["{}"]
    with pytest.raises(chat.NoAnswer, match="no chat completion"):
        ask(base, ca)


def test_an_answer_that_breaks_off_is_said_and_not_taken_for_whole(endpoint: tuple[Endpoint, str, str]) -> None:
    server, base, pem = endpoint
    server.last = '{"choices": [{"delta": {}}]}'
    said: list[str] = []
    with pytest.raises(chat.NoAnswer, match="broke off"):
        said.extend(chat.ask(base, pem, "token", "smollm2", "?", said.append))
    assert said == ["Pa", "ris"]
