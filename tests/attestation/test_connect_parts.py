# SPDX-License-Identifier: Apache-2.0
"""The pure parts of ``attestation connect``: addresses, turns, request heads, answers, TLS over bytes."""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cube_attestation import client
from cube_attestation.connect import answers, head
from cube_attestation.connect.channel import Broken, Channel
from cube_attestation.connect.targets import RESTING_S, Address, Rotation, Target, is_file, listening, targets
from cube_attestation.errors import BadInput
from fakemachine import server_context
from fakepki import ec_key, spki
from hypothesis import given
from hypothesis import strategies as st

GOOD = b"POST /acme/v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9000", Address("127.0.0.1", 9000)),
        ("localhost:0", Address("127.0.0.1", 0)),
        ("9001", Address("127.0.0.1", 9001)),
        (":9001", Address("127.0.0.1", 9001)),
        ("[::1]:9000", Address("::1", 9000)),
        ("127.8.9.1:1", Address("127.8.9.1", 1)),
    ],
)
def test_where_it_listens(text: str, address: Address) -> None:
    assert listening(text, remote=False) == address


@pytest.mark.parametrize("text", ["0.0.0.0:9000", "192.0.2.1:9000", "[::]:9000", "[::ffff:0:0]:1"])
def test_other_computers_are_let_in_on_purpose_only(text: str) -> None:
    with pytest.raises(BadInput, match="--allow-remote"):
        listening(text, remote=False)
    assert str(listening(text, remote=True).port) in text


@pytest.mark.parametrize("text", ["", "x", "localhost", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "a.b:80"])
def test_no_address_to_listen_on(text: str) -> None:
    with pytest.raises(BadInput, match="--listen"):
        listening(text, remote=True)


@given(st.text(max_size=40))
def test_any_text_is_an_address_of_this_computer_or_refused(text: str) -> None:
    try:
        found = listening(text, remote=False)
    except BadInput:
        return
    assert found.host.startswith("127.") or found.host == "::1"


def test_replicas_and_where_evidence_is_had() -> None:
    own = targets(["https://a", "https://b:1", "https://[::1]:2/", "https://a:8443"], [])
    assert [str(target) for target in own] == ["https://a:8443", "https://b:1", "https://[::1]:2"]
    assert [target.evidence for target in own] == [
        ("https://a:8444",),
        ("https://b:8444",),
        ("https://[::1]:8444",),
    ]
    given = targets(["https://a"], ["https://m", "dir/bundle.json", "https://m:8444"])
    assert given == (Target(Address("a", 8443), ("https://m:8444", "dir/bundle.json")),)
    assert [is_file(place) for place in given[0].evidence] == [False, True]


@pytest.mark.parametrize(
    "url", ["http://a", "https://a/acme/v1", "https://", "https://u@a", "https://a:0", "ftp://a"]
)
def test_what_is_no_service(url: str) -> None:
    with pytest.raises(BadInput):
        targets([url], [])
    with pytest.raises(BadInput):
        targets(["https://a"], [url])


def test_replicas_take_turns_and_the_failed_come_last_for_a_while() -> None:
    turns = Rotation(3)
    assert [turns.order(0)[0] for _ in range(4)] == [0, 1, 2, 0]
    turns.failed(1, now=10)
    assert [turns.order(11)[-1] for _ in range(3)] == [1, 1, 1]
    assert {turns.order(10 + RESTING_S)[0] for _ in range(3)} == {0, 1, 2}
    turns.failed(1, now=100)
    turns.worked(1)
    assert {turns.order(100)[0] for _ in range(3)} == {0, 1, 2}


def test_heads() -> None:
    assert head.complete(GOOD + b"{}")
    assert not head.complete(GOOD[:-1])
    assert not head.complete(b"")
    assert head.complete("GET /é HTTP/1.1\r\n\r\n".encode())
    assert head.complete(b"GET /" + b"x" * (head.MAX_HEAD - 14) + b" HTTP/1.1\r\n\r\n")
    with pytest.raises(head.NoRequest) as caught:
        head.complete(b"GET /" + b"x" * (head.MAX_HEAD - 13) + b" HTTP/1.1\r\n\r\n")
    assert caught.value.status == 431


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6))
def test_a_head_is_judged_the_same_however_it_arrives(data: bytes, cuts: list[int]) -> None:
    assert judged(data, []) == judged(data, cuts) or judged(data, [])[0] == "not yet"


@given(st.binary(max_size=100), st.lists(st.integers(0, 300), max_size=6))
def test_a_good_head_is_complete_however_it_arrives(body: bytes, cuts: list[int]) -> None:
    assert judged(GOOD + body, cuts)[0] == "complete"


def judged(data: bytes, cuts: list[int]) -> tuple[str, int]:
    seen = 0
    try:
        for end in [*sorted(cut for cut in cuts if 0 < cut < len(data)), len(data)]:
            if head.complete(data[:end], seen):
                return "complete", 0
            seen = end
    except head.NoRequest as error:
        return "refused", error.status
    return "not yet", 0


@given(st.text(max_size=200), st.sampled_from([400, 408, 431, 502, 503]))
def test_answers_are_whole_responses_in_openais_shape(words: str, status: int) -> None:
    answer = answers.refusal(status, "some.code", words, retry_after=5 if status == 503 else None)
    top, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Length: %d\r\n" % len(body) in top
    assert (b"Retry-After: 5" in top) == (status == 503)
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].isprintable() or not error["message"]


def test_the_documented_codes_are_the_ones_that_exist() -> None:
    root = Path(__file__).resolve().parents[2]
    sources = (root / "attestation" / "cube_attestation" / "connect").glob("*.py")
    used = {code for source in sources for code in re.findall(r'"(connect\.[a-z_.]+)"', source.read_text())}
    page = (root / "docs" / "verify-it-yourself.md").read_text()
    assert used == set(re.findall(r"^\| `(connect\.[a-z_.]+)` \|", page, flags=re.MULTILINE))


def both(behave) -> tuple[Channel, socket.socket, threading.Thread]:  # type: ignore[no-untyped-def]
    """A channel after its handshake with a real TLS server at the other end of a socket pair."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with server_context("tls").wrap_socket(theirs, server_side=True) as secured:
            behave(secured)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    channel = Channel(client.tls_context(), "localhost")
    while not channel.shake_hands():
        ours.sendall(channel.outgoing())
        channel.feed(ours.recv(65536))
    ours.sendall(channel.outgoing())
    return channel, ours, thread


def test_a_channel_reports_the_key_and_ends_each_direction_alone() -> None:
    got: list[bytes] = []

    def behave(connection: ssl.SSLSocket) -> None:
        got.extend(iter(lambda: connection.recv(65536), b""))
        connection.sendall(b"y" * 100_000)
        connection.unwrap()

    channel, ours, thread = both(behave)
    with ours:
        assert channel.spki == spki(ec_key("tls"))
        channel.write(b"x" * 50_000)
        channel.finish()
        channel.finish()
        ours.sendall(channel.outgoing())
        back: list[bytes] = []
        read_to_the_end(channel, ours, back)
    thread.join(10)
    assert b"".join(back) == b"y" * 100_000
    assert b"".join(got) == b"x" * 50_000


def read_to_the_end(channel: Channel, ours: socket.socket, got: list[bytes]) -> None:
    while not channel.ended:
        channel.feed(ours.recv(65536))
        got.append(channel.read())


def test_a_channel_tells_a_cut_from_an_end() -> None:
    channel, ours, thread = both(lambda connection: connection.sendall(b"half"))
    thread.join(10)
    got: list[bytes] = []
    with ours, pytest.raises(Broken, match="cut"):
        read_to_the_end(channel, ours, got)
    assert b"".join(got) == b"half"
    assert not channel.ended


@given(st.binary(min_size=1, max_size=200))
def test_noise_instead_of_tls(data: bytes) -> None:
    channel = Channel(client.tls_context(), "localhost")
    assert not channel.shake_hands()
    channel.feed(data)
    channel.feed(b"")
    with pytest.raises(Broken):
        channel.shake_hands()
