# SPDX-License-Identifier: Apache-2.0
"""What Intel's Provisioning Certification Service publishes: CRLs, TCB info, TD QE identity, with their signatures.

Intel SGX and TDX PCS API v4. The signature of TCB info and QE identity is over the exact bytes of the JSON object
between ``{"tcbInfo":`` and ``,"signature"``: these bytes are kept and never written anew.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from cube_attestation import jcs
from cube_attestation.errors import BadInput
from cube_attestation.fields import Fields

MAX_JSON = 512 << 10
MAX_CRL = 2 << 20
MAX_CHAIN = 32 << 10
MAX_LEVELS = 256

# Each TCB status as the set of what is wrong
STATUSES: dict[str, frozenset[str]] = {
    "UpToDate": frozenset(),
    "SWHardeningNeeded": frozenset({"hardening"}),
    "ConfigurationNeeded": frozenset({"configuration"}),
    "ConfigurationAndSWHardeningNeeded": frozenset({"configuration", "hardening"}),
    "OutOfDate": frozenset({"old"}),
    "OutOfDateConfigurationNeeded": frozenset({"old", "configuration"}),
    "Revoked": frozenset({"revoked"}),
}


@dataclass(frozen=True)
class Signed:
    """JSON as published: the exact signed bytes and the raw r‖s signature (64 bytes)."""

    content: bytes
    signature: bytes


@dataclass(frozen=True)
class Collateral:
    """Everything that a quote is checked against. None or empty: not there, which is a reason, never a pass.

    Chains are PEM, signer first, Intel's root last. CRLs are DER; the chain that comes with the PCK CRL is not
    kept: its signer must be the very CA that issued the quote's PCK certificate. ``pck_chain`` is needed only when
    the quote does not carry its own (certification data other than type 5).
    """

    root_crl: bytes | None = None
    pck_crl: bytes | None = None
    tcb_info_chain: bytes = b""
    tcb_info: Signed | None = None
    qe_identity_chain: bytes = b""
    qe_identity: Signed | None = None
    pck_chain: bytes = b""

    def merged(self, other: Collateral) -> Collateral:
        """Both together; what ``self`` has already stays."""
        missing = {name: getattr(other, name) for name, value in vars(self).items() if not value}
        return replace(self, **missing)


def from_json(data: bytes, *, where: str = "collateral") -> Collateral:
    """Read one JSON file of collateral, recognised by its members. Raises BadInput.

    * a body of ``/tcb`` (``tcbInfo``, ``signature``) or of ``/qe/identity`` (``enclaveIdentity``, ``signature``);
    * a QuoteCollateralV3 object: chains in PEM, CRLs in hex (or PEM), ``tcb_info`` and ``qe_identity`` as the whole
      published body, or as the inner object beside ``tcb_info_signature`` and ``qe_identity_signature``.
    """
    value = _json(data, where)
    names = set(value)
    if names == {"tcbInfo", "signature"}:
        return Collateral(tcb_info=published(data, "tcbInfo", where=where))
    if names == {"enclaveIdentity", "signature"}:
        return Collateral(qe_identity=published(data, "enclaveIdentity", where=where))
    if "tcb_info" not in names and "qe_identity" not in names:
        raise BadInput("no collateral that is known", where=where, todo="pass what Intel's PCS published, as it is")
    fields = Fields(value, where)

    def text(name: str, limit: int) -> bytes:
        value = fields.text(name, limit=limit)
        if not value.isascii():
            raise BadInput("holds more than ASCII", where=fields.path(name))
        return value.encode("ascii")

    def pem(name: str) -> bytes:
        return text(name, MAX_CHAIN) if fields.has(name) else b""

    def crl(name: str) -> bytes | None:
        return crl_bytes(text(name, 2 * MAX_CRL), where=fields.path(name)) if fields.has(name) else None

    def signed(name: str, member: str) -> Signed | None:
        if not fields.has(name):
            return None
        body = text(name, MAX_JSON)
        if not fields.has(f"{name}_signature"):
            return published(body, member, where=fields.path(name))
        return Signed(body, _signature(fields.text(f"{name}_signature"), fields.path(f"{name}_signature")))

    return Collateral(
        root_crl=crl("root_ca_crl"),
        pck_crl=crl("pck_crl"),
        tcb_info_chain=pem("tcb_info_issuer_chain"),
        tcb_info=signed("tcb_info", "tcbInfo"),
        qe_identity_chain=pem("qe_identity_issuer_chain"),
        qe_identity=signed("qe_identity", "enclaveIdentity"),
        pck_chain=pem("pck_certificate_chain"),
    )


def published(body: bytes, member: str, *, where: str) -> Signed:
    """Split a published body ``{"<member>":{…},"signature":"<hex>"}`` without touching a byte. Raises BadInput."""
    if len(body) > MAX_JSON:
        raise BadInput(f"larger than {MAX_JSON >> 10} KiB", where=where)
    start = re.match(rb'\s*\{\s*"' + member.encode() + rb'"\s*:\s*(?=\{)', body)
    inner, comma, rest = body.rpartition(b',"signature"')
    end = re.fullmatch(rb'\s*:\s*"([0-9A-Fa-f]{128})"\s*\}\s*', rest)
    if not start or not comma or not end or start.end() >= len(inner) or not inner.endswith(b"}"):
        raise BadInput(
            f'not {{"{member}":{{…}},"signature":"…"}} as published',
            where=where,
            todo="keep the body's exact bytes; a parsed and re-written one can't be verified",
        )
    return Signed(inner[start.end() :], bytes.fromhex(end[1].decode()))


def issuer_chain_header(text: str, *, where: str = "issuer chain") -> bytes:
    """PEM out of the URL-encoded header that carries an issuer chain. Raises BadInput."""
    if len(text) > 3 * MAX_CHAIN:
        raise BadInput("too large for a chain", where=where)
    return urllib.parse.unquote(text).encode()


def crl_bytes(data: bytes, *, where: str) -> bytes:
    """DER of a CRL given as DER, hex of DER, or PEM. Raises BadInput."""
    import base64
    import binascii

    if len(data) > 2 * MAX_CRL:
        raise BadInput(f"larger than {MAX_CRL >> 20} MiB", where=where)
    if data[:1] == b"\x30" and data[1:2] > b"\x7f":
        return data
    text = data.strip()
    try:
        if text.startswith(b"-----BEGIN X509 CRL-----") and text.endswith(b"-----END X509 CRL-----"):
            return base64.b64decode(b"".join(text[24:-22].split()), validate=True)
        return bytes.fromhex(text.decode("ascii"))
    except (ValueError, binascii.Error) as error:
        raise BadInput("a CRL that is neither DER nor its hex nor PEM", where=where) from error


class TcbLevel(NamedTuple):
    """One row: the lowest SVNs that still have ``status``. ``tdx`` is empty for SGX, both for enclave levels."""

    status: str
    date: datetime
    advisories: tuple[str, ...]
    sgx: bytes = b""
    tdx: bytes = b""
    svn: int = 0  # PCESVN of platform levels, ISVSVN of module and enclave levels


class ModuleIdentity(NamedTuple):
    """A TDX module that Intel signed: ``id`` is TDX_<major version, two digits>, empty for ``tdxModule``."""

    id: str
    mr_signer: bytes
    attributes: int  # as SEAM attributes in a TD report: little-endian
    attributes_mask: int
    levels: tuple[TcbLevel, ...]


class TcbInfo(NamedTuple):
    """TCB info version 3 (PCS API v4, "TCB info V3")."""

    id: str  # TDX or SGX
    issued: datetime
    next_update: datetime
    fmspc: bytes
    pce_id: bytes
    evaluation_number: int
    levels: tuple[TcbLevel, ...]
    module: ModuleIdentity | None
    modules: tuple[ModuleIdentity, ...]


class QeIdentity(NamedTuple):
    """Enclave identity version 2 of the quoting enclave: TD_QE for TDX, QE for SGX."""

    id: str
    issued: datetime
    next_update: datetime
    evaluation_number: int
    misc_select: int  # this and the next three: the published hex as one big-endian number
    misc_select_mask: int
    attributes: int
    attributes_mask: int
    mr_signer: bytes
    isv_prod_id: int
    levels: tuple[TcbLevel, ...]


def parse_tcb_info(content: bytes) -> TcbInfo:
    """Read the signed object of TCB info. Raises BadInput. Members that Intel may add are not an error."""
    where = "TCB info"
    fields = Fields(_json(content, where, signed=True), where)
    kind = fields.choice("id", "TDX", "SGX")
    fields.version(3)
    tdx = kind == "TDX"
    if fields.integer("tcbType", 0, 255) != 0:
        raise BadInput("tcbType is not 0, the only composition that is known", where=where)
    return TcbInfo(
        id=kind,
        issued=fields.time("issueDate"),
        next_update=fields.time("nextUpdate"),
        fmspc=_hex(fields, "fmspc", 6),
        pce_id=_hex(fields, "pceId", 2),
        evaluation_number=fields.integer("tcbEvaluationDataNumber", 0, 2**31),
        levels=_levels(fields, lambda tcb: _platform_svns(tcb, tdx)),
        module=_module(fields.member("tdxModule"), named=False) if tdx and fields.has("tdxModule") else None,
        modules=_modules(fields) if tdx and fields.has("tdxModuleIdentities") else (),
    )


def parse_qe_identity(content: bytes) -> QeIdentity:
    """Read the signed object of a QE identity. Raises BadInput."""
    where = "QE identity"
    fields = Fields(_json(content, where, signed=True), where)
    kind = fields.choice("id", "TD_QE", "QE", "QVE", "TD_QVE")
    fields.version(2)
    return QeIdentity(
        id=kind,
        issued=fields.time("issueDate"),
        next_update=fields.time("nextUpdate"),
        evaluation_number=fields.integer("tcbEvaluationDataNumber", 0, 2**31),
        misc_select=int.from_bytes(_hex(fields, "miscselect", 4)),
        misc_select_mask=int.from_bytes(_hex(fields, "miscselectMask", 4)),
        attributes=int.from_bytes(_hex(fields, "attributes", 16)),
        attributes_mask=int.from_bytes(_hex(fields, "attributesMask", 16)),
        mr_signer=_hex(fields, "mrsigner", 32),
        isv_prod_id=fields.integer("isvprodid", 0, 65535),
        levels=_levels(fields, _isv_svn),
    )


def _levels(fields: Fields, svns: Callable[[Fields], tuple[bytes, bytes, int]]) -> tuple[TcbLevel, ...]:
    found: list[TcbLevel] = []
    for i, entry in enumerate(fields.array("tcbLevels", MAX_LEVELS)):
        level = Fields(entry, f"{fields.where}.tcbLevels[{i}]")
        sgx, tdx, svn = svns(level.member("tcb"))
        found.append(
            TcbLevel(
                status=level.choice("tcbStatus", *STATUSES),
                date=level.time("tcbDate"),
                advisories=_advisories(level) if level.has("advisoryIDs") else (),
                sgx=sgx,
                tdx=tdx,
                svn=svn,
            )
        )
    # Highest first: levels are walked in this order, and an order that somebody else chose must not matter
    return tuple(sorted(found, key=lambda level: (level.sgx, level.svn, level.tdx), reverse=True))


_ADVISORIES = re.compile(r"[A-Z0-9-]{1,40}(?:,[A-Z0-9-]{1,40})*")


def _advisories(level: Fields) -> tuple[str, ...]:
    found = tuple(level.array("advisoryIDs", 256))
    try:
        text = ",".join(found)  # type: ignore[arg-type]  # whatever they are, see below
    except TypeError:
        text = ""
    if found and not (_ADVISORIES.fullmatch(text) and text.count(",") == len(found) - 1):
        raise BadInput("an entry is no advisory's id", where=level.path("advisoryIDs"))
    return found  # type: ignore[return-value]  # they are strings


def _platform_svns(tcb: Fields, tdx: bool) -> tuple[bytes, bytes, int]:
    return (
        _components(tcb, "sgxtcbcomponents"),
        _components(tcb, "tdxtcbcomponents") if tdx else b"",
        tcb.integer("pcesvn", 0, 65535),
    )


def _isv_svn(tcb: Fields) -> tuple[bytes, bytes, int]:
    return b"", b"", tcb.integer("isvsvn", 0, 65535)


def _components(tcb: Fields, name: str) -> bytes:
    entries = tcb.array(name, 16)
    try:
        svns = [entry["svn"] for entry in entries]  # type: ignore[index]  # whatever it is, see below
        found = bytes(svns) if {*map(type, svns)} == {int} else b""
    except (TypeError, KeyError, ValueError):
        found = b""
    if len(found) != 16:
        raise BadInput("expected 16 components with an svn of 0 to 255", where=tcb.path(name))
    return found


def _modules(fields: Fields) -> tuple[ModuleIdentity, ...]:
    entries = fields.array("tdxModuleIdentities", 64)
    where = fields.path("tdxModuleIdentities")
    found = tuple(_module(Fields(entry, f"{where}[{i}]"), named=True) for i, entry in enumerate(entries))
    if len({module.id for module in found}) != len(found):
        raise BadInput("an id occurs twice", where=where)
    return found


def _module(fields: Fields, *, named: bool) -> ModuleIdentity:
    return ModuleIdentity(
        id=fields.text("id", pattern=_MODULE).upper() if named else "",
        mr_signer=_hex(fields, "mrsigner", 48),
        attributes=int.from_bytes(_hex(fields, "attributes", 8), "little"),
        attributes_mask=int.from_bytes(_hex(fields, "attributesMask", 8), "little"),
        levels=_levels(fields, _isv_svn) if named else (),
    )


_MODULE = re.compile(r"TDX_[0-9A-Fa-f]{2}")


_HEX = re.compile(r"[0-9A-Fa-f]*")


def _hex(fields: Fields, name: str, size: int) -> bytes:
    """Hex of either case: the service writes one FMSPC in capitals and the next without."""
    text = fields.text(name, limit=2 * size)
    if len(text) != 2 * size or not _HEX.fullmatch(text):
        raise BadInput(f"expected {size} bytes of hex", where=fields.path(name))
    return bytes.fromhex(text)


def _signature(text: str, where: str) -> bytes:
    if not re.fullmatch(r"[0-9A-Fa-f]{128}", text):
        raise BadInput("expected a signature of 64 bytes in hex", where=where)
    return bytes.fromhex(text)


def _json(data: bytes, where: str, *, signed: bool = False) -> dict[str, object]:
    """A JSON object. Names may not occur twice, unless Intel signed it (``signed``): then it is Intel's to say."""
    text = jcs.bounded(data, where=where, limit=MAX_JSON)
    try:
        value: object = json.loads(text) if signed else json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"not JSON: {str(error)[:100]}", where=where) from error
    if not isinstance(value, dict):
        raise BadInput("not a JSON object", where=where)
    return value


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name occurs twice in one object")
    return value
