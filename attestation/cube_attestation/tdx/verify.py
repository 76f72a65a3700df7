# SPDX-License-Identifier: Apache-2.0
"""Is a quote authentic? Signatures, the quoting enclave, PCK chain and CRLs, TCB info, QE identity, TDX module.

Intel SGX/TDX DCAP: "Quote verification" (QVL), with the PCS API v4 for collateral. ``authentic`` means that a TDX
module and a quoting enclave of Intel, on a platform that Intel certified and has not revoked, made this quote,
judged by collateral in force at ``now``. How old that platform's TCB is (``tcb``) is for the policy: appraise.py.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection
from datetime import datetime
from typing import NamedTuple, TypeVar

from cube_attestation import times
from cube_attestation.anchors.intel import INTEL_ROOTS
from cube_attestation.errors import BadInput
from cube_attestation.verdict import Reason
from cube_attestation.x509 import der
from cube_attestation.x509.certificate import Certificate
from cube_attestation.x509.crl import Crl

from . import abi, chains
from .collateral import Collateral, QeIdentity, Signed, TcbInfo, parse_qe_identity, parse_tcb_info
from .tcb import Tcb, enclave_mismatch, evaluate, module_identity, module_mismatch, svn_vectors

PCK_ISSUERS = ("Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA")
TCB_SIGNER = "Intel SGX TCB Signing"

Path = tuple[Certificate, ...]
D = TypeVar("D", TcbInfo, QeIdentity)
_SGX = der.oid(abi.SGX_EXTENSION)


class Verification(NamedTuple):
    """What verifying found. ``forged`` empty: authentic. The rest is None as far as it could not be established."""

    quote: abi.Quote
    now: datetime
    forged: tuple[Reason, ...]
    pck: abi.PckExtension | None
    tcb: Tcb | None
    tcb_info: TcbInfo | None
    qe_identity: QeIdentity | None
    oldest: datetime | None  # the earliest issue date among the pieces of collateral that hold
    next_update: datetime | None  # the earliest end of them

    @property
    def authentic(self) -> bool:
        return not self.forged


def verify(
    quote: abi.Quote | bytes,
    collateral: Collateral,
    *,
    now: datetime,
    anchors: Collection[str] = INTEL_ROOTS,
    allow_missing: Collection[str] = (),
) -> Verification:
    """Verify ``quote`` against ``collateral`` at ``now`` (aware) under roots whose SPKI digests are ``anchors``.

    Never passes by absence: each missing piece of collateral is a reason, unless ``allow_missing`` names it
    (``tdx.root_crl``, ``tdx.pck_crl``, ``tdx.tcb_info``, ``tdx.qe_identity``). Raises BadInput for malformed bytes.
    """
    if now.tzinfo is None:
        raise BadInput("a time without a zone", where="now", todo="pass an aware datetime")
    read = abi.parse_quote(quote) if isinstance(quote, bytes) else quote
    return _Check(read, collateral, now, anchors, allow_missing).run()


@functools.lru_cache(maxsize=64)
def _tcb_info(content: bytes) -> TcbInfo:
    return parse_tcb_info(content)


@functools.lru_cache(maxsize=64)
def _qe_identity(content: bytes) -> QeIdentity:
    return parse_qe_identity(content)


@functools.lru_cache(maxsize=256)
def _pck_extension(value: bytes) -> abi.PckExtension:
    return abi.parse_pck_extension(value)


class _Check:
    """One verification: gathers reasons and goes on wherever the next check still says something."""

    def __init__(
        self,
        quote: abi.Quote,
        collateral: Collateral,
        now: datetime,
        anchors: Collection[str],
        allow_missing: Collection[str],
    ) -> None:
        self.quote, self.collateral, self.now, self.anchors = quote, collateral, now, anchors
        self.allow_missing = allow_missing
        self.forged: list[Reason] = []
        self.windows: list[tuple[datetime, datetime]] = []

    def fail(self, code: str, words: str) -> None:
        reason = Reason(code, words)
        if reason not in self.forged:  # both documents usually have one signer
            self.forged.append(reason)

    def missing(self, item: str, words: str) -> None:
        if f"tdx.{item}" not in self.allow_missing:
            self.fail(f"collateral.{item}.missing", words)

    def run(self) -> Verification:
        given = self.collateral
        self.signature()
        path = self.pck_path()
        pck = self.platform(path[0]) if path else None
        if path is not None:
            self.quoting_enclave(path)
        info_signer = self.signer(given.tcb_info_chain, "tcb_info", "TCB info") if given.tcb_info else None
        identity_signer = info_signer
        if given.qe_identity and (info_signer is None or given.qe_identity_chain != given.tcb_info_chain):
            identity_signer = self.signer(given.qe_identity_chain, "qe_identity", "QE identity")
        self.revocation(path, [signer for signer in (info_signer, identity_signer) if signer])
        info = self.document(given.tcb_info, info_signer, "tcb_info", "TCB info", _tcb_info)
        identity = self.document(given.qe_identity, identity_signer, "qe_identity", "QE identity", _qe_identity)
        info = self.about_platform(info, pck) if info else None
        identity = self.about_enclave(identity) if identity else None
        return Verification(
            quote=self.quote,
            now=self.now,
            forged=tuple(self.forged),
            pck=pck,
            tcb=evaluate(info, identity, pck, self.quote) if info and identity and pck else None,
            tcb_info=info,
            qe_identity=identity,
            oldest=min((issued for issued, _ in self.windows), default=None),
            next_update=min((end for _, end in self.windows), default=None),
        )

    # The quote, its quoting enclave and its platform

    def signature(self) -> None:
        quote = self.quote
        key = chains.spki_of_point(quote.attestation_key)
        if not chains.signature_holds(key, quote.signature, quote.signed):
            self.fail("tdx.signature.invalid", "the quote is not signed by its attestation key")
        bound = hashlib.sha256(quote.attestation_key + quote.qe_auth).digest() + bytes(32)
        if quote.qe_report.report_data != bound:
            self.fail("tdx.qe.unbound_key", "the quoting enclave's report does not vouch for the attestation key")
        if quote.qe_vendor != abi.INTEL_QE_VENDOR:
            self.fail("tdx.qe.unknown_vendor", f"the quoting enclave's vendor {quote.qe_vendor.hex()} is not Intel")

    def quoting_enclave(self, path: Path) -> None:
        if not chains.signature_holds(path[0].spki, self.quote.qe_signature, self.quote.qe_report_bytes):
            self.fail("tdx.qe.signature_invalid", "the quoting enclave's report is not signed by the PCK key")

    def pck_path(self) -> Path | None:
        """The chain of the platform's certification key."""
        pem = self.collateral.pck_chain
        if self.quote.cert_type == abi.CERT_PCK_CHAIN:
            pem = self.quote.cert_data
        elif not pem:
            what = abi.CERT_TYPES[self.quote.cert_type]
            self.fail("tdx.chain.missing", f"the quote carries {what} in place of its PCK certificate chain")
            return None
        path = chains.verify(pem, self.anchors, self.now, where="PCK certificate chain")
        if isinstance(path, chains.Problem):
            self.fail(f"tdx.chain.{path.why}", path.words)
            return None
        leaf = path[0]
        if len(path) != 3 or path[1].common_name not in PCK_ISSUERS:
            self.fail("tdx.chain.not_pck", f"{leaf.name} was not issued by a PCK CA")
            return None
        return path

    def platform(self, leaf: Certificate) -> abi.PckExtension | None:
        value = leaf.value(_SGX)
        if value is None:
            self.fail("tdx.chain.not_pck", f"{leaf.name} has no SGX extension")
            return None
        return _pck_extension(value)

    # Revocation

    def revocation(self, path: Path | None, signers: list[Path]) -> None:
        """Both CRLs, each signed by the authority of the chain that it is about, in force, and naming nobody."""
        roots = [p[-1] for p in (path, *signers) if p is not None]
        root_crl = self.crl(self.collateral.root_crl, roots[0] if roots else None, "root_crl", "root CA CRL")
        pck_crl = self.crl(self.collateral.pck_crl, path[1] if path else None, "pck_crl", "PCK CRL")
        if path is not None:
            self.revoked(path[0], pck_crl, "tdx.chain.revoked")
            self.revoked(path[1], root_crl, "tdx.chain.revoked")
        for signer in signers:
            self.revoked(signer[0], root_crl, "collateral.chain.revoked")

    def crl(self, der: bytes | None, issuer: Certificate | None, item: str, words: str) -> Crl | None:
        if not der:
            self.missing(item, f"the {words} is missing, so revocation can't be told")
            return None
        if issuer is None:
            return None  # the broken chain is a reason already
        crl = chains.verify_crl(der, issuer, where=words)
        if isinstance(crl, chains.Problem):
            self.fail(f"collateral.{item}.{crl.why}", crl.words)
            return None
        self.in_force(words, crl.this_update, crl.next_update)
        return crl

    def revoked(self, certificate: Certificate, crl: Crl | None, code: str) -> None:
        if crl is not None and certificate.serial in crl.revoked:
            self.fail(code, f"{certificate.name} is revoked by the list of {crl.this_update:%Y-%m-%d}")

    def in_force(self, words: str, issued: datetime, end: datetime) -> None:
        self.windows.append((issued, end))
        if self.now < issued:
            self.fail("collateral.not_yet_valid", f"the {words} was issued at {times.format_time(issued)}, later")
        if self.now > end:
            self.fail("collateral.expired", f"the {words} had to be renewed by {times.format_time(end)}")

    # Intel's signed documents

    def signer(self, pem: bytes, item: str, words: str) -> Path | None:
        if not pem:
            self.fail(f"collateral.{item}.missing", f"the issuer chain of the {words} is missing")
            return None
        path = chains.verify(pem, self.anchors, self.now, where=f"{words} issuer chain")
        if isinstance(path, chains.Problem):
            self.fail(f"collateral.chain.{path.why}", path.words)
            return None
        if len(path) != 2 or path[0].common_name != TCB_SIGNER:
            self.fail(
                "collateral.chain.not_tcb_signer",
                f"{path[0].name} may not sign the {words}",
            )
            return None
        return path

    def document(
        self,
        signed: Signed | None,
        signer: Path | None,
        item: str,
        words: str,
        parse: Callable[[bytes], D],
    ) -> D | None:
        if signed is None:
            self.missing(item, f"the {words} is missing, so the TCB can't be told")
            return None
        if signer is None:
            return None
        if not chains.signature_holds(signer[0].spki, signed.signature, signed.content):
            self.fail(f"collateral.{item}.signature_invalid", f"the {words} is not signed by {TCB_SIGNER}")
            return None
        found = parse(signed.content)
        self.in_force(words, found.issued, found.next_update)
        return found

    def about_platform(self, info: TcbInfo, pck: abi.PckExtension | None) -> TcbInfo | None:
        tdx = isinstance(self.quote.body, abi.TdReport)
        if info.id != ("TDX" if tdx else "SGX"):
            self.fail("collateral.tcb_info.wrong_kind", f"TCB info for {info.id}, the quote is of another kind")
            return None
        if pck is not None and (info.fmspc, info.pce_id) != (pck.fmspc, pck.pce_id):
            self.fail(
                "collateral.tcb_info.wrong_platform",
                f"TCB info for FMSPC {info.fmspc.hex()} and PCE {info.pce_id.hex()}, "
                f"the platform is {pck.fmspc.hex()} and {pck.pce_id.hex()}",
            )
            return None
        if isinstance(self.quote.body, abi.TdReport):
            for svns in svn_vectors(self.quote.body):
                module = module_identity(info, svns)
                if module is None:
                    self.fail("tdx.module.unknown", f"the TCB info knows no TDX module of major version {svns[1]}")
                elif mismatch := module_mismatch(module, self.quote.body):
                    self.fail("tdx.module.identity_mismatch", mismatch)
        return info

    def about_enclave(self, identity: QeIdentity) -> QeIdentity | None:
        kind = "TD_QE" if isinstance(self.quote.body, abi.TdReport) else "QE"
        if identity.id != kind:
            self.fail("collateral.qe_identity.wrong_kind", f"an identity of {identity.id} where {kind} belongs")
            return None
        if mismatch := enclave_mismatch(identity, self.quote.qe_report):
            self.fail("tdx.qe.identity_mismatch", f"not Intel's quoting enclave: {mismatch}")
        return identity
