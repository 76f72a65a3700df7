# SPDX-License-Identifier: Apache-2.0
"""Attacks on a TPM's evidence: quote, attestation key, endorsement key, event logs."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from cube_attestation import jcs
from cube_attestation.claims import Claims
from cube_attestation.fields import decode_base64, encode_base64
from cube_attestation.tpm import abi, eventlog, verify
from cube_attestation.x509.certificate import Certificate

from . import forge
from .case import OTHER_DIGEST, Case, Inapplicable, Mutation

AK_ATTRIBUTES = 0x00050072  # fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign


def _own(case: Case) -> Case:
    """Only where EK and AK certificates vouch for the TPM."""
    if case.has("azure-hcl") or not case.has("tpm-quote"):
        raise Inapplicable("no TPM by itself vouches for this machine")
    return case


def public_of(key: forge.PrivateKey, attributes: int = AK_ATTRIBUTES) -> bytes:
    """TPMT_PUBLIC of a signing key: RSASSA-2048 or ECDSA P-256, both with SHA-256."""
    if isinstance(key, rsa.RSAPrivateKey):
        modulus = key.public_key().public_numbers().n.to_bytes(key.key_size // 8, "big")
        head = struct.pack(">HHI", abi.ALG_RSA, abi.ALG_SHA256, attributes) + abi.sized(b"")
        scheme = struct.pack(">HHHHI", abi.ALG_NULL, abi.ALG_RSASSA, abi.ALG_SHA256, key.key_size, 0)
        return head + scheme + abi.sized(modulus)
    numbers = key.public_key().public_numbers()
    head = struct.pack(">HHI", abi.ALG_ECC, abi.ALG_SHA256, attributes) + abi.sized(b"")
    scheme = struct.pack(">HHHHH", abi.ALG_NULL, abi.ALG_ECDSA, abi.ALG_SHA256, 3, abi.ALG_NULL)
    return head + scheme + b"".join(abi.sized(n.to_bytes(32, "big")) for n in (numbers.x, numbers.y))


def signature_of(key: forge.PrivateKey, data: bytes) -> bytes:
    """TPMT_SIGNATURE with SHA-256."""
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        return struct.pack(">HH", abi.ALG_RSASSA, abi.ALG_SHA256) + abi.sized(signature)
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    head = struct.pack(">HH", abi.ALG_ECDSA, abi.ALG_SHA256)
    return head + abi.sized(r.to_bytes(32, "big")) + abi.sized(s.to_bytes(32, "big"))


def requoted(case: Case, key: forge.PrivateKey, *, attributes: int = AK_ATTRIBUTES) -> Case:
    """The same quote made by ``key`` as a primary key of the endorsement hierarchy: consistent in itself."""
    public = public_of(key, attributes)
    old = decode_base64(str(case.json("tpm-quote")["attest"]), where="tpm-quote.attest")
    size = struct.unpack_from(">H", old, 6)[0]
    signer = abi.sized(abi.parse_public(public).qualified_name(abi.RH_ENDORSEMENT))
    attest = old[:6] + signer + old[8 + size :]
    return case.with_members(
        "tpm-quote",
        attest=encode_base64(attest),
        signature=encode_base64(signature_of(key, attest)),
        ak_public=encode_base64(public),
    )


def _flip_member(member: str, offset: int) -> Callable[[Case], Case]:
    def change(case: Case) -> Case:
        data = bytearray(decode_base64(str(case.json("tpm-quote")[member]), where=f"tpm-quote.{member}"))
        data[offset] ^= 1
        return case.with_members("tpm-quote", **{member: encode_base64(bytes(data))})

    return change


def _clock_info(case: Case) -> Case:
    """A byte of the quote's clock, which nothing but the signature protects."""
    data = decode_base64(str(case.json("tpm-quote")["attest"]), where="tpm-quote.attest")
    return _flip_member("attest", _extra_end(data))(case)


def _extra_end(attest: bytes) -> int:
    """Where clockInfo begins, behind qualifiedSigner and extraData (Part 2, 10.12.8)."""
    signer: int = struct.unpack_from(">H", attest, 6)[0]
    extra: int = struct.unpack_from(">H", attest, 8 + signer)[0]
    return 10 + signer + extra


def _listed(case: Case) -> Case:
    """Other PCR values beside a quote that stays genuine."""
    quote = verify.QuoteEvidence.decode(case.item("tpm-quote"))
    pcrs: dict[str, jcs.Json] = {}
    for bank, values in quote.pcrs.items():
        pcrs[bank] = {str(index): bytes(b ^ 0xFF for b in value).hex() for index, value in values.items()}
    return case.with_members("tpm-quote", pcrs=pcrs)


def _not_quoted(case: Case) -> Case:
    """PCR 11 taken out of what the quote covers."""
    data = bytearray(decode_base64(str(case.json("tpm-quote")["attest"]), where="tpm-quote.attest"))
    at = _extra_end(bytes(data)) + 25
    banks = struct.unpack_from(">I", data, at)[0]
    at += 4
    for _ in range(banks):
        algorithm, size = struct.unpack_from(">HB", data, at)
        if algorithm == abi.ALG_SHA256 and data[at + 4] & 8:
            data[at + 4] ^= 8
            return case.with_members("tpm-quote", attest=encode_base64(bytes(data)))
        at += 3 + size
    raise Inapplicable("the quote does not cover PCR 11")


def _forger_quote(case: Case) -> Case:
    return requoted(_own(case), forge.ec_key("forger's TPM"))


def _unrestricted(case: Case) -> Case:
    """A key that signs anything, as a program on the host could make it."""
    return requoted(_own(case), forge.ec_key("forger's TPM"), attributes=AK_ATTRIBUTES & ~0x00010000)


def _claimed_key(case: Case) -> Case:
    """The forger's key in place of the quote's own, under the genuine signature."""
    key = encode_base64(public_of(forge.ec_key("forger's TPM")))
    return _own(case).with_members("tpm-quote", ak_public=key)


def _dropped(label: str) -> Callable[[Case], Case]:
    return lambda case: _own(case).without(label)


def _expired(label: str) -> Callable[[Case], Case]:
    def change(case: Case) -> Case:
        end = forge.load(_own(case).item(label), where=label)[0].not_after
        if end > datetime.max.replace(tzinfo=end.tzinfo) - timedelta(days=2):
            raise Inapplicable(f"the {label} never expires")
        return replace(case, now=end + timedelta(seconds=1))

    return change


def _before(label: str) -> Callable[[Case], Case]:
    def change(case: Case) -> Case:
        return replace(
            case, now=forge.load(_own(case).item(label), where=label)[0].not_before - timedelta(seconds=1)
        )

    return change


def _chain(case: Case, leaf: str, issuers: str) -> tuple[Certificate, ...]:
    first = forge.load(_own(case).item(leaf), where=leaf)[0]
    return forge.ordered((first, *forge.load(case.item(issuers), where=issuers)), first)


def _impostor(leaf: str, issuers: str, role: str) -> Callable[[Case], Case]:
    """A certificate and its issuers under the same names with the forger's keys."""

    def change(case: Case) -> Case:
        made = forge.impostor(_chain(case, leaf, issuers), role)
        rest = b"".join(map(forge.pem, made.certificates[1:]))
        return case.put(leaf, made.certificates[0]).put(issuers, rest)

    return change


def _other_tpm(case: Case) -> Case:
    """A genuine TPM's certificate (its maker's root is trusted), but not the one that the AK was activated in."""
    made = forge.impostor(_chain(case, "ek-certificate", "ek-chain"), "another TPM")
    rest = b"".join(map(forge.pem, made.certificates[1:]))
    root = made.root if len(made.certificates) > 1 else OTHER_DIGEST
    trusting = case.under(tpm=replace(case.policy.tpm, ek_roots=(*case.policy.tpm.ek_roots, root)))
    return trusting.put("ek-certificate", made.certificates[0]).put("ek-chain", rest)


def _ek_roots(case: Case) -> Case:
    return _own(case).under(tpm=replace(case.policy.tpm, ek_roots=(OTHER_DIGEST,)))


def _ak_issuers(case: Case) -> Case:
    return _own(case).under(tpm=replace(case.policy.tpm, ak_issuers=(OTHER_DIGEST,)))


def _log_digest(case: Case) -> Case:
    """One measured digest of the firmware's log."""
    data = case.item("tcg-eventlog")
    for event in eventlog.parse_tcg(data).events:
        digest = event.digests.get("sha256", b"")
        at = data.rfind(digest) if digest and any(digest) else -1
        if at >= 0 and event.extends:
            return case.flip("tcg-eventlog", at)
    raise Inapplicable("the event log has no digest to change")


def _log_without_boot(case: Case) -> Case:
    """The log as if nothing had been measured: its header alone."""
    data = case.item("tcg-eventlog")
    size = struct.unpack_from("<I", data, 28)[0]
    return case.put("tcg-eventlog", data[: 32 + size])


# A twin: quoted by an attestation key that a trusted CA certified for this very TPM, so that only content is left


def twin(
    case: Case, claims: Callable[[Claims], Claims] = lambda claims: claims, *, event: bytes = b"", bind: bool = True
) -> Case:
    """Other claims, correctly quoted; ``event`` is measured and logged too; ``bind``: quoted over these claims."""
    made = forge.impostor(_chain(case, "ak-certificate", "ak-chain"), "AK twin")
    key = made.keys[0]
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name != "secp256r1":
        raise Inapplicable("the attestation key is not on P-256")
    stated = claims(case.claims())
    bound = stated.extra_data() if bind else bytes(32)
    rules = case.policy.tpm
    case = case.under(tpm=replace(rules, ak_issuers=(*rules.ak_issuers, made.root)))
    case = case.put("ak-certificate", made.certificates[0])
    case = case.put("ak-chain", b"".join(map(forge.pem, made.certificates[1:])))
    case = replace(case.put("claims", stated.encode()), nonce=stated.nonce, tls_spki=stated.tls_spki)
    # A receipt is for the genuine bundle, and what it says is not in question here
    case = replace(case, bundle=replace(case.bundle, receipt=None))
    quote = verify.QuoteEvidence.decode(case.item("tpm-quote"))
    banks = {bank: dict(values) for bank, values in quote.pcrs.items()}
    if event:
        case = _logged(case, event)
        for bank, values in banks.items():
            values[11] = eventlog.extend(bank, values[11], hashlib.new(bank, event).digest())
    joined = b"".join(banks[bank][index] for bank, selected in quote.quote.selection for index in selected)
    old = quote.attest
    head = old[: 8 + struct.unpack_from(">H", old, 6)[0]]
    body = head + abi.sized(bound) + old[_extra_end(old) : -len(quote.quote.pcr_digest)]
    pcrs: dict[str, jcs.Json] = {
        bank: {str(index): value.hex() for index, value in values.items()} for bank, values in banks.items()
    }
    attest = encode_base64(body + hashlib.sha256(joined).digest())
    return requoted(case.with_members("tpm-quote", attest=attest, pcrs=pcrs), key)


def _logged(case: Case, event: bytes) -> Case:
    """One more record in systemd's log, as its pcrextend writes it."""
    record: dict[str, jcs.Json] = {
        "pcr": 11,
        "digests": [{"hashAlg": "sha256", "digest": hashlib.sha256(event).hexdigest()}],
        "content_type": "systemd",
        "content": {"string": event.decode(), "eventType": "phase"},
    }
    return case.put("systemd-eventlog", case.item("systemd-eventlog") + b"\x1e" + jcs.dumps(record) + b"\n")


def _failed(claims: Claims) -> Claims:
    """Each model's volume could not be read."""
    if not claims.models:
        raise Inapplicable("the claims name no model")
    return replace(claims, models={name: m._replace(state="failed") for name, m in claims.models.items()})


def _other_volumes(claims: Claims) -> Claims:
    if not claims.models:
        raise Inapplicable("the claims name no model")
    return replace(claims, models={name: m._replace(root="0f" * 32) for name, m in claims.models.items()})


def _late(case: Case) -> Case:
    seconds = case.policy.max_clock_skew_s + 1
    ahead = replace(case, now=case.claims().time)
    return twin(ahead, lambda claims: replace(claims, time=claims.time + timedelta(seconds=seconds)))


def _other_gpu(case: Case) -> Case:
    case.item("nvidia-devices")
    return twin(case, lambda claims: replace(claims, gpu=OTHER_DIGEST))


MUTATIONS = (
    Mutation(
        "tpm.twin.boot",
        "a correctly quoted boot in which something more was measured",
        "tpm.pcr.mismatch",
        lambda case: twin(case, event=b"one more"),
    ),
    Mutation(
        "tpm.twin.claims",
        "a correctly signed quote over other claims",
        "tpm.quote.nonce_mismatch",
        lambda case: twin(case, bind=False),
    ),
    Mutation(
        "tpm.twin.environment",
        "correctly quoted claims of another environment",
        "claims.environment_mismatch",
        lambda case: twin(case, lambda claims: replace(claims, environment="another")),
    ),
    Mutation(
        "tpm.twin.launch",
        "correctly quoted claims of a launch with another document",
        "claims.launch_mismatch",
        lambda case: twin(case, lambda claims: replace(claims, launch=OTHER_DIGEST)),
    ),
    Mutation(
        "tpm.twin.models",
        "correctly quoted claims that name other model volumes",
        "claims.models_mismatch",
        lambda case: twin(case, _other_volumes),
    ),
    Mutation(
        "tpm.twin.broken_model",
        "correctly quoted claims of a machine whose model can't be read",
        "claims.model_failed",
        lambda case: twin(case, _failed),
    ),
    Mutation("tpm.twin.clock", "correctly quoted claims of a wrong clock", "claims.clock_skew", _late),
    Mutation(
        "tpm.twin.gpu",
        "correctly quoted claims that name another machine's GPU",
        "nvidia.binding.digest_mismatch",
        _other_gpu,
    ),
    Mutation("tpm.quote.removed", "no quote", "tpm.quote.missing", lambda case: case.without("tpm-quote")),
    Mutation(
        "tpm.quote.signature",
        "one bit of the quote's signature",
        "tpm.quote.signature_invalid",
        _flip_member("signature", -1),
    ),
    Mutation("tpm.quote.clock", "one bit of the quote's clock", "tpm.quote.signature_invalid", _clock_info),
    Mutation("tpm.quote.pcrs", "other PCR values beside a genuine quote", "tpm.quote.pcr_digest_mismatch", _listed),
    Mutation("tpm.quote.selection", "a quote that leaves out a PCR", "tpm.pcr.not_quoted", _not_quoted),
    Mutation("tpm.ak.forger", "a quote by the forger's own TPM key", "tpm.ak.key_mismatch", _forger_quote),
    Mutation("tpm.ak.unrestricted", "a quote by a key that signs anything", "tpm.ak.attributes", _unrestricted),
    Mutation("tpm.ak.swapped", "another public area beside the quote", "tpm.ak.name_mismatch", _claimed_key),
    Mutation("tpm.ak.removed", "no AK certificate", "tpm.ak.missing", _dropped("ak-certificate")),
    Mutation("tpm.ak.issuer", "an AK certificate by a stranger", "tpm.ak.untrusted_issuer", _ak_issuers),
    Mutation(
        "tpm.ak.impostor",
        "an AK certificate and issuer under the right names with the forger's keys",
        "tpm.ak.untrusted_issuer",
        _impostor("ak-certificate", "ak-chain", "forger's CA"),
    ),
    Mutation("tpm.ak.expired", "after the AK certificate's end", "tpm.ak.expired", _expired("ak-certificate")),
    Mutation(
        "tpm.ak.early", "before the AK certificate's beginning", "tpm.ak.not_yet_valid", _before("ak-certificate")
    ),
    Mutation("tpm.ek.removed", "no EK certificate", "tpm.ek.missing", _dropped("ek-certificate")),
    Mutation(
        "tpm.ek.chain", "an EK certificate without its issuers", "tpm.ek.untrusted_root", _dropped("ek-chain")
    ),
    Mutation("tpm.ek.maker", "a TPM of a maker that is not accepted", "tpm.ek.untrusted_root", _ek_roots),
    Mutation(
        "tpm.ek.impostor",
        "an EK certificate and issuers under the right names with the forger's keys",
        "tpm.ek.untrusted_root",
        _impostor("ek-certificate", "ek-chain", "forger's maker"),
    ),
    Mutation("tpm.ek.other", "the certificate of another genuine TPM", "tpm.ak.other_ek", _other_tpm),
    Mutation("tpm.ek.expired", "after the EK certificate's end", "tpm.ek.expired", _expired("ek-certificate")),
    Mutation(
        "tpm.eventlog.removed",
        "no event log",
        "tpm.eventlog.missing",
        lambda case: case.without("tcg-eventlog"),
    ),
    Mutation("tpm.eventlog.digest", "one bit of a measured digest", "tpm.eventlog.replay_mismatch", _log_digest),
    Mutation(
        "tpm.eventlog.emptied", "an event log without its events", "tpm.eventlog.replay_mismatch", _log_without_boot
    ),
    Mutation(
        "tpm.eventlog.userspace",
        "the boot phases left out",
        "tpm.eventlog.replay_mismatch",
        lambda case: case.without("systemd-eventlog"),
    ),
)
