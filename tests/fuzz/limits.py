# SPDX-License-Identifier: Apache-2.0
"""What one input may cost, and how that is measured: no other error, 100 ms of CPU, 50 MB beyond what was there."""

from __future__ import annotations

import os
import resource
import struct
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from targets import Target

CPU_SECONDS = 0.1
EXTRA_BYTES = 50 << 20
MAX_INPUT = 1 << 20  # the limits are for inputs up to this size


@dataclass(frozen=True)
class Cost:
    """CPU seconds and bytes of one input in a process of its own; ``error``: what escaped, else empty."""

    seconds: float
    extra: int
    error: str = ""

    @property
    def problem(self) -> str:
        """Empty where the input keeps within the limits."""
        if self.error:
            return self.error
        if self.seconds > CPU_SECONDS:
            return f"{1000 * self.seconds:.0f} ms of CPU"
        return f"{self.extra >> 20} MB extra" if self.extra > EXTRA_BYTES else ""


def run(target: Target, data: bytes) -> str:
    """Run ``data``; empty, or the escaped exception's name and innermost line (what findings are told apart by)."""
    try:
        target.run(data)
    except target.expected:
        return ""
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        last = next((f for f in reversed(frames) if "cube_" in f.filename), frames[-1])
        return f"{type(error).__name__} at {Path(last.filename).name}:{last.name}"
    return ""


def measure(target: Target, data: bytes, warm: Sequence[bytes] = (b"",)) -> Cost:
    """The cost of ``data`` in a forked child, after ``warm`` inputs have loaded what is loaded once.

    A first measurement over the CPU limit is repeated: the least of three counts, since what lies above it is the
    machine's doing.
    """
    first = _forked(target, data, warm)
    if first.error or first.seconds <= CPU_SECONDS:
        return first
    more = [_forked(target, data, warm) for _ in range(2)]
    return min((first, *more), key=lambda cost: cost.seconds)


def _forked(target: Target, data: bytes, warm: Sequence[bytes]) -> Cost:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for one in (other for other in warm if other != data):
                run(target, one)
            before, start = _peak(), time.process_time()
            error = run(target, data)
            spent, extra = time.process_time() - start, _peak() - before
            os.write(write, struct.pack("<dq", spent, extra) + error.encode()[:4000])
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    if status or len(told) < 16:
        return Cost(0.0, 0, f"the process ended with status {status}")
    spent, extra = struct.unpack_from("<dq", told)
    return Cost(spent, max(0, extra), told[16:].decode())


def _peak() -> int:
    """The most that this process ever held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def stress(seeds: Iterable[bytes], limit: int = MAX_INPUT) -> Iterator[bytes]:
    """Inputs of ``limit`` bytes that a fuzzer seldom reaches: repetition, nesting, and each seed blown up.

    A seed is repeated as a whole, and stretched by repeating its middle third, so that lists and counts inside grow
    while beginning and end stay.
    """
    for unit in _UNITS:
        yield (unit * (limit // len(unit) + 1))[:limit]
    for opening, closing in _NESTED:
        times = limit // (len(opening) + len(closing))
        yield opening * times + closing * times
    for head, unit, tail in _LISTS:
        yield head + unit * ((limit - len(head) - len(tail)) // len(unit)) + tail
    for seed in seeds:
        if seed:
            yield (seed * (limit // len(seed) + 1))[:limit]
            third = len(seed) // 3
            middle = seed[third : 2 * third] or b"\0"
            room = max(0, limit - len(seed) + len(middle))
            yield seed[:third] + (middle * (room // len(middle) + 1))[:room] + seed[2 * third :]


_UNITS = (
    b"\0", b"\xff", b"0", b"A", b" ", b"\n", b"[", b'{"a":', b"<a>", b"&a;", b"\x30\x80", b"\x30\x82\xff\xff",
    b"-", b"-----BEGIN CERTIFICATE-----\n", b"a: >\n", b"\x0a\x02\x0a\x00", b"eyJ.", b"%41", b"\x1e{}\n", b"a=1\n",
    b"[a]\n", "\u00e9".encode(), b"\\u0041", b"a:\n ", b"- a\n", b"a.", b"=",
)  # fmt: skip
_NESTED = (
    (b"[", b"]"),
    (b'{"a":', b"}"),
    (b"<a>", b"</a>"),
    (b"\x30\x80", b"\0\0"),
    (b'"[', b']"'),
    (b"a=[", b"]"),
)
_LISTS = (
    (b"[", b"0,", b"0]"),
    (b"[", b"[],", b"0]"),
    (b"[", b"{},", b"0]"),
    (b"[", b'{"a":0},', b"0]"),
    (b'["', b"0", b'"]'),
    (b'["', b"\\n", b'"]'),
    (b'{"a":[', b'"",', b'""]}'),
    (b'{"keys":[', b'{"kty":"EC"},', b"{}]}"),
    (b'{"version":1,"a":"', b"A", b'"}'),
    (b'[["JWT","', b"A.", b'"],{}]'),
    (b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><a>', b"&b;", b"</a>"),
    (b'<SoftwareIdentity xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd">', b"<Payload/>",
     b"</SoftwareIdentity>"),
    (b"<SoftwareIdentity ", b'a="" ', b"/>"),
    (b"a: |\n", b"  b\n", b""),
    (b"", b"a: b\n", b""),
    (b"a = [", b"0,", b"]"),
    (b'a = """', b"0", b'"""'),
    (b"", b"-----BEGIN X-----\n-----END X-----\n", b""),
    (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n", b"\r\n"),
    (b"GET / HTTP/1.1\r\n", b"A: b\r\n", b"\r\n\r\n"),
    (b"GET /", b"a", b" HTTP/1.1\r\n\r\n"),
    (b"GET / HTTP/1.1\r\na:", b" ", b"b\r\n\r\n"),
)  # fmt: skip
