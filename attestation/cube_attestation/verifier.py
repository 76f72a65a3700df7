# SPDX-License-Identifier: Apache-2.0
"""The verdict over a bundle: bytes, a policy and an explicit clock in, a verdict out. No network, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

from . import bundle as bundles
from . import dsse, jcs, kinds, launch, manifest, times
from .bundle import Bundle
from .claims import MEDIA_TYPE as CLAIMS_MEDIA_TYPE
from .claims import Claims
from .cmw import Collection
from .collateral import sources
from .errors import BadInput, NotAuthentic
from .policy import Policy
from .subject import Kind, Subject, attempt
from .tpm import appraise as tpm_appraise
from .verdict import TIERS, Comparison, ItemVerdict, Reason, Verdict

COMMON_LABELS = {
    "claims": CLAIMS_MEDIA_TYPE,
    "launch": launch.MEDIA_TYPE,
    "image-manifest": manifest.MEDIA_TYPE,
    sources.LABEL: sources.MEDIA_TYPE,
}


class _Launch(NamedTuple):
    item: ItemVerdict
    document: launch.LaunchDocument | None
    payload: bytes | None


class _Freshness(NamedTuple):
    item: ItemVerdict | None
    how: str
    moment: datetime | None  # the clock that the claims' time is measured against


def verify(
    bundle: Bundle, policy: Policy, *, now: datetime, nonce: bytes | None = None, tls_spki: str | None = None
) -> Verdict:
    """Appraise ``bundle`` under ``policy`` at ``now`` (aware).

    A live caller gives the ``nonce`` that it sent and the SPKI digest of the key that ended its TLS connection; the
    claims must carry both. Without a nonce a receipt by one of the policy's keys tells when the evidence was fresh;
    without that too, ``freshness`` is ``not_checked``. Never raises for bad evidence: that is part of the verdict.
    """
    if now.tzinfo is None:
        raise BadInput("the clock has no zone", where="now", todo="pass an aware datetime")
    evidence = bundle.evidence
    claims, claims_problem = _read_claims(evidence)
    launched = _launch(evidence, policy)
    image_item, image = _image(evidence, policy, now)
    fresh = _freshness(bundle, policy, claims, now=now, nonce=nonce)

    subject = Subject(evidence, policy, now, claims, launched.payload, image)
    present = kinds.of(subject)
    outcomes = [kind.appraise(subject) for kind in present]
    reached = [outcome.tier for outcome in outcomes if outcome.tier]
    tier = max(reached, key=TIERS.index) if reached else ""

    claims_item = ItemVerdict("claims", forged=(claims_problem,))
    if claims is not None:
        claims_item = _appraise_claims(
            claims, policy, launched, fresh, bool(reached), now=now, nonce=nonce, tls_spki=tls_spki
        )
    items = [
        *_unknown(evidence, present),
        claims_item,
        launched.item,
        image_item,
        *(item for outcome in outcomes for item in outcome.items),
        *([fresh.item] if fresh.item else []),
        _tier_item(tier, policy, bool(outcomes)),
    ]
    return Verdict(
        items=tuple(items),
        tier=tier,
        lowest_tier=policy.lowest_tier,
        freshness=fresh.how,
        assumptions=tuple(sorted({a for outcome in outcomes for a in outcome.assumptions})),
        environment=policy.environment,
        bundle=bundle.digest(),
        policy=policy.digest,
        now=now,
        claims=claims.to_json() if claims is not None and claims_item.authentic else None,
    )


def _unknown(evidence: Collection, present: Sequence[Kind]) -> list[ItemVerdict]:
    """An item for each label that nothing here reads or whose media type is not the label's."""
    known = dict(COMMON_LABELS)
    for kind in present:
        known.update(kind.labels)
    found = []
    for label, item in sorted(evidence.items.items()):
        if label not in known:
            reason = Reason("bundle.item.unknown", f"this verifier does not know the item {label}; use a newer one")
            found.append(ItemVerdict(label, refused=(reason,)))
        elif item.media_type != known[label]:
            reason = Reason("bundle.item.media_type", f"{item.media_type} where {known[label]} belongs")
            found.append(ItemVerdict(label, refused=(reason,)))
    return found


def _read_claims(evidence: Collection) -> tuple[Claims | None, Reason]:
    data = evidence.get("claims")
    if data is None:
        return None, Reason("claims.missing", "the bundle has no claims")
    claims, problem = attempt(lambda: Claims.decode(data))
    return claims, Reason("claims.malformed", problem)


# All machines of a deployment carry the same two documents


@lru_cache(maxsize=16)
def _read_launch(
    data: bytes, signers: tuple[str, ...], allowed: tuple[str, ...]
) -> tuple[dsse.Verified, launch.LaunchDocument, str]:
    """The document, and why none of ``signers`` signed it if one had to. Raises BadInput."""
    envelope = jcs.loads(data, where="launch")
    read = dsse.peek(envelope, dsse.LAUNCH, where="launch")
    document = launch.parse(read.payload)
    return read, document, "" if read.digest in allowed else _signed(envelope, dsse.LAUNCH, signers, "launch")


@lru_cache(maxsize=16)
def _read_image(data: bytes, signers: tuple[str, ...]) -> tuple[manifest.ImageManifest, str, tuple[int, ...]]:
    """The manifest, why none of ``signers`` signed it, PCRs that its events do not lead to. Raises BadInput."""
    envelope = jcs.loads(data, where="image-manifest")
    image = manifest.parse(dsse.peek(envelope, dsse.IMAGE_MANIFEST, where="image-manifest").payload)
    signed = _signed(envelope, dsse.IMAGE_MANIFEST, signers, "image-manifest")
    return image, signed, tuple(tpm_appraise.replay_reference(image.reference))


def _launch(evidence: Collection, policy: Policy) -> _Launch:
    data = evidence.get("launch")
    if data is None:
        return _Launch(_forged("launch", "launch.missing", "the bundle has no launch document"), None, None)
    rules = policy.launch
    try:
        read, document, signed = _read_launch(data, rules.signers, rules.allowed)
    except BadInput as error:
        return _Launch(_forged("launch", "launch.malformed", str(error)), None, None)
    forged: list[Reason] = []
    refused: list[Reason] = []
    if signed == "invalid":
        forged.append(Reason("launch.signature.invalid", "the operator's signature does not hold"))
    elif signed and not rules.signers:
        refused.append(Reason("launch.not_allowed", f"{read.digest} is none of the policy's launch documents"))
    elif signed:
        words = "no operator key of the policy signed the launch document"
        forged.append(Reason("launch.signature.untrusted_key", words))
    if document.environment != policy.environment:
        words = f"for environment {document.environment}, expected {policy.environment}"
        refused.append(Reason("launch.environment_mismatch", words))
    if document.revision < rules.minimum_revision:
        words = f"revision {document.revision}, the policy takes {rules.minimum_revision} and later"
        refused.append(Reason("launch.revision.too_old", words))
    facts: dict[str, jcs.Json] = {"digest": read.digest, "revision": document.revision}
    item = ItemVerdict("launch", forged=tuple(forged), refused=tuple(refused), facts=facts)
    return _Launch(item, document, read.raw)


def _image(
    evidence: Collection, policy: Policy, now: datetime
) -> tuple[ItemVerdict, manifest.ImageManifest | None]:
    data = evidence.get("image-manifest")
    if data is None:
        return _forged("image-manifest", "image.missing", "the bundle has no image manifest"), None
    try:
        image, signed, wrong = _read_image(data, policy.image.signers)
    except BadInput as error:
        return _forged("image-manifest", "image.malformed", str(error)), None
    forged: list[Reason] = []
    refused: list[Reason] = []
    if signed == "invalid":
        forged.append(Reason("image.signature.invalid", "the image key's signature does not hold"))
    elif signed:
        words = "no image key of the policy signed the manifest"
        forged.append(Reason("image.signature.untrusted_key", words))
    if policy.image.allowed and image.identity not in policy.image.allowed:
        refused.append(Reason("image.not_allowed", f"{image.identity} is none of the policy's manifests"))
    if image.expires is not None and image.expires <= now:
        refused.append(Reason("image.expired", f"the manifest was good until {times.format_time(image.expires)}"))
    if image.debug and not policy.image.debug:
        refused.append(Reason("image.debug.not_allowed", f"flavour {image.flavour} is for debugging"))
    if wrong:
        words = f"predicted events do not lead to the predicted value of PCR {', '.join(map(str, wrong))}"
        refused.append(Reason("image.reference.inconsistent", words))
    facts: dict[str, jcs.Json] = {
        "digest": image.identity,
        "id": image.id,
        "image": image.image,
        "root": image.root,
    }
    return ItemVerdict("image-manifest", forged=tuple(forged), refused=tuple(refused), facts=facts), image


def _signed(envelope: object, payload_type: str, keys: tuple[str, ...], where: str) -> str:
    """Empty if one of ``keys`` signed, else why not."""
    try:
        dsse.signer(envelope, payload_type, keys, where=where)
    except NotAuthentic as error:
        return error.why
    return ""


def _freshness(
    bundle: Bundle, policy: Policy, claims: Claims | None, *, now: datetime, nonce: bytes | None
) -> _Freshness:
    live = "nonce" if nonce is not None and claims is not None and claims.nonce == nonce else "not_checked"
    moment = None if nonce is None else now
    if bundle.receipt is None or not policy.receipt_keys:
        return _Freshness(None, live, moment)
    try:
        receipt = bundles.verify_receipt(bundle.receipt, policy.receipt_keys)
    except BadInput as error:
        return _Freshness(_forged("receipt", "receipt.malformed", str(error)), live, moment)
    except NotAuthentic as error:
        code = "receipt.signature.invalid" if error.why == "invalid" else "receipt.signature.untrusted_key"
        return _Freshness(_forged("receipt", code, error.what), live, moment)
    forged: list[Reason] = []
    refused: list[Reason] = []
    if receipt.bundle != bundle.digest() and receipt.bundle != sources.digest(bundle.evidence):
        forged.append(Reason("receipt.bundle_mismatch", "the receipt is for other evidence"))
    if claims is None or receipt.nonce != claims.nonce:
        forged.append(Reason("receipt.nonce_mismatch", "the gate had given another nonce"))
    if receipt.environment != policy.environment:
        words = f"for environment {receipt.environment}, expected {policy.environment}"
        refused.append(Reason("receipt.environment_mismatch", words))
    if receipt.time > now + timedelta(seconds=policy.max_clock_skew_s):
        refused.append(Reason("receipt.time_in_future", f"made at {times.format_time(receipt.time)}, after now"))
    facts: dict[str, jcs.Json] = {"time": times.format_time(receipt.time)}
    item = ItemVerdict("receipt", forged=tuple(forged), refused=tuple(refused), facts=facts)
    if not item.acceptable:
        return _Freshness(item, live, moment)
    return _Freshness(item, "receipt" if live == "not_checked" else live, receipt.time)


def _appraise_claims(
    claims: Claims,
    policy: Policy,
    launched: _Launch,
    fresh: _Freshness,
    bound: bool,
    *,
    now: datetime,
    nonce: bytes | None,
    tls_spki: str | None,
) -> ItemVerdict:
    forged: list[Reason] = []
    refused: list[Reason] = []
    compared = [Comparison("environment", policy.environment, claims.environment)]
    if not bound:
        forged.append(Reason("claims.not_bound", "no authentic evidence vouches for these claims"))
    if claims.environment != policy.environment:
        words = f"environment {claims.environment}, expected {policy.environment}"
        refused.append(Reason("claims.environment_mismatch", words))
    if nonce is not None:
        compared.append(Comparison("nonce", nonce.hex(), claims.nonce.hex()))
        if claims.nonce != nonce:
            words = "the evidence answers another nonce: it is old or was made for somebody else"
            refused.append(Reason("claims.nonce_mismatch", words))
    if tls_spki is not None:
        compared.append(Comparison("tls_spki", tls_spki, claims.tls_spki))
        if claims.tls_spki != tls_spki:
            words = "the TLS connection does not end in the attested machine: somebody is in the middle"
            refused.append(Reason("claims.tls_key_mismatch", words))
    refused += _clock(claims, policy, fresh, now)
    if launched.payload is not None and launched.document is not None:
        expected = dsse.digest(launched.payload)
        compared.append(Comparison("launch", expected, claims.launch))
        if claims.launch != expected:
            words = "the machine says that it was launched with another document than the one in the bundle"
            refused.append(Reason("claims.launch_mismatch", words))
        refused += _models(claims, launched.document)
    return ItemVerdict("claims", tuple(forged), tuple(refused), tuple(compared))


def _clock(claims: Claims, policy: Policy, fresh: _Freshness, now: datetime) -> list[Reason]:
    """Guest time against the clock of the moment when the evidence was fresh; never later than now."""
    limit = timedelta(seconds=policy.max_clock_skew_s)
    moment = now if fresh.moment is None else fresh.moment
    off = claims.time - moment
    if off > limit or (fresh.moment is not None and -off > limit):
        words = (
            f"the machine's clock says {times.format_time(claims.time)}, ours {times.format_time(moment)}: "
            f"{abs(int(off.total_seconds()))} s apart, {policy.max_clock_skew_s} s are allowed"
        )
        return [Reason("claims.clock_skew", words)]
    return []


def _models(claims: Claims, document: launch.LaunchDocument) -> list[Reason]:
    reasons: list[Reason] = []
    expected = {name: model.root for name, model in document.models.items()}
    found = {name: model.root for name, model in claims.models.items()}
    wrong = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    if wrong:
        words = f"model {', '.join(wrong)}: not the volume that the launch document names"
        reasons.append(Reason("claims.models_mismatch", words))
    failed = sorted(name for name, model in claims.models.items() if model.state == "failed")
    if failed:
        words = f"model {', '.join(failed)}: its volume could not be opened or read under its root hash"
        reasons.append(Reason("claims.model_failed", words))
    return reasons


def _tier_item(tier: str, policy: Policy, any_evidence: bool) -> ItemVerdict:
    forged: list[Reason] = []
    refused: list[Reason] = []
    if not any_evidence:
        forged.append(Reason("bundle.evidence.missing", "the bundle has no evidence of any machine"))
    if tier and TIERS.index(tier) < TIERS.index(policy.lowest_tier):
        words = f"the evidence reaches tier {tier}, the policy takes {policy.lowest_tier} and better"
        refused.append(Reason("policy.tier.too_low", words))
    compared = (Comparison("tier", policy.lowest_tier, tier),)
    return ItemVerdict("tier", tuple(forged), tuple(refused), compared)


def _forged(item: str, code: str, words: str) -> ItemVerdict:
    return ItemVerdict(item, forged=(Reason(code, words),))
