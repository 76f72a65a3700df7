# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a policy that can be read: what it lets through, and what it can never accept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .policy import Policy

ERROR, WARNING, NOTE = "error", "warning", "note"
# Bytes of one value, as templates have them: no digest looks like that
_TEMPLATE = re.compile(r"(?:sha256:)?((?:[0-9a-f]{2}))\1{31,}")
_MIGRATABLE = 1 << 29


@dataclass(frozen=True)
class Finding:
    """``level`` ERROR: lets anything through, or nothing. ``where`` is the member's path."""

    level: str
    where: str
    words: str


def lint(policy: Policy, source: bytes = b"") -> tuple[Finding, ...]:
    """Findings, the worst first. ``source`` is the file's text, searched for values of a template."""
    found = [*_general(policy), *_snp(policy), *_azure(policy), *_tdx(policy), *_nvidia(policy), *_tokens(policy)]
    found += _templates(source)
    order = (ERROR, WARNING, NOTE)
    return tuple(sorted(found, key=lambda finding: (order.index(finding.level), finding.where)))


def _production(policy: Policy) -> bool:
    return policy.lowest_tier.startswith("hardware")


def _general(policy: Policy) -> Iterator[Finding]:
    hardware = policy.snp or policy.tdx
    if policy.lowest_tier == "hardware" and not hardware:
        yield Finding(ERROR, "lowest_tier", "no [snp] and no [tdx] section, so that nothing reaches this tier")
    if policy.lowest_tier == "hardware-paravisor" and not (hardware or policy.azure):
        words = "no [azure], [snp] or [tdx] section, so that nothing reaches this tier"
        yield Finding(ERROR, "lowest_tier", words)
    if policy.lowest_tier == "provider-vtpm" and not (hardware or policy.azure):
        yield Finding(ERROR, "lowest_tier", "no section of hardware, so that nothing reaches this tier")
    if policy.lowest_tier == "software":
        yield Finding(WARNING, "lowest_tier", "a software TPM protects nothing: for development only")
    if policy.max_clock_skew_s > 300:
        words = f"{policy.max_clock_skew_s} s: expired tokens and certificates count for that long"
        yield Finding(WARNING, "max_clock_skew_s", words)
    if policy.image.debug:
        level = ERROR if _production(policy) else WARNING
        yield Finding(level, "[image] debug", "accepts images with a way in: whatever runs inside is then open")
    if not policy.image.allowed:
        yield Finding(NOTE, "[image] allowed", "left out: every image of these signers is accepted, old ones too")
    if policy.launch.signers and not policy.launch.allowed and not policy.launch.minimum_revision:
        words = "0: an outdated launch document, with models and keys that were withdrawn, is accepted"
        yield Finding(WARNING, "[launch] minimum_revision", words)
    if not policy.receipt_keys:
        yield Finding(NOTE, "[freshness] receipt_keys", "left out: offline, nothing says when evidence was made")


def _snp(policy: Policy) -> Iterator[Finding]:
    if policy.snp is None:
        return
    rules = policy.snp.rules
    identity = rules.measurements or rules.id_keys or rules.author_keys
    if rules.any_firmware and not identity:
        yield Finding(ERROR, "[snp] any_firmware", "accepts any guest of anybody on any AMD processor")
    if not rules.any_firmware and not identity and policy.azure is None:
        words = "names no measurement, ID key or author key, so that nothing is accepted"
        yield Finding(ERROR, "[snp]", words)
    if policy.azure is None and not rules.minimum_tcb:
        yield Finding(WARNING, "[snp] minimum_tcb", "left out: firmware with known holes is accepted")
    if rules.migration_agent:
        yield Finding(WARNING, "[snp] migration_agent", "accepts guests that somebody can move elsewhere")
    if set(rules.vmpls) - {0}:
        words = "accepts reports of lower privilege levels: code at level 0 can read that guest"
        yield Finding(WARNING, "[snp] vmpls", words)
    if policy.snp.allow_missing:
        yield Finding(WARNING, "[snp] allow_missing", "without a revocation list a revoked chip passes")


def _azure(policy: Policy) -> Iterator[Finding]:
    if policy.azure is None:
        return
    azure = policy.azure
    if azure.rules.console != "off":
        words = f"{azure.rules.console}: whoever holds the subscription reads, or types, at the console"
        yield Finding(WARNING, "[azure] console", words)
    if not azure.rules.secure_boot:
        yield Finding(WARNING, "[azure] secure_boot", "accepts machines without secure boot")
    if not azure.rules.tpm:
        yield Finding(WARNING, "[azure] tpm", "accepts machines whose virtual TPM is off")
    if not azure.paravisor.minimum_guest_svn:
        yield Finding(WARNING, "[azure] minimum_guest_svn", "0: outdated paravisors are accepted")
    if azure.allow_missing:
        words = f"{', '.join(sorted(azure.allow_missing))}: what Microsoft revoked, or never certified, passes"
        yield Finding(WARNING, "[azure] allow_missing", words)


def _tdx(policy: Policy) -> Iterator[Finding]:
    if policy.tdx is None:
        return
    from .tdx.policy import ALLOW_MISSING

    tdx = policy.tdx
    missing = set(tdx.allow_missing)
    if missing >= set(ALLOW_MISSING):
        words = "nothing of Intel's has to be there: a platform of any age, revoked or not, passes"
        yield Finding(ERROR, "[tdx] allow_missing", words)
    elif missing:
        yield Finding(
            WARNING, "[tdx] allow_missing", f"{', '.join(sorted(missing))}: that check then does not happen"
        )
    outdated = [status for status in tdx.tcb_statuses if status.startswith("OutOfDate")]
    if outdated:
        words = f"accepts {', '.join(sorted(outdated))}: platforms without a security fix"
        yield Finding(WARNING, "[tdx] tcb_statuses", words)
    if (tdx.attributes_allowed | tdx.attributes_required) & _MIGRATABLE:
        yield Finding(WARNING, "[tdx] attributes_allowed", "accepts TDs that can be moved elsewhere")
    if tdx.mr_service_td is None or any(any(value) for value in tdx.mr_service_td):
        yield Finding(WARNING, "[tdx] mrservicetd", "accepts TDs with a service TD, which may move them")
    if tdx.max_collateral_age_s is None:
        yield Finding(NOTE, "[tdx] max_collateral_age_s", "left out: collateral counts as long as Intel dated it")


def _nvidia(policy: Policy) -> Iterator[Finding]:
    if policy.nvidia is None:
        if policy.lowest_tier.startswith("hardware"):
            yield Finding(NOTE, "[nvidia]", "left out: a machine without GPU evidence is accepted")
        return
    nvidia = policy.nvidia
    if {"nvidia.driver_rim", "nvidia.vbios_rim"} <= nvidia.allow_missing:
        words = "neither driver nor VBIOS manifest has to be there: GPU firmware is compared with nothing"
        yield Finding(ERROR, "[nvidia] allow_missing", words)
    elif nvidia.allow_missing:
        words = f"{', '.join(sorted(nvidia.allow_missing))}: that check then does not happen"
        yield Finding(WARNING, "[nvidia] allow_missing", words)
    if nvidia.devices == 0 and nvidia.switches <= 0:
        yield Finding(ERROR, "[nvidia] devices", "0: GPU evidence is demanded and none accepted")
    if nvidia.devices < 0:
        yield Finding(
            WARNING, "[nvidia] devices", "left out: a machine that shows fewer GPUs than it has is accepted"
        )
    if nvidia.ocsp_max_age.days > 30:
        yield Finding(WARNING, "[nvidia] ocsp_max_age_s", "revocations are noticed more than a month late")


def _tokens(policy: Policy) -> Iterator[Finding]:
    for i, entry in enumerate(policy.tokens):
        if entry.debug:
            level = ERROR if _production(policy) else WARNING
            yield Finding(level, f"tokens[{i}].debug", "accepts tokens for machines that can be debugged")
        if not entry.audience and entry.issuer == "confidential-space":
            yield Finding(WARNING, f"tokens[{i}].audience", "left out: a token for any other service is accepted")


def _templates(source: bytes) -> Iterator[Finding]:
    for number, line in enumerate(source.decode(errors="replace").splitlines(), 1):
        code = line.partition("#")[0]
        member, _, value = code.partition("=")
        if _TEMPLATE.search(value) and "mrservicetd" not in member:
            words = "a value of one repeated byte is a template's, not a real one"
            yield Finding(ERROR, f"line {number}", f"{member.strip() or 'value'}: {words}")
