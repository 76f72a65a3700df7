# SPDX-License-Identifier: Apache-2.0
"""What a policy accepts, in words: every section, and also what it says by leaving a member out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from .policy import Policy

if TYPE_CHECKING:
    from .azure.policy import AzurePolicy
    from .nvidia.policy import NvidiaPolicy
    from .snp.appraise import Rules as SnpRules
    from .snp.policy import SnpPolicy
    from .tdx.policy import TdxPolicy
    from .tokens.appraise import TokenPolicy

_TIERS = {
    "software": "any machine whose software TPM is accepted below, which protects nothing, and better",
    "provider-vtpm": "a TPM that the provider vouches for, and better; the provider can read the memory",
    "hardware-paravisor": "memory encryption by the processor with the provider's paravisor inside, and better",
    "hardware": "memory encryption by the processor, with nothing of the provider's inside",
}
_PCRS = {
    0: "the firmware's code", 1: "the firmware's settings", 2: "option ROMs", 3: "settings of option ROMs",
    4: "the programs that the firmware starts", 5: "the partition table", 6: "the maker's events",
    7: "secure boot's state and keys", 8: "the launch document",
    9: "the kernel's command line and initrd as loaded",
    11: "the unified kernel image and the boot's phases", 12: "what was handed to the kernel image from outside",
    13: "system extensions", 14: "shim's keys", 15: "the system's identity",
}  # fmt: skip


@dataclass(frozen=True)
class Section:
    """One section in words."""

    title: str
    lines: tuple[str, ...]


def explain(policy: Policy) -> tuple[Section, ...]:
    """Every section, in the order of formats §9."""
    sections = [
        Section("Policy", tuple(_general(policy))),
        Section("Image", tuple(_image(policy))),
        Section("Launch document", tuple(_launch(policy))),
        Section("TPM", tuple(_tpm(policy))),
    ]
    if policy.snp is not None:
        sections.append(Section("AMD SEV-SNP", tuple(_snp(policy.snp, azure=policy.azure is not None))))
    if policy.azure is not None:
        sections.append(Section("Azure", tuple(_azure(policy.azure))))
    if policy.tdx is not None:
        sections.append(Section("Intel TDX", tuple(_tdx(policy.tdx))))
    if policy.nvidia is not None:
        sections.append(Section("NVIDIA GPUs", tuple(_nvidia(policy.nvidia))))
    sections += [Section(f"Tokens of {entry.issuer}", tuple(_token(entry))) for entry in policy.tokens]
    sections.append(Section("Freshness", tuple(_freshness(policy))))
    return tuple(sections)


def text(sections: Iterable[Section]) -> str:
    """The sections with a blank line between them and a final newline."""
    parts = ["\n".join([section.title, *(f"  {line}" for line in section.lines)]) for section in sections]
    return "\n\n".join(parts) + "\n"


def _listed(values: Iterable[object], empty: str = "nothing") -> str:
    found = [value.hex() if isinstance(value, bytes) else str(value) for value in values]
    return ", ".join(sorted(found)) if found else empty


def _span(time: timedelta) -> str:
    seconds = int(time.total_seconds())
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds % size == 0 and seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} seconds"


def _general(policy: Policy) -> Iterator[str]:
    yield f"Accepts machines of environment {policy.environment} only."
    yield f"Lowest tier {policy.lowest_tier}: {_TIERS[policy.lowest_tier]}."
    yield f"The machine's clock may be {policy.max_clock_skew_s} seconds off."
    absent = [
        name
        for name, section in (("[snp]", policy.snp), ("[azure]", policy.azure), ("[tdx]", policy.tdx))
        if section is None
    ]
    if absent:
        yield f"No {', '.join(absent)} section: that hardware is not accepted."
    if policy.nvidia is None:
        yield "No [nvidia] section: no GPU is demanded; those that claims name must hold by NVIDIA's own roots."
    if not policy.tokens:
        yield "No [[tokens]]: no service's token is demanded, and none is accepted."


def _image(policy: Policy) -> Iterator[str]:
    rules = policy.image
    yield f"Manifest signed by {_listed(rules.signers)}."
    if rules.allowed:
        yield f"Only the manifests {_listed(rules.allowed)}."
    else:
        yield "Every manifest of these signers, old ones too."
    yield "Debugging images, which have a way in, ARE accepted." if rules.debug else "No debugging images."


def _launch(policy: Policy) -> Iterator[str]:
    rules = policy.launch
    if rules.signers:
        yield f"Launch documents signed by {_listed(rules.signers)}, for this environment."
    if rules.allowed:
        yield f"Launch documents {_listed(rules.allowed)}{', whoever signed them' if rules.signers else ''}."
    yield f"Revision {rules.minimum_revision} or later."


def _tpm(policy: Policy) -> Iterator[str]:
    rules = policy.tpm
    if rules.ek_roots and rules.ak_issuers:
        yield f"TPMs whose maker's root is {_listed(rules.ek_roots)},"
        yield f"with attestation keys certified by {_listed(rules.ak_issuers)}."
    else:
        missing = [n for n, v in (("ek_roots", rules.ek_roots), ("ak_issuers", rules.ak_issuers)) if not v]
        yield f"No {' and no '.join(missing)}: no TPM is accepted by itself."
        if rules.ek_roots or rules.ak_issuers:
            yield f"(ek_roots {_listed(rules.ek_roots)}; ak_issuers {_listed(rules.ak_issuers)})"
    yield "These registers must have exactly the values that image and launch document predict:"
    yield from (f"  PCR {pcr}: {_PCRS.get(pcr, 'of no fixed use')}" for pcr in rules.pcrs)


def _snp(policy: SnpPolicy, *, azure: bool) -> Iterator[str]:
    if azure:
        yield "On Azure only roots and revocation count from here; the paravisor's rules are Azure's."
    yield from _snp_rules(policy.rules)
    roots = [f"{digest} ({line})" for digest, line in policy.roots.items()]
    yield f"Chains up to {_listed(roots)}."
    if policy.allow_missing:
        yield f"These may be missing: {_listed(policy.allow_missing)}."
    else:
        yield "Revocation lists must be there."
    yield (
        f"Revocation lists at most {_span(policy.max_crl_age)} old."
        if policy.max_crl_age
        else "In force is enough."
    )


def _snp_rules(rules: SnpRules) -> Iterator[str]:
    named = (
        ("Launch measurement", rules.measurements),
        ("ID block signed by", rules.id_keys),
        ("ID key signed by author", rules.author_keys),
        ("Family", rules.family_ids),
        ("Image", rules.image_ids),
        ("Host data", rules.host_data),
        ("Chip", rules.chip_ids),
        ("Product line", rules.products),
        ("VLEK of provider", rules.csps),
    )
    yield from (f"{what} one of {_listed(values)}." for what, values in named if values)
    if rules.any_firmware:
        yield "ANY firmware of anybody, unless a line above names it."
    elif not (rules.measurements or rules.id_keys or rules.author_keys):
        yield "No measurement, ID key or author key is named: nothing is accepted."
    if rules.report_data is not None:
        yield f"Report data {rules.report_data.hex()}."
    yield f"Signed by {_listed(rules.signing_keys)}, asked at privilege level {_listed(rules.vmpls)}."
    yield f"Report version {rules.minimum_version} or later, guest version {rules.minimum_guest_svn} or later."
    firmware, abi = (".".join(map(str, numbers)) for numbers in (rules.minimum_firmware, rules.minimum_abi))
    yield f"SNP firmware {firmware} or later, guest policies that demand ABI {abi} or later."
    if rules.minimum_tcb:
        yield "Least TCB, and no product line without one:"
        for line, tcb in sorted(rules.minimum_tcb.items()):
            yield f"  {line}: " + ", ".join(f"{part} {value}" for part, value in tcb.to_json(line).items())
    else:
        yield "Any TCB, however old."
    yield "Firmware that can still be rolled back: " + ("accepted." if rules.provisional_firmware else "refused.")
    yield (
        "Debug: always refused. "
        + ", ".join(
            f"{what} {'accepted' if value else 'refused'}"
            for what, value in (
                ("multithreading", rules.smt),
                ("migration agents", rules.migration_agent),
                ("CXL memory", rules.cxl),
            )
        )
        + "."
    )
    if rules.demanded_policy or rules.demanded_platform:
        yield f"Demanded of the guest's policy: {_listed(rules.demanded_policy)}; "
        yield f"of the platform: {_listed(rules.demanded_platform)}."
    if rules.launch_mitigations or rules.current_mitigations:
        yield f"Mitigations on: at launch 0x{rules.launch_mitigations:x}, now 0x{rules.current_mitigations:x}."


def _azure(policy: AzurePolicy) -> Iterator[str]:
    yield "Microsoft's paravisor is trusted. Its hardware report:"
    yield from (f"  {line}" for line in _snp_rules(policy.paravisor))
    rules = policy.rules
    consoles = {
        "off": "Serial console: must be off.",
        "output": "Serial console: may be on for output.",
        "interactive": "Serial console: MAY BE ON for input too: whoever holds the subscription has a terminal.",
    }
    yield consoles[rules.console]
    yield f"IPMI device: {'accepted' if rules.ipmi else 'refused'}."
    yield f"Secure boot: {'must be on' if rules.secure_boot else 'either'}."
    yield f"Virtual TPM: {'must be on' if rules.tpm else 'either'}."
    yield f"Stateful machines, whose TPM outlives a boot: {'accepted' if rules.persisted_tpm else 'refused'}."
    yield f"Filtered virtual PCI devices: {'accepted' if rules.filtered_vpci_devices else 'refused'}."
    yield f"VMs: {_listed(rules.vm_ids, 'any')}."
    yield f"Root certificate thumbprints: {_listed(map(repr, rules.root_certificates), 'any')}."
    yield f"User data: {rules.user_data.hex() if rules.user_data is not None else 'any'}."
    yield f"AK certificates up to {_listed(policy.roots)}."
    yield f"May be missing: {_listed(policy.allow_missing)}."
    age = _span(policy.max_crl_age) if policy.max_crl_age else "any age while in force"
    yield f"Revocation lists: {age}."


def _tdx(policy: TdxPolicy) -> Iterator[str]:
    if policy.mr_td:
        yield f"Firmware (MRTD) one of {_listed(policy.mr_td)}."
    elif policy.mr_td is None:
        yield "ANY firmware."
    if policy.endorsement_roots:
        yield (
            f"Firmware that an endorsement under {_listed(policy.endorsement_roots)} names, "
            f"of security version {policy.min_firmware_svn} or later."
        )
    elif policy.min_firmware_svn:
        yield f"Endorsed firmware of security version {policy.min_firmware_svn} or later, but no endorsement root."
    if not policy.mr_td and policy.mr_td is not None and not policy.endorsement_roots:
        yield "No firmware is named: nothing is accepted."
    for i, values in enumerate(policy.rtmrs):
        if values:
            yield f"RTMR{i} one of {_listed(values)}."
        elif policy.explain_rtmrs:
            yield f"RTMR{i}: every event must be settled by its content or by a rule."
        else:
            yield f"RTMR{i}: not compared."
    for rule in policy.events:
        must = "must occur" if rule.required else "may occur"
        yield f"RTMR{rule.rtmr}, {rule.type} {rule.label!r} {must}, with digest {_listed(rule.digests)}."
    if policy.secure_boot is not None:
        yield f"RTMR0 must show secure boot {'on' if policy.secure_boot else 'off'}."
    for what, allowed in (
        ("TDX module (MRSEAM)", policy.mr_seam),
        ("MRCONFIGID", policy.mr_config_id),
        ("MROWNER", policy.mr_owner),
        ("MROWNERCONFIG", policy.mr_owner_config),
        ("MRSERVICETD", policy.mr_service_td),
    ):
        zero = allowed is not None and not any(map(any, allowed))
        yield f"{what}: {'any' if allowed is None else 'zero' if zero else f'one of {_listed(allowed)}'}."
    attributes = f"must have 0x{policy.attributes_required:x}, may have 0x{policy.attributes_allowed:x}"
    yield f"Attributes {attributes}; debug is always refused."
    yield f"Extended features must have 0x{policy.xfam_required:x}, may have 0x{policy.xfam_allowed:x}."
    yield f"TDX module's versions at least {policy.min_tee_tcb_svn.hex()}."
    yield f"TCB status {_listed(policy.tcb_statuses)}; advisories taken: {_listed(policy.advisories, 'none')}."
    yield f"TCB recovery {policy.min_evaluation_number} or later."
    age = "any age while in force"
    if policy.max_collateral_age_s is not None:
        age = f"at most {_span(timedelta(seconds=policy.max_collateral_age_s))} old"
    yield f"Collateral: {age}; may be missing: {_listed(policy.allow_missing)}."
    for what, platforms in (("FMSPC", policy.fmspcs), ("PPID", policy.ppids)):
        yield f"Platforms by {what}: {'any' if platforms is None else _listed(platforms)}."
    yield f"Platforms refused that are: {_listed(policy.refuse_platforms)}."
    yield f"Chains up to {_listed(policy.roots)}."


def _nvidia(policy: NvidiaPolicy) -> Iterator[str]:
    for what, count in (("GPUs", policy.devices), ("NVSwitches", policy.switches)):
        yield f"{what}: {'any number' if count < 0 else f'exactly {count}'}."
    yield f"Chips: {_listed(policy.chips, 'any')}. Boards: {_listed(policy.boards, 'any')}."
    yield f"Modes: {_listed(policy.modes)}."
    yield f"Driver {policy.minimum_driver or 'of any version'}{' or later' if policy.minimum_driver else ''}."
    yield f"VBIOS {policy.minimum_vbios or 'of any version'}{' or later' if policy.minimum_vbios else ''}."
    yield f"Devices under {_listed(policy.device_roots)}; manifests under {_listed(policy.rim_roots)}."
    yield f"Revocation answers at most {_span(policy.ocsp_max_age)} old."
    yield f"May be missing: {_listed(policy.allow_missing)}."
    expired = "accepted if they held until then" if policy.allow_expired_rim else "refused"
    yield f"Manifests whose signer has run out: {expired}."


def _token(policy: TokenPolicy) -> Iterator[str]:
    yield f"Must be there, issued as {_listed(policy.iss)} for {_listed(policy.audience, 'anybody')}."
    yield f"Signed by, or under, {_listed(policy.keys)}."
    yield f"Lives at most {_span(policy.max_life)}."
    yield "Debuggable machines: " + ("ACCEPTED." if policy.debug else "refused.")
    for path, values in sorted(policy.claims.items()):
        yield f"{path} one of {_listed(values)}."


def _freshness(policy: Policy) -> Iterator[str]:
    if policy.receipt_keys:
        yield f"Offline, a receipt of {_listed(policy.receipt_keys)} says when the evidence was fresh."
    else:
        yield "No receipt counts: offline, freshness is never checked unless a nonce is given."
