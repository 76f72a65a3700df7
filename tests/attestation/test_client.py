# SPDX-License-Identifier: Apache-2.0
"""The client against real TLS servers: whose key it reports, what it never sends, when it gives up."""

from __future__ import annotations

import base64
import socket
import ssl
import time
from collections.abc import Callable

import pytest
from cube_attestation import client, jcs
from cube_attestation.errors import AttestationError, BadInput, KeyMismatch, Unreachable
from cube_attestation.tpm.credential import Challenge
from fakemachine import Answer, Machine, ok, raw_server, running, server_context
from fakepki import NONCE, World

OTHER = "sha256:" + "99" * 32


def state(generation: int = 0) -> dict[str, jcs.Json]:
    return {
        "boot": "44" * 16,
        "environment": "local",
        "tls_spki": "sha256:" + "11" * 32,
        "generation": generation,
        "lease": {"state": "valid", "expires": "2026-11-24T12:15:00Z"},
        "domains": {"generation": 0, "digest": ""},
        "time": "2026-11-24T12:00:00Z",
    }


def evidence(_body: bytes) -> Answer:
    return ok(World().evidence().to_json())


def test_fetch_reports_the_key_of_the_connection_and_sends_the_nonce() -> None:
    with running(Machine({"POST /attestation": evidence})) as machine:
        fetched = client.fetch(f"https://{machine.address}", NONCE)
    assert fetched.tls_spki == machine.spki
    assert client.spki_of(fetched.certificate) == machine.spki
    assert set(fetched.evidence.items) == set(World().evidence().items)
    assert machine.seen == [("POST /attestation", jcs.dumps({"nonce": base64.b64encode(NONCE).decode()}))]


def test_fetch_tries_again_when_the_machine_is_busy() -> None:
    answers = [(429, {"Retry-After": "0"}, b"{}"), (503, {}, b"not json"), evidence(b"")]
    with running(Machine({"POST /attestation": lambda _: answers.pop(0)})) as machine:
        assert client.fetch(machine.address, NONCE).tls_spki == machine.spki
    assert len(machine.seen) == 3


def test_fetch_gives_up_after_its_attempts_and_says_why() -> None:
    busy = b'{"error":{"code":"busy","message":"four are waiting"}}'
    with running(Machine({"POST /attestation": lambda _: (429, {}, busy)})) as machine:
        with pytest.raises(Unreachable, match="four are waiting") as caught:
            client.fetch(machine.address, NONCE, attempts=2)
        assert caught.value.status == 429
    assert len(machine.seen) == 2


def test_a_refusal_is_not_tried_again() -> None:
    with running(Machine({"POST /attestation": lambda _: (400, {}, b"{}")})) as machine, pytest.raises(Unreachable):
        client.fetch(machine.address, NONCE)
    assert len(machine.seen) == 1


Call = Callable[[str], object]
DEMANDING: dict[str, Call] = {
    "state": lambda a: client.state(a, expected_spki=OTHER, attempts=3),
    "admit": lambda a: client.control_call(a, "admit", {}, expected_spki=OTHER),
    "revoke": lambda a: client.control_call(a, "revoke", {}, expected_spki=OTHER),
    "domains": lambda a: client.control_call(a, "domains", {}, expected_spki=OTHER),
    "activate": lambda a: client.activate(a, Challenge(b"blob", b"secret"), expected_spki=OTHER),
}


@pytest.mark.parametrize("call", DEMANDING.values(), ids=DEMANDING.keys())
def test_nothing_is_sent_over_a_connection_with_another_key(call: Call) -> None:
    with running(Machine({})) as machine, pytest.raises(KeyMismatch, match="attested one"):
        call(machine.address)
    assert machine.seen == []


def test_control_messages_go_out_once_and_return_the_new_state() -> None:
    with running(Machine({"PUT /control/v1/domains": lambda _: ok(state(5))})) as machine:
        found = client.control_call(machine.address, "domains", {"payload": "x"}, expected_spki=machine.spki)
    assert found.generation == 5
    assert found.lease == "valid"
    assert machine.seen == [("PUT /control/v1/domains", b'{"payload":"x"}')]


def test_control_messages_are_never_repeated() -> None:
    with (
        running(Machine({"POST /control/v1/admit": lambda _: (503, {}, b"{}")})) as machine,
        pytest.raises(Unreachable),
    ):
        client.control_call(machine.address, "admit", {}, expected_spki=machine.spki)
    assert len(machine.seen) == 1


def test_a_stale_generation_carries_the_machines_state() -> None:
    conflict = jcs.dumps({"error": {"code": "generation.stale", "message": "…"}, "state": state(7)})
    with (
        running(Machine({"POST /control/v1/revoke": lambda _: (409, {}, conflict)})) as machine,
        pytest.raises(client.StaleGeneration) as caught,
    ):
        client.control_call(machine.address, "revoke", {}, expected_spki=machine.spki)
    assert caught.value.state.generation == 7
    assert caught.value.status == 409


def test_activation_and_state() -> None:
    secret = base64.b64encode(b"s" * 32).decode()
    routes = {
        "POST /attestation/activate": lambda _: ok({"secret": secret}),
        "GET /control/v1/state": lambda _: ok(state(1)),
    }
    with running(Machine(routes)) as machine:
        challenge = Challenge(b"blob", b"enc")
        assert client.activate(machine.address, challenge, expected_spki=machine.spki) == b"s" * 32
        assert client.state(machine.address, expected_spki=machine.spki).generation == 1


def test_readiness() -> None:
    answers = [
        (503, {}, b'{"ready":false,"reasons":["lease.none","domains.none"]}'),
        ok({"ready": True, "lease_expires": "2026-11-24T12:15:00Z"}),
    ]
    with running(Machine({"GET /ready": lambda _: answers.pop(0)})) as machine:
        assert client.ready(machine.address) == (False, ("lease.none", "domains.none"))
        assert client.ready(machine.address) == (True, ())


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"a":1.5}', b"\xff"])
def test_answers_that_are_no_evidence(content: bytes) -> None:
    with running(Machine({"POST /attestation": lambda _: (200, {}, content)})) as machine, pytest.raises(BadInput):
        client.fetch(machine.address, NONCE)


def test_an_answer_that_never_ends_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_ANSWER", 1000)
    with (
        running(Machine({"POST /attestation": lambda _: (200, {}, b" " * 2000)})) as machine,
        pytest.raises(BadInput, match="more than"),
    ):
        client.fetch(machine.address, NONCE)


def test_a_sender_that_drips_is_cut_off_in_time() -> None:
    """Each byte comes well before the socket's own time-out; the whole must still end."""

    def drip(connection: socket.socket) -> None:
        with server_context("tls").wrap_socket(connection, server_side=True) as secured:
            secured.recv(4096)
            for byte in b"HTTP/1.1 200 OK\r\n" + b"X-Slow: " + b"y" * 500:
                secured.sendall(bytes([byte]))
                time.sleep(0.1)

    with raw_server(drip) as address:
        start = time.monotonic()
        with pytest.raises(Unreachable, match="in time"):
            client.fetch(address, NONCE, timeout=0.8, attempts=1)
        assert time.monotonic() - start < 3


def test_a_silent_peer_is_cut_off_in_time() -> None:
    with raw_server(lambda connection: time.sleep(1)) as address:
        start = time.monotonic()
        with pytest.raises(Unreachable, match="in time"):
            client.fetch(address, NONCE, timeout=0.4)
        assert time.monotonic() - start < 0.9


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unreachable, match="can't connect"):
        client.fetch(f"127.0.0.1:{port}", NONCE, timeout=1, attempts=2)


def test_a_peer_without_tls() -> None:
    with raw_server(lambda c: c.sendall(b"HTTP/1.1 200 OK\r\n\r\n")) as address, pytest.raises(Unreachable):
        client.fetch(address, NONCE, timeout=2, attempts=1)


def test_older_tls_is_refused() -> None:
    machine = Machine({"POST /attestation": evidence})
    with running(machine, newest=ssl.TLSVersion.TLSv1_2), pytest.raises(Unreachable):
        client.fetch(machine.address, NONCE, timeout=2, attempts=1)
    assert machine.seen == []


def test_another_way_to_connect() -> None:
    """A dial function is how SOCKS and tunnels come in."""
    with running(Machine({"POST /attestation": evidence})) as machine:
        host, port = client.split(machine.address)
        asked: list[tuple[str, int]] = []

        def dial(target: tuple[str, int], timeout: float) -> socket.socket:
            asked.append(target)
            return socket.create_connection((host, port), timeout)

        fetched = client.fetch("https://machine.internal:8444", NONCE, dial=dial)
    assert fetched.tls_spki == machine.spki
    assert asked == [("machine.internal", 8444)]


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("localhost:1", ("localhost", 1)),
        ("https://localhost", ("localhost", 8444)),
        ("https://[::1]:9/", ("::1", 9)),
    ],
)
def test_addresses(address: str, target: tuple[str, int]) -> None:
    assert client.split(address) == target


@pytest.mark.parametrize(
    "address", ["", "http://x:1", "https://x:port", "https://x/path", "https://u@x", "https://"]
)
def test_addresses_that_are_refused(address: str) -> None:
    with pytest.raises(BadInput):
        client.split(address)


@pytest.mark.parametrize("size", [15, 65])
def test_nonces_of_other_sizes_are_never_sent(size: int) -> None:
    with pytest.raises(BadInput):
        client.fetch("localhost:1", bytes(size))


def test_every_error_is_ours() -> None:
    """A peer that hangs up at any point of the exchange gives one clear error."""

    def hang_up(connection: socket.socket) -> None:
        with server_context("tls").wrap_socket(connection, server_side=True) as secured:
            secured.recv(4096)
            secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")

    with raw_server(hang_up) as address, pytest.raises(AttestationError):
        client.fetch(address, NONCE, timeout=2, attempts=1)
