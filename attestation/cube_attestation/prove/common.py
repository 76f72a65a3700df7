# SPDX-License-Identifier: Apache-2.0
"""Attacks on what every bundle has: claims, launch document, image manifest, receipt, and the bundle itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from cube_attestation import bundle as bundles
from cube_attestation import dsse, jcs, times
from cube_attestation.claims import Claims, DomainsClaim, ModelClaim
from cube_attestation.cmw import EVIDENCE, Collection
from cube_attestation.errors import BadInput
from cube_attestation.verdict import TIERS

from . import forge
from .case import OTHER_DIGEST, Case, Inapplicable, Mutation, forger_spki


def _other_nonce(case: Case) -> Case:
    return replace(case, nonce=bytes(byte ^ 0xFF for byte in case.nonce))


def _claims(edit: Callable[[Claims], Claims]) -> Callable[[Case], Case]:
    """Claims rewritten, and the caller's own view moved along, so that only the binding can tell."""

    def change(case: Case) -> Case:
        edited = edit(case.claims())
        case = case.put("claims", edited.encode())
        return replace(case, nonce=edited.nonce, tls_spki=edited.tls_spki)

    return change


def _renamed_models(claims: Claims) -> Claims:
    if not claims.models:
        raise Inapplicable("the claims name no model")
    name, model = next(iter(claims.models.items()))
    state = "opened" if model.state == "ready" else "ready"
    return replace(claims, models={**claims.models, name: ModelClaim(model.root, state)})


def _clock_behind(case: Case) -> Case:
    """A live caller whose clock is further ahead than the policy takes; a receipt would tell another moment."""
    seconds = case.policy.max_clock_skew_s + 1
    bare = replace(case, bundle=replace(case.bundle, receipt=None))
    return replace(bare, now=case.claims().time + timedelta(seconds=seconds))


def _clock_ahead(case: Case) -> Case:
    seconds = case.policy.max_clock_skew_s + 1
    return replace(case, now=case.claims().time - timedelta(seconds=seconds))


def _other_environment(case: Case) -> Case:
    return case.under(environment="another" if case.policy.environment != "another" else "other")


# Launch document: the forger's key counts as an operator's wherever only the content shall be judged


def _operators(case: Case) -> Case:
    """The policy takes documents by signature only; without operators there is nothing to forge."""
    if not case.policy.launch.signers:
        raise Inapplicable("the policy takes launch documents by digest, not by signature")
    return case.under(launch=replace(case.policy.launch, allowed=()))


def _trusting_launch(case: Case) -> Case:
    rules = replace(case.policy.launch, signers=(*case.policy.launch.signers, forger_spki()), allowed=())
    return case.under(launch=rules)


def _launch_with(**members: jcs.Json) -> Callable[[Case], Case]:
    """A document that an accepted operator signed, with other members."""
    return lambda case: _trusting_launch(case).signed(
        "launch", dsse.LAUNCH, {**case.payload("launch", dsse.LAUNCH), **members}
    )


def _launch_next(case: Case) -> Case:
    payload = case.payload("launch", dsse.LAUNCH)
    revision = payload["revision"]
    if not isinstance(revision, int):
        raise BadInput("expected an integer", where="launch.revision")
    return _trusting_launch(case).signed("launch", dsse.LAUNCH, {**payload, "revision": revision + 1})


def _launch_model(case: Case) -> Case:
    payload = case.payload("launch", dsse.LAUNCH)
    models = payload["models"]
    if not isinstance(models, dict):
        raise BadInput("expected an object", where="launch.models")
    changed: dict[str, jcs.Json] = {}
    for name, model in models.items():
        if not isinstance(model, dict):
            raise BadInput("expected an object", where=f"launch.models.{name}")
        changed[name] = {**model, "root": "0f" * 32}
    return _trusting_launch(case).signed("launch", dsse.LAUNCH, {**payload, "models": changed})


def _launch_edited(case: Case) -> Case:
    payload = case.payload("launch", dsse.LAUNCH)
    return _operators(case).edited("launch", {**payload, "hostnames": ["forged.example"]})


def _launch_stranger(case: Case) -> Case:
    return _operators(case).signed("launch", dsse.LAUNCH, case.payload("launch", dsse.LAUNCH))


def _launch_unlisted(case: Case) -> Case:
    return case.under(launch=replace(case.policy.launch, signers=(), allowed=(OTHER_DIGEST,)))


def _launch_old(case: Case) -> Case:
    revision = case.payload("launch", dsse.LAUNCH)["revision"]
    if not isinstance(revision, int):
        raise BadInput("expected an integer", where="launch.revision")
    return case.under(launch=replace(case.policy.launch, minimum_revision=revision + 1))


# Image manifest


def _image_trusting(case: Case) -> Case:
    rules = replace(case.policy.image, signers=(*case.policy.image.signers, forger_spki()), allowed=())
    return case.under(image=rules)


def _image_edited(case: Case) -> Case:
    return case.edited("image-manifest", {**case.payload("image-manifest", dsse.IMAGE_MANIFEST), "id": "forged"})


def _image_stranger(case: Case) -> Case:
    payload = case.payload("image-manifest", dsse.IMAGE_MANIFEST)
    return case.under(image=replace(case.policy.image, allowed=())).signed(
        "image-manifest", dsse.IMAGE_MANIFEST, payload
    )


def _reference(case: Case) -> tuple[dict[str, jcs.Json], dict[str, jcs.Json], list[jcs.Json]]:
    payload = case.payload("image-manifest", dsse.IMAGE_MANIFEST)
    reference = payload["reference"]
    if not isinstance(reference, dict) or not isinstance(reference["events"], list):
        raise BadInput("expected predicted events", where="image-manifest.reference")
    pcrs = reference["pcrs"]
    if not isinstance(pcrs, dict) or not isinstance(pcrs["sha256"], dict):
        raise BadInput("expected predicted values", where="image-manifest.reference")
    return payload, pcrs["sha256"], reference["events"]


def _image_other(case: Case) -> Case:
    """The manifest of another image, signed by an accepted key and consistent in itself: PCR 11 goes elsewhere."""
    if not case.has("tpm-quote"):
        raise Inapplicable("without a TPM the policy, not the manifest, names the measurements")
    payload, values, events = _reference(case)
    extended = bytes.fromhex(str(values["11"])) + hashlib.sha256(b"another image").digest()
    event: jcs.Json = {
        "pcr": 11,
        "sha256": hashlib.sha256(b"another image").hexdigest(),
        "type": "systemd.phase",
        "what": "a phase of another image",
        "from": "another image",
    }
    changed: jcs.Json = {
        "pcrs": {"sha256": {**values, "11": hashlib.sha256(extended).hexdigest()}},
        "events": [*events, event],
    }
    return _image_trusting(case).signed("image-manifest", dsse.IMAGE_MANIFEST, {**payload, "reference": changed})


def _image_inconsistent(case: Case) -> Case:
    payload, values, events = _reference(case)
    changed: jcs.Json = {"pcrs": {"sha256": {**values, "11": "0f" * 32}}, "events": events}
    return _image_trusting(case).signed("image-manifest", dsse.IMAGE_MANIFEST, {**payload, "reference": changed})


def _image_debug(case: Case) -> Case:
    payload = {**case.payload("image-manifest", dsse.IMAGE_MANIFEST), "flavour": "forged-debug"}
    trusting = _image_trusting(case)
    strict = trusting.under(image=replace(trusting.policy.image, debug=False))
    return strict.signed("image-manifest", dsse.IMAGE_MANIFEST, payload)


def _image_expired(case: Case) -> Case:
    payload = {**case.payload("image-manifest", dsse.IMAGE_MANIFEST), "expires": times.format_time(case.now)}
    return _image_trusting(case).signed("image-manifest", dsse.IMAGE_MANIFEST, payload)


def _image_unlisted(case: Case) -> Case:
    return case.under(image=replace(case.policy.image, allowed=(OTHER_DIGEST,)))


# Receipts: the forger's key counts as a gate's wherever only the content shall be judged


def _receipt(**changes: object) -> Callable[[Case], Case]:
    """A receipt by an accepted gate, right but for ``changes``."""

    def change(case: Case) -> Case:
        claims = case.claims()
        values: dict[str, object] = {
            "nonce": claims.nonce,
            "time": claims.time,
            "environment": case.policy.environment,
            **changes,
        }
        signed = bundles.with_receipt(case.bundle, key=forge.ec_key("forger"), **values)  # type: ignore[arg-type]
        return replace(case, bundle=signed).under(receipt_keys=(*case.policy.receipt_keys, forger_spki()))

    return change


def _receipt_swapped(case: Case) -> Case:
    """The receipt that an accepted gate gave for other evidence."""
    other = case.put("claims", replace(case.claims(), boot="0f" * 16).encode())
    given = _receipt()(other)
    return replace(given, bundle=replace(case.bundle, receipt=given.bundle.receipt))


def _receipt_future(case: Case) -> Case:
    late = case.now + timedelta(seconds=case.policy.max_clock_skew_s + 1)
    return _receipt(time=late)(case)


def _receipt_stranger(case: Case) -> Case:
    signed = _receipt()(case)
    return signed.under(receipt_keys=case.policy.receipt_keys or (OTHER_DIGEST,))


def _receipt_edited(case: Case) -> Case:
    signed = _receipt()(case)
    payload = dsse.peek(signed.bundle.receipt, dsse.RECEIPT).payload
    if not isinstance(payload, dict) or signed.bundle.receipt is None:
        raise BadInput("expected an object", where="receipt")
    forged = dsse.sign(dsse.RECEIPT, {**payload, "environment": "forged"}, forge.ec_key("forger"))
    mixed = {**signed.bundle.receipt, "payload": forged["payload"]}
    return replace(signed, bundle=replace(signed.bundle, receipt=mixed))


# The bundle


def _unknown_item(case: Case) -> Case:
    return case.with_evidence(case.bundle.evidence.with_item("crystal-ball", "application/json", b"{}"))


def _media_type(case: Case) -> Case:
    value = case.item("claims")
    return case.with_evidence(case.bundle.evidence.with_item("claims", "application/json", value))


def _only_words(case: Case) -> Case:
    """Claims, launch document and manifest, and nothing of any hardware."""
    kept = ("claims", "launch", "image-manifest")
    items = {k: v for k, v in case.bundle.evidence.items.items() if k in kept}
    return case.with_evidence(Collection(items))


def _no_evidence(case: Case) -> Case:
    """Everything that the gate adds, nothing that the machine made."""
    items = case.bundle.evidence.items
    kept = {k: v for k, v in items.items() if v.indicator != EVIDENCE or k in ("claims", "launch")}
    return case.with_evidence(Collection(kept))


def _higher_tier(case: Case) -> Case:
    reached = case.judge().tier
    if reached == TIERS[-1]:
        raise Inapplicable("the evidence reaches the highest tier")
    return case.under(lowest_tier=TIERS[TIERS.index(reached) + 1])


MUTATIONS = (
    Mutation("claims.replayed", "an old answer to another nonce", "claims.nonce_mismatch", _other_nonce),
    Mutation(
        "claims.relayed",
        "the TLS connection ends in somebody in the middle",
        "claims.tls_key_mismatch",
        lambda case: replace(case, tls_spki=OTHER_DIGEST),
    ),
    Mutation(
        "claims.nonce",
        "the caller's nonce written into old claims",
        "claims.not_bound",
        _claims(lambda claims: replace(claims, nonce=bytes(b ^ 0xFF for b in claims.nonce))),
    ),
    Mutation(
        "claims.tls_key",
        "the attacker's TLS key written into the claims",
        "claims.not_bound",
        _claims(lambda claims: replace(claims, tls_spki=OTHER_DIGEST)),
    ),
    Mutation(
        "claims.audit_key",
        "another audit key written into the claims",
        "claims.not_bound",
        _claims(lambda claims: replace(claims, audit_spki=OTHER_DIGEST)),
    ),
    Mutation(
        "claims.boot",
        "claims of another boot",
        "claims.not_bound",
        _claims(lambda claims: replace(claims, boot="0f" * 16)),
    ),
    Mutation(
        "claims.domains",
        "another domain set written into the claims",
        "claims.not_bound",
        _claims(lambda claims: replace(claims, domains=DomainsClaim(claims.domains.generation + 1, OTHER_DIGEST))),
    ),
    Mutation("claims.models", "a model's state written anew", "claims.not_bound", _claims(_renamed_models)),
    Mutation(
        "claims.time",
        "the machine's clock written anew",
        "claims.not_bound",
        _claims(lambda claims: replace(claims, time=claims.time + timedelta(seconds=1))),
    ),
    Mutation("claims.removed", "no claims", "claims.missing", lambda case: case.without("claims")),
    Mutation(
        "claims.encoding",
        "the same claims in another encoding",
        "claims.malformed",
        lambda case: case.put("claims", case.item("claims") + b" "),
    ),
    Mutation(
        "claims.member",
        "a member that nobody knows",
        "claims.malformed",
        lambda case: case.with_members("claims", surprise=1),
    ),
    Mutation("claims.clock_behind", "the host holds the machine's clock back", "claims.clock_skew", _clock_behind),
    Mutation("claims.clock_ahead", "the host moves the machine's clock ahead", "claims.clock_skew", _clock_ahead),
    Mutation(
        "claims.environment",
        "evidence of another environment's machine",
        "claims.environment_mismatch",
        _other_environment,
    ),
    Mutation("launch.removed", "no launch document", "launch.missing", lambda case: case.without("launch")),
    Mutation(
        "launch.unsigned",
        "the launch document without its signature",
        "launch.signature.untrusted_key",
        lambda case: _operators(case).with_members("launch", signatures=[]),
    ),
    Mutation(
        "launch.stranger",
        "the launch document signed by a stranger",
        "launch.signature.untrusted_key",
        _launch_stranger,
    ),
    Mutation("launch.edited", "a launch document edited after signing", "launch.signature.invalid", _launch_edited),
    Mutation("launch.unlisted", "a launch document that is not listed", "launch.not_allowed", _launch_unlisted),
    Mutation("launch.old", "an outdated launch document", "launch.revision.too_old", _launch_old),
    Mutation(
        "launch.environment",
        "the correctly signed launch document of another environment",
        "launch.environment_mismatch",
        _launch_with(environment="another"),
    ),
    Mutation(
        "launch.swapped",
        "a correctly signed launch document that the machine was not launched with",
        "claims.launch_mismatch",
        _launch_next,
    ),
    Mutation(
        "launch.models",
        "a correctly signed launch document that names other model volumes",
        "claims.models_mismatch",
        _launch_model,
    ),
    Mutation("image.removed", "no image manifest", "image.missing", lambda case: case.without("image-manifest")),
    Mutation("image.edited", "a manifest edited after signing", "image.signature.invalid", _image_edited),
    Mutation("image.stranger", "a manifest signed by a stranger", "image.signature.untrusted_key", _image_stranger),
    Mutation("image.unlisted", "an image that is not listed", "image.not_allowed", _image_unlisted),
    Mutation("image.other", "the correctly signed manifest of another image", "tpm.pcr.mismatch", _image_other),
    Mutation(
        "image.inconsistent",
        "a manifest whose events do not lead to its values",
        "image.reference.inconsistent",
        _image_inconsistent,
    ),
    Mutation("image.expired", "a manifest that is good until now, not longer", "image.expired", _image_expired),
    Mutation("image.debug", "a correctly signed image with a way in", "image.debug.not_allowed", _image_debug),
    Mutation("receipt.swapped", "the receipt of another bundle", "receipt.bundle_mismatch", _receipt_swapped),
    Mutation("receipt.edited", "a receipt edited after signing", "receipt.signature.invalid", _receipt_edited),
    Mutation(
        "receipt.stranger", "a receipt by nobody's gate", "receipt.signature.untrusted_key", _receipt_stranger
    ),
    Mutation(
        "receipt.nonce",
        "a receipt for another nonce",
        "receipt.nonce_mismatch",
        lambda case: _receipt(nonce=_other_nonce(case).nonce)(case),
    ),
    Mutation("receipt.future", "a receipt from the future", "receipt.time_in_future", _receipt_future),
    Mutation(
        "receipt.environment",
        "a receipt of another environment",
        "receipt.environment_mismatch",
        _receipt(environment="forged"),
    ),
    Mutation("bundle.unknown", "an item that nobody reads", "bundle.item.unknown", _unknown_item),
    Mutation("bundle.media_type", "an item under a false media type", "bundle.item.media_type", _media_type),
    Mutation("bundle.words", "claims, launch document and manifest alone", "claims.not_bound", _only_words),
    Mutation("bundle.collateral", "collateral without evidence", "claims.not_bound", _no_evidence),
    Mutation("policy.tier", "evidence of a weaker tier", "policy.tier.too_low", _higher_tier),
)
