# SPDX-License-Identifier: Apache-2.0
"""Checked pieces into a bundle's items, in the forms that the verifier reads."""

from __future__ import annotations

from base64 import encodebytes
from collections.abc import Iterable, Sequence

from cube_attestation.azure.items import LABELS as AZURE
from cube_attestation.cmw import ENDORSEMENTS, Collection
from cube_attestation.errors import BadInput
from cube_attestation.nvidia import items as nvidia
from cube_attestation.nvidia.appraise import Collateral
from cube_attestation.tokens import items as tokens
from cube_attestation.tpm.items import KIND as TPM
from cube_attestation.x509 import certificate

# Every label that collateral may be added to or changed in; evidence of the machine is never touched
LABELS = {
    **{label: media for label, media in AZURE.items() if label not in ("azure-hcl", "tdx-quote", "ccel")},
    "ak-chain": TPM.labels["ak-chain"],
    nvidia.COLLATERAL: nvidia.COLLATERAL_MEDIA_TYPE,
    tokens.ITEM: tokens.LABELS[tokens.ITEM],
}


def put(evidence: Collection, label: str, value: bytes) -> Collection:
    """The evidence with that item; what kind of statement it was before stays. Raises KeyError for other labels."""
    known = evidence.items.get(label)
    return evidence.with_item(label, LABELS[label], value, known.indicator if known else ENDORSEMENTS)


# What vendors publish anew all the time; certificates and manifests stay as they are
AGEING = ("snp-crl", "tdx-tcb-info", "tdx-tcb-info-chain", "tdx-qe-identity", "tdx-qe-identity-chain",
          "tdx-root-crl", "tdx-pck-crl", "azure-crls")  # fmt: skip


def without_ageing(evidence: Collection) -> Collection:
    """The evidence without lists, TCB documents and OCSP responses. Raises BadInput."""
    left = Collection({label: item for label, item in evidence.items.items() if label not in AGEING})
    if nvidia.COLLATERAL not in left.items:
        return left
    return put_nvidia(left, nvidia_collateral(left).rims, ())


def pem(certificates: Iterable[certificate.Certificate]) -> bytes:
    """PEM blocks, each different certificate once."""
    return certificate.to_pem({one.der: one for one in certificates}.values())


def pem_lists(lists: Iterable[bytes]) -> bytes:
    """Revocation lists in DER as PEM blocks."""
    return b"".join(b"-----BEGIN X509 CRL-----\n" + encodebytes(der) + b"-----END X509 CRL-----\n" for der in lists)


def one_certificate(data: bytes, *, where: str) -> certificate.Certificate:
    """The only certificate in PEM or DER. Raises BadInput."""
    found = certificate.load(data, where=where)
    if len(found) != 1:
        raise BadInput(f"{len(found)} certificates instead of one", where=where)
    return found[0]


def nvidia_collateral(evidence: Collection) -> Collateral:
    """The manifests and responses that are there. Raises BadInput."""
    data = evidence.get(nvidia.COLLATERAL)
    return Collateral() if data is None else nvidia.decode_collateral(data)


def put_nvidia(evidence: Collection, rims: Sequence[bytes], responses: Sequence[bytes]) -> Collection:
    """The evidence with these manifests and responses, each once."""
    found = Collateral(tuple(dict.fromkeys(rims)), tuple(dict.fromkeys(responses)))
    return put(evidence, nvidia.COLLATERAL, nvidia.encode_collateral(found))
