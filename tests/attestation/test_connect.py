# SPDX-License-Identifier: Apache-2.0
"""``attestation connect`` against real TLS machines: what passes goes through unchanged, nothing else goes out."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cube_attestation import bundle as bundles
from cube_attestation import live
from cube_attestation.connect import keys
from fakeguest import Forwarding, Guest, forwarding, read_request, response, tls_server
from fakepki import NOW, World, cmdline_changed, ec_key, spki

pytestmark = pytest.mark.slow  # real servers, and waiting for their time limits

REQUEST = b"GET /acme/v1/models HTTP/1.1\r\nHost: x\r\n\r\n"


def guest(**options: object) -> Guest:
    """A machine that answers every request with its head and body, keeps connections, and remembers what came."""

    def behave(connection: ssl.SSLSocket) -> None:
        while True:
            head, body = read_request(connection)
            if not head:
                return
            made.received.append(head + b"\r\n\r\n" + body)
            connection.sendall(response(head.split(b"\r\n")[0] + b"|" + made.role.encode() + b"|" + body))

    made = Guest(behave, **options)  # type: ignore[arg-type]
    return made


def error_of(answer: tuple[int, bytes]) -> tuple[int, str]:
    status, body = answer
    return status, json.loads(body)["error"]["code"]


# What passes


def test_a_machine_that_passes_is_forwarded_to_byte_by_byte() -> None:
    with guest().running() as machine, forwarding(machine, probe=True) as forwarder:
        body = bytes(range(256)) * 4000
        status, answer = forwarder.request("/acme/v1/chat/completions?x=%20y", body)
        assert status == 200
        assert answer == b"POST /acme/v1/chat/completions?x=%20y HTTP/1.1|tls|" + body
        assert machine.received[0].endswith(body)
        assert machine.attested == 1
    told = "\n".join(forwarder.lines)
    assert f"attested key {machine.world.tls_spki}: tier software, freshness nonce, assuming software." in told
    assert f"https://{machine.service}: in use" in told
    assert "acme" not in told, "nothing of a request is told"


def test_connections_are_kept_and_requests_follow_each_other() -> None:
    with guest().running() as machine, forwarding(machine) as forwarder:
        connection = http.client.HTTPConnection(*forwarder.address, timeout=10)
        for i in range(5):
            connection.request("GET", f"/{i}")
            assert connection.getresponse().read() == f"GET /{i} HTTP/1.1|tls|".encode()
        connection.close()
        with forwarder.connect() as raw:  # pipelined: both before the first answer
            raw.sendall(REQUEST.replace(b"models", b"one") + REQUEST.replace(b"models", b"two"))
            # the machine's reader takes one request at a time
            assert b"one" in raw.recv(65536)
        assert machine.attested == 1


def test_streamed_answers_pass_chunk_by_chunk() -> None:
    told = threading.Event()

    def behave(connection: ssl.SSLSocket) -> None:
        read_request(connection)
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for i in range(3):
            told.clear()
            connection.sendall(b"%x\r\ndata: %d\n\n\r\n" % (9, i))
            assert told.wait(5), "the next chunk is sent only after the client has this one"
        connection.sendall(b"0\r\n\r\n")

    with Guest(behave).running() as machine, forwarding(machine) as forwarder:
        connection = http.client.HTTPConnection(*forwarder.address, timeout=10)
        connection.request("POST", "/acme/v1/chat/completions", b"{}")
        answer = connection.getresponse()
        for i in range(3):
            assert answer.read1(100).startswith(b"data: %d" % i)
            told.set()
        assert answer.read() == b""
        connection.close()


def test_each_direction_ends_on_its_own() -> None:
    """The client ends first and still gets everything; then the machine ends and the client sees it."""

    def behave(connection: ssl.SSLSocket) -> None:
        data = b""
        while part := connection.recv(65536):
            data += part
        for i in range(20):
            connection.sendall(bytes([i]) * 50_000)
        connection.sendall(str(len(data)).encode())
        connection.unwrap()

    with Guest(behave).running() as machine, forwarding(machine) as forwarder, forwarder.connect() as client:
        sent = REQUEST + b"z" * 300_000
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        got = read_to_the_end(client)
    assert len(got) == 20 * 50_000 + len(str(len(sent)))
    assert got.endswith(str(len(sent)).encode())


def test_the_machines_end_leaves_the_clients_direction_open() -> None:
    got: list[bytes] = []
    done = threading.Event()

    def behave(connection: ssl.SSLSocket) -> None:
        got.append(connection.recv(65536))
        connection.sendall(b"bye")
        raw = connection.unwrap()  # returns when the client has ended, too
        raw.close()
        done.set()

    with Guest(behave).running() as machine, forwarding(machine) as forwarder, forwarder.connect() as client:
        client.sendall(REQUEST)
        assert client.recv(100) == b"bye"
        assert client.recv(100) == b""
        assert not done.is_set()
        client.shutdown(socket.SHUT_WR)
        assert done.wait(5)
    assert got == [REQUEST]


def test_many_connections_share_one_attestation() -> None:
    with guest(delay=0.3).running() as machine, forwarding(machine) as forwarder:
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda i: forwarder.request(f"/{i}"), range(20)))
        assert {status for status, _ in answers} == {200}
        assert machine.attested == 1


# What does not pass


def test_a_machine_that_is_refused_gets_nothing_and_the_client_hears_why() -> None:
    with guest(world=World(boot=cmdline_changed())).running() as machine, forwarding(machine) as forwarder:
        answer = forwarder.request("/secret-path", b"secret prompt")
        assert error_of(answer) == (502, "tpm.pcr.mismatch")
        assert "PCR 11" in json.loads(answer[1])["error"]["message"]
        assert forwarder.request()[0] == 502
        assert machine.attested == 1, "a refusal is the answer for a while"
        assert machine.received == []
    told = "\n".join(forwarder.lines)
    assert f"https://{machine.service}: refused: tpm.pcr.mismatch" in told
    assert "secret" not in told


def test_somebody_in_the_middle_who_relays_evidence_gets_nothing() -> None:
    """Both ports end in the attacker's key; the evidence is genuine, fresh, and names the machine's own key."""
    with guest(role="attacker", claimed="tls").running() as attacker, forwarding(attacker) as forwarder:
        assert error_of(forwarder.request(body=b"secret")) == (502, "claims.tls_key_mismatch")
        assert attacker.attested == 1
        assert attacker.received == []


def test_somebody_in_the_middle_of_the_service_port_alone_gets_nothing() -> None:
    with guest().running() as machine, guest(role="attacker").running() as attacker:
        attacker.management = machine.management
        with forwarding(attacker) as forwarder:
            assert error_of(forwarder.request(body=b"secret")) == (502, "claims.tls_key_mismatch")
        assert machine.attested == 0, "nothing is asked over a connection with another key"
        assert attacker.received == []


def test_the_next_connection_ends_in_another_key() -> None:
    """Attested once, then the address leads to somebody else, who has no evidence for his key."""
    with guest().running() as machine, forwarding(machine) as forwarder:
        assert forwarder.request()[0] == 200
        machine.role, machine.claimed = "attacker", "tls"
        assert error_of(forwarder.request(body=b"secret")) == (502, "claims.tls_key_mismatch")
        assert len(machine.received) == 1


def test_a_rebooted_machine_is_attested_again_before_it_is_used() -> None:
    with guest().running() as machine, forwarding(machine) as forwarder:
        assert forwarder.request()[0] == 200
        machine.role = "tls after the reboot"
        assert forwarder.request()[1].endswith(b"|tls after the reboot|")
        assert machine.attested == 2
        assert forwarder.wait_for(f"attested key {spki(ec_key(machine.role))}")


def test_a_key_that_is_refused_when_attested_again_is_cut_off() -> None:
    with guest().running() as machine, forwarding(machine, recheck_s=1.8) as forwarder:
        connection = http.client.HTTPConnection(*forwarder.address, timeout=10)
        connection.request("GET", "/")
        assert connection.getresponse().read()
        forwarded = connection.sock
        assert forwarded is not None
        time.sleep(2.2)
        connection.request("GET", "/still")
        assert connection.getresponse().read(), "it passed again in between"
        assert machine.attested >= 2
        machine.world.boot = cmdline_changed()
        assert "tpm.pcr.mismatch" in forwarder.wait_for("dropped key")
        with pytest.raises(ConnectionResetError):
            forwarded.recv(1)
        connection.close()
        assert error_of(forwarder.request()) == (502, "tpm.pcr.mismatch")


def test_a_key_that_can_not_be_attested_again_in_time_is_cut_off() -> None:
    with (
        guest().running() as machine,
        forwarding(machine, recheck_s=1.0) as forwarder,
        forwarder.connect() as client,
    ):
        client.sendall(REQUEST)
        assert client.recv(65536)
        machine.down = True
        start = time.monotonic()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert time.monotonic() - start < 2.5
        assert "connect.unreachable" in forwarder.wait_for("dropped key")
        assert error_of(forwarder.request()) == (503, "connect.unreachable")


def test_a_verification_that_fails_itself_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong while a key is attested again, it does not stay in use."""
    with (
        guest().running() as machine,
        forwarding(machine, recheck_s=0.8) as forwarder,
        forwarder.connect() as client,
    ):
        client.sendall(REQUEST)
        assert client.recv(65536)

        def broken(*given: object, **options: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(live, "verify", broken)
        assert "connect.internal" in forwarder.wait_for("dropped key")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert error_of(forwarder.request()) == (502, "connect.internal")


def test_a_key_that_nobody_uses_is_not_attested_again() -> None:
    with guest().running() as machine, forwarding(machine, recheck_s=0.4) as forwarder:
        assert forwarder.request()[0] == 200
        time.sleep(1.2)
        assert machine.attested <= 2
        assert forwarder.request()[0] == 200


def test_a_connection_that_is_cut_never_looks_like_the_end_of_an_answer() -> None:
    """TCP ends without TLS's own end: an attacker can do that at any point of an answer."""

    def behave(connection: ssl.SSLSocket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf of the ans")
        socket.socket(fileno=connection.detach()).close()

    with Guest(behave).running() as machine, forwarding(machine) as forwarder, forwarder.connect() as client:
        client.sendall(REQUEST)
        with pytest.raises(ConnectionResetError):
            read_to_the_end(client)


def read_to_the_end(connection: socket.socket) -> bytes:
    data = b""
    while part := connection.recv(65536):
        data += part
    return data


# Replicas


def test_replicas_take_turns_and_those_that_do_not_pass_are_left_out() -> None:
    with (
        guest(role="a").running() as a,
        guest(role="bad", world=World(boot=cmdline_changed())).running() as bad,
        guest(role="b").running() as b,
        forwarding(a, bad, b, probe=True) as forwarder,
    ):
        answers = [forwarder.request()[1].split(b"|")[1] for _ in range(8)]
        assert set(answers) == {b"a", b"b"}
        assert bad.received == []
        assert forwarder.refused is None
        assert (a.attested, bad.attested, b.attested) == (1, 1, 1)


def test_a_replica_that_is_gone_is_passed_over() -> None:
    with guest(role="a").running() as a, guest(role="b").running() as b:
        with forwarding(a, b) as forwarder:
            with tls_server(lambda: "x", lambda _: None) as gone:
                pass
            a.service, kept = gone, a.service
            assert kept
        with forwarding(a, b) as forwarder:
            assert {forwarder.request()[1] for _ in range(4)} == {b"GET /acme/v1/models HTTP/1.1|b|"}
            assert f"https://{gone}: no use: connect.unreachable" in "\n".join(forwarder.lines)


def test_a_replica_that_hangs_leaves_the_others_their_time() -> None:
    with guest(role="a", delay=9.0).running() as hangs, guest(role="b").running() as b:
        with forwarding(hangs, b, attest_s=1.6) as forwarder:
            start = time.monotonic()
            answers = [forwarder.request()[1] for _ in range(4)]
            assert time.monotonic() - start < 3, "it is tried once, and then rests"
        assert {answer.split(b"|")[1] for answer in answers} == {b"b"}
        assert "no use: connect.unreachable" in "".join(forwarder.lines)


def test_a_balancer_before_machines_whose_management_ports_are_known() -> None:
    """The service address leads to one machine or the other; evidence is asked of the one whose key it is."""
    with guest(role="a").running() as a, guest(role="b").running() as b:
        turn = iter(range(1000))

        def splice(raw: socket.socket) -> None:
            host, port = (a, b)[next(turn) % 2].service.split(":")
            with raw, socket.create_connection((host, int(port))) as there:
                threads = [threading.Thread(target=copy, args=pair) for pair in ((raw, there), (there, raw))]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()

        with listening(splice) as balancer:
            both = Guest(lambda _: None, world=a.world, service=balancer)
            with forwarding(both, evidence=(f"https://{a.management}", f"https://{b.management}")) as forwarder:
                answers = [forwarder.request()[1].split(b"|")[1] for _ in range(4)]
        assert set(answers) == {b"a", b"b"}
        assert (a.attested, b.attested) == (1, 1)


def copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while part := source.recv(65536):
            sink.sendall(part)
        sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def listening(behave):  # type: ignore[no-untyped-def]
    """A TCP server, a thread for each connection; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        stop = threading.Event()

        def loop() -> None:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    threading.Thread(target=behave, args=(listener.accept()[0],), daemon=True).start()

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        stop.set()
        thread.join(10)


def test_no_machine_at_all() -> None:
    with tls_server(lambda: "x", lambda _: None) as gone:
        pass
    nobody = Guest(lambda _: None, service=gone, management=gone)
    with forwarding(nobody, probe=True) as forwarder:
        assert forwarder.refused is not None
        assert forwarder.refused.exit_code == 4
        assert error_of(forwarder.request()) == (503, "connect.unreachable")


@pytest.mark.parametrize(
    ("evidence", "words"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", "JSON"),
        (b"HTTP/1.1 302 Found\r\nLocation: https://x\r\nContent-Length: 0\r\n\r\n", "302"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "404"),
        (b"nonsense", "broke"),
    ],
)
def test_an_evidence_address_that_gives_none(evidence: bytes, words: str) -> None:
    with guest(evidence=lambda _: evidence).running() as machine, forwarding(machine) as forwarder:
        status, body = forwarder.request()
        assert error_of((status, body)) == (503, "connect.unreachable")
        assert words in json.loads(body)["error"]["message"]
        assert machine.received == []


# Bundles of the gate instead of a management port


def kept(machine: Guest, path: Path, **changes: object) -> str:
    """A bundle of ``machine`` with the gate's receipt, as the gate exports it."""
    world = replace(machine.world, tls_spki=spki(ec_key(machine.role)), **changes)  # type: ignore[arg-type]
    path.write_bytes(bundles.dump(world.receipted()))
    return str(path)


def test_a_bundle_of_the_gate_vouches_for_the_key_of_its_machine(tmp_path: Path) -> None:
    with guest(role="a").running() as a, guest(role="b").running() as b:
        places = (kept(a, tmp_path / "a.json"), kept(b, tmp_path / "b.json"))
        with forwarding(a, b, evidence=places) as forwarder:
            assert {forwarder.request()[1].split(b"|")[1] for _ in range(4)} == {b"a", b"b"}
            assert "freshness receipt" in "".join(forwarder.lines)
        assert (a.attested, b.attested) == (0, 0)


def test_a_bundle_does_not_vouch_for_another_key_until_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_REFUSED_S", 0.1)
    with guest().running() as machine:
        place = kept(machine, tmp_path / "bundle.json")
        with forwarding(machine, evidence=(place,)) as forwarder:
            assert forwarder.request()[0] == 200
            machine.role = "next boot"
            assert error_of(forwarder.request()) == (502, "claims.tls_key_mismatch")
            kept(machine, tmp_path / "bundle.json")
            time.sleep(0.3)  # a refusal is the answer for a while
            assert forwarder.request()[1].endswith(b"|next boot|")
            (tmp_path / "bundle.json").unlink()
            machine.role = "third boot"
            assert error_of(forwarder.request()) == (503, "connect.unreachable")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"receipt_time": NOW - timedelta(seconds=86401)}, "connect.bundle.too_old"),
        ({"receipt_time": NOW + timedelta(hours=1)}, "receipt.time_in_future"),
        ({"receipt_key": "somebody"}, "receipt.signature.untrusted_key"),
        ({"boot": cmdline_changed()}, "tpm.pcr.mismatch"),
    ],
)
def test_bundles_that_do_not_count(changes: dict[str, object], code: str, tmp_path: Path) -> None:
    if (made := changes.get("receipt_time")) is not None and code == "connect.bundle.too_old":
        changes = {**changes, "guest_time": made}
    with guest().running() as machine:
        place = kept(machine, tmp_path / "bundle.json", **changes)
        with forwarding(machine, evidence=(place,)) as forwarder:
            assert error_of(forwarder.request(body=b"secret")) == (502, code)
        assert machine.received == []


def test_a_bundle_without_a_receipt_may_be_of_any_time(tmp_path: Path) -> None:
    with guest().running() as machine:
        machine.world.tls_spki = spki(ec_key(machine.role))
        (tmp_path / "bundle.json").write_bytes(bundles.dump(machine.world.bundle()))
        with forwarding(machine, evidence=(str(tmp_path / "bundle.json"),)) as forwarder:
            assert error_of(forwarder.request()) == (502, "connect.bundle.no_receipt")


# Clients


def test_what_a_client_sends_early_waits_until_the_key_has_passed() -> None:
    with guest(delay=0.5).running() as machine, forwarding(machine) as forwarder, forwarder.connect() as client:
        client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 3000000\r\n\r\n")
        sender = threading.Thread(target=lambda: client.sendall(b"y" * 3_000_000))
        sender.start()
        time.sleep(0.3)
        assert machine.attested == 1
        assert machine.received == []
        answer = b""
        while not answer.endswith(b"y" * 100) or len(answer) < 3_000_000:
            answer += client.recv(1 << 20)
        sender.join(10)
        assert len(machine.received[0].partition(b"\r\n\r\n")[2]) == 3_000_000


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"SSH-2.0-OpenSSH_9.9\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET / HTTP/1.1", 408),
        (b"G", 408),
    ],
)
def test_what_is_no_request_never_reaches_a_machine(sent: bytes, status: int) -> None:
    with guest().running() as machine, forwarding(machine, head_s=0.3) as forwarder, forwarder.connect() as client:
        client.sendall(sent)
        answer = http.client.HTTPResponse(client)
        answer.begin()
        assert error_of((answer.status, answer.read())) == (status, "connect.bad_request")
        assert machine.attested == 0


def test_a_client_that_drips_is_ended_in_time() -> None:
    with guest().running() as machine, forwarding(machine, head_s=0.5) as forwarder, forwarder.connect() as client:
        start = time.monotonic()
        client.settimeout(0.05)
        client.sendall(b"GET / HTTP/1.1\r\nX: ")
        answer = b""
        while not answer and time.monotonic() - start < 5:
            with contextlib.suppress(TimeoutError):
                answer = client.recv(65536)
            with contextlib.suppress(OSError):
                client.sendall(b"y")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - start < 2
        assert machine.attested == 0


def test_connections_are_bounded_and_come_free_again() -> None:
    with guest().running() as machine, forwarding(machine, connections=3, head_s=0.6) as forwarder:
        held = [forwarder.connect() for _ in range(3)]
        time.sleep(0.1)
        assert error_of(forwarder.request()) == (503, "connect.too_many_connections")
        for client in held:
            client.close()
        time.sleep(0.1)
        assert forwarder.request()[0] == 200


def test_silent_connections_are_ended() -> None:
    with guest().running() as machine, forwarding(machine, idle_s=0.4) as forwarder, forwarder.connect() as client:
        client.sendall(REQUEST)
        assert client.recv(65536)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_client_that_goes_away_ends_the_machines_work() -> None:
    ended = threading.Event()

    def behave(connection: ssl.SSLSocket) -> None:
        read_request(connection)
        if not connection.recv(100):
            ended.set()

    with Guest(behave).running() as machine, forwarding(machine) as forwarder:
        with forwarder.connect() as client:
            client.sendall(REQUEST)
            time.sleep(0.3)
        assert ended.wait(5)


# The end


def test_answers_under_way_end_before_it_ends() -> None:
    asked = threading.Event()

    def behave(connection: ssl.SSLSocket) -> None:
        read_request(connection)
        asked.set()
        time.sleep(0.6)
        connection.sendall(response(b"late"))
        connection.recv(1)

    with Guest(behave).running() as machine:
        with ThreadPoolExecutor(1) as pool:
            with forwarding(machine) as forwarder:
                idle = forwarder.connect()
                answer = pool.submit(forwarder.request)
                assert asked.wait(5)
            assert answer.result() == (200, b"late")
        assert idle.recv(1) == b""
        idle.close()
        with pytest.raises(OSError):
            forwarder.connect()
    assert isinstance(forwarder, Forwarding)
