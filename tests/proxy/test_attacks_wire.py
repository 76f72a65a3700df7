# SPDX-License-Identifier: Apache-2.0
"""Attacks below HTTP's meaning, on the real Envoy: framing, smuggling, slow and broken bodies, HTTP/2.

The backends count: what they see must be one whole request of a client that may send it, and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # real servers, and waiting for their time limits

QUESTION = {"model": "smollm2", "messages": [{"role": "user", "content": "Hello"}]}
GOOD = json.dumps(QUESTION).encode()
FIRST = "POST {path} HTTP/1.1\nhost: localhost\nauthorization: Bearer {token}\ncontent-type: application/json\n"


def head(attacked: Any, lines: str, *, close: bool = True) -> bytes:
    """A request's head from ``lines`` with line feeds, which become CR LF; ``\\r`` and others stay as written."""
    path = f"/{attacked.acme.id}/v1/chat/completions"
    text = lines.format(path=path, token=attacked.acme.token()) + ("connection: close\n" if close else "") + "\n"
    return text.replace("\n", "\r\n").encode("latin-1")


def hidden(attacked: Any) -> bytes:
    """A whole request of acme's for beta's model, which only a smuggler could get past the checks."""
    body = b'{"model":"other"}'
    lines = "POST /v1/chat/completions HTTP/1.1\nhost: localhost\ncontent-type: application/json\nx-cube-domain: "
    lines += f"{attacked.beta.id}\nx-cube-model: other\nx-cube-models: other=other\ncontent-length: {len(body)}\n\n"
    return lines.replace("\n", "\r\n").encode() + body


def only_good_requests(attacked: Any, most: int) -> None:
    assert len(attacked.reached) <= most
    for line, headers, body in attacked.reached:
        assert line == "POST /v1/chat/completions HTTP/1.1"
        assert json.loads(body) == QUESTION
        assert (headers["x-cube-domain"], headers["x-cube-model"]) == (attacked.acme.id, "smollm2")
        assert "transfer-encoding" not in headers
        assert headers["content-length"] == str(len(body))


# HTTP/1.1


FRAMING = {
    "length and chunked": f"content-length: {len(GOOD)}\ntransfer-encoding: chunked\n",
    "chunked and length": f"transfer-encoding: chunked\ncontent-length: {len(GOOD)}\n",
    "two lengths": f"content-length: {len(GOOD)}\ncontent-length: 5\n",
    "two lengths in one": f"content-length: {len(GOOD)}, 5\n",
    "length with a sign": f"content-length: +{len(GOOD)}\n",
    "negative length": "content-length: -1\n",
    "length in hexadecimal": f"content-length: 0x{len(GOOD):x}\n",
    "length with a fraction": f"content-length: {len(GOOD)}.0\n",
    "length with a blank": "content-length: 1 0\n",
    "length too large for a number": "content-length: 18446744073709551617\n",
    "length with letters": "content-length: ten\n",
    "empty length": "content-length:\n",
    "underscore": f"content_length: 5\ncontent-length: {len(GOOD)}\n",
    "blank before the colon": f"content-length : {len(GOOD)}\n",
    "coding with a blank before the colon": "transfer-encoding : chunked\n",
    "unknown coding": "transfer-encoding: xchunked\n",
    "chunked is not last": "transfer-encoding: chunked, identity\n",
    "two codings": "transfer-encoding: chunked\ntransfer-encoding: identity\n",
    "gzip and chunked": "transfer-encoding: gzip, chunked\n",
    "coding behind a vertical tab": "transfer-encoding:\x0bchunked\n",
    "coding in quotes": 'transfer-encoding: "chunked"\n',
    "folded coding": "transfer-encoding:\n chunked\n",
    "fold at the beginning": f" x-a: b\ncontent-length: {len(GOOD)}\n",
    "bare line feed": f"x-a: b\x00LFcontent-length: 5\ncontent-length: {len(GOOD)}\n",
    "NUL in a value": f"x-a: b\x00c\ncontent-length: {len(GOOD)}\n",
    "NUL in a name": f"x\x00a: b\ncontent-length: {len(GOOD)}\n",
    "no colon": f"x-a b\ncontent-length: {len(GOOD)}\n",
    "empty name": f": b\ncontent-length: {len(GOOD)}\n",
    "blank in a name": f"x a: b\ncontent-length: {len(GOOD)}\n",
}


@pytest.mark.parametrize("name", FRAMING)
def test_ambiguous_framing(attacked: Any, name: str) -> None:
    """Each with a second request behind the body."""
    sent = head(attacked, FIRST + FRAMING[name]).replace(b"\0LF", b"\n") + GOOD + hidden(attacked)
    answer = attacked.envoy.raw(sent, 0.5)
    assert answer.count(b"HTTP/1.1 200") == 0, answer
    assert attacked.reached == []


WRITTEN_ANEW = {
    "folded length": f"content-length:\n {len(GOOD)}\n",
    "folded header": f"x-a: b\n c\ncontent-length: {len(GOOD)}\n",
    "bare carriage return": f"x-a: b\rcontent-length: 5\ncontent-length: {len(GOOD)}\n",
    "two hosts": f"host: internal\ncontent-length: {len(GOOD)}\n",
    "folded over our own": f"x-cube-model: a\n other\ncontent-length: {len(GOOD)}\n",
    "carriage return before our own": f"x-a: b\rx-cube-model: other\ncontent-length: {len(GOOD)}\n",
}


@pytest.mark.parametrize("name", WRITTEN_ANEW)
def test_what_a_reader_may_mend_is_passed_on_mended(attacked: Any, name: str) -> None:
    """RFC 9112 §5.2 and §2.2: a fold or a bare carriage return may be replaced. The backend sees none of them."""
    attacked.envoy.raw(head(attacked, FIRST + WRITTEN_ANEW[name]) + GOOD + hidden(attacked), 0.5)
    only_good_requests(attacked, 1)
    for _, headers, _ in attacked.reached:
        assert headers["host"] == "localhost"
        assert "\r" not in str(headers)


@pytest.mark.parametrize("line_end", [b"\n", b"\r"], ids=["line feeds only", "carriage returns only"])
def test_other_line_ends(attacked: Any, line_end: bytes) -> None:
    sent = head(attacked, FIRST + f"content-length: {len(GOOD)}\n").replace(b"\r\n", line_end)
    attacked.envoy.raw(sent + GOOD + hidden(attacked), 0.5)
    only_good_requests(attacked, 1)


def test_one_bare_line_feed_among_the_headers(attacked: Any) -> None:
    """RFC 9112 lets a reader take it for a line's end; Envoy then passes on what it read, written anew."""
    whole = head(attacked, FIRST + f"x-a: b\nx-cube-model: other\ncontent-length: {len(GOOD)}\n")
    attacked.envoy.raw(whole.replace(b"x-a: b\r\n", b"x-a: b\n") + GOOD + hidden(attacked), 2)
    only_good_requests(attacked, 1)


@pytest.mark.parametrize(
    "line",
    [
        "POST {path} HTTP/1.0",
        "POST {path} HTTP/0.9",
        "POST {path}",
        "POST {path} HTTP/2.0",
        "POST {path} HTTP/1.1 HTTP/1.1",
        "POST  {path} HTTP/1.1",
        "POST\t{path}\tHTTP/1.1",
        " POST {path} HTTP/1.1",
        "post {path} HTTP/1.1",
        "POSTX {path} HTTP/1.1",
        "PO ST {path} HTTP/1.1",
        "CONNECT localhost:11434 HTTP/1.1",
        "CONNECT {path} HTTP/1.1",
        "PRI * HTTP/2.0",
        "OPTIONS * HTTP/1.1",
        "POST * HTTP/1.1",
        "POST http://internal:11434/api/pull HTTP/1.1",
        "POST localhost{path} HTTP/1.1",
        "POST ?{path} HTTP/1.1",
        "POST {path}\x00 HTTP/1.1",
        "POST {path}\x80 HTTP/1.1",
    ],
)
def test_odd_request_lines(attacked: Any, line: str) -> None:
    lines = FIRST.replace("POST {path} HTTP/1.1", line) + f"content-length: {len(GOOD)}\n"
    answer = attacked.envoy.raw(head(attacked, lines) + GOOD + hidden(attacked), 0.5)
    assert answer.count(b"HTTP/1.1 200") <= 1
    only_good_requests(attacked, 1)
    assert attacked.reached == [] or line.split() == ["POST", "{path}", "HTTP/1.1"]


CHUNKED = FIRST + "transfer-encoding: chunked\n"


def chunk(data: bytes, size: str = "") -> bytes:
    return (size or f"{len(data):x}").encode() + b"\r\n" + data + b"\r\n"


def test_a_chunked_body_is_judged_like_any_other(attacked: Any) -> None:
    body = chunk(GOOD[:5]) + chunk(GOOD[5:]) + b"0\r\n\r\n"
    assert attacked.envoy.raw(head(attacked, CHUNKED) + body).startswith(b"HTTP/1.1 200")
    ((_, headers, received),) = attacked.reached
    assert received == GOOD  # the buffer filter gave it a Content-Length
    assert headers["content-length"] == str(len(GOOD))
    attacked.backend.requests.clear()
    foreign = b'{"model":"other"}'
    sent = head(attacked, CHUNKED) + b"".join(chunk(bytes([b])) for b in foreign) + b"0\r\n\r\n"
    assert b"model_not_found" in attacked.envoy.raw(sent)
    assert attacked.reached == []


@pytest.mark.parametrize(
    "size",
    [
        *("-5", "+5", "0x5", " 5", "5 ", "5;", "5;a=b", '5;a="\r\n"', "FFFFFFFFFFFFFFFF", "10000000000000005", "g"),
        *("", "5\n", "5\r", "00000000000000005", "5_0", "1" * 5000, "5;" + "a" * 100_000),
    ],
    ids=lambda size: repr(size[:20]),
)
def test_odd_chunk_sizes(attacked: Any, size: str) -> None:
    body = chunk(GOOD[:5], size) + chunk(GOOD[5:]) + b"0\r\n\r\n"
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        attacked.envoy.raw(head(attacked, CHUNKED) + body + hidden(attacked), 0.5)
    only_good_requests(attacked, 1)


def test_trailers_say_nothing(attacked: Any) -> None:
    trailers = (
        f"x-cube-model: other\r\nx-cube-domain: {attacked.beta.id}\r\n"
        f"authorization: Bearer {attacked.beta.token()}\r\n"
        "content-length: 5\r\ntransfer-encoding: chunked\r\nhost: internal\r\n"
    )
    sent = head(attacked, CHUNKED) + chunk(GOOD) + b"0\r\n" + trailers.encode() + b"\r\n"
    attacked.envoy.raw(sent, 1)
    only_good_requests(attacked, 1)


def test_requests_in_one_go_are_judged_one_by_one(attacked: Any) -> None:
    """A good one, a foreign model, a good one; then after one without a token the connection ends."""

    def one(body: bytes, token: str) -> bytes:
        lines = FIRST.format(path=f"/{attacked.acme.id}/v1/chat/completions", token=token)
        return (lines + f"content-length: {len(body)}\n\n").replace("\n", "\r\n").encode() + body

    token, foreign = attacked.acme.token(), b'{"model":"other"}'
    answer = attacked.envoy.raw(one(GOOD, token) + one(foreign, token) + one(GOOD, token), 1)
    assert re.findall(rb"HTTP/1.1 (\d+) ", answer) == [b"200", b"404", b"200"]
    answer = attacked.envoy.raw(one(GOOD, token) + one(GOOD, "") + hidden(attacked) + one(GOOD, token), 1)
    assert re.findall(rb"HTTP/1.1 (\d+) ", answer) == [b"200", b"401"]
    only_good_requests(attacked, 3)
    assert len(attacked.reached) == 3


def test_a_truncated_body_reaches_nobody(attacked: Any) -> None:
    for sent in (
        head(attacked, FIRST + "content-length: 1000\n") + GOOD,
        head(attacked, CHUNKED) + chunk(GOOD),
        head(attacked, CHUNKED) + chunk(GOOD)[:-2],
        head(attacked, CHUNKED) + chunk(GOOD) + b"0\r\n",
        head(attacked, FIRST + f"content-length: {len(GOOD)}\n")[:-2],
    ):
        with attacked.envoy.tls() as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
    time.sleep(0.3)
    assert attacked.reached == []


def test_a_body_without_end_is_cut_at_the_limit(attacked: Any) -> None:
    """Chunk after chunk: no Content-Length says beforehand how much it will be."""
    sent = 0
    answer = b""
    with attacked.envoy.tls() as connection:
        connection.sendall(head(attacked, CHUNKED, close=False))
        try:
            while sent < 64 << 20:
                connection.sendall(chunk(b" " * 65536))
                sent += 65536
        except (ConnectionError, ssl.SSLError, TimeoutError):
            pass
        with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
            answer = connection.recv(4096)
    assert sent < 32 << 20
    assert not answer or b" 413 " in answer
    assert attacked.reached == []


def test_a_length_beyond_the_limit_is_refused_before_the_body(attacked: Any) -> None:
    with attacked.envoy.tls() as connection:
        connection.sendall(head(attacked, FIRST + f"content-length: {1 << 40}\n"))
        connection.sendall(b"{" + b" " * (3 << 20))
        assert b" 413 " in connection.recv(4096)
    assert attacked.reached == []


def test_slow_bodies_hold_up_nobody_else(attacked: Any) -> None:
    """Fifty clients that send a byte now and then; the others are served as ever, the fifty reach no backend."""
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(attacked.envoy.tls()) for _ in range(50)]
        for connection in slow:
            connection.sendall(head(attacked, FIRST + f"content-length: {len(GOOD)}\n"))
        for i in range(5):
            for connection in slow:
                connection.sendall(GOOD[i : i + 1])
            began = time.monotonic()
            assert attacked.chat(attacked.acme.token()).status == 200
            assert time.monotonic() - began < 2
        assert len(attacked.reached) == 5
    only_good_requests(attacked, 5)


@pytest.mark.slow
def test_a_head_that_never_ends_is_cut(attacked: Any) -> None:
    """After request_headers_timeout, 10 s."""
    began = time.monotonic()
    with attacked.envoy.tls(seconds=20) as connection:
        connection.sendall(head(attacked, FIRST)[:-2])
        answer = connection.recv(4096)
    assert b" 408 " in answer or answer == b""
    assert 8 < time.monotonic() - began < 18
    assert attacked.reached == []


# HTTP/2, frame by frame (RFC 9113); header fields as literals without indexing (RFC 7541 §6.2.2)


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def integer(value: int, bits: int) -> bytes:
    most = (1 << bits) - 1
    if value < most:
        return bytes([value])
    out, value = [most], value - most
    while value > 127:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def block(fields: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"\0" + integer(len(n), 7) + n + integer(len(v), 7) + v for n, v in fields)


def fields(attacked: Any, **changes: bytes | None) -> list[tuple[bytes, bytes]]:
    """A good request's; a change of None removes one."""
    found: dict[str, bytes | None] = {
        ":method": b"POST",
        ":scheme": b"https",
        ":authority": b"localhost",
        ":path": f"/{attacked.acme.id}/v1/chat/completions".encode(),
        "authorization": f"Bearer {attacked.acme.token()}".encode(),
        "content-type": b"application/json",
    }
    found |= {name.replace("__", ":").replace("_", "-"): value for name, value in changes.items()}
    return [(name.encode(), value) for name, value in found.items() if value is not None]


class Http2:
    """One connection; ``frames`` are all that came back."""

    def __init__(self, envoy: Any) -> None:
        self._tls = envoy.tls(3, "h2")
        assert self._tls.selected_alpn_protocol() == "h2"
        self.frames: list[tuple[int, int, int, bytes]] = []
        self._buffer = b""
        self.send(PREFACE + frame(SETTINGS, 0, 0))

    def send(self, data: bytes) -> bool:
        """Whether the other side still takes it."""
        try:
            self._tls.sendall(data)
        except (ConnectionError, ssl.SSLError, TimeoutError):
            return False
        return True

    def read(self, seconds: float = 2.0, *, until: int = 0) -> bool:
        """Read until nothing comes for ``seconds`` or stream ``until`` ends; whether the connection is open."""
        self._tls.settimeout(seconds)
        try:
            while not (
                until and any(s == until and (k == RST_STREAM or f & END_STREAM) for k, f, s, _ in self.frames)
            ):
                data = self._tls.recv(65536)
                if not data:
                    return False
                self._buffer += data
                self._take()
        except TimeoutError:
            pass
        except (ConnectionError, ssl.SSLError):
            return False
        return not any(kind == GOAWAY for kind, _, _, _ in self.frames)

    def _take(self) -> None:
        while len(self._buffer) >= 9:
            length = int.from_bytes(self._buffer[:3], "big")
            if len(self._buffer) < 9 + length:
                return
            kind, flags = self._buffer[3], self._buffer[4]
            stream = int.from_bytes(self._buffer[5:9], "big") & 0x7FFFFFFF
            self.frames.append((kind, flags, stream, self._buffer[9 : 9 + length]))
            self._buffer = self._buffer[9 + length :]
            if kind == SETTINGS and not flags:
                self.send(frame(SETTINGS, 1, 0))

    def body(self, stream: int) -> bytes:
        return b"".join(payload for kind, _, s, payload in self.frames if kind == DATA and s == stream)

    def close(self) -> None:
        self._tls.close()


@pytest.fixture
def http2(attacked: Any) -> Iterator[Http2]:
    found = Http2(attacked.envoy)
    yield found
    found.close()


def ask(http2: Http2, stream: int, headers: list[tuple[bytes, bytes]], body: bytes = GOOD) -> bytes:
    http2.send(frame(HEADERS, END_HEADERS, stream, block(headers)) + frame(DATA, END_STREAM, stream, body))
    http2.read(until=stream)
    return http2.body(stream)


def test_http2_serves_a_good_request(attacked: Any, http2: Http2) -> None:
    """Else the tests below would show nothing."""
    assert b"chat.completion" in ask(http2, 1, fields(attacked))
    assert b"model_not_found" in ask(http2, 3, fields(attacked), b'{"model":"other"}')
    only_good_requests(attacked, 1)
    assert len(attacked.reached) == 1


def test_http2_rapid_reset(attacked: Any, http2: Http2) -> None:
    """Five thousand streams, each reset at once: no backend sees one, the connection goes, others are served."""
    served: list[int] = []
    stop = threading.Event()

    def others() -> None:
        while not stop.is_set():
            served.append(attacked.chat(attacked.acme.token()).status)

    client = threading.Thread(target=others)
    client.start()
    good = block(fields(attacked))
    alive = True
    for start in range(0, 5000, 50):
        batch = b"".join(
            frame(HEADERS, END_HEADERS, 2 * i + 1, good) + frame(RST_STREAM, 0, 2 * i + 1, b"\0\0\0\x08")
            for i in range(start, start + 50)
        )
        if not (alive := http2.send(batch)):
            break
    alive = alive and http2.read(2)
    stop.set()
    client.join(20)
    assert not alive
    assert served
    assert set(served) == {200}
    assert len(attacked.reached) == len(served)
    assert attacked.envoy.process.poll() is None


def test_http2_resets_in_the_midst_of_answers(attacked: Any, http2: Http2) -> None:
    """Whole requests whose streams are reset: the backend's work ends with each, and the next client is served."""
    attacked.backend.delay = 0.2
    body = json.dumps({**QUESTION, "stream": True}).encode()
    for i in range(20):
        http2.send(frame(HEADERS, END_HEADERS, 2 * i + 1, block(fields(attacked))))
        http2.send(frame(DATA, END_STREAM, 2 * i + 1, body))
    time.sleep(0.1)
    http2.send(b"".join(frame(RST_STREAM, 0, 2 * i + 1, b"\0\0\0\x08") for i in range(20)))
    assert attacked.backend.cancelled.wait(3)
    attacked.backend.delay = 0
    assert attacked.chat(attacked.acme.token()).status == 200


@pytest.mark.parametrize(
    "flood",
    [
        frame(PING, 0, 0, b"12345678"),
        frame(SETTINGS, 0, 0),
        frame(PRIORITY, 0, 1, b"\0\0\0\x00\x10"),
        frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\x01"),
        frame(DATA, 0, 1, b""),
    ],
    ids=["ping", "settings", "priority", "window update", "empty data"],
)
def test_http2_floods(attacked: Any, http2: Http2, flood: bytes) -> None:
    http2.send(frame(HEADERS, END_HEADERS, 1, block(fields(attacked))))
    for _ in range(100):
        if not http2.send(flood * 500):
            break
    http2.read(0.5)
    assert attacked.chat(attacked.acme.token()).status == 200
    assert len(attacked.reached) == 1
    assert attacked.envoy.process.poll() is None


def test_http2_headers_without_end(attacked: Any, http2: Http2) -> None:
    """CONTINUATION after CONTINUATION."""
    http2.send(frame(HEADERS, 0, 1, block(fields(attacked))))
    piece = frame(CONTINUATION, 0, 1, block([(b"x-a", b"b" * 8000)]))
    sent = 0
    while sent < 2000 and http2.send(piece):
        sent += 1
    assert not http2.read(2)
    assert attacked.reached == []
    assert attacked.chat(attacked.acme.token()).status == 200


ODD: Mapping[str, list[tuple[bytes, bytes]]] = {
    "transfer coding": [(b"transfer-encoding", b"chunked")],
    "connection": [(b"connection", b"close")],
    "upper case": [(b"X-Cube-Model", b"other")],
    "line end in a value": [(b"x-a", b"b\r\nx-cube-model: other")],
    "line end in a name": [(b"x-a: b\r\nx-cube-model", b"other")],
    "a request in a value": [(b"x-a", b"b\r\n\r\nPOST /v1/chat/completions HTTP/1.1\r\n\r\n")],
    "NUL in a value": [(b"x-a", b"b\0c")],
    "colon in a name": [(b"x:a", b"b")],
    "empty name": [(b"", b"b")],
    "second path": [(b":path", b"/v1/chat/completions")],
    "second method": [(b":method", b"GET")],
    "unknown pseudo-header": [(b":cube", b"x")],
    "status in a request": [(b":status", b"200")],
    "wrong length": [(b"content-length", b"5")],
    "two lengths": [(b"content-length", b"5"), (b"content-length", str(len(GOOD)).encode())],
    "length with a sign": [(b"content-length", b"+" + str(len(GOOD)).encode())],
    "another host": [(b"host", b"internal")],
    "te": [(b"te", b"trailers, chunked")],
    "protocol": [(b":protocol", b"websocket")],
}


@pytest.mark.parametrize("name", ODD)
def test_http2_odd_headers(attacked: Any, http2: Http2, name: str) -> None:
    """After the good ones: nothing of them reaches the backend as something else."""
    ask(http2, 1, fields(attacked) + ODD[name])
    only_good_requests(attacked, 1)
    for _, headers, _ in attacked.reached:
        assert not {"transfer-encoding", "x-a", ":cube", "te"} & set(headers)
        assert headers["host"] == "localhost"


@pytest.mark.parametrize(
    "changes",
    [
        {"__path": None},
        {"__method": None},
        {"__path": b""},
        {"__path": b"*"},
        {"__path": b"v1/chat/completions"},
        {"__path": b"/v1/chat/completions HTTP/1.1\r\nx-cube-model: other\r\n\r\n"},
        {"__method": b"POST /v1/chat/completions HTTP/1.1\r\n\r\n"},
        {"__method": b"CONNECT"},
        {"__method": b"post"},
        {"__authority": b"internal\r\nx-cube-model: other"},
        {"__authority": b"user@localhost"},
        {"authorization": None},
    ],
    ids=str,
)
def test_http2_odd_pseudo_headers(attacked: Any, http2: Http2, changes: dict[str, bytes | None]) -> None:
    assert b"chat.completion" not in ask(http2, 1, fields(attacked, **changes)) or "__authority" in changes
    only_good_requests(attacked, 1 if "__authority" in changes else 0)


def test_http2_trailers_say_nothing(attacked: Any, http2: Http2) -> None:
    trailers = [(b"x-cube-model", b"other"), (b"authorization", f"Bearer {attacked.beta.token()}".encode())]
    http2.send(frame(HEADERS, END_HEADERS, 1, block(fields(attacked))) + frame(DATA, 0, 1, GOOD))
    http2.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, block(trailers)))
    http2.read(until=1)
    only_good_requests(attacked, 1)


def test_http2_more_streams_than_allowed(attacked: Any, http2: Http2) -> None:
    """A hundred and twenty-eight at a time; those beyond are refused by themselves."""
    headers = block(fields(attacked))
    http2.send(b"".join(frame(HEADERS, END_HEADERS, 2 * i + 1, headers) for i in range(200)))
    http2.read(1)
    refused = {stream for kind, _, stream, _ in http2.frames if kind == RST_STREAM}
    gone = any(kind == GOAWAY for kind, _, _, _ in http2.frames)
    assert gone or len(refused) >= 72
    assert attacked.reached == []


def test_clear_text_and_old_tls_get_nothing(attacked: Any) -> None:
    port = attacked.envoy.service_port
    for sent in (head(attacked, FIRST + f"content-length: {len(GOOD)}\n") + GOOD, PREFACE + frame(SETTINGS, 0, 0)):
        with socket.create_connection(("127.0.0.1", port), timeout=2) as plain:
            plain.sendall(sent)
            with contextlib.suppress(TimeoutError, ConnectionError):
                assert b"HTTP/1.1 200" not in plain.recv(4096)
    old = ssl.create_default_context(cadata=attacked.envoy.certificate)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", port), timeout=2) as plain, pytest.raises(ssl.SSLError):
        old.wrap_socket(plain, server_hostname="localhost")
    assert attacked.reached == []
