# SPDX-License-Identifier: Apache-2.0
"""Distinguished Encoding Rules (ITU-T X.690), the part that certificates need: strict, bounded, no copies."""

from __future__ import annotations

from datetime import UTC, datetime

from cube_attestation.errors import BadInput

BOOLEAN, INTEGER, BIT_STRING, OCTET_STRING, NULL, OID = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06
UTF8, PRINTABLE, TELETEX, IA5, UTC_TIME, GENERALIZED_TIME, BMP = 0x0C, 0x13, 0x14, 0x16, 0x17, 0x18, 0x1E
SEQUENCE, SET = 0x30, 0x31


def header(data: bytes, at: int, end: int, what: str) -> tuple[int, int, int]:
    """Tag, start and end of the contents of the element at ``at``. Raises BadInput.

    Definite lengths in their shortest form and one-byte tags only; the element may not reach beyond ``end``.
    """
    start = at + 2
    if start > end:
        raise BadInput(f"ends at offset {at}, in the middle of an element", where=what)
    tag, length = data[at], data[at + 1]
    if length < 0x80 and length <= end - start and tag & 0x1F != 0x1F:
        return tag, start, start + length  # nearly always
    if tag & 0x1F == 0x1F:
        raise BadInput(f"a tag of several bytes at offset {at}", where=what)
    if length >= 0x80:
        count = length & 0x7F
        if not 1 <= count <= 4 or end - start < count:
            raise BadInput(f"a bad length at offset {at}", where=what)
        length = int.from_bytes(data[start : start + count], "big")
        if length < 0x80 or data[start] == 0:
            raise BadInput(f"a length that is not in its shortest form at offset {at}", where=what)
        start += count
    if length > end - start:
        raise BadInput(f"an element at offset {at} reaches beyond its container", where=what)
    return tag, start, start + length


def total(data: bytes, what: str) -> int:
    """How many bytes the first element of ``data`` takes. Raises BadInput."""
    return header(data, 0, len(data), what)[2]


class Cursor:
    """Takes elements one after the other between ``at`` and ``end`` of ``data``."""

    __slots__ = ("at", "data", "end", "what")

    def __init__(self, data: bytes, what: str, at: int = 0, end: int | None = None) -> None:
        self.data = data
        self.what = what
        self.at = at
        self.end = len(data) if end is None else end

    def more(self) -> bool:
        return self.at < self.end

    def peek(self) -> int:
        """The next tag, or -1 at the end."""
        return self.data[self.at] if self.at < self.end else -1

    def take(self, tag: int) -> bytes:
        """The contents of the next element, which must have ``tag``."""
        start, end = self.span(tag)
        return self.data[start:end]

    def inner(self, tag: int = SEQUENCE) -> Cursor:
        """A cursor over the contents of the next element, which must have ``tag``."""
        start, end = self.span(tag)
        return Cursor(self.data, self.what, start, end)

    def whole(self, tag: int) -> bytes:
        """The next element with its header; it must have ``tag``."""
        start = self.at
        self.span(tag)
        return self.data[start : self.at]

    def span(self, tag: int) -> tuple[int, int]:
        """Start and end of the contents of the next element, which must have ``tag``."""
        data, start = self.data, self.at + 2
        if start <= self.end and data[start - 2] == tag and data[start - 1] < 0x80:
            end = start + data[start - 1]
            if end <= self.end:  # nearly always: a short element that is all there
                self.at = end
                return start, end
        found, start, end = header(self.data, self.at, self.end, self.what)
        if found != tag:
            raise BadInput(f"tag 0x{found:02x} at offset {self.at}, expected 0x{tag:02x}", where=self.what)
        self.at = end
        return start, end

    def integer(self, limit: int = 21) -> int:
        """A signed INTEGER of at most ``limit`` bytes in its shortest form."""
        return integer(self.take(INTEGER), self.what, limit)

    def boolean(self) -> bool:
        value = self.take(BOOLEAN)
        if value not in (b"\x00", b"\xff"):
            raise BadInput("a boolean that is neither true nor false", where=self.what)
        return value == b"\xff"

    def oid(self) -> bytes:
        """An OBJECT IDENTIFIER's contents: numbers that end and are in their shortest form."""
        return identifier(self.take(OID), self.what)

    def bits(self) -> bytes:
        """A BIT STRING of whole bytes."""
        value = self.take(BIT_STRING)
        if not value or value[0] != 0:
            raise BadInput("a bit string that is not made of whole bytes", where=self.what)
        return value[1:]

    def time(self) -> datetime:
        """Time (RFC 5280, 4.1.2.5): UTCTime or GeneralizedTime in UTC with whole seconds."""
        tag = self.peek()
        text = self.take(tag) if tag == UTC_TIME else self.take(GENERALIZED_TIME)
        digits = text[:-1]
        if text[-1:] != b"Z" or not digits.isdigit() or len(digits) != (12 if tag == UTC_TIME else 14):
            raise BadInput("a malformed time", where=self.what)
        if tag == UTC_TIME:
            digits = (b"20" if digits < b"50" else b"19") + digits
        number = int(digits)
        day, clock = divmod(number, 1_000_000)
        try:
            return datetime(
                day // 10_000,
                day // 100 % 100,
                day % 100,
                clock // 10_000,
                clock // 100 % 100,
                clock % 100,
                tzinfo=UTC,
            )
        except ValueError as error:
            raise BadInput(f"a malformed time: {error}", where=self.what) from error

    def done(self) -> None:
        if self.at != self.end:
            raise BadInput(f"{self.end - self.at} bytes too many at offset {self.at}", where=self.what)


def identifier(value: bytes, what: str) -> bytes:
    """``value``, if it can be an OBJECT IDENTIFIER's contents. Raises BadInput."""
    if not value or value[-1] >= 0x80 or (0x80 in value and _padded(value)):
        raise BadInput("a malformed object identifier", where=what)
    return value


def _padded(oid: bytes) -> bool:
    """Whether a number begins with a septet of zeros."""
    return any(byte == 0x80 and (i == 0 or oid[i - 1] < 0x80) for i, byte in enumerate(oid))


def integer(value: bytes, what: str, limit: int = 21) -> int:
    """The number of an INTEGER's contents. Raises BadInput."""
    if not 1 <= len(value) <= limit:
        raise BadInput(f"an integer of {len(value)} bytes", where=what)
    if len(value) > 1 and ((value[0] == 0 and value[1] < 0x80) or (value[0] == 0xFF and value[1] >= 0x80)):
        raise BadInput("an integer that is not in its shortest form", where=what)
    return int.from_bytes(value, "big", signed=True)


def oid(dotted: str) -> bytes:
    """The contents of an OBJECT IDENTIFIER."""
    first, second, *rest = (int(part) for part in dotted.split("."))
    out = bytearray()
    for number in (40 * first + second, *rest):
        septets = [number & 0x7F]
        while number := number >> 7:
            septets.append(0x80 | number & 0x7F)
        out += bytes(reversed(septets))
    return bytes(out)


def dotted(value: bytes) -> str:
    """An OBJECT IDENTIFIER's contents for people."""
    numbers = [0]
    for byte in value[:64]:
        numbers[-1] = numbers[-1] << 7 | byte & 0x7F
        if byte < 0x80:
            numbers.append(0)
    first, *rest = numbers[:-1] or [0]
    top = min(first // 40, 2)
    return ".".join(map(str, (top, first - 40 * top, *rest)))


def unsigned(magnitude: bytes) -> bytes:
    """An INTEGER of a big-endian number that is not negative."""
    body = magnitude.lstrip(b"\0") or b"\0"
    return encode(INTEGER, b"\0" + body if body[0] & 0x80 else body)


def encode(tag: int, *contents: bytes) -> bytes:
    """One element."""
    body = b"".join(contents)
    size = len(body)
    if size < 0x80:
        return bytes((tag, size)) + body
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + body
