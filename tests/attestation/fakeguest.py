# SPDX-License-Identifier: Apache-2.0
"""A machine with both its ports on 127.0.0.1: real TLS, fresh evidence over the key in use, a service of any kind.

``forwarding`` runs ``attestation connect``'s forwarder before it, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cube_attestation import jcs
from cube_attestation.bundle import Bundle
from cube_attestation.cli.commands import _read
from cube_attestation.cmw import EVIDENCE, Collection
from cube_attestation.connect.attest import Attester
from cube_attestation.connect.server import Forwarder, NoMachine, Settings
from cube_attestation.connect.targets import Address, targets
from fakemachine import server_context
from fakepki import NOW, World, ec_key, spki

Behave = Callable[[ssl.SSLSocket], None]


@contextlib.contextmanager
def tls_server(role: Callable[[], str], behave: Behave) -> Iterator[str]:
    """Hands each TLS connection to ``behave`` in a thread; ``role`` names the key that it ends in by then."""
    stop = threading.Event()

    def one(raw: socket.socket) -> None:
        with contextlib.suppress(OSError), raw:
            raw.settimeout(10)
            with server_context(role()).wrap_socket(raw, server_side=True) as secured:
                behave(secured)

    def loop() -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        accepting = threading.Thread(target=loop, daemon=True)
        accepting.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            accepting.join(10)


def read_request(connection: socket.socket) -> tuple[bytes, bytes]:
    """Head and body of one request; empty at the end of the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return b"", b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
    )
    while len(body) < length:
        body += connection.recv(65536)
    return head, body


def response(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@dataclass
class Guest:
    """``role``: the key of both ports, until the next boot. ``attested``: how often evidence was asked for.

    ``claimed``: the role whose key the claims name, if that is another. ``evidence``: what the management port
    sends instead of evidence. ``delay``: seconds that evidence takes. ``sent``: what it was.
    """

    behave: Behave
    role: str = "tls"
    world: World = field(default_factory=World)
    claimed: str = ""
    evidence: Callable[[bytes], bytes] | None = None
    delay: float = 0.0
    down: bool = False
    attested: int = 0
    received: list[bytes] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    service: str = ""
    management: str = ""

    def known(self) -> Bundle:
        """What machines don't send."""
        return Bundle(Collection({k: v for k, v in self.world.evidence().items.items() if v.indicator != EVIDENCE}))

    def answer_evidence(self, connection: ssl.SSLSocket) -> None:
        _, body = read_request(connection)
        if self.down or not body:
            return
        self.attested += 1
        time.sleep(self.delay)
        if self.evidence is not None:
            connection.sendall(self.evidence(body))
            return
        request = jcs.loads(body)
        assert isinstance(request, dict)
        self.world.nonce = base64.b64decode(str(request["nonce"]))
        self.world.tls_spki = spki(ec_key(self.claimed or self.role))
        items = self.world.evidence().items
        made = Collection({k: v for k, v in items.items() if v.indicator == EVIDENCE})
        self.sent.append(response(jcs.dumps(made.to_json())))
        connection.sendall(self.sent[-1])

    @contextlib.contextmanager
    def running(self) -> Iterator[Guest]:
        with (
            tls_server(lambda: self.role, self.behave) as self.service,
            tls_server(lambda: self.role, self.answer_evidence) as self.management,
        ):
            yield self


@dataclass
class Forwarding:
    """A forwarder that runs. ``lines``: what it told."""

    address: tuple[str, int] = ("", 0)
    lines: list[str] = field(default_factory=list)
    refused: NoMachine | None = None

    def request(self, path: str = "/acme/v1/models", body: bytes | None = None) -> tuple[int, bytes]:
        """One request over a connection of its own: status and body."""
        connection = http.client.HTTPConnection(*self.address, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET" if body is None else "POST", path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=10)

    def wait_for(self, words: str, seconds: float = 10.0) -> str:
        """The first line with ``words``."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for line in list(self.lines):
                if words in line:
                    return line
            time.sleep(0.01)
        raise AssertionError(f"{words!r} was not told: {self.lines}")


@contextlib.contextmanager
def forwarding(
    *guests: Guest, probe: bool = False, evidence: tuple[str, ...] = (), **times: float
) -> Iterator[Forwarding]:
    """A forwarder before ``guests``; with ``probe`` it first attests them all. ``times``: of its Settings."""
    urls = [guest.service for guest in guests]
    places = evidence or tuple(f"https://{guest.management}" for guest in guests)
    options: dict[str, float] = {"recheck_s": 60.0, "attest_s": 8.0, "head_s": 5.0, "idle_s": 20.0, "drain_s": 5.0}
    settings = Settings(Address("127.0.0.1", 0), targets(urls, places), **{**options, **times})  # type: ignore[arg-type]
    attest = Attester(guests[0].world.the_policy(), _read, [guest.known() for guest in guests], clock=lambda: NOW)
    found = Forwarding()
    ready, stop = threading.Event(), threading.Event()

    async def run() -> None:
        forwarder = Forwarder(settings, attest, found.lines.append)
        try:
            address = await forwarder.bind()
            found.address = (address.host, address.port)
            await forwarder.listen()
            if probe:
                await forwarder.probe()
        except NoMachine as error:
            found.refused = error
        ready.set()
        while not stop.is_set():
            await asyncio.sleep(0.02)
        await forwarder.stop()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield found
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()
