# SPDX-License-Identifier: Apache-2.0
"""What tests of the proxy share: domains with real keys, tokens, a counting backend, a real Envoy."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http.client import HTTPConnection, RemoteDisconnected
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingUnixStreamServer
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cube_attestation import domains
from cube_attestation.launch import Model
from cube_proxy import envoy
from cube_proxy.envoy_files import SECRET_FILE, EnvoyFiles
from cube_proxy.tls import TlsKey
from cube_templates import render
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

sys.path.insert(0, str(Path(__file__).parent))  # helpers of these tests
from agent_machine import machine, tpm  # noqa: F401 - fixtures

ENVIRONMENT = "local"
OLLAMA = {
    name: Model("ollama", digit * 64, 4096, 8192, "m", "model.gguf")
    for name, digit in (("smollm2", "a"), ("tiny", "b"), ("other", "c"), ("ns/model:tag-1.0", "d"))
}
VLLM = {
    name: Model("vllm", digit * 64, 4096, 8192, "m", "model")
    for name, digit in (("large", "e"), ("secret-large", "f"))
}
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
QUESTION = {"model": "smollm2", "messages": [{"role": "user", "content": "Hello"}]}


@dataclass
class LoginService:
    """An OIDC issuer with its keys, private halves included."""

    issuer: str
    audience: str = "cube"
    claims: dict[str, str] = field(default_factory=dict)
    keys: list[ECKey | RSAKey] = field(default_factory=lambda: [ECKey.generate_key("P-256")])

    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = {"issuer": self.issuer, "audiences": [self.audience]}
        found["keys"] = [self._public(key) for key in self.keys]
        return {**found, "claims": self.claims} if self.claims else found

    def _public(self, key: ECKey | RSAKey) -> dict[str, Any]:
        jwk: dict[str, Any] = dict(key.as_dict(private=False))
        return {**jwk, "kid": key.thumbprint(), "alg": self._algorithm(key), "use": "sig"}

    @staticmethod
    def _algorithm(key: ECKey | RSAKey) -> str:
        return "ES256" if isinstance(key, ECKey) else "RS256"

    def token(self, *, header: Mapping[str, object] | None = None, **changes: object) -> str:
        """A good access token for a person, but for ``changes`` (None removes a claim) and ``header``."""
        now = int(time.time())
        claims: dict[str, object] = {
            "iss": self.issuer,
            "aud": self.audience,
            "sub": "a-person",
            "scope": "openid llm_read llm_chat_completions",
            "iat": now,
            "exp": now + 3600,
            "jti": uuid.uuid4().hex,
        }
        claims = {name: value for name, value in {**claims, **changes}.items() if value is not None}
        key = self.keys[-1]
        headers = {"alg": self._algorithm(key), "kid": key.thumbprint(), "typ": "JWT", **(header or {})}
        return jwt.encode({name: value for name, value in headers.items() if value is not None}, claims, key)


@dataclass
class Tenant:
    """A domain and the private half of its token key."""

    name: str
    models: tuple[str, ...]
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    revoked: list[str] = field(default_factory=list)
    key: ECKey = field(default_factory=lambda: ECKey.generate_key("P-256"))
    issuers: list[LoginService] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)

    @property
    def kid(self) -> str:
        return str(self.key.thumbprint())

    def public(self) -> dict[str, Any]:
        jwk = self.key.as_dict(private=False)
        return {"kty": "EC", "crv": "P-256", "x": jwk["x"], "y": jwk["y"], "kid": self.kid}

    def body(self) -> dict[str, Any]:
        tokens = {"keys": [self.public()], "revoked": self.revoked}
        found: dict[str, Any] = {"id": self.id, "name": self.name, "models": list(self.models), "tokens": tokens}
        if self.issuers:
            found["issuers"] = [issuer.body() for issuer in self.issuers]
        return {**found, "limits": self.limits} if self.limits else found

    def token(self, *, header: Mapping[str, object] | None = None, **changes: object) -> str:
        """A good token of this domain, but for ``changes`` (None removes a claim) and ``header``."""
        now = int(time.time())
        claims: dict[str, object] = {
            "iss": f"cube:{self.id}",
            "aud": ENVIRONMENT,
            "domain": self.id,
            "scopes": ["llm_read", "llm_chat_completions"],
            "iat": now,
            "exp": now + 3600,
            "jti": uuid.uuid4().hex,
        }
        claims.update(changes)
        claims = {name: value for name, value in claims.items() if value is not None}
        headers = {"alg": "ES256", "kid": self.kid, "typ": "cube-pat+jwt", **(header or {})}
        headers = {name: value for name, value in headers.items() if value is not None}
        return "pat_" + jwt.encode(headers, claims, self.key)


def domain_set(*tenants: Tenant) -> domains.DomainSet:
    return domains.parse({"domains": [tenant.body() for tenant in tenants]})


class Backend:
    """An HTTP server on a Unix socket that keeps every request and answers like a chat backend.

    A body with ``"stream": true`` gets three server-sent events, ``delay`` seconds apart. The canary's question
    gets its answer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.delay = 0.0
        self.cancelled = threading.Event()
        outer = self

        class Handler(StreamRequestHandler):
            def handle(self) -> None:
                outer._serve(self)

        class Server(ThreadingUnixStreamServer):
            daemon_threads = True
            request_queue_size = 256

        self._server = Server(str(path), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.path.unlink()

    def _serve(self, connection: StreamRequestHandler) -> None:
        line = connection.rfile.readline().decode().strip()
        headers: dict[str, str] = {}
        while (entry := connection.rfile.readline().decode("latin-1").strip()) != "":
            name, _, value = entry.partition(":")
            headers[name.lower()] = value.strip()
        if not line:
            return
        body = connection.rfile.read(int(headers.get("content-length", "0")))
        self.requests.append((line, headers, body))
        write = connection.wfile.write
        if b"What is the capital of France?" in body:
            write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
            for word in (b"The capital of France is", b" Paris", b"."):
                write(b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % word)
            return
        if b'"stream": true' not in body:
            answer = self._answer(body)
            write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n")
            write(b"content-length: %d\r\n\r\n%b" % (len(answer), answer))
            return
        write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        try:
            for i in range(3):
                write(b'data: {"n": %d,"model":"%b"}\n\n' % (i, json.loads(body)["model"].encode()))
                connection.wfile.flush()
                time.sleep(self.delay)
            if b'"include_usage": true' in body:
                write(b'data: {"choices":[],"usage":%b}\n\n' % json.dumps(USAGE).encode())
        except OSError:
            self.cancelled.set()

    @staticmethod
    def _answer(body: bytes) -> bytes:
        """It names the model as vLLM and Ollama do: as it was asked for, the last member counting."""
        model = json.loads(body).get("model", "") if body else ""
        return json.dumps(
            {"object": "chat.completion", "model": model, "choices": [], "usage": USAGE}, separators=(",", ":")
        ).encode()


@pytest.fixture(scope="session")
def make_backend() -> Callable[[Path], Backend]:
    return Backend


@pytest.fixture(scope="session")
def make_models() -> Mapping[str, Model]:
    """The launch document's models in these tests."""
    return {**OLLAMA, **VLLM}


@pytest.fixture
def backend(run: Path) -> Iterator[Backend]:
    server = Backend(run / "backend.sock")
    yield server
    server.close()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The ``code`` of an OpenAI-shaped error, whose shape it checks."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}, error
        assert error["message"]
        return str(error["code"])


class _UnverifiedTls(HTTPConnection):
    """HTTP/1.1 over TLS 1.3 that trusts exactly one certificate."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        super().__init__("localhost", port, timeout=20)
        self._context = context

    def connect(self) -> None:
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = self._context.wrap_socket(raw, server_hostname="localhost")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


_ENVOY = ["envoy", "--disable-hot-restart", "--concurrency", "1", "-l", "warn", "--file-flush-interval-msec", "100"]


class EnvoyProcess:
    """A real Envoy with the image's bootstrap under ``run``; nothing may be served until ``apply``.

    With ``certificate`` an agent writes the dynamic files, and that is the certificate which it made.
    """

    def __init__(self, run: Path, certificate: str = "") -> None:
        self.run = run
        self._kept = threading.local()
        self.service_port = free_port()
        self.management_port = free_port()
        self.log = run / "envoy.log"
        self.access_log = run / "lines.log"  # where no agent reads
        values = {
            "run": str(run),
            "backend_socket": str(run / "backend.sock"),
            "admin_socket": str(run / "admin.sock"),
            "address": "127.0.0.1",
            "service_port": self.service_port,
            "management_port": self.management_port,
        }
        bootstrap = run / "bootstrap.json"
        bootstrap.write_text(render("envoy/bootstrap.json", values))
        self.files = EnvoyFiles(run / "envoy", run / "admin.sock", os.getgid())
        self.certificate = certificate or self._first_files()
        self.start()
        self.trust(self.certificate)

    def start(self) -> None:
        """Start the program; once more where it was killed."""
        pipe = self.run / "audit.pipe"
        if pipe.exists():
            lines = os.open(pipe, os.O_RDWR)  # as the service manager does
        else:
            lines = os.open(self.access_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    [*_ENVOY, "-c", str(self.run / "bootstrap.json")],
                    stdin=subprocess.DEVNULL,
                    stdout=lines,
                    stderr=log,
                )
        finally:
            os.close(lines)
        asyncio.run(self._up())

    def trust(self, certificate: str) -> None:
        """Trust exactly this certificate from now on."""
        self.context = ssl.create_default_context(cadata=certificate)
        self.context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN

    def _first_files(self) -> str:
        tls = TlsKey.generate()
        certificate = tls.self_signed(["localhost"], datetime.now(UTC))
        self.files.write(SECRET_FILE, envoy.secret(tls.private_pem(), certificate))
        self.files.show(self.view(None))
        return certificate

    async def _up(self) -> None:
        await self.files.in_force()
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.management_port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    return

    def view(
        self,
        found: domains.DomainSet | None,
        failed: frozenset[str] = frozenset(),
        max_body_bytes: int = 1 << 20,
    ) -> envoy.View:
        return envoy.View(
            ENVIRONMENT,
            found,
            failed,
            max_body_bytes,
            1,
            models={**OLLAMA, **VLLM},
            salt=b"salt of this boot",
            ollama_socket=str(self.run / "backend.sock"),
            vllm_run=str(self.run),
        )

    def apply(
        self,
        found: domains.DomainSet | None,
        *,
        failed: frozenset[str] = frozenset(),
        max_body_bytes: int = 1 << 20,
    ) -> None:
        self.files.show(self.view(found, failed, max_body_bytes))
        asyncio.run(self.files.in_force())

    def connection(self, port: int | None = None) -> HTTPConnection:
        return _UnverifiedTls(port or self.service_port, self.context)

    def request(
        self,
        method: str,
        path: str,
        token: str | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> Answer:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {"content-type": "application/json"} if data is not None else {}
        if token is not None:
            sent["authorization"] = f"Bearer {token}"
        found = {**sent, **(headers or {})}
        kept = self._kept.__dict__.pop(f"{port}", None)
        if kept is not None and kept[1] is self.context:
            try:
                return self._ask(kept[0], port, method, path, data, found)
            except (ConnectionError, RemoteDisconnected):
                pass  # Envoy closed it while it rested
        return self._ask(self.connection(port), port, method, path, data, found)

    def _ask(
        self, connection: HTTPConnection, port: int | None, method: str, path: str, data: Any, headers: Any
    ) -> Answer:
        try:
            connection.request(method, path, body=data, headers=headers)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            answer = Answer(response.status, found, response.read())
        except BaseException:
            connection.close()
            raise
        if connection.sock is None or response.will_close:
            connection.close()
        else:  # the next request of this thread saves itself a handshake
            self._kept.__dict__[f"{port}"] = (connection, self.context)
        return answer

    def tls(self, seconds: float = 5, protocol: str = "http/1.1") -> ssl.SSLSocket:
        """A connection on which ``protocol`` was agreed."""
        context = ssl.create_default_context(cadata=self.certificate)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.set_alpn_protocols([protocol])
        plain = socket.create_connection(("127.0.0.1", self.service_port), timeout=seconds)
        return context.wrap_socket(plain, server_hostname="localhost")

    def raw(self, data: bytes, seconds: float = 5) -> bytes:
        """Everything that comes back for ``data`` sent as it is over TLS, until nothing comes for ``seconds``."""
        plain = socket.create_connection(("127.0.0.1", self.service_port), timeout=seconds)
        with self.context.wrap_socket(plain, server_hostname="localhost") as tls:
            tls.sendall(data)
            found = b""
            try:
                while chunk := tls.recv(65536):
                    found += chunk
            except (TimeoutError, ConnectionError, ssl.SSLEOFError):
                pass
            return found

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short folder: the path of a Unix socket has 107 bytes at most."""
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def envoy_process(run: Path) -> Iterator[EnvoyProcess]:
    process = EnvoyProcess(run)
    yield process
    process.close()


@pytest.fixture(scope="session")
def make_envoy() -> Callable[..., EnvoyProcess]:
    return EnvoyProcess


@pytest.fixture(scope="session")
def control_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="session")
def make_tenant() -> Callable[..., Tenant]:
    return Tenant


@pytest.fixture(scope="session")
def make_issuer() -> Callable[..., LoginService]:
    return LoginService


@pytest.fixture(scope="session")
def make_set() -> Callable[..., domains.DomainSet]:
    return domain_set


@dataclass
class World:
    """Two domains before a real Envoy and a backend that counts."""

    envoy: EnvoyProcess
    backend: Backend
    acme: Tenant
    beta: Tenant

    def chat(self, token: str | None, body: object = None, *, path: str = "", **more: Any) -> Answer:
        sent = QUESTION if body is None else body
        return self.envoy.request("POST", path or f"/{self.acme.id}/v1/chat/completions", token, sent, **more)


@pytest.fixture(scope="module")
def tenants() -> tuple[Tenant, Tenant]:
    return Tenant("acme", ("smollm2", "tiny"), revoked=["revoked-one"]), Tenant("beta", ("other",))


@pytest.fixture
def world(envoy_process: EnvoyProcess, backend: Backend, tenants: tuple[Tenant, Tenant]) -> World:
    acme, beta = tenants
    envoy_process.apply(domain_set(acme, beta))
    return World(envoy_process, backend, acme, beta)


@dataclass
class Attacked(World):
    """Two domains, three backends that count: Ollama's socket, ``acme``'s vLLM and ``beta``'s."""

    large: Backend
    secret: Backend

    @property
    def reached(self) -> list[tuple[str, dict[str, str], bytes]]:
        """Whatever came to any backend."""
        return [*self.backend.requests, *self.large.requests, *self.secret.requests]


@pytest.fixture(scope="module")
def attacked_tenants() -> tuple[Tenant, Tenant]:
    acme = Tenant("acme", ("smollm2", "tiny", "big=large"), revoked=["revoked-one"])
    return acme, Tenant("beta", ("other", "hidden=secret-large"))


@pytest.fixture
def attacked(
    envoy_process: EnvoyProcess, backend: Backend, run: Path, attacked_tenants: tuple[Tenant, Tenant]
) -> Iterator[Attacked]:
    acme, beta = (replace(tenant) for tenant in attacked_tenants)  # a test may change its own
    envoy_process.apply(domain_set(acme, beta))
    large, secret = (Backend(run / f"cube-{digit * 16}.sock") for digit in ("e", "f"))
    yield Attacked(envoy_process, backend, acme, beta, large, secret)
    large.close()
    secret.close()
