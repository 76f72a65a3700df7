# SPDX-License-Identifier: Apache-2.0
"""Is an authentic Azure confidential VM acceptable? Rules over the paravisor's claims and its own identity."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from cube_attestation import jcs
from cube_attestation.anchors import microsoft
from cube_attestation.snp import appraise as snp
from cube_attestation.verdict import Comparison, ItemVerdict, Reason

from . import abi
from .verify import Verified

CONSOLES = ("off", "output", "interactive")
ASSUMPTIONS = ("azure.paravisor_trusted", "azure.hardware_report_at_boot")


@dataclass(frozen=True)
class Rules:
    """What a policy accepts of the paravisor's claims.

    ``console`` is the most that is acceptable, of CONSOLES: the serial console gives whoever holds the subscription
    a terminal, and Azure reports it as enabled on most machines. ``persisted_tpm``: whether a machine in stateful
    mode is acceptable. ``vm_ids`` are lower-case, ``user_data`` 64 bytes, ``root_certificates`` thumbprints as in
    the claims; empty or None: no rule.
    """

    console: str = "off"
    ipmi: bool = False
    secure_boot: bool = True
    tpm: bool = True
    persisted_tpm: bool = True
    filtered_vpci_devices: bool = False
    vm_ids: Collection[str] = ()
    root_certificates: Collection[str] = ()
    user_data: bytes | None = None


def paravisor_rules(minimum_guest_svn: int, *, id_keys: Collection[str] = microsoft.PARAVISOR_ID_KEYS) -> snp.Rules:
    """Rules for the SNP report that say "Microsoft's paravisor, of at least this version, at VMPL 0"."""
    return snp.Rules(id_keys=id_keys, minimum_guest_svn=minimum_guest_svn, vmpls=(0,))


def appraise(verified: Verified, rules: Rules) -> tuple[ItemVerdict, ItemVerdict, ItemVerdict]:
    """Verdicts of the items ``hcl-report``, ``tpm-quote`` (authenticity only) and ``ak-certificate``.

    PCR values are appraised by the TPM's own rules, a TD quote by ``tdx``, the SNP report by ``snp.appraise`` under
    ``paravisor_rules``.
    """
    refused: list[Reason] = []
    compared: list[Comparison] = []
    if verified.claims is not None:
        refused, compared = _claims(verified.claims, rules)
    hcl = ItemVerdict("hcl-report", verified.hcl, tuple(refused), tuple(compared), facts(verified))
    quote = ItemVerdict("tpm-quote", verified.quote, facts=_quote_facts(verified))
    chain: list[jcs.Json] = [f"{certificate.name} {certificate.digest}" for certificate in verified.chain]
    ak = ItemVerdict("ak-certificate", verified.ak_certificate, facts={"chain": chain} if chain else {})
    return hcl, quote, ak


def _claims(claims: abi.RuntimeClaims, rules: Rules) -> tuple[list[Reason], list[Comparison]]:
    refused: list[Reason] = []
    compared: list[Comparison] = []

    def refuse(code: str, words: str) -> None:
        refused.append(Reason(code, words))

    if CONSOLES.index(claims.console) > CONSOLES.index(rules.console):
        words = f"the serial console is enabled ({claims.console}), acceptable: {rules.console}"
        refuse("azure.console.enabled", words)
    if claims.ipmi_enabled and not rules.ipmi:
        refuse("azure.ipmi.enabled", "an IPMI device is enabled")
    if rules.secure_boot and not claims.secure_boot:
        refuse("azure.secure_boot.disabled", "secure boot is disabled")
    if rules.tpm and not claims.tpm_enabled:
        refuse("azure.tpm.disabled", "the virtual TPM is disabled")
    if claims.tpm_persisted and not rules.persisted_tpm:
        refuse("azure.tpm.persisted", "the machine is in stateful mode: the virtual TPM's state may outlive a boot")
    if claims.filtered_vpci_devices_allowed and not rules.filtered_vpci_devices:
        refuse("azure.vpci.allowed", "the host may offer filtered virtual PCI devices")
    if rules.vm_ids:
        compared.append(Comparison("VM id", claims.vm_id if claims.vm_id in rules.vm_ids else "", claims.vm_id))
        if claims.vm_id not in rules.vm_ids:
            refuse("azure.vm_id.not_allowed", f"VM {claims.vm_id or 'without an id'} is not allowed")
    if rules.root_certificates and claims.root_certificate not in rules.root_certificates:
        refuse("azure.root_certificate.not_allowed", f"root certificate {claims.root_certificate or 'none'}")
    if rules.user_data is not None:
        compared.append(Comparison("user data", rules.user_data.hex(), claims.user_data.hex()))
        if rules.user_data != claims.user_data:
            refuse("azure.user_data.mismatch", "the user data is not the expected one")
    return refused, compared


def facts(verified: Verified) -> dict[str, jcs.Json]:
    """The HCL report and its claims in words. Claims that nothing vouches for are not among them."""
    report, claims = verified.report, verified.claims
    found: dict[str, jcs.Json] = {"version": report.version, "tee": report.tee, "hash": report.hash}
    if claims is not None:
        found |= {
            "console": claims.console,
            "ipmi_enabled": claims.ipmi_enabled,
            "secure_boot": claims.secure_boot,
            "tpm_enabled": claims.tpm_enabled,
            "tpm_persisted": claims.tpm_persisted,
            "filtered_vpci_devices_allowed": claims.filtered_vpci_devices_allowed,
            "root_certificate": claims.root_certificate,
            "vm_id": claims.vm_id,
            "user_data": claims.user_data.hex(),
        }
    return found


def _quote_facts(verified: Verified) -> dict[str, jcs.Json]:
    if verified.evidence is None:
        return {}
    quote = verified.evidence.quote
    return {
        "extra_data": quote.extra_data.hex(),
        "firmware_version": f"{quote.firmware_version:016x}",
        "resets": quote.reset_count,
        "restarts": quote.restart_count,
        "pcrs": {bank: list(indices) for bank, indices in quote.selection},
    }
