# SPDX-License-Identifier: Apache-2.0
"""X.509 version 3 certificates (RFC 5280, section 4) as bytes and PEM."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, lru_cache
from typing import NamedTuple

from cube_attestation.errors import BadInput

from . import der, keys

MAX_BYTES = 32 << 10
MAX_COUNT = 24
MAX_EXTENSIONS = 48
MAX_ATTRIBUTES = 32
KEPT = 512

BASIC_CONSTRAINTS, KEY_USAGE, EXTENDED_KEY_USAGE = der.oid("2.5.29.19"), der.oid("2.5.29.15"), der.oid("2.5.29.37")
SUBJECT_KEY_ID, AUTHORITY_KEY_ID = der.oid("2.5.29.14"), der.oid("2.5.29.35")
CRL_POINTS, SUBJECT_ALT_NAME, POLICIES = der.oid("2.5.29.31"), der.oid("2.5.29.17"), der.oid("2.5.29.32")
COMMON_NAME = der.oid("2.5.4.3")

_ATTRIBUTES = {
    COMMON_NAME: "CN",
    der.oid("2.5.4.10"): "O",
    der.oid("2.5.4.11"): "OU",
    der.oid("2.5.4.6"): "C",
    der.oid("2.5.4.8"): "ST",
    der.oid("2.5.4.7"): "L",
    der.oid("2.5.4.5"): "serialNumber",
}
# RFC 7468, 2: explanatory text may stand around PEM blocks; zeros pad fixed-size buffers.
_EXPLANATORY = re.compile(rb"(?!-----BEGIN)[\t\n\r\x20-\x7e\x80-\xff]*\0*")
_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]{1,65536})-----END CERTIFICATE-----")


class Extension(NamedTuple):
    critical: bool
    value: bytes


@dataclass(frozen=True, eq=False)
class Certificate:
    """One certificate. Names, ``algorithm`` and ``spki`` are whole DER elements; extensions by OID contents."""

    der: bytes = field(repr=False)
    tbs: bytes = field(repr=False)
    serial: int
    algorithm: bytes = field(repr=False)
    issuer: bytes = field(repr=False)
    subject: bytes = field(repr=False)
    not_before: datetime
    not_after: datetime
    spki: bytes = field(repr=False)
    extensions: Mapping[bytes, Extension] = field(repr=False)
    signature: bytes = field(repr=False)

    @cached_property
    def digest(self) -> str:
        return "sha256:" + hashlib.sha256(self.der).hexdigest()

    @cached_property
    def spki_digest(self) -> str:
        return keys.spki_digest(self.spki)

    @cached_property
    def common_name(self) -> str:
        """The subject's last common name, or the empty string."""
        return next((value for kind, value in reversed(attributes(self.subject)) if kind == "CN"), "")

    @cached_property
    def name(self) -> str:
        """The subject for people."""
        return describe(self.subject) or f"serial {self.serial:x}"

    def value(self, oid: bytes) -> bytes | None:
        """An extension's bytes, or None."""
        found = self.extensions.get(oid)
        return None if found is None else found.value

    def basic_constraints(self) -> tuple[bool, int | None]:
        """Whether it is a CA and its path length. Raises BadInput."""
        value = self.value(BASIC_CONSTRAINTS)
        if value is None:
            return False, None
        outer = der.Cursor(value, "basic constraints")
        inner = outer.inner()
        outer.done()
        ca = inner.boolean() if inner.peek() == der.BOOLEAN else False
        length = inner.integer(2) if inner.more() else None
        inner.done()
        return ca, length

    def key_usage(self) -> int | None:
        """Key usage bits (0x80 digitalSignature … 0x04 keyCertSign, 0x02 cRLSign), or None. Raises BadInput."""
        value = self.value(KEY_USAGE)
        if value is None:
            return None
        cursor = der.Cursor(value, "key usage")
        bits = cursor.take(der.BIT_STRING)
        cursor.done()
        if not 2 <= len(bits) <= 3 or bits[0] > 7:
            raise BadInput("malformed", where="key usage")
        return bits[1]

    def extended_key_usage(self) -> tuple[str, ...] | None:
        """Dotted OIDs, or None without the extension. Raises BadInput."""
        value = self.value(EXTENDED_KEY_USAGE)
        if value is None:
            return None
        outer = der.Cursor(value, "extended key usage")
        inner = outer.inner()
        outer.done()
        found: list[str] = []
        while inner.more():
            found.append(der.dotted(inner.oid()))
        return tuple(found)

    def key_identifiers(self) -> tuple[bytes | None, bytes | None]:
        """The subject's and the issuer's key identifier, where named. Raises BadInput."""
        mine = theirs = None
        if (value := self.value(SUBJECT_KEY_ID)) is not None:
            mine = der.Cursor(value, "subject key identifier").take(der.OCTET_STRING)
        if (value := self.value(AUTHORITY_KEY_ID)) is not None:
            inner = der.Cursor(value, "authority key identifier").inner()
            theirs = inner.take(0x80) if inner.peek() == 0x80 else None
        return mine, theirs


@lru_cache(maxsize=KEPT)
def parse(data: bytes) -> Certificate:
    """One DER certificate and nothing after it. Raises BadInput. A pure function of bytes, so results are kept."""
    what = "certificate"
    if len(data) > MAX_BYTES:
        raise BadInput(f"larger than {MAX_BYTES >> 10} KiB", where=what)
    outer = der.Cursor(data, what)
    certificate = outer.inner()
    outer.done()
    tbs = certificate.whole(der.SEQUENCE)
    algorithm = certificate.whole(der.SEQUENCE)
    signature = certificate.bits()
    certificate.done()
    body = der.Cursor(tbs, what).inner()
    if body.peek() != 0xA0 or body.take(0xA0) != b"\x02\x01\x02":
        raise BadInput("not of version 3", where=what)
    serial = body.integer()
    if serial < 0:
        raise BadInput("a negative serial number", where=what)
    if body.whole(der.SEQUENCE) != algorithm:
        raise BadInput("two different signature algorithms", where=what)
    issuer = body.whole(der.SEQUENCE)
    validity = body.inner()
    not_before, not_after = validity.time(), validity.time()
    validity.done()
    subject = body.whole(der.SEQUENCE)
    attributes(issuer)
    attributes(subject)
    spki = body.whole(der.SEQUENCE)
    extensions = read_extensions(body.inner(0xA3), what) if body.more() else {}
    body.done()
    return Certificate(
        data,
        tbs,
        serial,
        algorithm,
        issuer,
        subject,
        not_before,
        not_after,
        spki,
        extensions,
        signature,
    )


def read_extensions(cursor: der.Cursor, what: str) -> dict[bytes, Extension]:
    """Extensions by OID contents; none may occur twice. Raises BadInput."""
    inner = cursor.inner()
    cursor.done()
    found: dict[bytes, Extension] = {}
    data = inner.data  # read without a cursor for each: this is most of a certificate
    while inner.more():
        start, end = inner.span(der.SEQUENCE)
        tag, oid_start, oid_end = der.header(data, start, end, what)
        oid = der.identifier(data[oid_start:oid_end] if tag == der.OID else b"", what)
        critical, at = False, oid_end
        if data[at : at + 1] == b"\x01" and at < end:
            _, flag_start, at = der.header(data, at, end, what)
            if data[flag_start:at] not in (b"\0", b"\xff"):
                raise BadInput("a boolean that is neither true nor false", where=what)
            critical = data[flag_start] != 0
        tag, value_start, value_end = der.header(data, at, end, what)
        if tag != der.OCTET_STRING or value_end != end:
            raise BadInput(f"a malformed extension at offset {start}", where=what)
        value = data[value_start:value_end]
        if oid in found:
            raise BadInput(f"extension {der.dotted(oid)} occurs twice", where=what)
        if len(found) >= MAX_EXTENSIONS:
            raise BadInput(f"more than {MAX_EXTENSIONS} extensions", where=what)
        found[oid] = Extension(critical, value)
    return found


def to_pem(certificates: Iterable[Certificate]) -> bytes:
    """A PEM block for each, in order."""
    blocks = (
        b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(one.der) + b"-----END CERTIFICATE-----\n"
        for one in certificates
    )
    return b"".join(blocks)


def load(data: bytes, *, where: str, padding: bool = False) -> tuple[Certificate, ...]:
    """PEM blocks with explanatory text around them, or one DER certificate.

    ``padding`` allows zero bytes after each certificate (fixed-size TPM indices). Raises BadInput.
    """
    if len(data) > MAX_COUNT * MAX_BYTES:
        raise BadInput("too large for certificates", where=where)
    try:
        return _load(data, padding)
    except BadInput as error:
        raise BadInput(f"{error.where}: {error.what}", where=where, todo=error.todo) from error


@lru_cache(maxsize=128)
def _load(data: bytes, padding: bool) -> tuple[Certificate, ...]:
    return tuple(parse(_trim(found) if padding else found) for found in _split(data))


def load_all(parts: Iterable[bytes], *, where: str) -> tuple[Certificate, ...]:
    """The different certificates of several PEM or DER inputs, at most MAX_COUNT. Raises BadInput."""
    found: dict[bytes, Certificate] = {}
    for i, part in enumerate(parts):
        for certificate in load(part, where=f"{where}[{i}]"):
            found.setdefault(certificate.der, certificate)
        if len(found) > MAX_COUNT:
            raise BadInput(f"more than {MAX_COUNT} certificates", where=where)
    return tuple(found.values())


def _split(data: bytes) -> list[bytes]:
    if data[:1] == b"\x30":
        return [data]
    found: list[bytes] = []
    at = 0
    while True:
        match = _BLOCK.search(data, at)
        gap = data[at : match.start() if match else len(data)]
        if not _EXPLANATORY.fullmatch(gap):
            raise BadInput("neither DER nor PEM", where="certificates")
        if match is None:
            break
        if len(found) >= MAX_COUNT:
            raise BadInput(f"more than {MAX_COUNT} certificates", where="certificates")
        try:
            found.append(base64.b64decode(b"".join(match.group(1).split()), validate=True))
        except binascii.Error as error:
            raise BadInput("PEM with broken base64", where="certificates") from error
        at = match.end()
    if not found:
        raise BadInput("no certificate in it", where="certificates")
    return found


def _trim(data: bytes) -> bytes:
    end = der.total(data, "certificate")
    if data[end:].strip(b"\0"):
        raise BadInput("bytes other than zeros after the end", where="certificate")
    return data[:end]


@lru_cache(maxsize=1024)
def attributes(name: bytes) -> tuple[tuple[str, str], ...]:
    """(type, value) of a Name's attributes in order: for people and for well-known names. Raises BadInput."""
    outer = der.Cursor(name, "name").inner()
    found: list[tuple[str, str]] = []
    while outer.more():
        if len(found) > MAX_ATTRIBUTES:
            raise BadInput(f"more than {MAX_ATTRIBUTES} attributes", where="name")
        rdn = outer.inner(der.SET)
        while rdn.more():
            start, end = rdn.span(der.SEQUENCE)
            kind, oid_start, oid_end = der.header(name, start, end, "name")
            oid = der.identifier(name[oid_start:oid_end] if kind == der.OID else b"", "name")
            tag, text_start, text_end = der.header(name, oid_end, end, "name")
            if text_end != end:
                raise BadInput(f"a malformed attribute at offset {start}", where="name")
            raw = name[text_start:text_end]
            text = raw.decode("utf-16-be" if tag == der.BMP else "utf-8", "replace")
            if not text.isprintable():
                text = "".join(c if c.isprintable() else "?" for c in text)
            found.append((_ATTRIBUTES.get(oid) or der.dotted(oid), text))
    return tuple(found)


@lru_cache(maxsize=1024)
def describe(name: bytes) -> str:
    """A Name for people, at most 160 characters."""
    pairs = attributes(name)
    wanted = [f"{kind}={value}" for kind, value in reversed(pairs) if kind in ("CN", "O")]
    return (", ".join(wanted) or ", ".join(f"{kind}={value}" for kind, value in pairs))[:160]
