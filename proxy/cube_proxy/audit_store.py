# SPDX-License-Identifier: Apache-2.0
"""Where records are kept: files of whole lines, in one folder for each boot and chain, within a bounded room.

A record stands once ``append`` returns: the kernel has it, so it outlives this process. When the room is used up
the chain that takes most of it gives up its oldest records: nobody's flood removes another's.
"""

from __future__ import annotations

import heapq
import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cube_attestation.audit import record as records
from cube_attestation.audit.record import Before
from cube_attestation.errors import BadInput

ROOM_BYTES = 32 << 20
_BLOCK = 4096
_TIME = b'"time":"'
_SUFFIX = ".jsonl"


@dataclass
class _Segment:
    """One file; ``time`` is that of its first record."""

    path: Path
    first: int
    time: bytes
    size: int = 0
    count: int = 0

    def room(self) -> int:
        return -(-self.size // _BLOCK) * _BLOCK


@dataclass
class _Files:
    segments: list[_Segment] = field(default_factory=list)
    room: int = 0


def line_time(line: bytes) -> bytes:
    """The ``time`` of a record's line; quotes inside values are escaped, so the name occurs once."""
    start = line.index(_TIME) + len(_TIME)
    return line[start : start + 20]


class Store:
    """Records of one boot. Raises OSError when a record can't be written; nothing half-written stays then."""

    def __init__(self, folder: Path, boot: str, room_bytes: int = ROOM_BYTES) -> None:
        self._folder = folder / boot
        self._limit = room_bytes
        self._segment_bytes = max(room_bytes // 64, 16 << 10)
        self._chains: dict[str, _Files] = {}
        self.room = 0
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.before = _keep_newest(folder, boot)

    def append(self, chain: str, first: int, lines: list[bytes]) -> None:
        """Add ``lines`` (without line feeds), of which the first has the number ``first``."""
        files = self._chains.setdefault(chain, _Files())
        if not files.segments or files.segments[-1].size >= self._segment_bytes:
            self._begin(chain, files, first, line_time(lines[0]))
        segment = files.segments[-1]
        data = b"\n".join([*lines, b""])
        before = segment.room()
        _write(segment.path, data, segment.size)
        segment.size += len(data)
        segment.count += len(lines)
        more = segment.room() - before
        files.room += more
        self.room += more
        if self.room > self._limit:
            self._make_room()

    def _begin(self, chain: str, files: _Files, first: int, time: bytes) -> None:
        folder = self._folder / chain
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        files.segments.append(_Segment(folder / f"{first:012d}{_SUFFIX}", first, time))

    def _make_room(self) -> None:
        """Give up an eighth at once: with many chains each look for the largest one costs."""
        largest = [(-files.room, chain) for chain, files in self._chains.items() if files.segments]
        heapq.heapify(largest)
        while largest and self.room > self._limit - self._limit // 8:
            _, chain = heapq.heappop(largest)
            files = self._chains[chain]
            oldest = files.segments.pop(0)
            oldest.path.unlink(missing_ok=True)
            files.room -= oldest.room()
            self.room -= oldest.room()
            if files.segments:
                heapq.heappush(largest, (-files.room, chain))

    def read(self, chain: str, first: int, since: bytes, until: bytes, limit: int) -> list[bytes]:
        """At most ``limit`` lines from number ``first`` on whose time is in [``since``, ``until``) (b"": open)."""
        files = self._chains.get(chain)
        if files is None or not files.segments:
            return []
        place = max(bisect_right([segment.first for segment in files.segments], first) - 1, 0)
        if since:
            # equal times may begin in the segment before
            earlier = sum(segment.time < since for segment in files.segments)
            place = max(place, earlier - 1)
        found: list[bytes] = []
        for number, line in self._lines(files.segments[place:]):
            time = line_time(line)
            if until and time >= until:
                break
            if number >= first and time >= since:
                found.append(line)
                if len(found) == limit:
                    break
        return found

    def _lines(self, segments: list[_Segment]) -> Iterator[tuple[int, bytes]]:
        for segment in segments:
            with segment.path.open("rb") as file:
                for place in range(segment.count):
                    yield segment.first + place, file.readline().rstrip(b"\n")


def _write(path: Path, data: bytes, size: int) -> None:
    """Append ``data`` to the file of ``size`` bytes, whole or not at all."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(descriptor, view) :]
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def _keep_newest(folder: Path, boot: str) -> dict[str, Before]:
    """Last records, by chain, of the newest earlier boot of which records are here; older ones go."""
    boots = [entry for entry in folder.iterdir() if entry.name != boot and records.BOOT.fullmatch(entry.name)]
    boots.sort(key=lambda entry: entry.stat().st_mtime_ns)
    if boots[1:]:
        import shutil  # not in a boot that has one life

        for old in boots[:-1]:
            shutil.rmtree(old)
    found: dict[str, Before] = {}
    for chain in boots[-1].iterdir() if boots else ():
        segments = sorted(chain.glob(f"*{_SUFFIX}"))
        if not segments:
            continue
        *_, last = segments[-1].read_bytes().rstrip(b"\n").split(b"\n")
        try:
            record = records.parse(last)
        except BadInput:
            continue  # torn or foreign: the genesis then names no predecessor, which an auditor sees
        found[chain.name] = Before(record.boot, record.seq, record.digest)
    return found
