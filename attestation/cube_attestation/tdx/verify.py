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
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.x509.oid import NameOID

from cube_attestation import times, x509chain
from cube_attestation.anchors.intel import INTEL_ROOTS
from cube_attestation.errors import BadInput
from cube_attestation.verdict import Reason

from . import abi, chains
from .collateral import Collateral, QeIdentity, Signed, TcbInfo, parse_qe_identity, parse_tcb_info
from .tcb import Tcb, enclave_mismatch, evaluate, module_identity, module_mismatch

PCK_ISSUERS = ("Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA")
TCB_SIGNER = "Intel SGX TCB Signing"

D = TypeVar("D", TcbInfo, QeIdentity)


@dataclass(frozen=True)
class Verification:
    """What verifying found. ``forged`` empty: authentic. The rest is None as far as it could not be established."""

    quote: abi.Quote
    now: datetime
    forged: tuple[Reason, ...]
    pck: abi.PckExtension | None
    tcb: Tcb | None
    tcb_info: TcbInfo | None
    qe_identity: QeIdentity | None
    oldest: datetime | None  # the earliest issue date among the four pieces of collateral
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
) -> Verification:
    """Verify ``quote`` against ``collateral`` at ``now`` (aware) under roots whose SPKI digests are ``anchors``.

    Never passes by absence: each missing piece of collateral is a reason. Raises BadInput for malformed bytes.
    """
    if now.tzinfo is None:
        raise BadInput("a time without a zone", where="now", todo="pass an aware datetime")
    return _Check(abi.parse_quote(quote) if isinstance(quote, bytes) else quote, collateral, now, anchors).run()


def forget() -> None:
    """Forget every verified chain, CRL and document (for measurements and tests)."""
    _TCB_INFOS.clear()
    _QE_IDENTITIES.clear()
    chains.clear()


_TCB_INFOS: chains.Cache[TcbInfo] = chains.Cache(64)
_QE_IDENTITIES: chains.Cache[QeIdentity] = chains.Cache(64)


class _Check:
    """One verification: gathers reasons and goes on wherever the next check still says something."""

    def __init__(self, quote: abi.Quote, collateral: Collateral, now: datetime, anchors: Collection[str]) -> None:
        self.quote, self.collateral, self.now, self.anchors = quote, collateral, now, anchors
        self.forged: list[Reason] = []
        self.windows: list[tuple[datetime, datetime]] = []

    def fail(self, code: str, words: str) -> None:
        reason = Reason(code, words)
        if reason not in self.forged:  # both documents usually have one signer
            self.forged.append(reason)

    def run(self) -> Verification:
        given = self.collateral
        self.signature()
        path = self.pck_path()
        pck = self.platform(path.certificates[0]) if path else None
        if path is not None:
            self.quoting_enclave(path)
        info_signer = self.signer(given.tcb_info_chain, "tcb_info", "TCB info") if given.tcb_info else None
        identity_signer = (
            self.signer(given.qe_identity_chain, "qe_identity", "QE identity") if given.qe_identity else None
        )
        self.revocation(path, [signer for signer in (info_signer, identity_signer) if signer])
        info = self.document(given.tcb_info, info_signer, "tcb_info", "TCB info", _TCB_INFOS, parse_tcb_info)
        identity = self.document(
            given.qe_identity, identity_signer, "qe_identity", "QE identity", _QE_IDENTITIES, parse_qe_identity
        )
        info = self.about_platform(info, pck) if info else None
        identity = self.about_enclave(identity) if identity else None
        complete = len(self.windows) == 4
        return Verification(
            quote=self.quote,
            now=self.now,
            forged=tuple(self.forged),
            pck=pck,
            tcb=evaluate(info, identity, pck, self.quote) if info and identity and pck else None,
            tcb_info=info,
            qe_identity=identity,
            oldest=min(issued for issued, _ in self.windows) if complete else None,
            next_update=min(end for _, end in self.windows) if complete else None,
        )

    # The quote, its quoting enclave and its platform

    def signature(self) -> None:
        quote = self.quote
        key = chains.public_key(quote.attestation_key)
        if key is None:
            self.fail("tdx.signature.invalid", "the attestation key is no point on P-256")
        elif not chains.signature_holds(key, quote.signature, quote.signed):
            self.fail("tdx.signature.invalid", "the quote is not signed by its attestation key")
        bound = hashlib.sha256(quote.attestation_key + quote.qe_auth).digest() + bytes(32)
        if quote.qe_report.report_data != bound:
            self.fail("tdx.qe.unbound_key", "the quoting enclave's report does not vouch for the attestation key")
        if quote.qe_vendor != abi.INTEL_QE_VENDOR:
            self.fail("tdx.qe.unknown_vendor", f"the quoting enclave's vendor {quote.qe_vendor.hex()} is not Intel")

    def quoting_enclave(self, path: chains.Path) -> None:
        if not chains.signature_holds(path.key, self.quote.qe_signature, self.quote.qe_report_bytes):
            self.fail("tdx.qe.signature_invalid", "the quoting enclave's report is not signed by the PCK key")

    def pck_path(self) -> chains.Path | None:
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
        leaf = path.certificates[0]
        if len(path.certificates) != 3 or _common_name(path.certificates[1]) not in PCK_ISSUERS:
            self.fail("tdx.chain.not_pck", f"{x509chain.name(leaf)} was not issued by a PCK CA")
            return None
        return path

    def platform(self, leaf: x509.Certificate) -> abi.PckExtension | None:
        value = _extension(leaf, abi.SGX_EXTENSION)
        if value is None:
            self.fail("tdx.chain.not_pck", f"{x509chain.name(leaf)} has no SGX extension")
            return None
        return _pck_extension(value)

    # Revocation

    def revocation(self, path: chains.Path | None, signers: list[chains.Path]) -> None:
        """Both CRLs, each signed by the authority of the chain that it is about, in force, and naming nobody."""
        roots = [p.certificates[-1] for p in (path, *signers) if p is not None]
        root_crl = self.crl(self.collateral.root_crl, roots[0] if roots else None, "root_crl", "root CA CRL")
        pck_crl = self.crl(self.collateral.pck_crl, path.certificates[1] if path else None, "pck_crl", "PCK CRL")
        if path is not None:
            self.revoked(path.certificates[0], pck_crl, "tdx.chain.revoked")
            self.revoked(path.certificates[1], root_crl, "tdx.chain.revoked")
        for signer in signers:
            self.revoked(signer.certificates[0], root_crl, "collateral.chain.revoked")

    def crl(self, der: bytes | None, issuer: x509.Certificate | None, item: str, words: str) -> chains.Crl | None:
        if not der:
            self.fail(f"collateral.{item}.missing", f"the {words} is missing, so revocation can't be told")
            return None
        if issuer is None:
            return None  # the broken chain is a reason already
        crl = chains.verify_crl(der, issuer, where=words)
        if isinstance(crl, chains.Problem):
            self.fail(f"collateral.{item}.{crl.why}", crl.words)
            return None
        self.in_force(words, crl.issued, crl.next_update)
        return crl

    def revoked(self, certificate: x509.Certificate, crl: chains.Crl | None, code: str) -> None:
        entry = crl.crl.get_revoked_certificate_by_serial_number(certificate.serial_number) if crl else None
        if entry is not None:
            self.fail(code, f"{x509chain.name(certificate)} was revoked on {entry.revocation_date_utc:%Y-%m-%d}")

    def in_force(self, words: str, issued: datetime, end: datetime) -> None:
        self.windows.append((issued, end))
        if self.now < issued:
            self.fail("collateral.not_yet_valid", f"the {words} was issued at {times.format_time(issued)}, later")
        if self.now > end:
            self.fail("collateral.expired", f"the {words} had to be renewed by {times.format_time(end)}")

    # Intel's signed documents

    def signer(self, pem: bytes, item: str, words: str) -> chains.Path | None:
        if not pem:
            self.fail(f"collateral.{item}.missing", f"the issuer chain of the {words} is missing")
            return None
        path = chains.verify(pem, self.anchors, self.now, where=f"{words} issuer chain")
        if isinstance(path, chains.Problem):
            self.fail(f"collateral.chain.{path.why}", path.words)
            return None
        if len(path.certificates) != 2 or _common_name(path.certificates[0]) != TCB_SIGNER:
            self.fail(
                "collateral.chain.not_tcb_signer",
                f"{x509chain.name(path.certificates[0])} may not sign the {words}",
            )
            return None
        return path

    def document(
        self,
        signed: Signed | None,
        signer: chains.Path | None,
        item: str,
        words: str,
        cache: chains.Cache[D],
        parse: Callable[[bytes], D],
    ) -> D | None:
        if signed is None:
            self.fail(f"collateral.{item}.missing", f"the {words} is missing, so the TCB can't be told")
            return None
        if signer is None:
            return None
        memory = (hashlib.sha256(signed.content).digest(), signed.signature, signer.spki)
        found = cache.get(memory)
        if found is None:
            if not chains.signature_holds(signer.key, signed.signature, signed.content):
                self.fail(f"collateral.{item}.signature_invalid", f"the {words} is not signed by {TCB_SIGNER}")
                return None
            found = parse(signed.content)
            cache.put(memory, found)
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
            module = module_identity(info, self.quote.body)
            if module is None:
                major = self.quote.body.tee_tcb_svn[1]
                self.fail("tdx.module.unknown", f"the TCB info knows no TDX module of major version {major}")
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


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def _extension(certificate: x509.Certificate, oid: str) -> bytes | None:
    for extension in certificate.extensions:
        if extension.oid.dotted_string == oid and isinstance(extension.value, x509.UnrecognizedExtension):
            return extension.value.value
    return None


@functools.lru_cache(maxsize=256)
def _pck_extension(value: bytes) -> abi.PckExtension:
    return abi.parse_pck_extension(value)
