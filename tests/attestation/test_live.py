# SPDX-License-Identifier: Apache-2.0
"""``attestation verify URL``: every way in which a machine can fail to answer is one line and one exit code."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cube_attestation import bundle as bundles
from cube_attestation import client, live
from cube_attestation.cli import main
from cube_attestation.cmw import EVIDENCE
from cube_attestation.errors import KeyMismatch
from fakeguest import Guest
from fakemachine import Machine, raw_server, running
from fakepki import NOW, World, cmdline_changed, ec_key, spki

pytestmark = pytest.mark.slow  # real servers, and waiting for their time limits

PASSED, REFUSED, NOT_AUTHENTIC, BAD_INPUT, UNREACHABLE = range(5)


def nothing(_: ssl.SSLSocket) -> None:
    """No service is asked for here."""


def verify(folder: Path, address: str, *more: str, machine: Guest | None = None) -> int:
    machine = machine or Guest(nothing)
    (folder / "policy.toml").write_text(machine.world.policy_toml())
    (folder / "known.json").write_bytes(bundles.dump(machine.known()))
    files = ["--policy", str(folder / "policy.toml"), "--endorsements", str(folder / "known.json")]
    url = address if "://" in address else f"https://{address}"
    return main(["verify", url, *files, "--at", "2026-11-24T12:00:00Z", "--timeout", "5", *more])


# What is saved


def test_the_bundle_that_is_saved_says_the_same_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Guest(nothing).running() as machine:
        assert (
            verify(tmp_path, machine.management, "--save", str(tmp_path / "kept.json"), machine=machine) == PASSED
        )
    assert "freshness nonce" in capsys.readouterr().out
    again = ["verify", str(tmp_path / "kept.json"), "--policy", str(tmp_path / "policy.toml")]
    assert main([*again, "--at", "2026-11-24T12:00:00Z", "--nonce", machine.world.nonce.hex()]) == PASSED
    assert main([*again, "--at", "2026-11-24T12:00:00Z"]) == PASSED
    assert "freshness not_checked" in capsys.readouterr().out


def test_every_verification_has_a_nonce_of_its_own(tmp_path: Path) -> None:
    seen = set()
    with Guest(nothing).running() as machine:
        for _ in range(3):
            assert verify(tmp_path, machine.management, machine=machine) == PASSED
            seen.add(machine.world.nonce)
    assert len(seen) == 3


def test_what_is_refused_is_saved_too(tmp_path: Path) -> None:
    with Guest(nothing, world=World(boot=cmdline_changed())).running() as machine:
        assert (
            verify(tmp_path, machine.management, "--save", str(tmp_path / "kept.json"), machine=machine) == REFUSED
        )
    assert "tpm-quote" in bundles.load((tmp_path / "kept.json").read_bytes()).evidence.items


def test_nothing_is_overwritten_by_what_was_not_fetched(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    kept.write_bytes(b"of yesterday")
    assert verify(tmp_path, "127.0.0.1:1", "--save", str(kept), "--timeout", "1") == UNREACHABLE
    assert kept.read_bytes() == b"of yesterday"
    with Guest(nothing).running() as machine:
        assert (
            verify(tmp_path, machine.management, "--save", str(tmp_path / "no" / "x"), machine=machine) == BAD_INPUT
        )
    assert {path.name for path in tmp_path.iterdir()} == {"kept.json", "known.json", "policy.toml"}


# Whose key it is


def test_relayed_evidence_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Guest(nothing, role="attacker", claimed="tls").running() as machine:
        assert verify(tmp_path, machine.management, machine=machine) == REFUSED
    assert "claims.tls_key_mismatch" in capsys.readouterr().out


def test_replayed_evidence_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything is genuine and over the right key, but answers somebody else's nonce."""
    with Guest(nothing).running() as machine:
        assert verify(tmp_path, machine.management, machine=machine) == PASSED
        machine.evidence = lambda _: machine.sent[0]
        assert verify(tmp_path, machine.management, machine=machine) == REFUSED
    assert "claims.nonce_mismatch" in capsys.readouterr().out


def test_another_key_than_the_expected_one_is_asked_nothing() -> None:
    with Guest(nothing).running() as machine:
        with pytest.raises(KeyMismatch):
            live.examine(machine.management, machine.world.the_policy(), expected_spki="sha256:" + "0" * 64)
        assert machine.attested == 0
        found = live.examine(
            machine.management,
            machine.world.the_policy(),
            known=[machine.known()],
            expected_spki=spki(ec_key("tls")),
            clock=lambda: NOW,
        )
    assert found.verdict.passed
    assert found.tls_spki == spki(ec_key("tls"))


def test_the_bundle_of_the_right_machine_is_found_among_several() -> None:
    """Each machine has an AK certificate of its own; a wrong one must not spoil the verdict, none must help it."""
    with Guest(nothing).running() as machine:
        other = Guest(nothing, world=World(ak_certified="another")).known()
        late = Guest(nothing, world=World(ak_valid=(NOW - timedelta(days=9), NOW - timedelta(days=2)))).known()
        policy, address = machine.world.the_policy(), machine.management

        def passed(*known: bundles.Bundle) -> tuple[bool, tuple[str, ...]]:
            verdict = live.examine(address, policy, known=known, clock=lambda: NOW).verdict
            return verdict.passed, verdict.codes

        assert passed(other, late, machine.known()) == (True, ())
        assert passed(machine.known(), other)[0]
        assert "tpm.ak.key_mismatch" in passed(other)[1]
        assert not passed()[0]


def test_what_the_machine_sends_is_never_replaced_by_what_is_known() -> None:
    machine = Guest(nothing)
    evidence = machine.known().evidence.with_item("launch", "application/vnd.cube.launch+dsse", b"known", 2)
    fresh = machine.world.evidence()
    assert live.complete(fresh, bundles.Bundle(evidence)) == fresh
    assert "claims" not in live.complete(machine.known().evidence, machine.world.bundle()).items
    assert any(item.indicator == EVIDENCE for item in fresh.items.values())


# When there is no evidence


def answers(status: int, body: bytes, **headers: str) -> Machine:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return Machine({"POST /attestation": lambda _: (status, sent, body)})


PAGE = b"<!DOCTYPE html><html><body>Welcome</body></html>"
NO_EVIDENCE: dict[str, tuple[Machine, int, str]] = {
    "a web page": (answers(200, PAGE, Content_Type="text/html"), BAD_INPUT, "management port"),
    "a page not found": (answers(404, PAGE), UNREACHABLE, "answered 404"),
    "a redirect": (answers(307, b"", Location="https://elsewhere/"), UNREACHABLE, "never followed"),
    "another JSON": (answers(200, b'{"status":"ok"}'), BAD_INPUT, "/attestation"),
    "an empty answer": (answers(200, b""), BAD_INPUT, "/attestation"),
    "a refusal": (
        answers(403, b'{"error":{"code":"no","message":"not you"}}'),
        UNREACHABLE,
        "answered 403: no: not you",
    ),
    "busy for ever": (answers(429, b"{}", Retry_After="0"), UNREACHABLE, "answered 429"),
    "control characters": (
        answers(400, b'{"error":{"code":"\\u001b[31m","message":"x\\ny"}}'),
        UNREACHABLE,
        "answered 400: ?[31m: x?y",
    ),
}


@pytest.mark.parametrize(("machine", "code", "words"), NO_EVIDENCE.values(), ids=NO_EVIDENCE.keys())
def test_answers_that_are_no_evidence(
    machine: Machine, code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(machine):
        assert verify(tmp_path, machine.address) == code
    one_line(capsys, words)


def one_line(capsys: pytest.CaptureFixture[str], words: str) -> None:
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1, shown.err
    assert shown.err.startswith("attestation: ")
    assert words in shown.err


def test_an_answer_that_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "MAX_ANSWER", 1 << 20)
    with running(answers(200, b" " * (2 << 20))) as machine:
        assert verify(tmp_path, machine.address) == BAD_INPUT
    one_line(capsys, "more than 1 MiB")


def test_an_older_tls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(answers(200, b"{}"), newest=ssl.TLSVersion.TLSv1_2) as machine:
        assert verify(tmp_path, machine.address) == UNREACHABLE
    one_line(capsys, "TLS 1.3 failed: ")
    assert machine.seen == []


def plain(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    connection.recv(4096)


def silent(connection: socket.socket) -> None:
    time.sleep(1)


def dripping(connection: socket.socket) -> None:
    for _ in range(100):
        connection.sendall(b"\x16")
        time.sleep(0.05)


def hanging_up(connection: socket.socket) -> None:
    connection.recv(100)


@pytest.mark.parametrize(
    ("behave", "words"),
    [
        (plain, "TLS 1.3 failed: wrong version number"),
        (silent, "no answer in time"),
        (dripping, ""),
        (hanging_up, ""),
    ],
)
def test_peers_that_do_not_speak_tls(
    behave: Callable[[socket.socket], None], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = time.monotonic()
    with raw_server(behave) as address:
        assert verify(tmp_path, address, "--timeout", "0.6") == UNREACHABLE
        assert time.monotonic() - start < 3
    one_line(capsys, words)


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("https://127.0.0.1:1", UNREACHABLE, "can't connect"),
        ("https://no-such-host.invalid:8444", UNREACHABLE, "can't connect"),
        ("https://a..b:8444", BAD_INPUT, "is no address"),
        ("https://" + "a" * 64 + ".example", BAD_INPUT, "is no address"),
        ("https://x:8444/path", BAD_INPUT, "is no address"),
        ("https://x:99999", BAD_INPUT, "is no address"),
        ("https://x:0", BAD_INPUT, "is no address"),
        ("http://127.0.0.1:8444", BAD_INPUT, "https://"),
        ("https://", BAD_INPUT, "is no address"),
    ],
)
def test_addresses_where_nobody_can_be(
    url: str, code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(tmp_path, url, "--timeout", "2") == code
    one_line(capsys, words)


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_time_limits_that_are_none(seconds: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(tmp_path, "127.0.0.1:1", "--timeout", seconds) == BAD_INPUT
    one_line(capsys, "--timeout")
