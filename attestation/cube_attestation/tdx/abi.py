# SPDX-License-Identifier: Apache-2.0
"""TDX and SGX structures as bytes: quotes v3, v4, v5, TD reports, the SGX extension of PCK certificates.

Intel TDX DCAP Quoting Library API, appendix A (quotes v4, v5) · Intel SGX ECDSA Quote Library Reference, appendix A
(quote v3) · Intel TDX Module ABI (TDREPORT_STRUCT) · Intel SGX PCK Certificate and CRL Profile, section 1.3.
All integers are little-endian, all signatures raw big-endian r‖s.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import NamedTuple

from cube_attestation.errors import BadInput

MAX_QUOTE = 64 << 10
MAX_TRAILING = 32 << 10
HEADER = 48
TEE_SGX, TEE_TDX = 0x00, 0x81
KEY_P256 = 2
INTEL_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
BODY_SGX, BODY_TD10, BODY_TD15 = 1, 2, 3
BODY_SIZES = {BODY_SGX: 384, BODY_TD10: 584, BODY_TD15: 648}
CERT_PCK_CHAIN, CERT_QE_REPORT = 5, 6
CERT_TYPES = {
    1: "the platform's PPID in clear",
    2: "the platform's PPID, encrypted (RSA-2048)",
    3: "the platform's PPID, encrypted (RSA-3072)",
    4: "a PCK leaf certificate alone",
    7: "a platform manifest",
}
TD_REPORT_SIZE = 1024


class SgxReport(NamedTuple):
    """SGX REPORTBODY (384 bytes): what the quoting enclave, or a quoted SGX enclave, is."""

    cpu_svn: bytes  # 16
    misc_select: bytes  # 4
    attributes: bytes  # 16: flags (bit 1 of the first byte: DEBUG), then xfrm
    mr_enclave: bytes  # 32
    mr_signer: bytes  # 32
    isv_prod_id: int
    isv_svn: int
    report_data: bytes  # 64

    @property
    def debug(self) -> bool:
        return bool(self.attributes[0] & 2)


@dataclass(frozen=True)
class TdReport:
    """What a TD is: the TD report of a quote (584 bytes for TDX 1.0, 648 for 1.5), or the same out of a TDREPORT.

    Measurements are 48 bytes (SHA-384). ``attributes`` and ``xfam`` are 64-bit masks. The last two are None in 1.0.
    """

    tee_tcb_svn: bytes  # 16; [0] minor, [1] major version of the TDX module
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: int
    attributes: int
    xfam: int
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes  # 64
    tee_tcb_svn2: bytes | None  # 16: the module that runs now, after a TD-preserving update
    mr_service_td: bytes | None


class Quote(NamedTuple):
    """A parsed quote. ``signed`` is what the attestation key signed; ``trailing`` follows it and is not signed."""

    version: int
    tee: int
    qe_svn: int  # header bytes 8 and 10; informative, the QE report counts
    pce_svn: int
    qe_vendor: bytes
    user_data: bytes
    body: SgxReport | TdReport
    signed: bytes
    signature: bytes
    attestation_key: bytes  # 64: x‖y on P-256
    qe_report: SgxReport
    qe_report_bytes: bytes
    qe_signature: bytes
    qe_auth: bytes
    cert_type: int
    cert_data: bytes
    trailing: bytes


def parse_quote(data: bytes) -> Quote:
    """Read a quote v3 (SGX), v4 or v5. Raises BadInput.

    Every length inside must be exact. Up to 32 KiB may follow the signature data: generators pad their quotes to a
    fixed size (zeros to 8,000 bytes on GCP). Nothing there is signed or used; ``trailing`` shows it.
    """
    where = "quote"
    if len(data) > MAX_QUOTE:
        raise BadInput(f"{len(data)} bytes, larger than {MAX_QUOTE >> 10} KiB", where=where)
    if len(data) < HEADER:
        raise BadInput(f"{len(data)} bytes, shorter than a quote header", where=where, todo="pass the whole quote")
    version, key_type, tee, qe_svn, pce_svn = struct.unpack_from("<HHIHH", data)
    if version not in (3, 4, 5):
        raise BadInput(f"quote version {version} is not known", where=where, todo="versions 3, 4 and 5 are")
    if key_type != KEY_P256:
        raise BadInput(f"attestation key type {key_type} is not known", where=where, todo="2 (ECDSA P-256) is")
    if tee not in (TEE_SGX, TEE_TDX) or (version == 3 and tee != TEE_SGX):
        raise BadInput(f"TEE type 0x{tee:x} in a quote v{version}", where=where)
    at = HEADER
    if version == 5:
        kind, size = struct.unpack("<HI", _cut(data, at, 6))
        at += 6
        if kind not in BODY_SIZES or (kind == BODY_SGX) != (tee == TEE_SGX):
            raise BadInput(f"body type {kind} for TEE type 0x{tee:x}", where=where)
        if size != BODY_SIZES[kind]:
            raise BadInput(f"body type {kind} with {size} bytes, not {BODY_SIZES[kind]}", where=where)
    else:
        kind = BODY_SGX if tee == TEE_SGX else BODY_TD10
        size = BODY_SIZES[kind]
    body = _cut(data, at, size)
    at += size
    signed = data[:at]
    (length,) = struct.unpack("<I", _cut(data, at, 4))
    section = _cut(data, at + 4, length)
    trailing = data[at + 4 + length :]
    if len(trailing) > MAX_TRAILING:
        raise BadInput(f"{len(trailing)} bytes after the signature data", where=where, todo="cut them off")
    signature, key = _cut(section, 0, 64), _cut(section, 64, 64)
    at = 128
    if version >= 4:
        outer, size = struct.unpack("<HI", _cut(section, at, 6))
        at += 6
        if outer != CERT_QE_REPORT:
            raise BadInput(f"certification data of type {outer} where the QE report (6) belongs", where=where)
        if size != len(section) - at:
            raise BadInput(f"QE certification data of {size} bytes, {len(section) - at} are there", where=where)
    qe_report = _cut(section, at, 384)
    qe_signature = _cut(section, at + 384, 64)
    (auth_size,) = struct.unpack("<H", _cut(section, at + 448, 2))
    qe_auth = _cut(section, at + 450, auth_size)
    at += 450 + auth_size
    cert_type, size = struct.unpack("<HI", _cut(section, at, 6))
    cert_data = section[at + 6 :]
    if size != len(cert_data):
        raise BadInput(f"certification data of {size} bytes, {len(cert_data)} are there", where=where)
    if cert_type != CERT_PCK_CHAIN and cert_type not in CERT_TYPES:
        raise BadInput(f"certification data of unknown type {cert_type}", where=where)
    return Quote(
        version=version,
        tee=tee,
        qe_svn=qe_svn,
        pce_svn=pce_svn,
        qe_vendor=data[12:28],
        user_data=data[28:48],
        body=parse_sgx_report(body) if kind == BODY_SGX else parse_td_body(body),
        signed=signed,
        signature=signature,
        attestation_key=key,
        qe_report=parse_sgx_report(qe_report),
        qe_report_bytes=qe_report,
        qe_signature=qe_signature,
        qe_auth=qe_auth,
        cert_type=cert_type,
        cert_data=cert_data,
        trailing=trailing,
    )


def parse_sgx_report(data: bytes) -> SgxReport:
    """Read an SGX REPORTBODY, exactly 384 bytes. Raises BadInput."""
    if len(data) != 384:
        raise BadInput(f"{len(data)} bytes, not 384", where="SGX report")
    prod_id, svn = struct.unpack_from("<HH", data, 256)
    return SgxReport(
        cpu_svn=data[:16],
        misc_select=data[16:20],
        attributes=data[48:64],
        mr_enclave=data[64:96],
        mr_signer=data[128:160],
        isv_prod_id=prod_id,
        isv_svn=svn,
        report_data=data[320:],
    )


def parse_td_body(data: bytes) -> TdReport:
    """Read the TD report of a quote: exactly 584 (TDX 1.0) or 648 bytes (1.5). Raises BadInput."""
    if len(data) not in (584, 648):
        raise BadInput(f"{len(data)} bytes, not 584 or 648", where="TD report")
    seam_attributes, attributes, xfam = struct.unpack_from("<QQQ", data, 112)
    newer = len(data) == 648
    return TdReport(
        tee_tcb_svn=data[:16],
        mr_seam=data[16:64],
        mr_signer_seam=data[64:112],
        seam_attributes=seam_attributes,
        attributes=attributes,
        xfam=xfam,
        mr_td=data[136:184],
        mr_config_id=data[184:232],
        mr_owner=data[232:280],
        mr_owner_config=data[280:328],
        rtmrs=(data[328:376], data[376:424], data[424:472], data[472:520]),
        report_data=data[520:584],
        tee_tcb_svn2=data[584:600] if newer else None,
        mr_service_td=data[600:648] if newer else None,
    )


def parse_td_report(data: bytes) -> TdReport:
    """Read a TDREPORT_STRUCT as TDG.MR.REPORT gives it: exactly 1,024 bytes. Raises BadInput.

    Its MAC can be checked on that CPU only, so it proves nothing by itself; a quote with the same values does.
    TEE_TCB_INFO (256) and TDINFO (512) must match the two SHA-384 digests that the header carries.
    """
    where = "TDREPORT"
    if len(data) != TD_REPORT_SIZE:
        raise BadInput(f"{len(data)} bytes, not {TD_REPORT_SIZE}", where=where)
    if data[0] != TEE_TDX:
        raise BadInput(f"report type 0x{data[0]:02x}, not 0x81 (TD)", where=where)
    if hashlib.sha384(data[512:]).digest() != data[80:128]:
        raise BadInput("TDINFO does not match the digest in the header", where=where)
    if hashlib.sha384(data[256:495]).digest() != data[32:80]:
        raise BadInput("TEE_TCB_INFO does not match the digest in the header", where=where)
    tcb, td = data[256:495], data[512:]
    (seam_attributes,) = struct.unpack_from("<Q", tcb, 120)
    attributes, xfam = struct.unpack_from("<QQ", td)
    return TdReport(
        tee_tcb_svn=tcb[8:24],
        mr_seam=tcb[24:72],
        mr_signer_seam=tcb[72:120],
        seam_attributes=seam_attributes,
        attributes=attributes,
        xfam=xfam,
        mr_td=td[16:64],
        mr_config_id=td[64:112],
        mr_owner=td[112:160],
        mr_owner_config=td[160:208],
        rtmrs=(td[208:256], td[256:304], td[304:352], td[352:400]),
        report_data=data[128:192],
        tee_tcb_svn2=tcb[128:144],
        mr_service_td=td[400:448],
    )


class PckExtension(NamedTuple):
    """The SGX extension of a PCK certificate (1.2.840.113741.1.13.1). Flags are None where the CA left them out."""

    ppid: bytes  # 16: names the platform, the same over its life
    cpu_svn: bytes  # 16, as the TCB components of this certificate
    pce_svn: int
    pce_id: bytes  # 2
    fmspc: bytes  # 6: family, model, stepping, platform, SKU
    sgx_type: int  # 0 standard, 1 scalable, 2 scalable with integrity
    dynamic_platform: bool | None = None
    cached_keys: bool | None = None
    smt_enabled: bool | None = None


SGX_EXTENSION = "1.2.840.113741.1.13.1"
_ARC = bytes.fromhex("2a864886f84d010d01")  # the same OID, DER content


def parse_pck_extension(data: bytes) -> PckExtension:
    """Read the extension's DER value (section 1.3.5): each member once, exact lengths. Raises BadInput."""
    members = _members(_whole(data, 0x30), len(_ARC))
    try:
        tcb = _members(_whole(members.pop(2), 0x30), len(_ARC) + 1)
        svns = [_integer(tcb.pop(i), 255) for i in range(1, 17)]
        pce_svn = _integer(tcb.pop(17), 65535)
        # .18 repeats the components as CPUSVN
        cpu_svn = _octets(tcb.pop(18), 16)
        ppid, pce_id = _octets(members.pop(1), 16), _octets(members.pop(3), 2)
        fmspc = _octets(members.pop(4), 6)
        kind = _number(_whole(members.pop(5), 0x0A), 2)
        flags: dict[int, bytes] = {}
        if 6 in members:  # platform instance id
            _octets(members.pop(6), 16)
        if 7 in members:
            flags = _members(_whole(members.pop(7), 0x30), len(_ARC) + 1)
    except KeyError as error:
        raise BadInput(f"member {error.args[0]} is missing", where=_PCK) from error
    if members or tcb or set(flags) - {1, 2, 3}:
        raise BadInput("an unknown member", where=_PCK)
    if bytes(svns) != cpu_svn:
        raise BadInput("the TCB components and the CPUSVN differ", where=_PCK)
    return PckExtension(
        ppid,
        cpu_svn,
        pce_svn,
        pce_id,
        fmspc,
        kind,
        *(_boolean(flags[i]) if i in flags else None for i in (1, 2, 3)),
    )


_PCK = "SGX extension of the PCK certificate"


def _cut(data: bytes, at: int, size: int) -> bytes:
    if size > len(data) - at:
        raise BadInput(f"ends {size - (len(data) - at)} bytes early", where="quote", todo="pass the whole quote")
    return data[at : at + size]


def _tlv(data: bytes, at: int) -> tuple[int, bytes, int]:
    """Tag, content and end of the DER element at ``at``; definite, minimal lengths below 64 KiB."""
    head = data[at : at + 4]
    if len(head) < 2:
        raise BadInput("ends in the middle of an element", where=_PCK)
    size, start = head[1], at + 2
    if size >= 0x80:
        if size == 0x81 and len(head) > 2 and head[2] >= 0x80:
            size, start = head[2], at + 3
        elif size == 0x82 and len(head) > 3 and head[2]:
            size, start = head[2] << 8 | head[3], at + 4
        else:
            raise BadInput("a length that is not DER", where=_PCK)
    if size > len(data) - start:
        raise BadInput("ends in the middle of an element", where=_PCK)
    return head[0], data[start : start + size], start + size


def _whole(data: bytes, tag: int) -> bytes:
    found, content, end = _tlv(data, 0)
    if found != tag or end != len(data):
        raise BadInput(f"expected one element of tag 0x{tag:02x}", where=_PCK)
    return content


def _members(data: bytes, prefix: int) -> dict[int, bytes]:
    """SEQUENCE OF SEQUENCE {OID, value}: last arc of the OID → the value's DER."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        tag, pair, at = _tlv(data, at)
        kind, oid, end = _tlv(pair, 0) if tag == 0x30 else (0, b"", 0)
        if (
            kind != 0x06
            or len(oid) != prefix + 1
            or not oid.startswith(_ARC)
            or oid[-1] >= 0x80
            or oid[-1] in found
        ):
            raise BadInput("a member that is unknown or occurs twice", where=_PCK)
        found[oid[-1]] = pair[end:]
    return found


def _octets(data: bytes, size: int) -> bytes:
    content = _whole(data, 0x04)
    if len(content) != size:
        raise BadInput(f"{len(content)} bytes where {size} belong", where=_PCK)
    return content


def _integer(data: bytes, high: int) -> int:
    return _number(_whole(data, 0x02), high)


def _number(content: bytes, high: int) -> int:
    if not 1 <= len(content) <= 3 or content[0] & 0x80 or int.from_bytes(content, "big") > high:
        raise BadInput(f"a number that is not between 0 and {high}", where=_PCK)
    return int.from_bytes(content, "big")


def _boolean(data: bytes) -> bool:
    content = _whole(data, 0x01)
    if content not in (b"\0", b"\xff"):
        raise BadInput("a boolean that is not DER", where=_PCK)
    return content == b"\xff"
