# SPDX-License-Identifier: Apache-2.0
"""Other tools' files as one of our bundles (formats §3): the same bytes under our labels.

What is imported has no claims, launch document or image manifest of ours, and `attestation verify` says that they
are missing; collateral can be added to it.
"""

from __future__ import annotations

import base64

from . import jcs
from .bundle import Bundle
from .check.tdx import collateral as intel
from .check.tdx import is_cc_log
from .check.tpm import Assembled, assembled
from .cmw import ENDORSEMENTS, Collection
from .collateral.store import pem, pem_lists
from .errors import BadInput
from .recognise import Material
from .tpm import abi
from .x509 import certificate, crl

PEM_CHAIN, CRL = "application/pem-certificate-chain", "application/pkix-crl"
_SCHEMES = {"rsassa": abi.ALG_RSASSA, "rsapss": abi.ALG_RSAPSS}


def bundle(material: Material) -> Bundle:
    """The bundle of everything in ``material`` that has a label. Raises BadInput when parts are no known bytes."""
    evidence = Collection()
    for label, media, parts in (
        ("snp-report", "application/vnd.cube.snp-report", material.snp_reports),
        ("tdx-quote", "application/vnd.cube.tdx-quote", material.tdx_quotes),
        ("azure-hcl", "application/vnd.cube.azure-hcl", material.hcl_reports),
        ("systemd-eventlog", "application/vnd.cube.systemd-eventlog", material.systemd_logs),
        ("gce-launch-endorsement", "application/vnd.cube.gce-launch-endorsement", material.endorsements),
        ("ccel", "application/vnd.cube.ccel", tuple(log for log in material.logs if is_cc_log(log))),
        (
            "tcg-eventlog",
            "application/vnd.cube.tcg-eventlog",
            tuple(log for log in material.logs if not is_cc_log(log)),
        ),
    ):
        if len(parts) > 1:
            raise BadInput(f"{label} occurs {len(parts)} times", todo="a bundle is about one machine")
        for part in parts:
            evidence = evidence.with_item(label, media, part)
    evidence = _certified(evidence, material)
    evidence = _collateral(evidence, material)
    evidence = _quote(evidence, material)
    evidence = _nvidia(evidence, material)
    evidence = _tokens(evidence, material)
    if not evidence.items:
        raise BadInput("none of the files holds evidence", todo="see `attestation inspect` for what they hold")
    return Bundle(evidence)


def _certified(evidence: Collection, material: Material) -> Collection:
    """Certificates and lists by whose they are: AMD's, Intel's (with the collateral), or the TPM's."""
    found = certificate.load_all(material.certificates, where="certificates")
    amd = [one for one in found if one.common_name.startswith(("SEV-", "ARK-"))]
    others = [one for one in found if one not in amd and not _names(one, "Intel") and not _names(one, "NVIDIA")]
    if amd:
        media = "application/vnd.cube.snp-certificates"
        evidence = evidence.with_item("snp-certificates", media, pem(amd), ENDORSEMENTS)
    elif material.snp_tables:
        media = "application/vnd.cube.snp-certificates"
        evidence = evidence.with_item("snp-certificates", media, material.snp_tables[0], ENDORSEMENTS)
    leaves = [one for one in others if not one.basic_constraints()[0]]
    issuers = [one for one in others if one not in leaves]
    if leaves and material.hcl_reports:
        evidence = evidence.with_item("azure-ak-chain", PEM_CHAIN, pem((leaves[0], *issuers)), ENDORSEMENTS)
    elif leaves and (material.quotes or material.attests):
        evidence = evidence.with_item("ak-certificate", "application/pkix-cert", leaves[0].der, ENDORSEMENTS)
        if issuers:
            evidence = evidence.with_item("ak-chain", PEM_CHAIN, pem(issuers), ENDORSEMENTS)
    lists = [(data, certificate.describe(crl.load(data, where="revocation list").issuer)) for data in material.crls]
    for data in [data for data, issuer in lists if "CN=ARK-" in issuer][:1]:
        evidence = evidence.with_item("snp-crl", CRL, data, ENDORSEMENTS)
    authorities = {certificate.describe(one.subject) for one in issuers}
    azure = [data for data, issuer in lists if "Virtual TPM" in issuer or issuer in authorities]
    if azure and material.hcl_reports:
        evidence = evidence.with_item("azure-crls", "application/vnd.cube.crls", pem_lists(azure), ENDORSEMENTS)
    return evidence


def _names(one: certificate.Certificate, organisation: str) -> bool:
    return organisation in one.name + certificate.describe(one.issuer)


def _collateral(evidence: Collection, material: Material) -> Collection:
    """Intel's documents as published, each under its label."""
    from .tdx.abi import parse_quote

    quote = parse_quote(material.tdx_quotes[0]) if material.tdx_quotes else None
    if quote is None and not material.collateral:
        return evidence
    found = intel(material, quote)
    for label, media, member, signed in (
        ("tdx-tcb-info", "application/vnd.cube.intel-tcb-info+json", b"tcbInfo", found.tcb_info),
        ("tdx-qe-identity", "application/vnd.cube.intel-qe-identity+json", b"enclaveIdentity", found.qe_identity),
    ):
        if signed is not None:
            body = b'{"%s":%s,"signature":"%s"}' % (member, signed.content, signed.signature.hex().encode())
            evidence = evidence.with_item(label, media, body, ENDORSEMENTS)
    for label, media, data in (
        ("tdx-tcb-info-chain", PEM_CHAIN, found.tcb_info_chain),
        ("tdx-qe-identity-chain", PEM_CHAIN, found.qe_identity_chain),
        ("tdx-pck-chain", PEM_CHAIN, found.pck_chain),
        ("tdx-root-crl", CRL, found.root_crl),
        ("tdx-pck-crl", CRL, found.pck_crl),
    ):
        if data:
            evidence = evidence.with_item(label, media, data, ENDORSEMENTS)
    return evidence


def _quote(evidence: Collection, material: Material) -> Collection:
    """The TPM quote as our JSON; of several the one over SHA-256."""
    quotes = assembled(material)
    if not quotes:
        return evidence
    chosen = next((quote for quote in quotes if "sha256" in quote.pcrs), quotes[0])
    value: dict[str, jcs.Json] = {
        "attest": base64.b64encode(chosen.attest).decode(),
        "signature": base64.b64encode(_signature(chosen)).decode(),
        "ak_public": base64.b64encode(_public(material)).decode(),
        "pcrs": {
            bank: {str(index): value.hex() for index, value in values.items() if index < 24}
            for bank, values in chosen.pcrs.items()
        },
    }
    return evidence.with_item("tpm-quote", "application/vnd.cube.tpm-quote+json", jcs.dumps(value))


def _signature(quote: Assembled) -> bytes:
    """The TPMT_SIGNATURE again."""
    found = quote.signature
    code = next(code for code, name in abi.HASHES.items() if name == found.hash).to_bytes(2, "big")
    if found.scheme == "ecdsa":
        from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

        numbers = decode_dss_signature(found.value)
        parts = [abi.sized(n.to_bytes((n.bit_length() + 7) // 8, "big")) for n in numbers]
        return abi.ALG_ECDSA.to_bytes(2, "big") + code + b"".join(parts)
    return _SCHEMES[found.scheme].to_bytes(2, "big") + code + abi.sized(found.value)


def _public(material: Material) -> bytes:
    """The AK's TPMT_PUBLIC; on Azure the claims hold only its numbers, so that its attributes are left at none."""
    if material.publics:
        return material.publics[0]
    if not material.hcl_reports:
        raise BadInput("the attestation key's public area is not among the files", todo="pass it too (TPMT_PUBLIC)")
    from .azure.abi import parse_claims, parse_hcl

    key = parse_claims(parse_hcl(material.hcl_reports[0]).claims).ak
    head = abi.ALG_RSA.to_bytes(2, "big") + b"\0\x0b" + bytes(4) + abi.sized(b"")
    scheme = abi.ALG_NULL.to_bytes(2, "big") * 2
    numbers = (8 * len(key.modulus)).to_bytes(2, "big") + key.exponent.to_bytes(4, "big") + abi.sized(key.modulus)
    return head + scheme + numbers


def _nvidia(evidence: Collection, material: Material) -> Collection:
    if material.devices:
        from .check.nvidia import devices
        from .nvidia import abi as nvidia

        media = "application/vnd.cube.nvidia-devices+json"
        evidence = evidence.with_item("nvidia-devices", media, nvidia.encode_evidence(devices(material)))
    if material.rims or material.ocsp:
        from .nvidia.appraise import Collateral
        from .nvidia.items import COLLATERAL, COLLATERAL_MEDIA_TYPE, encode_collateral

        data = encode_collateral(Collateral(material.rims, material.ocsp))
        evidence = evidence.with_item(COLLATERAL, COLLATERAL_MEDIA_TYPE, data, ENDORSEMENTS)
    return evidence


def _tokens(evidence: Collection, material: Material) -> Collection:
    """Each token with the key sets that were given; a service may be there once."""
    if not material.tokens:
        return evidence
    from .check.tokens import issuer_of
    from .tokens.items import Given, encode

    keys = next((data for data in (*material.keys, *material.offered_keys) if data[:1] == b"{"), b'{"keys":[]}')
    given = [Given(issuer_of(token), token, keys) for token in material.tokens]
    if len({one.issuer for one in given}) != len(given):
        raise BadInput("two tokens of one service", todo="import them one by one")
    return evidence.with_item("tokens", "application/vnd.cube.tokens+json", encode(given))
