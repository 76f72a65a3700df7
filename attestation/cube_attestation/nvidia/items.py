# SPDX-License-Identifier: Apache-2.0
"""The NVIDIA kind: devices and their collateral in a bundle, bound to the claims by their request's nonce."""

from __future__ import annotations

import base64
import hashlib
import hmac
from functools import lru_cache

from cube_attestation import jcs
from cube_attestation.claims import Claims
from cube_attestation.errors import BadInput
from cube_attestation.fields import Fields, decode_base64
from cube_attestation.subject import Kind, Outcome, Subject
from cube_attestation.verdict import Comparison, ItemVerdict, Reason

from . import abi, ocsp
from .appraise import MAX_RIMS, Collateral, appraise
from .policy import NvidiaPolicy

DEVICES, DEVICES_MEDIA_TYPE = "nvidia-devices", "application/vnd.cube.nvidia-devices+json"
COLLATERAL, COLLATERAL_MEDIA_TYPE = "nvidia-collateral", "application/vnd.cube.nvidia-collateral+json"
LABELS = {DEVICES: DEVICES_MEDIA_TYPE, COLLATERAL: COLLATERAL_MEDIA_TYPE}
ASSUMPTION = "gpu.relay_possible"  # before TDISP a report says nothing of how the GPU is attached to this machine


def encode_collateral(collateral: Collateral) -> bytes:
    """The ``nvidia-collateral`` item: canonical JSON ``{"rims": [base64, …], "ocsp": [base64, …]}``."""
    return jcs.dumps(
        {
            name: [base64.b64encode(data).decode() for data in parts]
            for name, parts in (("rims", collateral.rims), ("ocsp", collateral.ocsp))
        }
    )


@lru_cache(maxsize=16)  # machines of one kind share theirs
def decode_collateral(data: bytes) -> Collateral:
    """Read the ``nvidia-collateral`` item. Raises BadInput."""
    fields = Fields(jcs.loads(data, where=COLLATERAL), COLLATERAL)
    parts: dict[str, tuple[bytes, ...]] = {}
    for name, limit in (("rims", MAX_RIMS), ("ocsp", ocsp.MAX_RESPONSES)):
        found: list[bytes] = []
        for i, text in enumerate(fields.array(name, limit)):
            where = f"{fields.path(name)}[{i}]"
            if not isinstance(text, str):
                raise BadInput("expected base64", where=where)
            found.append(decode_base64(text, where=where))
        parts[name] = tuple(found)
    fields.done()
    return Collateral(**parts)


def appraise_bundle(subject: Subject, policy: NvidiaPolicy) -> tuple[ItemVerdict, ...]:
    """Items over every device of the bundle, and ``nvidia-binding``: these devices are the claims' own.

    The claims name the devices' item by digest, and every report must answer the nonce that is made of the claims:
    evidence of another machine, boot, TLS key or moment fits neither.
    """
    data = subject.evidence.get(DEVICES)
    if data is None:
        return (_forged("nvidia.evidence.missing", "the bundle has no evidence of the GPUs"),)
    if subject.claims is None:
        return (_forged("nvidia.binding.no_claims", "there are no claims that the GPUs could be bound to"),)
    try:
        devices = abi.decode_evidence(data, where=DEVICES)
        given = subject.evidence.get(COLLATERAL)
        collateral = Collateral() if given is None else decode_collateral(given)
        nonce = subject.claims.gpu_nonce()
        items = appraise(devices, collateral, policy, subject.now, nonce=nonce)
    except BadInput as error:
        return (_forged("nvidia.evidence.malformed", str(error)),)
    return (_binding(data, subject.claims), *items)


def _binding(data: bytes, claims: Claims) -> ItemVerdict:
    found = "sha256:" + hashlib.sha256(data).hexdigest()
    compared = (Comparison("gpu", claims.gpu, found),)
    if hmac.compare_digest(claims.gpu, found):
        return ItemVerdict("nvidia-binding", compared=compared)
    words = "the claims name other GPU evidence" if claims.gpu else "the claims name no GPU evidence"
    reason = Reason("nvidia.binding.digest_mismatch", words)
    return ItemVerdict("nvidia-binding", forged=(reason,), compared=compared)


def _forged(code: str, words: str) -> ItemVerdict:
    return ItemVerdict("nvidia-binding", forged=(Reason(code, words),))


def appraise_nvidia(subject: Subject, policy: NvidiaPolicy) -> Outcome:
    """The kind's appraisal under the policy's ``[nvidia]`` section. A GPU alone reaches no tier."""
    items = appraise_bundle(subject, policy)
    authentic = all(item.authentic for item in items)
    return Outcome(items=items, tier="", assumptions=(ASSUMPTION,) if authentic else ())


KIND = Kind(
    labels=LABELS,
    appraise=lambda subject: appraise_nvidia(subject, subject.policy.nvidia or NvidiaPolicy()),
    demanded=lambda subject: (
        subject.policy.nvidia is not None or (subject.claims is not None and subject.claims.gpu != "")
    ),
)
