# SPDX-License-Identifier: Apache-2.0
"""Every reason code fires for what it names and for nothing else; every boundary holds on both sides."""

from __future__ import annotations

import ast
import base64
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import cube_attestation
import pytest
from cube_attestation import dsse, jcs, times
from cube_attestation.bundle import Bundle
from cube_attestation.check.result import NAMES
from cube_attestation.claims import ModelClaim
from cube_attestation.cmw import Collection
from cube_attestation.errors import BadInput
from cube_attestation.fields import encode_base64
from cube_attestation.verdict import Verdict
from cube_attestation.verifier import verify
from fakepki import (
    NONCE,
    NOW,
    Step,
    World,
    cmdline_changed,
    default_boot,
    ec_key,
    ecc_public,
    environment_ca,
    issue,
    phase,
    rsa_key,
    spki,
)
from fakepki import tpm_maker as maker
from hypothesis import given, settings
from hypothesis import strategies as st

Change = Callable[[World], None]
Tamper = Callable[[Bundle], Bundle]
TABLE = Path(__file__).resolve().parents[2] / "docs" / "reason-codes.md"
# Other evidence kinds add theirs here, with their section of the table.
FAMILIES = ("bundle", "claims", "image", "launch", "policy", "receipt", "software", "tpm")
CODE = re.compile(rf"({'|'.join(FAMILIES)})(\.[a-z0-9_]+)+")
OTHER_SPKI = "sha256:" + "99" * 32


def judge(world: World, bundle: Bundle | None = None, **given: object) -> Verdict:
    nonce = given.get("nonce", NONCE)
    tls = given.get("tls_spki", World().tls_spki)
    assert nonce is None or isinstance(nonce, bytes)
    assert tls is None or isinstance(tls, str)
    return verify(bundle or world.bundle(), world.the_policy(), now=world.now, nonce=nonce, tls_spki=tls)


def without(label: str) -> Tamper:
    return lambda b: replace(b, evidence=Collection({k: v for k, v in b.evidence.items.items() if k != label}))


def put(label: str, value: bytes) -> Tamper:
    return lambda b: replace(b, evidence=b.evidence.with_item(label, b.evidence.items[label].media_type, value, 4))


def flip(label: str, offset: int = -1) -> Tamper:
    def tamper(bundle: Bundle) -> Bundle:
        value = bytearray(bundle.evidence.items[label].value)
        value[offset] ^= 1
        return put(label, bytes(value))(bundle)

    return tamper


def member(label: str, name: str, value: jcs.Json) -> Tamper:
    """Replace a member of a JSON item."""

    def tamper(bundle: Bundle) -> Bundle:
        item = jcs.loads(bundle.evidence.items[label].value)
        assert isinstance(item, dict)
        return put(label, jcs.dumps({**item, name: value}))(bundle)

    return tamper


def broken_signature(label: str) -> Tamper:
    """A well-formed signature by the right key over something else."""

    def tamper(bundle: Bundle) -> Bundle:
        item = jcs.loads(bundle.evidence.items[label].value)
        assert isinstance(item, dict)
        assert isinstance(item["signatures"], list)
        assert isinstance(item["signatures"][0], dict)
        roles = {spki(ec_key(role)): role for role in ("operator", "image")}
        key = ec_key(roles[str(item["signatures"][0]["keyid"])])
        foreign = dsse.sign(str(item["payloadType"]), {"something": "else"}, key)
        return put(label, jcs.dumps({**item, "signatures": foreign["signatures"]}))(bundle)

    return tamper


def media_type(bundle: Bundle) -> Bundle:
    value = bundle.evidence.items["claims"].value
    return replace(bundle, evidence=bundle.evidence.with_item("claims", "application/json", value))


def unknown_item(bundle: Bundle) -> Bundle:
    return replace(bundle, evidence=bundle.evidence.with_item("crystal-ball", "application/json", b"{}"))


def only_common(bundle: Bundle) -> Bundle:
    kept = {k: v for k, v in bundle.evidence.items.items() if k in ("claims", "launch", "image-manifest")}
    return replace(bundle, evidence=Collection(kept))


def quote_without_pcr(world: World) -> None:
    world.quoted_pcrs = tuple(pcr for pcr in range(16) if pcr != 5)


def other_values(bundle: Bundle) -> Bundle:
    item = jcs.loads(bundle.evidence.items["tpm-quote"].value)
    assert isinstance(item, dict)
    assert isinstance(item["pcrs"], dict)
    assert isinstance(item["pcrs"]["sha256"], dict)
    item["pcrs"]["sha256"]["0"] = "77" * 32
    return put("tpm-quote", jcs.dumps(item))(bundle)


def attest_bit(bundle: Bundle) -> Bundle:
    item = jcs.loads(bundle.evidence.items["tpm-quote"].value)
    assert isinstance(item, dict)
    raw = bytearray(base64.b64decode(str(item["attest"])))
    raw[-60] ^= 1  # within firmwareVersion or clockInfo
    return member("tpm-quote", "attest", base64.b64encode(bytes(raw)).decode())(bundle)


def attr(**values: object) -> Change:
    def change(world: World) -> None:
        for name, value in values.items():
            assert hasattr(world, name), name
            setattr(world, name, value)

    return change


def policy(name: str, value: str) -> Change:
    def change(world: World) -> None:
        world.policy[name] = value

    return change


def other_ca() -> Change:
    return attr(ak_issuer=issue("environment CA", ec_key("foreign-ca"), ca=True))


def ek(**options: object) -> Change:
    def change(world: World) -> None:
        settings: dict[str, object] = {"critical_san": True, **options}
        issuer = settings.pop("issuer", maker()[1])
        bits = settings.pop("bits", 2048)
        world.ek = issue("", rsa_key("ek", bits), issuer, **settings)  # type: ignore[arg-type]

    return change


def foreign_maker(world: World) -> None:
    """Another maker's TPM with his whole, self-consistent chain."""
    root = issue("TPM root", ec_key("foreign-root"), ca=True)
    world.ek = issue("", rsa_key("ek"), root, critical_san=True)
    world.ek_issuers = (root,)


def impostor_chain(world: World) -> None:
    """An issuer that only has the real root's name."""
    impostor = issue("TPM root", ec_key("foreign-root"), ca=True)
    issuer = issue("TPM issuer", ec_key("tpm-issuer"), impostor, ca=True)
    world.ek = issue("", rsa_key("ek"), issuer, critical_san=True)
    world.ek_issuers = (issuer, maker()[0])


def no_ca(world: World) -> None:
    issuer = issue("TPM issuer", ec_key("tpm-issuer"), maker()[0])
    world.ek = issue("", rsa_key("ek"), issuer, critical_san=True)
    world.ek_issuers = (issuer, maker()[0])


def launched(**values: jcs.Json) -> Change:
    return lambda world: world.launch.update(values)


def boot(steps: list[Step]) -> Change:
    return attr(boot=steps)


def resigned_receipt(world: World, bundle: Bundle) -> Bundle:
    return world.receipted(bundle)


PCR8 = jcs.dumps({"another": "launch document"})
IN_THE_PAST = (NOW - timedelta(days=9), NOW - timedelta(seconds=1))
IN_THE_FUTURE = (NOW + timedelta(seconds=1), NOW + timedelta(days=9))

# code → how to make it fire: a change of the world (correctly signed), or tampering with its bundle
WORLD: list[tuple[str, Change]] = [
    ("claims.environment_mismatch", attr(environment="prod")),
    ("claims.nonce_mismatch", attr(nonce=bytes(32))),
    ("claims.tls_key_mismatch", attr(tls_spki=OTHER_SPKI)),
    ("claims.clock_skew", attr(guest_time=NOW + timedelta(seconds=61))),
    ("claims.clock_skew", attr(guest_time=NOW - timedelta(seconds=61))),
    ("claims.launch_mismatch", attr(claimed_launch=OTHER_SPKI)),
    ("claims.models_mismatch", attr(models={"smollm2": ModelClaim("cd" * 32, "ready")})),
    ("claims.models_mismatch", attr(models={})),
    ("claims.model_failed", attr(models={"smollm2": ModelClaim("ab" * 32, "failed")})),
    ("launch.environment_mismatch", launched(environment="prod")),
    ("launch.revision.too_old", launched(revision=2)),
    ("launch.signature.untrusted_key", attr(launch_key="stranger")),
    ("launch.malformed", launched(surprise=1)),
    ("image.signature.untrusted_key", attr(image_key="stranger")),
    ("image.not_allowed", policy("image.allowed", f'["{OTHER_SPKI}"]')),
    ("image.debug.not_allowed", attr(flavour="local-debug")),
    ("policy.tier.too_low", policy("lowest_tier", '"provider-vtpm"')),
    ("tpm.ek.untrusted_root", foreign_maker),
    ("tpm.ek.untrusted_root", attr(ek_issuers=())),
    ("tpm.ek.signature_invalid", impostor_chain),
    ("tpm.ek.expired", ek(start=IN_THE_PAST[0], end=IN_THE_PAST[1])),
    ("tpm.ek.not_yet_valid", ek(start=IN_THE_FUTURE[0], end=IN_THE_FUTURE[1])),
    ("tpm.ek.constraints", no_ca),
    ("tpm.ek.constraints", ek(unknown_critical=True)),
    ("tpm.ek.weak_key", ek(bits=1024)),
    ("tpm.ak.untrusted_issuer", other_ca()),
    ("tpm.ak.expired", attr(ak_valid=IN_THE_PAST)),
    ("tpm.ak.not_yet_valid", attr(ak_valid=IN_THE_FUTURE)),
    ("tpm.ak.constraints", attr(ak_unknown_critical=True)),
    ("tpm.ak.key_mismatch", attr(ak_certified="another-ak")),
    ("tpm.ak.usage", attr(ak_eku=())),
    ("tpm.ak.usage", attr(ak_eku=("1.3.6.1.5.5.7.3.1",))),
    ("tpm.ak.usage", attr(ak_eku=("2.23.133.8.3", "1.3.6.1.5.5.7.3.1"))),
    ("tpm.ak.other_ek", attr(ak_serial=OTHER_SPKI)),
    ("tpm.ak.attributes", attr(ak_attributes=0x00040072)),
    ("tpm.ak.attributes", attr(ak_attributes=0x00070072)),
    ("tpm.pcr.mismatch", boot(cmdline_changed())),
    ("tpm.pcr.mismatch", attr(pcr8_payload=PCR8)),
    ("tpm.pcr.not_quoted", quote_without_pcr),
    ("tpm.pcr.no_reference", policy("tpm.pcrs", "[2, 3, 4, 5, 7, 8, 9, 11]")),
]
TAMPERED: list[tuple[str, Tamper]] = [
    ("bundle.item.unknown", unknown_item),
    ("bundle.item.media_type", media_type),
    ("bundle.evidence.missing", only_common),
    ("claims.missing", without("claims")),
    ("claims.malformed", member("claims", "surprise", 1)),
    ("claims.malformed", lambda b: put("claims", b.evidence.items["claims"].value + b" ")(b)),
    ("claims.not_bound", without("tpm-quote")),
    ("launch.missing", without("launch")),
    ("launch.signature.invalid", broken_signature("launch")),
    ("launch.signature.untrusted_key", member("launch", "signatures", [])),
    ("image.missing", without("image-manifest")),
    ("image.malformed", put("image-manifest", b"{}")),
    ("image.signature.invalid", broken_signature("image-manifest")),
    ("tpm.ek.missing", without("ek-certificate")),
    ("tpm.ek.malformed", put("ek-certificate", b"\x30\x82")),
    ("tpm.ek.malformed", put("ek-chain", b"-----BEGIN CERTIFICATE-----\n")),
    ("tpm.ak.missing", without("ak-certificate")),
    ("tpm.ak.malformed", put("ak-certificate", b"\x30\x82")),
    ("tpm.ak.signature_invalid", flip("ak-certificate")),
    ("tpm.ak.unbound", without("ek-certificate")),
    ("tpm.quote.missing", without("tpm-quote")),
    ("tpm.quote.malformed", put("tpm-quote", b"{}")),
    ("tpm.quote.signature_invalid", attest_bit),
    ("tpm.quote.pcr_digest_mismatch", other_values),
    ("tpm.quote.nonce_mismatch", member("claims", "nonce", "00" * 32)),
    ("tpm.quote.nonce_mismatch", without("claims")),
    ("tpm.ak.name_mismatch", member("tpm-quote", "ak_public", encode_base64(ecc_public(ec_key("ak"), 0x00050472)))),
    ("tpm.eventlog.missing", without("tcg-eventlog")),
    ("tpm.eventlog.malformed", put("tcg-eventlog", b"\0")),
    ("tpm.eventlog.malformed", put("systemd-eventlog", b"{}")),
    ("tpm.eventlog.replay_mismatch", put("systemd-eventlog", b"")),
]


@pytest.mark.parametrize(("code", "change"), WORLD, ids=[f"{i}-{c}" for i, (c, _) in enumerate(WORLD)])
def test_signed_evidence_of_something_wrong(code: str, change: Change) -> None:
    world = World()
    change(world)
    verdict = judge(world)
    assert code in verdict.codes, verdict.codes
    assert not verdict.passed


@pytest.mark.parametrize(("code", "tamper"), TAMPERED, ids=[f"{i}-{c}" for i, (c, _) in enumerate(TAMPERED)])
def test_tampered_bundle(code: str, tamper: Tamper) -> None:
    world = World()
    verdict = judge(world, tamper(world.bundle()))
    assert code in verdict.codes, verdict.codes
    assert not verdict.passed


def _weak_ak(world: World) -> None:
    world.ak_issuer = issue("environment CA", rsa_key("weak-ca", 1024), ca=True)
    world.policy["tpm.ak_issuers"] = f'["{world.ak_issuer.spki}"]'


def _inconsistent_manifest(world: World) -> None:
    payload = world.manifest_payload()
    reference = payload["reference"]
    assert isinstance(reference, dict)
    assert isinstance(reference["events"], list)
    reference["events"].pop()
    world.manifest_payload = lambda: payload  # type: ignore[method-assign]


def _expired_manifest(world: World) -> None:
    payload = {**world.manifest_payload(), "expires": times.format_time(world.now)}
    world.manifest_payload = lambda: payload  # type: ignore[method-assign]


def _not_in_allowed(world: World) -> None:
    world.policy |= {"launch.signers": "", "launch.allowed": f'["{OTHER_SPKI}"]'}


MORE_WORLD: list[tuple[str, Change]] = [
    ("tpm.ak.weak_key", _weak_ak),
    ("image.reference.inconsistent", _inconsistent_manifest),
    ("image.expired", _expired_manifest),
    ("launch.not_allowed", _not_in_allowed),
]


@pytest.mark.parametrize(("code", "change"), MORE_WORLD, ids=[code for code, _ in MORE_WORLD])
def test_signed_evidence_of_something_rarer(code: str, change: Change) -> None:
    world = World()
    change(world)
    assert code in judge(world).codes


def _receipt_signature(world: World, bundle: Bundle) -> Bundle:
    receipt = world.receipted(bundle).receipt
    foreign = dsse.sign(dsse.RECEIPT, {"something": "else"}, ec_key("control"))
    assert receipt is not None
    return replace(bundle, receipt={**receipt, "signatures": foreign["signatures"]})


def _receipt_of_other_evidence(world: World, bundle: Bundle) -> Bundle:
    return replace(bundle, receipt=world.receipted(World().bundle()).receipt)


RECEIPTS: list[tuple[str, Change, Callable[[World, Bundle], Bundle]]] = [
    ("receipt.malformed", attr(), lambda w, b: replace(b, receipt={})),
    ("receipt.signature.invalid", attr(), _receipt_signature),
    ("receipt.signature.untrusted_key", attr(receipt_key="stranger"), resigned_receipt),
    ("receipt.bundle_mismatch", attr(), _receipt_of_other_evidence),
    ("receipt.nonce_mismatch", attr(receipt_nonce=bytes(16)), resigned_receipt),
    ("receipt.environment_mismatch", attr(receipt_environment="prod"), resigned_receipt),
    ("receipt.time_in_future", attr(receipt_time=NOW + timedelta(seconds=61)), resigned_receipt),
]


@pytest.mark.parametrize(("code", "change", "seal"), RECEIPTS, ids=[code for code, *_ in RECEIPTS])
def test_receipt_that_does_not_count(code: str, change: Change, seal: Callable[[World, Bundle], Bundle]) -> None:
    world = World()
    change(world)
    verdict = judge(world, seal(world, world.bundle()), nonce=None, tls_spki=None)
    assert code in verdict.codes
    assert verdict.freshness == "not_checked"
    assert not verdict.passed


def test_the_default_world_passes_and_says_what_it_rests_on() -> None:
    world = World()
    verdict = judge(world)
    assert verdict.passed, verdict.reasons
    assert verdict.exit_code == 0
    assert verdict.tier == "software"
    assert verdict.freshness == "nonce"
    assert "software.no_hardware_protection" in verdict.assumptions
    assert "software.firmware_not_appraised" in verdict.assumptions
    assert verdict.claims == world.claims().to_json()


def test_offline_the_verdict_is_the_same_but_for_freshness() -> None:
    world = World()
    sealed = world.receipted()
    live = judge(world, sealed)
    offline = judge(world, sealed, nonce=None, tls_spki=None)
    unsealed = judge(world, Bundle(sealed.evidence), nonce=None, tls_spki=None)
    assert (live.freshness, offline.freshness, unsealed.freshness) == ("nonce", "receipt", "not_checked")
    assert live.passed
    assert offline.passed
    assert unsealed.passed
    assert offline.tier == unsealed.tier == live.tier
    assert offline.assumptions == unsealed.assumptions == live.assumptions


def test_a_receipt_does_not_count_without_a_key_in_the_policy() -> None:
    world = World()
    world.policy["freshness.receipt_keys"] = ""
    verdict = judge(world, world.receipted(), nonce=None)
    assert verdict.passed
    assert verdict.freshness == "not_checked"


def test_years_later_with_the_clock_of_then() -> None:
    world = World()
    sealed = world.receipted()
    now = world.now + timedelta(hours=3)
    assert verify(sealed, world.the_policy(), now=now).passed
    late = verify(sealed, world.the_policy(), now=NOW + timedelta(days=400))
    assert set(late.codes) >= {"tpm.ak.expired", "tpm.ek.expired"}


def test_the_same_inputs_give_the_same_bytes() -> None:
    world = World()
    bundle, rules = world.receipted(), world.the_policy()
    first = verify(bundle, rules, now=NOW).dump()
    assert first == verify(bundle, rules, now=NOW).dump()
    assert first == jcs.dumps(jcs.loads(first)) + b"\n"


def test_exit_codes_tell_refused_from_not_authentic() -> None:
    refused = World(tls_spki=OTHER_SPKI)
    assert judge(refused).exit_code == 1
    assert judge(World(), without("tpm-quote")(World().bundle())).exit_code == 2


def test_claims_are_not_repeated_when_nothing_vouches_for_them() -> None:
    world = World()
    verdict = judge(world, member("claims", "environment", "prod")(world.bundle()))
    assert verdict.claims is None
    assert verdict.exit_code == 2


def test_an_exact_digest_accepts_a_launch_document_of_any_signer() -> None:
    world = World(launch_key="stranger")
    world.policy |= {"launch.signers": "", "launch.allowed": f'["{dsse.digest(jcs.dumps(world.launch))}"]'}
    assert judge(world).passed


def test_a_manifest_signed_anew_is_the_same_image() -> None:
    world = World()
    payload = world.manifest_payload()
    world.policy["image.allowed"] = f'["{dsse.digest(jcs.dumps(payload))}"]'
    for days in (1, 90):
        later = {**payload, "expires": times.format_time(world.now + timedelta(days=days))}
        world.manifest_payload = lambda later=later: later  # type: ignore[method-assign,misc]
        assert judge(world).passed, judge(world).codes
    world.policy["image.allowed"] = f'["{dsse.digest(jcs.dumps(later))}"]'
    assert "image.not_allowed" in judge(world).codes, "an image is named without its expiry"


def test_an_exact_digest_accepts_a_manifest() -> None:
    world = World()
    world.policy["image.allowed"] = f'["{dsse.digest(jcs.dumps(world.manifest_payload()))}"]'
    assert judge(world).passed


def test_a_debug_image_passes_only_where_the_policy_says_so() -> None:
    world = World(flavour="debug")
    world.policy["image.debug"] = "true"
    assert judge(world).passed


@pytest.mark.parametrize("seconds", [-60, 0, 60])
def test_clock_skew_just_inside(seconds: int) -> None:
    assert judge(World(guest_time=NOW + timedelta(seconds=seconds))).passed


def test_guest_time_is_measured_against_the_receipt_and_never_after_now() -> None:
    world = World(now=NOW + timedelta(hours=3))
    assert judge(world, world.receipted(), nonce=None).passed
    world = World(guest_time=NOW - timedelta(seconds=61))
    assert "claims.clock_skew" in judge(world, world.receipted(), nonce=None).codes
    world = World(guest_time=NOW + timedelta(seconds=61))
    assert judge(world, nonce=None).codes == ("claims.clock_skew",)
    world = World(guest_time=NOW - timedelta(seconds=61))
    assert judge(world, nonce=None).passed  # nothing says when it was fresh, so its age says nothing


@pytest.mark.parametrize("edge", ["start", "end"])
def test_certificate_validity_just_inside(edge: str) -> None:
    ak_valid = (NOW, NOW + timedelta(days=1)) if edge == "start" else (NOW - timedelta(days=1), NOW)
    assert judge(World(ak_valid=ak_valid)).passed


def test_receipt_time_just_inside() -> None:
    world = World(receipt_time=NOW + timedelta(seconds=60))
    assert judge(world, world.receipted(), nonce=None).passed


def test_revision_just_inside() -> None:
    world = World()
    world.launch["revision"] = 3
    assert judge(world).passed


def test_a_naive_clock_is_bad_input() -> None:
    with pytest.raises(BadInput):
        verify(World().bundle(), World().the_policy(), now=NOW.replace(tzinfo=None))


WORDS: list[tuple[str, Change]] = [
    ("PCR 11: UKI section .cmdline differs from the predicted one", boot(cmdline_changed())),
    (
        "PCR 11: systemd boot phase ready was predicted, and the machine's log ends before it",
        boot(default_boot()[:-1]),
    ),
    ("PCR 11: systemd phase shutdown was measured beyond", boot([*default_boot(), phase("shutdown")])),
    (
        "PCR 7: Secure Boot state was predicted and not measured",
        boot(default_boot()[1:]),
    ),
    (
        "PCR 4: intruder was measured before start of the boot option and not predicted",
        boot([Step(4, "EV_EFI_ACTION", "", b"intruder"), *default_boot()]),
    ),
    ("PCR 8: the machine was launched with another launch document", attr(pcr8_payload=PCR8)),
]


@pytest.mark.parametrize(("words", "change"), WORDS, ids=[words[:30] for words, _ in WORDS])
def test_a_mismatch_names_the_first_diverging_event(words: str, change: Change) -> None:
    world = World()
    change(world)
    verdict = judge(world)
    assert verdict.codes == ("tpm.pcr.mismatch",)
    assert words in [reason.words[: len(words)] for reason in verdict.reasons]


def test_a_log_that_the_quote_does_not_vouch_for_explains_nothing() -> None:
    world = World(boot=cmdline_changed())
    verdict = judge(world, put("tcg-eventlog", b"\0")(world.bundle()))
    assert any("there is no event log to say where" in reason.words for reason in verdict.reasons)


def test_every_code_of_the_source_is_tested_and_documented() -> None:
    """No code without a test that makes it fire, none outside of the table, no row that is not emitted."""
    source = Path(cube_attestation.__file__).parent
    emitted = {
        node.value
        for path in source.rglob("*.py")
        if path.parent.name != "prove"  # its mutations have names of the same form
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value)
    } - set(NAMES)
    rows = re.findall(r"^\| `([a-z0-9_.]+)` \|", TABLE.read_text(), flags=re.MULTILINE)
    assert len(rows) == len(set(rows)), "a code has two rows"
    documented = {row for row in rows if CODE.fullmatch(row)}
    fired = {code for code, *_ in (*WORLD, *MORE_WORLD, *TAMPERED, *RECEIPTS)} | {
        "software.no_hardware_protection",
        "software.firmware_not_appraised",
        "tpm.ak.revoked",  # only `attestation check` looks at lists of TPMs' issuers: test_cli_check.py
    }
    assert emitted - documented == set(), "codes without a row"
    assert documented - emitted == set(), "rows without code"
    assert emitted - fired == set(), "codes that no test makes fire"


def test_the_environment_ca_is_no_tpm_maker() -> None:
    """An EK certificate by the AK's issuer does not count, nor the reverse."""
    world = World(ek=issue("", rsa_key("ek"), environment_ca(), critical_san=True), ek_issuers=(environment_ca(),))
    assert "tpm.ek.untrusted_root" in judge(world).codes
    world = World(ak_issuer=maker()[0])
    assert "tpm.ak.untrusted_issuer" in judge(world).codes


PASSING = (World().bundle(), World().the_policy())
# Items of which every byte counts. Event data of logs, PEM line ends and certificates beside the path do not.
SEALED = ("claims", "tpm-quote", "launch", "image-manifest", "ek-certificate", "ak-certificate")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_changed_byte_of_a_sealed_item_passes(data: st.DataObject) -> None:
    bundle, rules = PASSING
    label = data.draw(st.sampled_from(sorted(bundle.evidence.items)))
    value = bytearray(bundle.evidence.items[label].value)
    at = data.draw(st.integers(0, len(value) - 1))
    value[at] ^= data.draw(st.integers(1, 255))
    verdict = verify(put(label, bytes(value))(bundle), rules, now=NOW, nonce=NONCE)
    assert jcs.loads(verdict.dump())
    if label in SEALED:
        assert not verdict.passed, (label, at)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(PASSING[0].evidence.items)), st.binary(max_size=80))
def test_any_bytes_in_an_item_give_a_verdict(label: str, value: bytes) -> None:
    verdict = verify(put(label, value)(PASSING[0]), PASSING[1], now=NOW)
    assert not verdict.passed
    assert all(reason.words for reason in verdict.reasons)
