# SPDX-License-Identifier: Apache-2.0
"""Which kinds of evidence concern a bundle. A kind's code is imported only where something may ask for it."""

from __future__ import annotations

from .subject import Kind, Subject
from .tpm.items import KIND as TPM


def of(subject: Subject) -> tuple[Kind, ...]:
    """The kinds that appraise ``subject``, each once, in a fixed order.

    On Azure hardware report, TD quote and virtual TPM are links of one chain, so that its kind takes them all.
    """
    policy, claims = subject.policy, subject.claims
    found: list[Kind] = []
    if _has(subject, "azure-"):
        found.append(_azure())
    else:
        found.append(TPM)
        if _has(subject, "snp-"):
            found.append(_snp())
        if _has(subject, "tdx-", "ccel", "gce-"):
            found.append(_tdx())
    if _has(subject, "nvidia-") or policy.nvidia is not None or (claims is not None and claims.gpu):
        from .nvidia.items import KIND as NVIDIA

        found.append(NVIDIA)
    if _has(subject, "tokens") or policy.tokens:
        from .tokens.items import KIND as TOKENS

        found.append(TOKENS)
    return tuple(kind for kind in found if kind.concerns(subject))


def _has(subject: Subject, *beginnings: str) -> bool:
    return any(label.startswith(beginnings) for label in subject.evidence.items)


def _azure() -> Kind:
    from .azure.items import LABELS, appraise_azure
    from .azure.policy import AzurePolicy
    from .snp.policy import SnpPolicy
    from .tdx.policy import TdxPolicy

    return Kind(
        {**TPM.labels, **LABELS},
        lambda subject: appraise_azure(
            subject,
            subject.policy.azure or AzurePolicy(),
            snp=subject.policy.snp or SnpPolicy(),
            tdx=subject.policy.tdx or TdxPolicy(mr_td=()),
        ),
    )


def _snp() -> Kind:
    from .snp.items import LABELS, appraise_snp
    from .snp.policy import SnpPolicy

    return Kind(LABELS, lambda subject: appraise_snp(subject, subject.policy.snp or SnpPolicy()))


def _tdx() -> Kind:
    from .tdx.items import LABELS, appraise_tdx
    from .tdx.policy import TdxPolicy

    return Kind(LABELS, lambda subject: appraise_tdx(subject, subject.policy.tdx or TdxPolicy(mr_td=())))
