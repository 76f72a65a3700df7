# SPDX-License-Identifier: Apache-2.0
"""EAT Attestation Results (draft-ietf-rats-ear-04): a verdict as one claims set, unsigned JSON or signed JWT.

One submodule for each part of the machine. The trustworthiness vector has the categories and values of AR4SI: a
category that nothing here looks at is left out. The private claims ``cube_…`` carry the verdict's own words.
"""

from __future__ import annotations

from collections.abc import Iterable

from cube_attestation import dsse, jcs
from cube_attestation.errors import BadInput
from cube_attestation.verdict import ItemVerdict, Verdict

from . import VERIFIER, version

PROFILE = "tag:ietf.org,2026:rats/ear#04"
TYPE = "eat+jwt"  # RFC 9782
# Values of AR4SI, section 2.3: recognised and good; a known weakness; unacceptable; evidence that does not hold
GOOD, WEAK, UNACCEPTABLE, NOT_AUTHENTIC = 2, 32, 96, 99

_SUBMODULES = (
    ("cpu", ("snp-", "tdx-", "azure-hcl")),
    ("vtpm", ("tpm-", "ek-", "ak-", "tcg-", "azure-ak-")),
    ("gpu", ("nvidia-", "gpu", "switch")),
    ("tokens", ("token",)),
)
DEPLOYMENT = "deployment"  # claims, launch document, image manifest, receipt, tier
# What a submodule asserts when nothing is wrong with it
_ASSERTED = {
    "cpu": ("hardware", "configuration", "executables"),
    "vtpm": ("instance-identity", "executables"),
    "gpu": ("hardware", "configuration", "executables"),
    "tokens": ("sourced-data",),
    DEPLOYMENT: ("instance-identity", "configuration"),
}
# The second part of a reason code, or its first two, to the category that it speaks about
_CATEGORIES = {
    "tcb": "hardware", "firmware": "hardware", "product": "hardware", "platform": "hardware", "module": "hardware",
    "qe": "hardware", "chip": "hardware", "board": "hardware", "mitigation": "hardware", "vbios": "hardware",
    "measurement": "executables", "mrtd": "executables", "rtmr": "executables", "pcr": "executables",
    "event": "executables", "eventlog": "executables", "id_key": "executables", "author_key": "executables",
    "rim": "executables", "driver": "executables", "guest_svn": "executables", "mrseam": "executables",
    "identity": "executables", "reference": "executables", "chip_id": "instance-identity",
    "nonce_mismatch": "instance-identity", "tls_key_mismatch": "instance-identity",
    "environment_mismatch": "instance-identity", "vm_id": "instance-identity", "set": "instance-identity",
    "model_failed": "file-system", "models_mismatch": "file-system",
}  # fmt: skip


def claims(verdict: Verdict) -> dict[str, jcs.Json]:
    """The claims set. ``iat`` is the clock of the verdict, so that one verdict gives one claims set."""
    submods: dict[str, jcs.Json] = {}
    for name in (*(name for name, _ in _SUBMODULES), DEPLOYMENT):
        items = [item for item in verdict.items if _submodule(item) == name]
        if items:
            submods[name] = _appraisal(name, items, verdict)
    found: dict[str, jcs.Json] = {
        "eat_profile": PROFILE,
        "iat": int(verdict.now.timestamp()),
        "ear_verifier_id": {"developer": VERIFIER, "build": version()},
        "submods": submods,
    }
    if verdict.claims is not None:
        found["eat_nonce"] = verdict.claims["nonce"]
    return found


def render(verdict: Verdict) -> bytes:
    """The unsigned claims set as canonical JSON with a newline."""
    return jcs.dumps(claims(verdict)) + b"\n"


def sign(verdict: Verdict, key: bytes, *, where: str = "--sign") -> bytes:
    """The claims set as a compact JWS, ES256, with a newline. ``key`` is PEM of a P-256 key. Raises BadInput.

    ``kid`` is the digest of the key's SubjectPublicKeyInfo.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from joserfc import jws
    from joserfc.jwk import ECKey

    try:
        private = load_pem_private_key(key, None)
    except (ValueError, TypeError) as error:
        raise BadInput("no PEM private key without a passphrase", where=where) from error
    if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
        raise BadInput("the key is not on P-256", where=where, todo="ES256 needs one")
    header = {"alg": "ES256", "typ": TYPE, "kid": dsse.spki_digest(private.public_key())}
    signed = jws.serialize_compact(header, jcs.dumps(claims(verdict)), ECKey.import_key(key), algorithms=["ES256"])
    return signed.encode() + b"\n"


def _submodule(item: ItemVerdict) -> str:
    return next((name for name, begins in _SUBMODULES if item.item.startswith(begins)), DEPLOYMENT)


def _appraisal(name: str, items: Iterable[ItemVerdict], verdict: Verdict) -> dict[str, jcs.Json]:
    vector = dict.fromkeys(_ASSERTED[name], GOOD)
    if name in ("cpu", "vtpm") and verdict.tier:
        # The provider or whoever runs the host sees the memory of the two weaker tiers
        vector["runtime-opaque"] = GOOD if verdict.tier.startswith("hardware") else WEAK
    reasons: list[jcs.Json] = []
    for item in items:
        for found, value in ((item.forged, NOT_AUTHENTIC), (item.refused, UNACCEPTABLE)):
            for reason in found:
                where = "hardware" if value == NOT_AUTHENTIC and name in ("cpu", "gpu") else _category(reason.code)
                vector[where] = max(vector.get(where, 0), value)
                reasons.append({"item": item.item, **reason.to_json()})
    own: dict[str, jcs.Json] = {
        "cube_items": [item.item for item in items],
        "cube_reasons": reasons,
        "cube_bundle": verdict.bundle,
    }
    if name == DEPLOYMENT:
        own |= {
            "cube_passed": verdict.passed,
            "cube_tier": verdict.tier,
            "cube_lowest_tier": verdict.lowest_tier,
            "cube_freshness": verdict.freshness,
            "cube_assumptions": list(verdict.assumptions),
            "cube_environment": verdict.environment,
        }
    return {
        "ear_status": _status(vector.values()),
        "ear_trustworthiness_vector": dict(vector),
        "ear_appraisal_policy_ids": [verdict.policy],
        "ear_verifier_claims": own,
    }


def _category(code: str) -> str:
    parts = code.split(".")[1:]
    return next((_CATEGORIES[part] for part in parts if part in _CATEGORIES), "configuration")


def _status(values: Iterable[int]) -> str:
    """The worst tier that a value reaches (AR4SI, section 3.2)."""
    worst = max(values)
    return "affirming" if worst < 32 else "warning" if worst < 96 else "contraindicated"
