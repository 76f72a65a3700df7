# SPDX-License-Identifier: Apache-2.0
"""Certificate revocation lists (RFC 5280, section 5), complete ones only."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache

from cube_attestation.errors import BadInput

from . import der
from .certificate import read_extensions

MAX_BYTES = 512 << 10
MAX_ENTRIES = 16384
MAX_LISTS = 8

_PEM = re.compile(rb"\s*-----BEGIN X509 CRL-----([A-Za-z0-9+/=\s]+)-----END X509 CRL-----\s*")


@dataclass(frozen=True, eq=False)
class Crl:
    """A complete list of one issuer. ``issuer`` and ``algorithm`` are whole DER elements."""

    tbs: bytes = field(repr=False)
    issuer: bytes = field(repr=False)
    algorithm: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    this_update: datetime
    next_update: datetime
    revoked: frozenset[int]
    digest: str


def load_all(data: bytes, *, where: str) -> tuple[Crl, ...]:
    """One DER list, or PEM lists one after the other (at most MAX_LISTS). Raises BadInput."""
    end = b"-----END X509 CRL-----"
    parts = [data] if data[:1] == b"\x30" else [part + end for part in data.split(end)[:-1]]
    if not parts or len(parts) > MAX_LISTS or (data[:1] != b"\x30" and data.rpartition(end)[2].strip()):
        raise BadInput(f"not 1 to {MAX_LISTS} revocation lists", where=where)
    return tuple(load(part, where=f"{where}[{i}]") for i, part in enumerate(parts))


def load(data: bytes, *, where: str) -> Crl:
    """A list in DER or PEM. Raises BadInput, also for deltas, partial, indirect and endless lists."""
    if len(data) > 2 * MAX_BYTES:
        raise BadInput(f"larger than {MAX_BYTES >> 10} KiB", where=where)
    if (match := _PEM.fullmatch(data)) is not None:
        try:
            data = base64.b64decode(b"".join(match.group(1).split()), validate=True)
        except binascii.Error as error:
            raise BadInput("PEM with broken base64", where=where) from error
    try:
        return parse(data)
    except BadInput as error:
        raise BadInput(f"{error.where}: {error.what}", where=where, todo=error.todo) from error


@lru_cache(maxsize=16)
def parse(data: bytes) -> Crl:
    """One DER CertificateList and nothing after it. Raises BadInput."""
    what = "CRL"
    if len(data) > MAX_BYTES:
        raise BadInput(f"larger than {MAX_BYTES >> 10} KiB", where=what)
    outer = der.Cursor(data, what)
    whole = outer.inner()
    outer.done()
    tbs = whole.whole(der.SEQUENCE)
    algorithm = whole.whole(der.SEQUENCE)
    signature = whole.bits()
    whole.done()
    body = der.Cursor(tbs, what).inner()
    if body.integer(1) != 1:
        raise BadInput("not of version 2", where=what)
    if body.whole(der.SEQUENCE) != algorithm:
        raise BadInput("two different signature algorithms", where=what)
    issuer = body.whole(der.SEQUENCE)
    this_update = body.time()
    if body.peek() not in (der.UTC_TIME, der.GENERALIZED_TIME):
        raise BadInput("names no next update", where=what)
    next_update = body.time()
    revoked = _entries(body.inner(), what) if body.peek() == der.SEQUENCE else frozenset()
    if body.more():
        for oid, extension in read_extensions(body.inner(0xA0), what).items():
            if extension.critical:
                raise BadInput(f"has the critical extension {der.dotted(oid)}, so it is not complete", where=what)
    body.done()
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    return Crl(tbs, issuer, algorithm, signature, this_update, next_update, revoked, digest)


_UTC_TIME = b"\x17\x0d"  # with 13 bytes, the only length that it may have


def _entries(cursor: der.Cursor, what: str) -> frozenset[int]:
    """Serial numbers of revokedCertificates. Lists may be long, so the usual entry is read without any call."""
    data, at, end = cursor.data, cursor.at, cursor.end
    found: set[int] = set()
    checked: set[bytes] = set()  # most entries carry the same extensions
    count = 0
    while at < end:
        count += 1
        if count > MAX_ENTRIES:
            raise BadInput(f"more than {MAX_ENTRIES} entries", where=what)
        number_start = at + 4
        size, length = data[at + 1 : number_start : 2] if number_start <= end else (0x80, 0)
        stop, number_end = at + 2 + size, number_start + length
        moment_start, moment_end = number_end + 2, number_end + 15
        usual = size < 0x80 and moment_end <= stop <= end and data[at] == der.SEQUENCE
        if not (usual and data[at + 2] == der.INTEGER and data[number_end:moment_start] == _UTC_TIME):
            tag, start, stop = der.header(data, at, end, what)
            number, number_start, number_end = der.header(data, start, stop, what)
            moment, moment_start, moment_end = der.header(data, number_end, stop, what)
            if tag != der.SEQUENCE or number != der.INTEGER or moment not in (der.UTC_TIME, der.GENERALIZED_TIME):
                raise BadInput(f"a malformed entry at offset {at}", where=what)
        if data[moment_end - 1 : moment_end] != b"Z" or not data[moment_start : moment_end - 1].isdigit():
            raise BadInput(f"an entry with a malformed time at offset {at}", where=what)
        found.add(der.integer(data[number_start:number_end], what))
        extensions = data[moment_end:stop]
        if extensions and extensions not in checked:
            _entry_extensions(extensions, what)
            checked.add(extensions)
        at = stop
    return frozenset(found)


def _entry_extensions(data: bytes, what: str) -> None:
    """Refuse what changes an entry's meaning, like the certificate issuer of an indirect list."""
    for oid, extension in read_extensions(der.Cursor(data, what), what).items():
        if extension.critical:
            raise BadInput(f"an entry has the critical extension {der.dotted(oid)}", where=what)
