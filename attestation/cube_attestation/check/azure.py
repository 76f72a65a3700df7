# SPDX-License-Identifier: Apache-2.0
"""``check azure-hcl``: hardware report, paravisor's claims and, where given, virtual TPM quote, link by link."""

from __future__ import annotations

from dataclasses import replace

from cube_attestation.anchors import microsoft
from cube_attestation.azure import abi, verify
from cube_attestation.azure.appraise import Rules, appraise
from cube_attestation.recognise import Material
from cube_attestation.snp import abi as snp_abi
from cube_attestation.tdx.abi import TdReport
from cube_attestation.tpm import abi as tpm_abi
from cube_attestation.verdict import ItemVerdict, Reason
from cube_attestation.x509 import certificate, crl

from . import snp, tdx, tpm
from .result import Given, needed

# The paravisor's settings are for a policy to judge; here they are facts
LOOSE = Rules(
    console="interactive", ipmi=True, secure_boot=False, tpm=False, persisted_tpm=True, filtered_vpci_devices=True
)
_NO_QUOTE = verify.VtpmQuote(b"", tpm_abi.Signature("rsassa", "sha256", b""), {})


def check(given: Given) -> tuple[ItemVerdict, ...]:
    """Items of HCL report and hardware, and with a quote those of quote and AK certificate. Raises BadInput."""
    material = given.material
    data = needed(material.hcl_reports, "an HCL report", "pass what NV index 0x01400001 holds")
    report = abi.parse_hcl(data)
    hardware, report_data = _hardware(given, report)
    quotes = tpm.assembled(material)
    quote = needed_quote(quotes)
    chain = _ak_chain(material)
    verified = verify.verify(
        report,
        quote or _NO_QUOTE,
        chain,
        hardware_report_data=report_data,
        now=given.now,
        nonce=given.nonce,
        roots=(*microsoft.VTPM_ROOTS, *given.roots),
        crls=[crl.load(one, where="revocation list") for one in material.crls],
        allow_missing=given.allow_missing,
    )
    hcl, quoted, ak = appraise(verified, LOOSE)
    found = [replace(hcl, item="azure-hcl"), hardware]
    if quote is not None:
        # without PCR values there is nothing that the quote's digest could be compared with
        forged = tuple(r for r in quoted.forged if quote.pcrs or r.code != "tpm.quote.pcr_digest_mismatch")
        found.append(replace(quoted, forged=forged))
    elif given.nonce is not None:
        missing = Reason("tpm.quote.missing", "a nonce is answered by the virtual TPM's quote, and none was given")
        found.append(ItemVerdict("tpm-quote", (missing,)))
    if quote is not None or chain:
        found.append(ak)
    if material.logs and quote is not None and verified.evidence is not None:
        found.append(tpm.log_item(material, [(verified.evidence, "tpm-quote")]))
    return tuple(found)


def needed_quote(quotes: tuple[tpm.Assembled, ...]) -> verify.VtpmQuote | None:
    """The one quote, as the Azure code takes it."""
    if not quotes:
        return None
    one = quotes[0]
    return verify.VtpmQuote(one.attest, one.signature, one.pcrs)


def _hardware(given: Given, report: abi.HclReport) -> tuple[ItemVerdict, bytes | None]:
    """The hardware's item, and its report data if that is authentic."""
    if report.tee == "snp":
        rules = replace(snp.rules(None), id_keys=microsoft.PARAVISOR_ID_KEYS, vmpls=(0,))
        item, verified = snp.report(given, report.hardware[: snp_abi.REPORT_BYTES], rules, item="snp-report")
        return item, verified.report.report_data if item.authentic or _only_missing(item) else None
    if not given.material.tdx_quotes:
        reason = Reason("tdx.quote.missing", "no key signs a TDREPORT: the TD quote over it is needed")
        return ItemVerdict("tdx-quote", (reason,)), report.td_report_data()  # so that the other links can be told
    data = needed(given.material.tdx_quotes, "a TD quote", "")
    item, quote = tdx.quote_item(given, data, report_data=None)
    body = quote.body
    holds = isinstance(body, TdReport) and (item.authentic or _only_missing(item))
    return replace(item, item="tdx-quote"), body.report_data if holds and isinstance(body, TdReport) else None


def _only_missing(item: ItemVerdict) -> bool:
    """Whether nothing but missing collateral keeps it from being authentic; the links below can then be told.

    The whole stays not authentic because of this item's own reasons.
    """
    return all(r.code.startswith("collateral.") and r.code.endswith(".missing") for r in item.forged)


def _ak_chain(material: Material) -> list[bytes]:
    """AK certificate first, then every other certificate that is not the hardware's."""
    found = certificate.load_all(material.certificates, where="certificates")
    others = [one for one in found if not _of_hardware(one)]
    leaves = [one for one in others if "2.23.133.8.3" in (one.extended_key_usage() or ())]
    if not leaves:
        return []
    return [one.der for one in (leaves[0], *(one for one in others if one is not leaves[0]))]


def _of_hardware(one: certificate.Certificate) -> bool:
    names = one.name + certificate.describe(one.issuer)
    return "Advanced Micro Devices" in names or "Intel" in names
