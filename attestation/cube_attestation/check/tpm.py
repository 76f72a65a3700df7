# SPDX-License-Identifier: Apache-2.0
"""``check tpm-quote`` and ``check tpm-eventlog``: quotes of one key, who vouches for it, and the boot's logs."""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cube_attestation import jcs
from cube_attestation.anchors import google, microsoft
from cube_attestation.azure.abi import parse_claims, parse_hcl, parse_signature
from cube_attestation.errors import BadInput
from cube_attestation.recognise import Material
from cube_attestation.tpm import abi, eventlog
from cube_attestation.tpm.verify import (
    AK_ATTRIBUTES,
    AK_CERTIFICATE_EKU,
    QuoteEvidence,
    pcr_digest,
    signature_holds,
)
from cube_attestation.verdict import ItemVerdict, Reason
from cube_attestation.x509 import certificate, crl, keys, path

from .result import Given, needed

ROOTS = (*google.VTPM_ROOTS, *microsoft.VTPM_ROOTS)
DIGITAL_SIGNATURE = 0x80
# Google's authorities give AKs the usage of EKs, or none; there the key usage tells them apart
EK_CERTIFICATE_EKU = "2.23.133.8.1"
CHAIN_CODES = {
    "expired": "tpm.ak.expired",
    "not_yet_valid": "tpm.ak.not_yet_valid",
    "constraints": "tpm.ak.constraints",
    "weak": "tpm.ak.weak_key",
    "signature_invalid": "tpm.ak.signature_invalid",
    "untrusted_root": "tpm.ak.untrusted_issuer",
}
# PCR 10 is IMA's, whose log is its own. From 8 on, others than the firmware may extend without a log
FIRMWARE_PCRS = range(8)
LOGGED_PCRS = tuple(pcr for pcr in range(16) if pcr != 10)


@dataclass(frozen=True)
class Assembled:
    """One quote with its signature and the PCR values that were given; none: they were not."""

    attest: bytes
    signature: abi.Signature
    pcrs: Mapping[str, Mapping[int, bytes]]


def assembled(material: Material) -> tuple[Assembled, ...]:
    """Quotes that came whole, and the one that came in files of its own. Raises BadInput.

    A bare RSA signature is RSASSA with SHA-256. PCR values may be JSON, or raw in the quote's order.
    """
    found = [Assembled(q.attest, parse_signature(q.signature), q.pcrs) for q in material.quotes]
    if not material.attests:
        return tuple(found)
    attest = needed(material.attests, "a TPMS_ATTEST", "")
    signatures = [*material.signatures, *(blob for blob in material.blobs if _is_bare_signature(blob))]
    if not signatures:
        raise BadInput("the quote has no signature", todo="pass it too: a TPMT_SIGNATURE, or bare RSA bytes")
    raw = needed(tuple(signatures[:1]), "a signature", "")
    pcrs = dict(material.pcrs[0]) if material.pcrs else _raw_pcrs(material, abi.parse_quote(attest), raw)
    found.append(Assembled(attest, _signature(raw), pcrs))
    return tuple(found)


def _is_bare_signature(blob: bytes) -> bool:
    return len(blob) in (256, 384, 512) or _is_der_signature(blob)


def _is_der_signature(blob: bytes) -> bool:
    """An ECDSA signature as ``tpm2_quote --format=plain`` writes it: a SEQUENCE of two INTEGERs."""
    from cube_attestation.x509 import der

    try:
        outer = der.Cursor(blob, "signature")
        inner = outer.inner()
        outer.done()
        inner.integer(67)
        inner.integer(67)
        inner.done()
    except BadInput:
        return False
    return True


def _signature(data: bytes) -> abi.Signature:
    """A TPMT_SIGNATURE, bare RSASSA, or DER of ECDSA, the latter two with SHA-256. Raises BadInput."""
    return abi.Signature("ecdsa", "sha256", data) if _is_der_signature(data) else parse_signature(data)


def _raw_pcrs(material: Material, quote: abi.Quote, used: bytes) -> Mapping[str, Mapping[int, bytes]]:
    """PCR values in the quote's order: one after the other, or in the structures that tpm2-tools writes."""
    wanted = [(bank, index) for bank, indices in quote.selection for index in indices]
    size = sum(hashlib.new(bank).digest_size for bank, _ in wanted)
    blob = next((blob for blob in material.blobs if len(blob) == size and blob != used), b"")
    if not blob:
        blob = next((values for one in material.blobs if len(values := _tpm2_tools(one)) == size), b"")
    found: dict[str, dict[int, bytes]] = {}
    at = 0
    for bank, index in wanted if blob else ():
        end = at + hashlib.new(bank).digest_size
        found.setdefault(bank, {})[index] = blob[at:end]
        at = end
    return found


def _tpm2_tools(blob: bytes) -> bytes:
    """The values of ``tpm2_quote --pcr``'s file, empty for another one.

    Little-endian C structures: TPML_PCR_SELECTION (132 bytes), a count, and as many TPML_DIGEST (532 bytes each: a
    count, then eight times size and 64 bytes).
    """
    if len(blob) < 136:
        return b""
    (count,) = struct.unpack_from("<I", blob, 132)
    if len(blob) != 136 + 532 * count:
        return b""
    values = b""
    for at in range(136, len(blob), 532):
        (digests,) = struct.unpack_from("<I", blob, at)
        for i in range(min(digests, 8)):
            (size,) = struct.unpack_from("<H", blob, at + 4 + 66 * i)
            values += blob[at + 6 + 66 * i :][: min(size, 64)]
    return values


@dataclass(frozen=True)
class _Key:
    """The attestation key: its public area where that was given, its certificate and chain where they were."""

    public: abi.Public
    reasons: tuple[Reason, ...]
    facts: dict[str, jcs.Json]


def check(given: Given) -> tuple[ItemVerdict, ...]:
    """Items of the quotes, the AK and the log; for ``tpm-eventlog`` the log's first. Raises BadInput."""
    material = given.material
    if given.kind == "tpm-eventlog" and not (material.logs or material.systemd_logs):
        raise BadInput("none of the files holds an event log", todo="pass binary_bios_measurements")
    quotes = assembled(material)
    if not quotes:
        if given.kind == "tpm-quote":
            raise BadInput(
                "none of the files holds a TPM quote", todo="pass TPMS_ATTEST, its signature and PCR values"
            )
        item = log_item(material, [])
        missing = Reason("tpm.quote.missing", "nothing vouches for a log but a quote of the PCRs that it leads to")
        forged = item.forged if "tpm.quote" in given.allow_missing else (*item.forged, missing)
        return (replace(item, forged=forged),)
    key = _key(given, quotes)
    items: list[ItemVerdict] = []
    evidence: list[tuple[QuoteEvidence, str]] = []
    for one in quotes:
        quote = abi.parse_quote(one.attest)
        name = "tpm-quote" if len(quotes) == 1 else f"tpm-quote-{'-'.join(bank for bank, _ in quote.selection)}"
        public = key.public if key is not None else abi.Public(b"", "sha256", 0, b"")
        whole = QuoteEvidence(one.attest, quote, one.signature, public, one.pcrs)
        evidence.append((whole, name))
        items.append(ItemVerdict(name, tuple(_quote(whole, key, given)), facts=_facts(whole)))
    ak = (Reason("tpm.ak.missing", "there is no certificate of the attestation key, nor its public area"),)
    items.append(ItemVerdict("tpm-ak", key.reasons if key else ak, facts=key.facts if key else {}))
    if material.logs or material.systemd_logs:
        log = log_item(material, evidence)
        items = [log, *items] if given.kind == "tpm-eventlog" else [*items, log]
    return tuple(items)


def _quote(evidence: QuoteEvidence, key: _Key | None, given: Given) -> list[Reason]:
    reasons: list[Reason] = []
    if key is not None and not signature_holds(evidence.attest, evidence.signature, key.public.key()):
        reasons.append(Reason("tpm.quote.signature_invalid", "the attestation key did not sign this quote"))
    if evidence.pcrs and not hmac.compare_digest(pcr_digest(evidence) or b"", evidence.quote.pcr_digest):
        reasons.append(Reason("tpm.quote.pcr_digest_mismatch", "the PCR values listed are not the ones quoted"))
    if given.nonce is not None and not hmac.compare_digest(given.nonce, evidence.quote.extra_data):
        words = (
            f"extraData {evidence.quote.extra_data.hex() or 'is empty'}, expected {given.nonce.hex() or 'nothing'}"
        )
        reasons.append(Reason("tpm.quote.nonce_mismatch", words))
    return reasons


def _key(given: Given, quotes: Sequence[Assembled]) -> _Key | None:
    """The key that the files name, and what keeps it from being one that a vendor vouches for."""
    material = given.material
    found = certificate.load_all(material.certificates, where="certificates")
    publics = [abi.parse_public(data) for data in material.publics[:1]]
    for data in material.hcl_reports[:1] if not publics else ():
        publics.append(parse_claims(parse_hcl(data).claims).ak.public())
    publics += [public for data in material.keys if (public := _of_pem(data)) is not None] if not publics else []
    leaf = _leaf(found, publics, quotes)
    if leaf is None and not publics:
        return None
    facts: dict[str, jcs.Json] = {}
    reasons: list[Reason] = []
    certified = _of_spki(leaf.spki) if leaf is not None else None
    public = publics[0] if publics else certified
    if public is None:
        return None
    if public.raw:
        facts["name"] = public.name().hex()
        facts["attributes"] = f"0x{public.attributes:08x}"
        if AK_ATTRIBUTES & ~public.attributes or public.attributes & abi.DECRYPT:
            words = f"attributes 0x{public.attributes:08x} are not those of a restricted signing key of this TPM"
            reasons.append(Reason("tpm.ak.attributes", words))
    facts["key"] = public.curve or f"rsa{8 * len(public.modulus)}"
    if leaf is None:
        if "tpm.ak-certificate" not in given.allow_missing:
            words = "there is no certificate that vouches for the attestation key"
            reasons.append(Reason("tpm.ak.missing", words))
        return _Key(public, tuple(reasons), facts)
    if certified is None or not _same(certified, public):
        reasons.append(Reason("tpm.ak.key_mismatch", "the AK certificate is for another key than the quote's"))
    usage = leaf.key_usage()
    if not (usage or 0) & DIGITAL_SIGNATURE:
        reasons.append(Reason("tpm.ak.constraints", f"{leaf.name} may not sign"))
    issuers = (*(one for one in found if one is not leaf), *google.published(), *microsoft.published())
    chain = path.find(leaf, issuers, (*ROOTS, *given.roots), given.now)
    googles = not chain.problem and chain.anchor.spki_digest in google.VTPM_ROOTS
    usages = leaf.extended_key_usage()
    if AK_CERTIFICATE_EKU not in (usages or ()) and not (googles and usages in (None, (EK_CERTIFICATE_EKU,))):
        words = f"extended key usage {', '.join(usages or ()) or 'none'}, {AK_CERTIFICATE_EKU} is needed"
        reasons.append(Reason("tpm.ak.usage", words))
    if chain.problem:
        reasons.append(Reason(CHAIN_CODES[chain.problem], chain.words))
    else:
        lists = [crl.load(data, where="revocation list") for data in material.crls]
        revocation = path.check_revocation(chain.certificates, lists, given.now)
        if revocation.revoked:
            reasons.append(Reason("tpm.ak.revoked", f"its issuer revoked {revocation.revoked}"))
        for problem, words in revocation.problems:
            if problem != "missing" or "tpm.crl" not in given.allow_missing:
                reasons.append(Reason(path.CRL_CODES[problem], words))
        facts["chain"] = [f"{one.name} {one.digest}" for one in chain.certificates]
    return _Key(public, tuple(reasons), facts)


def _leaf(
    found: Sequence[certificate.Certificate], publics: Sequence[abi.Public], quotes: Sequence[Assembled]
) -> certificate.Certificate | None:
    """The AK's certificate: of the key that is named or that signed, else the first that is no authority's."""
    ends = [one for one in found if not one.basic_constraints()[0]]
    for one in ends:
        public = _of_spki(one.spki)
        if public is not None and any(_same(public, other) for other in publics):
            return one
        if public is not None and any(signature_holds(q.attest, q.signature, public.key()) for q in quotes):
            return one
    return ends[0] if ends else None


def _of_spki(spki: bytes) -> abi.Public | None:
    """The numbers of a certified key as the TPM code takes them; None for kinds that no AK has."""
    from cryptography.hazmat.primitives.asymmetric import rsa

    try:
        key = keys.public_key(spki)
    except BadInput:
        return None
    if isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        return abi.Public(
            b"", "sha256", 0, b"", modulus=numbers.n.to_bytes(key.key_size // 8, "big"), exponent=numbers.e
        )
    if key.curve.name in abi.CURVES.values():
        point, size = key.public_numbers(), (key.key_size + 7) // 8
        x, y = point.x.to_bytes(size, "big"), point.y.to_bytes(size, "big")
        return abi.Public(b"", "sha256", 0, b"", curve=key.curve.name, x=x, y=y)
    return None


def _of_pem(data: bytes) -> abi.Public | None:
    """A bare public key in PEM (``tpm2_createak -f pem``)."""
    from base64 import b64decode

    if not data.startswith(b"-----BEGIN PUBLIC KEY"):
        return None
    return _of_spki(b64decode(b"".join(data.split(b"\n")[1:-2])))


def _same(one: abi.Public, other: abi.Public) -> bool:
    def numbers(public: abi.Public) -> tuple[str, tuple[int, ...]]:
        parts = (public.modulus, public.x, public.y)
        return public.curve, (public.exponent, *(int.from_bytes(part, "big") for part in parts))

    return numbers(one) == numbers(other)


def log_item(material: Material, quotes: Sequence[tuple[QuoteEvidence, str]]) -> ItemVerdict:
    """The logs' item: every quoted PCR that they speak about must be where they lead. Raises BadInput."""
    log = eventlog.parse_tcg(needed(material.logs, "an event log", "")) if material.logs else None
    more = [eventlog.parse_systemd(data) for data in material.systemd_logs]
    events = [event for one in (log, *more) if one is not None for event in one.events]
    banks = [bank for bank in (log.banks if log else more[0].banks) if _has(events, bank)]
    touched = {event.pcr for event in events if event.extends}
    replayed = {bank: eventlog.replay(events, bank) for bank in banks}
    facts: dict[str, jcs.Json] = {
        "events": len(events),
        "banks": list(banks),
        "pcrs": {
            bank: {str(pcr): value.hex() for pcr, value in values.items() if pcr in touched}
            for bank, values in replayed.items()
        },
    }
    reasons: list[Reason] = []
    held: list[Mapping[str, Mapping[int, bytes]]] = [evidence.pcrs for evidence, _ in quotes]
    for pcrs in held or material.pcrs:
        for bank, values in pcrs.items():
            wrong = [
                pcr
                for pcr, value in sorted(values.items())
                if bank in replayed
                and pcr in LOGGED_PCRS
                and (pcr in FIRMWARE_PCRS or pcr in touched)
                and replayed[bank][pcr] != value
            ]
            if wrong:
                listed = ", ".join(map(str, wrong))
                words = f"replaying the logs gives other {bank} values than quoted for PCR {listed}"
                reasons.append(Reason("tpm.eventlog.replay_mismatch", words))
    return ItemVerdict("tpm-eventlog", tuple(reasons), facts=facts)


def _has(events: Sequence[eventlog.Event], bank: str) -> bool:
    return all(bank in event.digests for event in events if event.extends)


def _facts(evidence: QuoteEvidence) -> dict[str, jcs.Json]:
    quote = evidence.quote
    return {
        "extra_data": quote.extra_data.hex(),
        "qualified_signer": quote.qualified_signer.hex(),
        "clock_ms": min(quote.clock, jcs.MAX_INTEGER),
        "resets": quote.reset_count,
        "restarts": quote.restart_count,
        "safe": quote.safe,
        "firmware_version": f"{quote.firmware_version:016x}",
        "scheme": f"{evidence.signature.scheme} with {evidence.signature.hash}",
        "selection": {bank: list(indices) for bank, indices in quote.selection},
        "pcr_digest": quote.pcr_digest.hex(),
        "pcrs": {
            bank: {str(pcr): value.hex() for pcr, value in sorted(values.items())}
            for bank, values in evidence.pcrs.items()
        },
    }
