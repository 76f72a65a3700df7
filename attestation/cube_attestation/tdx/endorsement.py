# SPDX-License-Identifier: Apache-2.0
"""Google's signed launch endorsement: which MRTD values a release of GCE's firmware for TDX has.

google/gce-tcb-verifier, proto/endorsement.proto: VMLaunchEndorsement {1: serialized VMGoldenMeasurement,
2: signature}, signed by RSASSA-PSS with SHA-256 under the certificate that the golden measurement carries. That
certificate must chain to a root that the policy names by SPKI digest; the file's own roots are bytes, never trust.
Google publishes no revocation lists for these.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from cube_attestation.errors import BadInput
from cube_attestation.x509 import certificate, keys, path

from .chains import Problem

MEDIA_TYPE = "application/vnd.cube.gce-launch-endorsement"
MAX_BYTES = 256 << 10
MAX_MEASUREMENTS = 4096

_WHERE = "launch endorsement"
_PSS_SHA256 = next(name for name, scheme in keys.ALGORITHMS.items() if scheme == ("rsapss", "sha256"))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Measurement(NamedTuple):
    """One legal configuration: GiB of memory, whether the firmware accepts all of it early, and its MRTD."""

    ram_gib: int
    early_accept: bool
    mr_td: bytes


@dataclass(frozen=True)
class Endorsement:
    """What is signed about one firmware build. ``digest`` is the SHA-384 of the UEFI binary."""

    signed: bytes
    signature: bytes
    signer: bytes  # DER
    issuers: bytes  # PEM
    built: datetime | None
    digest: bytes
    svn: int
    measurements: tuple[Measurement, ...]

    def endorses(self, mr_td: bytes) -> Measurement | None:
        return next((one for one in self.measurements if one.mr_td == mr_td), None)


def parse(data: bytes) -> Endorsement:
    """Read a ``.binarypb`` (VMLaunchEndorsement). Raises BadInput; unknown fields are skipped, as protobuf does."""
    if len(data) > MAX_BYTES:
        raise BadInput(f"larger than {MAX_BYTES >> 10} KiB", where=_WHERE)
    outer = _message(data, {1: bytes, 2: bytes})
    signed, signature = _one(outer, 1), _one(outer, 2)
    golden = _message(signed, {1: bytes, 4: bytes, 5: bytes, 6: bytes, 8: bytes})
    digest = _one(golden, 5)
    if len(digest) != 48:
        raise BadInput(f"a firmware digest of {len(digest)} bytes, not 48", where=_WHERE)
    tdx = _message(_one(golden, 8), {1: int, 2: bytes})
    measurements = tuple(_measurement(value) for value in tdx.get(2, []) if isinstance(value, bytes))
    if len(measurements) > MAX_MEASUREMENTS:
        raise BadInput(f"more than {MAX_MEASUREMENTS} measurements", where=_WHERE)
    return Endorsement(
        signed=signed,
        signature=signature,
        signer=_one(golden, 4),
        issuers=_one(golden, 6) if 6 in golden else b"",
        built=_timestamp(_one(golden, 1)) if 1 in golden else None,
        digest=digest,
        svn=_number(tdx, 1),
        measurements=measurements,
    )


def verify(found: Endorsement, roots: Collection[str], now: datetime) -> Problem | None:
    """Check signature and chain at ``now``. ``roots`` are SPKI digests that the policy names.

    The outcome's ``why`` is the last part of ``tdx.endorsement.<why>``; None: it holds.
    """
    where = "launch endorsement's certificates"
    try:
        (signer,) = certificate.load(found.signer, where=where)
        issuers = certificate.load(found.issuers, where=where) if found.issuers else ()
    except (BadInput, ValueError) as error:
        return Problem("malformed", str(error))
    chain = path.find(signer, issuers, roots, now)
    if chain.problem:
        known = ("untrusted_root", "expired", "not_yet_valid")
        return Problem(chain.problem if chain.problem in known else "invalid", chain.words)
    if not keys.verify(signer.spki, _PSS_SHA256, found.signed, found.signature):
        return Problem("signature_invalid", f"the endorsement is not signed by {signer.name}")
    return None


# Protobuf (encoding of proto3): varints and length-delimited fields; groups are refused, fixed sizes skipped


def _message(data: bytes, wanted: dict[int, type]) -> dict[int, list[int | bytes]]:
    found: dict[int, list[int | bytes]] = {}
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        value: int | bytes
        if wire == 0:
            value, at = _varint(data, at)
        elif wire in (1, 2, 5):
            size = {1: 8, 5: 4}.get(wire, 0)
            if wire == 2:
                size, at = _varint(data, at)
            value = data[at : at + size]
            if len(value) != size:
                raise BadInput("ends in the middle of a field", where=_WHERE)
            at += size
        else:
            raise BadInput(f"wire type {wire} at offset {at}", where=_WHERE)
        if number in wanted:
            if not isinstance(value, wanted[number]) or wire in (1, 5):
                raise BadInput(f"field {number} has wire type {wire}", where=_WHERE)
            found.setdefault(number, []).append(value)
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, at
    raise BadInput(f"a number that does not end at offset {at}", where=_WHERE)


def _one(message: dict[int, list[int | bytes]], number: int) -> bytes:
    """A field that must occur exactly once: protobuf takes the last of several, signers never write several."""
    values = message.get(number, [])
    if len(values) != 1 or not isinstance(values[0], bytes):
        raise BadInput(f"field {number} occurs {len(values)} times, not once", where=_WHERE)
    return values[0]


def _number(message: dict[int, list[int | bytes]], number: int) -> int:
    values = message.get(number, [0])
    if len(values) != 1 or not isinstance(values[0], int):
        raise BadInput(f"field {number} occurs {len(values)} times, not once", where=_WHERE)
    return values[0]


def _measurement(data: bytes) -> Measurement:
    message = _message(data, {1: int, 2: int, 3: bytes})
    mr_td = _one(message, 3)
    if len(mr_td) != 48:
        raise BadInput(f"an MRTD of {len(mr_td)} bytes, not 48", where=_WHERE)
    return Measurement(_number(message, 1), bool(_number(message, 2)), mr_td)


def _timestamp(data: bytes) -> datetime:
    """google.protobuf.Timestamp: seconds since 1970; the nanoseconds don't matter here."""
    seconds = _number(_message(data, {1: int}), 1)
    if seconds > 253402300799:
        raise BadInput("a time after the year 9999", where=_WHERE)
    return _EPOCH + timedelta(seconds=seconds)
