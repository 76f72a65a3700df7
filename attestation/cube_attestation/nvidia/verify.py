# SPDX-License-Identifier: Apache-2.0
"""Is a device's report authentic? Certificate chain to NVIDIA's root, firmware identity, signature, nonce."""

from __future__ import annotations

import hmac
import re
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from cube_attestation.errors import BadInput, NotAuthentic
from cube_attestation.verdict import Reason
from cube_attestation.x509 import certificate as x509
from cube_attestation.x509 import der

from . import abi, chains

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

# DICE TcbInfo as Hopper writes it, and as Blackwell does
FWID_OIDS = ("2.23.133.5.4.1", "2.23.133.5.4.1.1")
MAX_FWID_EXTENSION = 4 << 10
DIGITAL_SIGNATURE = 0x80  # of the key usage
CHAIN_CODES = {
    "missing": "nvidia.chain.missing",
    "untrusted_root": "nvidia.chain.untrusted_root",
    "signature_invalid": "nvidia.chain.signature_invalid",
    "expired": "nvidia.chain.expired",
    "not_yet_valid": "nvidia.chain.not_yet_valid",
    "constraints": "nvidia.chain.constraints",
    "weak": "nvidia.chain.weak",
}
_SHA384 = bytes.fromhex("608648016503040202")
_CHIP = re.compile(r"([A-Z]{1,4}_?[0-9A-Z]{2,6}) ")


class Leaf(NamedTuple):
    """A verified device chain and what it says, valid between the two times.

    ``pdi``: the device's identifier, from the serial number of the boot ROM's certificate; ``serial``: the leaf's;
    ``identity``: digest of the boot ROM's key, which stays when firmware starts anew and the leaf changes.
    """

    path: chains.Path
    key: ec.EllipticCurvePublicKey
    chip: str
    serial: str
    pdi: bytes
    identity: str
    fwids: frozenset[bytes]

    @property
    def is_switch(self) -> bool:
        return self.chip.startswith("LS")

    @property
    def not_before(self) -> datetime:
        return self.path.not_before

    @property
    def not_after(self) -> datetime:
        return self.path.not_after


class Device(NamedTuple):
    """One device: its parsed report, its chain if that holds, and what keeps the whole from being authentic."""

    report: abi.Report
    leaf: Leaf | None
    reasons: tuple[Reason, ...]

    @property
    def chip(self) -> str:
        """``GH100``, ``GB100``, ``LS10``: the signed chip field, else the certified name."""
        named = self.report.text(abi.CHIP_INFO)
        return (named or (self.leaf.chip if self.leaf else "")).replace("_", "").upper()


_kept: chains.Verified[Leaf] = chains.Verified()


def verify(
    evidence: abi.Evidence,
    anchors: frozenset[str],
    now: datetime,
    *,
    nonce: bytes | None = None,
    fwid_required: bool = True,
) -> Device:
    """Check one device at ``now``. ``nonce``: the 32 bytes that the request must carry, None to leave them alone.

    Raises BadInput for bytes that are no report or no certificates; everything else becomes reasons.
    """
    report = abi.parse_report(evidence.report)
    reasons: list[Reason] = []
    leaf: Leaf | None = None
    try:
        leaf = _kept.get(evidence.chain, anchors, now, lambda: _leaf(evidence.chain, anchors, now))
    except NotAuthentic as error:
        reasons.append(Reason(CHAIN_CODES[error.why], error.what))
    else:
        if leaf.is_switch != report.is_switch:
            words = f"the report has the form of a {_kind(report.is_switch)}'s, the certificate is a {leaf.chip}'s"
            reasons.append(Reason("nvidia.report.kind_mismatch", words))
        reasons += _fwid(report, leaf, fwid_required)
        if not chains.signed_by(leaf.key, report.signature, report.signed):
            reasons.append(Reason("nvidia.report.signature_invalid", "the device's key did not sign this report"))
    if nonce is not None and not hmac.compare_digest(nonce, report.request_nonce):
        words = f"the report answers nonce {report.request_nonce.hex()}, expected {nonce.hex()}"
        reasons.append(Reason("nvidia.report.nonce_mismatch", words))
    return Device(report, leaf, tuple(reasons))


def _kind(is_switch: bool) -> str:
    return "switch" if is_switch else "GPU"


def load_chain(data: bytes) -> tuple[x509.Certificate, ...]:
    """A device's certificates, PEM, leaf first; nothing gives none. Raises BadInput."""
    if len(data) > abi.MAX_CHAIN:
        raise BadInput(f"larger than {abi.MAX_CHAIN >> 10} KiB", where="device certificates")
    return x509.load(data, where="device certificates") if data.strip() else ()


def _leaf(data: bytes, anchors: frozenset[str], now: datetime) -> Leaf:
    certificates = load_chain(data)
    if not certificates:
        raise NotAuthentic("the device handed over no certificates", why="missing")
    path = chains.verify_path(certificates, anchors, now)
    leaf, boot_rom = path.certificates[:2]
    if not (leaf.key_usage() or 0) & DIGITAL_SIGNATURE:
        raise NotAuthentic(f"{leaf.name} may not sign reports", why="constraints")
    found, serial = _CHIP.match(leaf.common_name), _serial(leaf)
    if found is None or not serial:
        raise NotAuthentic(f"{leaf.name} is not named like a device", why="constraints")
    values = [value for oid in FWID_OIDS if (value := leaf.value(der.oid(oid))) is not None]
    fwids = frozenset(fwid for value in values for fwid in firmware_identities(value))
    text = _serial(boot_rom)
    pdi = bytes.fromhex(text)[1:] if re.fullmatch(r"[0-9A-F]{18}", text) else b""
    return Leaf(
        path, chains.p384_key(leaf), found.group(1).replace("_", ""), serial[:64], pdi, boot_rom.spki_digest, fwids
    )


def _serial(certificate: x509.Certificate) -> str:
    """The serial number in the subject's name; empty when there is not exactly one."""
    found = [value for kind, value in x509.attributes(certificate.subject) if kind == "serialNumber"]
    return found[0] if len(found) == 1 else ""


def firmware_identities(value: bytes) -> frozenset[bytes]:
    """Every SHA-384 FWID (algorithm and digest) in a DICE extension; Hopper and Blackwell nest them differently."""
    if len(value) > MAX_FWID_EXTENSION:
        raise BadInput(f"larger than {MAX_FWID_EXTENSION >> 10} KiB", where="FWID extension")
    found: set[bytes] = set()
    waiting = [(der.Cursor(value, "FWID extension"), 0)]
    while waiting:
        cursor, depth = waiting.pop()
        last = b""
        while cursor.more():
            tag = cursor.peek()
            if tag & 0x20:
                if depth >= 6 or len(waiting) > 64:
                    raise BadInput("nested too deeply", where="FWID extension")
                waiting.append((cursor.inner(tag), depth + 1))
                last = b""
                continue
            content = cursor.take(tag)
            if tag == der.OCTET_STRING and last == _SHA384 and len(content) == abi.DIGEST_BYTES:
                found.add(content)
            last = content if tag == der.OID else b""
    return frozenset(found)


def _fwid(report: abi.Report, leaf: Leaf, required: bool) -> list[Reason]:
    """The firmware that signs must be the firmware that the chain certifies (DICE)."""
    claimed = report.opaque.get(abi.FWID)
    if claimed is None:
        # NVSwitches and drivers before 550 do not report it: their chain alone ties key and firmware
        if required and not leaf.is_switch:
            words = "the report does not name its firmware identity; drivers before 550 do not"
            return [Reason("nvidia.report.fwid_missing", words)]
        return []
    if claimed in leaf.fwids:
        return []
    certified = ", ".join(sorted(fwid.hex()[:16] + "…" for fwid in leaf.fwids)) or "none"
    words = f"the report names firmware {claimed.hex()[:16]}…, the certificate {certified}"
    return [Reason("nvidia.report.fwid_mismatch", words)]
