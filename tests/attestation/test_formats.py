# SPDX-License-Identifier: Apache-2.0
"""Canonical JSON, DSSE, claims, CMW, bundles, launch, domains, control, policies: round trips and refusals."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cube_attestation import bundle as bundles
from cube_attestation import control, domains, dsse, jcs, launch, manifest, policy, times
from cube_attestation.claims import Claims, DomainsClaim, ModelClaim
from cube_attestation.cmw import Collection
from cube_attestation.errors import AttestationError, BadInput, NotAuthentic
from cube_attestation.tpm import eventlog
from cube_attestation.x509 import certificate
from fakepki import NOW, Step, World, ec_key, pem, spki, tcg_log
from hypothesis import given, settings
from hypothesis import strategies as st

JSON_VALUES: st.SearchStrategy[jcs.Json] = st.recursive(
    st.none() | st.booleans() | st.integers(-jcs.MAX_INTEGER, jcs.MAX_INTEGER) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


# --- canonical JSON


@given(JSON_VALUES)
def test_canonical_json_round_trips_and_is_canonical(value: jcs.Json) -> None:
    data = jcs.dumps(value)
    assert jcs.loads(data, canonical=True) == value
    assert json.loads(data) == value


def test_canonical_json_sorts_by_utf16_and_escapes_like_rfc_8785() -> None:
    # RFC 8785, 3.2.3: the astral character sorts before U+FB33 because its first UTF-16 unit is smaller
    value = {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\x80": 6, "\u00f6": 7}
    assert list(json.loads(jcs.dumps(value))) == ["\r", "1", "\x80", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    assert jcs.dumps('\u20ac$\x0f\nA\'B"\\\\"/\x7f') == b'"\xe2\x82\xac$\\u000f\\nA\'B\\"\\\\\\\\\\"/\x7f"'


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":1}',
        "1.0",
        "1e3",
        "NaN",
        "Infinity",
        "9007199254740992",
        "-9007199254740992",
        "1" * 5000,
        "[" * 40 + "]" * 40,
        "[" * 100_000,
        '"\\ud800"',
        "\ufeff{}",
        "{} {}",
        "",
        "{'a':1}",
        '{"a":1,}',
    ],
)
def test_json_that_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        jcs.loads(text.encode())


@pytest.mark.parametrize("value", [1.5, b"bytes", {1: 2}, "\ud800", 2**53, object(), {"a": [float("nan")]}])
def test_values_that_canonical_json_cannot_carry(value: object) -> None:
    with pytest.raises(BadInput):
        jcs.dumps(value)


@pytest.mark.parametrize("text", ['{"b":1,"a":2}', '{"a": 1}', ' {"a":1}', '{"a":-0}', '"\\u0041"'])
def test_canonical_form_is_demanded_where_it_matters(text: str) -> None:
    jcs.loads(text)
    with pytest.raises(BadInput, match="canonical"):
        jcs.loads(text, canonical=True)


HOSTILE: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "small integers": (jcs.loads, b"[" + b"1," * (1 << 19) + b"1]"),
    "one repeated name at the end": (
        jcs.loads,
        b"{" + b",".join(b'"%06d":1' % i for i in range(90_000)) + b',"000000":1}',
    ),
    "certificates that never end": (
        lambda data: certificate.load(data, where="chain"),
        b"-----BEGIN CERTIFICATE-----" + b"\n" * (1 << 20),
    ),
    "a key that never ends": (
        lambda data: dsse.spki_from_pem(data.decode()),
        b"-----BEGIN PUBLIC KEY-----" + b"\n" * (1 << 20),
    ),
    "a policy of a megabyte": (policy.load, b"a=[" + b"1," * (1 << 19) + b"]"),
    "one event with a megabyte of data": (
        lambda data: [event.words() for event in eventlog.parse_tcg(data).events],
        tcg_log([Step(4, "EV_IPL", "", b"x" * (1 << 20))]),
    ),
}


@pytest.mark.parametrize(("read", "data"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_megabyte_made_to_be_slow_is_not(read: Callable[[bytes], object], data: bytes) -> None:
    start = time.process_time()
    with contextlib.suppress(BadInput):
        read(data)
    assert time.process_time() - start < 1.0  # usually below 0.1; quadratic readers took minutes


def test_depth_just_inside_and_just_beyond() -> None:
    inside = "[" * jcs.MAX_DEPTH + "]" * jcs.MAX_DEPTH
    assert jcs.dumps(jcs.loads(inside)) == inside.encode()
    with pytest.raises(BadInput, match="nested"):
        jcs.loads(f"[{inside}]")


@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_bad_input(data: bytes) -> None:
    with contextlib.suppress(BadInput):
        jcs.loads(data)


# --- times


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_round_trip(time: datetime) -> None:
    assert times.parse(times.format_time(time)) == time.replace(microsecond=0)


def test_times_are_written_in_utc() -> None:
    assert times.format_time(NOW.astimezone(timezone(timedelta(hours=5)))) == "2026-11-24T12:00:00Z"
    with pytest.raises(BadInput):
        times.format_time(NOW.replace(tzinfo=None))


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-24T12:00:00",
        "2026-11-24T12:00:00+00:00",
        "2026-11-24 12:00:00Z",
        "2026-02-30T12:00:00Z",
        "٢026-11-24T12:00:00Z",
    ],
)
def test_other_spellings_of_times_are_refused(text: str) -> None:
    with pytest.raises(BadInput):
        times.parse(text)


# --- signed documents


def envelope(payload: object = None) -> dict[str, jcs.Json]:
    return dsse.sign(dsse.CONTROL, {"n": 1} if payload is None else payload, ec_key("control"))


def test_a_signed_document_verifies_with_key_der_or_digest() -> None:
    key = ec_key("control").public_key()
    for known in (key, dsse.spki(key), dsse.spki_digest(key)):
        verified = dsse.verify(envelope(), dsse.CONTROL, [known])
        assert verified.payload == {"n": 1}
        assert verified.raw == b'{"n":1}'
        assert verified.keyid == spki(ec_key("control"))
        assert verified.digest == "sha256:" + hashlib.sha256(b'{"n":1}').hexdigest()


def test_the_pre_authentication_encoding_is_dsses() -> None:
    assert dsse.pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def _edited(**changes: object) -> dict[str, object]:
    return {**envelope(), **changes}


def _signature(**changes: object) -> dict[str, object]:
    signed = envelope()
    assert isinstance(signed["signatures"], list)
    assert isinstance(signed["signatures"][0], dict)
    return {**signed, "signatures": [{**signed["signatures"][0], **changes}]}


@pytest.mark.parametrize(
    "bad",
    [
        _edited(payloadType=dsse.LAUNCH),
        _edited(payload="e30"),
        _edited(payload="!!!!"),
        _edited(surprise=1),
        _edited(signatures=[{}] * 9),
        _edited(signatures={}),
        _signature(keyid="sha256:0"),
        _signature(sig="====="),
        _signature(surprise=1),
        [],
    ],
)
def test_malformed_envelopes(bad: object) -> None:
    with pytest.raises(BadInput):
        dsse.verify(bad, dsse.CONTROL, [spki(ec_key("control"))])


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (_edited(payload=base64.b64encode(b'{"n":2}').decode()), "invalid"),
        (_edited(signatures=[]), "untrusted_key"),
        (_signature(keyid=spki(ec_key("stranger"))), "untrusted_key"),
        (_signature(key=base64.b64encode(dsse.spki(ec_key("stranger").public_key())).decode()), "untrusted_key"),
        (_signature(sig=""), "invalid"),
    ],
)
def test_documents_that_nobody_accepted_signed(bad: object, why: str) -> None:
    with pytest.raises(NotAuthentic) as caught:
        dsse.verify(bad, dsse.CONTROL, [spki(ec_key("control"))])
    assert caught.value.why == why


def test_a_strangers_key_beside_an_accepted_key_id_does_not_count() -> None:
    """The key that travels along is used only if it is the one that the digest names."""
    forged = dsse.sign(dsse.CONTROL, {"n": 1}, ec_key("stranger"))
    assert isinstance(forged["signatures"], list)
    assert isinstance(forged["signatures"][0], dict)
    forged["signatures"][0]["keyid"] = spki(ec_key("control"))
    with pytest.raises(NotAuthentic):
        dsse.verify(forged, dsse.CONTROL, [spki(ec_key("control"))])
    with pytest.raises(NotAuthentic):
        dsse.verify(forged, dsse.CONTROL, [ec_key("control").public_key()])


def test_one_of_two_signatures_is_enough_during_a_change_of_keys() -> None:
    both = envelope()
    other = dsse.sign(dsse.CONTROL, {"n": 1}, ec_key("stranger"))
    assert isinstance(both["signatures"], list)
    assert isinstance(other["signatures"], list)
    both["signatures"] = [*other["signatures"], *both["signatures"]]
    assert dsse.verify(both, dsse.CONTROL, [spki(ec_key("control"))]).payload == {"n": 1}


def test_a_payload_that_is_not_canonical_is_refused_though_signed() -> None:
    key = ec_key("control")
    raw = b'{"n": 1}'
    signature = dsse.LocalSigner(key).sign(dsse.pae(dsse.CONTROL, raw))
    signed = {
        "payloadType": dsse.CONTROL,
        "payload": base64.b64encode(raw).decode(),
        "signatures": [{"keyid": spki(key), "sig": base64.b64encode(signature).decode()}],
    }
    with pytest.raises(BadInput, match="canonical"):
        dsse.verify(signed, dsse.CONTROL, [key.public_key()])


def test_keys_on_other_curves_are_refused() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(BadInput, match="P-256"):
        dsse.verify(dsse.sign(dsse.CONTROL, {}, key), dsse.CONTROL, [key.public_key()])


def test_pem_of_a_key_gives_its_der() -> None:
    key = ec_key("control")
    assert dsse.spki_from_pem(pem(key)) == dsse.spki(key.public_key())
    for bad in ("", pem(key) * 2, pem(key).replace("PUBLIC", "PRIVATE"), pem(key) + "x"):
        with pytest.raises(BadInput):
            dsse.spki_from_pem(bad)


# --- claims


def test_claims_round_trip_and_bind() -> None:
    claims = World().claims()
    assert Claims.decode(claims.encode()) == claims
    assert claims.binding() == b"cube-claims/1\0" + claims.encode()
    assert claims.extra_data() == hashlib.sha256(claims.binding()).digest()
    assert claims.report_data() == hashlib.sha512(claims.binding()).digest()


def test_every_claim_changes_the_binding() -> None:
    claims = World().claims()
    digest = "sha256:" + "99" * 32
    others = [
        replace(claims, nonce=bytes(16)),
        replace(claims, environment="prod"),
        replace(claims, boot="00" * 16),
        replace(claims, tls_spki=digest),
        replace(claims, audit_spki=digest),
        replace(claims, time=NOW + timedelta(seconds=1)),
        replace(claims, launch=digest),
        replace(claims, domains=DomainsClaim(1, digest)),
        replace(claims, models={"other": ModelClaim("ab" * 32, "ready")}),
        replace(claims, image="x"),
        replace(claims, gpu=digest),
    ]
    bound = {c.extra_data() for c in [claims, *others]}
    assert len(bound) == len(others) + 1


def test_the_gpu_nonce_leaves_the_gpu_out() -> None:
    claims = World().claims()
    with_gpu = replace(claims, gpu="sha256:" + "99" * 32)
    assert with_gpu.gpu_nonce() == claims.gpu_nonce()
    assert with_gpu.extra_data() != claims.extra_data()


CLAIMS = World().claims().to_json()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("version", 2),
        ("version", True),
        ("nonce", "00" * 15),
        ("nonce", "00" * 65),
        ("nonce", "AA" * 16),
        ("environment", "Local"),
        ("environment", ""),
        ("boot", "44"),
        ("tls_spki", "sha256:00"),
        ("audit_spki", ""),
        ("time", "2026-11-24T12:00:00.5Z"),
        ("launch", ""),
        ("domains", {"generation": -1, "digest": ""}),
        ("domains", {"generation": 0}),
        ("models", {"smollm2": {"root": "ab" * 32, "state": "broken"}}),
        ("models", {"smollm2": {"root": "AB" * 32, "state": "ready"}}),
        ("models", {"../x": {"root": "ab" * 32, "state": "ready"}}),
        ("models", []),
        ("gpu", ""),
        ("surprise", 1),
    ],
)
def test_claims_that_are_refused(name: str, value: jcs.Json) -> None:
    with pytest.raises(BadInput):
        Claims.from_json({**CLAIMS, name: value})


@pytest.mark.parametrize("name", sorted(CLAIMS))
def test_no_claim_may_be_missing(name: str) -> None:
    with pytest.raises(BadInput):
        Claims.from_json({k: v for k, v in CLAIMS.items() if k != name})


@pytest.mark.parametrize("size", [16, 64])
def test_nonce_sizes_just_inside(size: int) -> None:
    assert Claims.from_json({**CLAIMS, "nonce": "00" * size}).nonce == bytes(size)


def test_what_nobody_could_read_is_never_encoded() -> None:
    with pytest.raises(BadInput):
        replace(World().claims(), nonce=b"short").encode()


# --- collections and bundles


def test_bundles_round_trip() -> None:
    bundle = World().receipted()
    data = bundles.dump(bundle)
    assert data.endswith(b"}\n")
    again = bundles.load(data)
    assert again.digest() == bundle.digest()
    assert bundles.dump(again) == data


def test_the_receipt_is_not_part_of_the_bundle_digest() -> None:
    world = World()
    bundle = world.bundle()
    assert world.receipted(bundle).digest() == bundle.digest()


def test_collections_carry_bytes_as_base64url() -> None:
    collection = Collection().with_item("claims", "application/x", b"\xff\xfe\xfd", 4)
    assert collection.to_json() == {
        "__cmwc_t": "tag:cube-confidential,2026:evidence",
        "claims": ["application/x", "__79", 4],
    }
    assert Collection.from_json(collection.to_json()) == collection


@pytest.mark.parametrize(
    "change",
    [
        {"__cmwc_t": "tag:other"},
        {"a": ["application/x", "AA", 3]},
        {"a": ["application/x", "AA", True]},
        {"a": ["application/x", "AA==", 4]},
        {"a": ["application/x", "AB", 4]},
        {"a": ["application/x", "+/", 4]},
        {"a": ["x", "AA", 4]},
        {"a": ["application/x", "AA"]},
        {"a": ["application/x", 1, 4]},
        {"a": {}},
        {"A": ["application/x", "AA", 4]},
        {f"a{i}": ["application/x", "AA", 4] for i in range(257)},
    ],
)
def test_malformed_collections(change: dict[str, jcs.Json]) -> None:
    with pytest.raises(BadInput):
        Collection.from_json({"__cmwc_t": "tag:cube-confidential,2026:evidence", **change})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b'{"version":"cube-bundle/2","evidence":{"__cmwc_t":"tag:cube-confidential,2026:evidence"},"receipt":null}',
        b'{"version":"cube-bundle/1","evidence":{"__cmwc_t":"tag:cube-confidential,2026:evidence"}}',
        b'{"version":"cube-bundle/1","evidence":{"__cmwc_t":"tag:cube-confidential,2026:evidence"},"receipt":1}',
        b'{"version":"cube-bundle/1","evidence":[],"receipt":null}',
    ],
)
def test_malformed_bundles(data: bytes) -> None:
    with pytest.raises(BadInput):
        bundles.load(data)


# --- launch documents, domains, control messages, manifests


def test_a_launch_document_reads_and_travels_on_its_disk() -> None:
    world = World()
    document = launch.parse(world.launch)
    assert document.environment == "local"
    assert document.control_key_digests() == (spki(ec_key("control")),)
    signed = world.launch_envelope()
    disk = launch.write_volume(signed)
    assert len(disk) == 1 << 20
    assert launch.read_volume(disk) == signed
    assert launch.peek(signed) == (document, dsse.digest(jcs.dumps(world.launch)))


def _model(**changes: jcs.Json) -> dict[str, jcs.Json]:
    models = World().launch["models"]
    assert isinstance(models, dict)
    assert isinstance(models["smollm2"], dict)
    return {"models": {"smollm2": {**models["smollm2"], **changes}}}


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"environment": "a b"},
        {"revision": 0},
        {"control_keys": []},
        {"control_keys": ["not a key"]},
        {"control_keys": [pem(ec_key("control"))] * 2},
        {"hostnames": []},
        {"hostnames": ["Local Host"]},
        {"models": {}},
        {"limits": {}},
        {"limits": {"max_body_bytes": 1}},
        {"surprise": 1},
        _model(backend="magic"),
        _model(root="ab"),
        _model(serial="x" * 21),
        _model(file="../etc/passwd"),
        _model(file="/etc/passwd"),
        _model(file=""),
        _model(hash_offset=100),
        _model(size=0),
        _model(surprise=1),
    ],
)
def test_launch_documents_that_are_refused(change: dict[str, jcs.Json]) -> None:
    with pytest.raises(BadInput):
        launch.parse({**World().launch, **change})


def _disk(change: Callable[[bytearray], object]) -> bytes:
    disk = bytearray(launch.write_volume(World().launch_envelope()))
    change(disk)
    return bytes(disk)


@pytest.mark.parametrize(
    "disk",
    [
        b"",
        b"CUBELNCH",
        b"CUBELNCH\0\0\0\0",
        b"CUBELNCH\xff\xff\xff\xff",
        _disk(lambda d: d.__setitem__(0, 0)),
        _disk(lambda d: d.__setitem__(-1, 1)),
        _disk(lambda d: d.__delitem__(slice(100, None))),
    ],
)
def test_launch_disks_that_are_refused(disk: bytes) -> None:
    with pytest.raises(BadInput):
        launch.read_volume(disk)


def test_a_launch_document_too_large_for_its_disk() -> None:
    with pytest.raises(BadInput, match="1 MiB"):
        launch.write_volume({"payload": "x" * (1 << 20)})


def jwk(role: str) -> dict[str, jcs.Json]:
    numbers = ec_key(role).public_key().public_numbers()
    x, y = (base64.urlsafe_b64encode(n.to_bytes(32, "big")).decode().rstrip("=") for n in (numbers.x, numbers.y))
    return {"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": domains.thumbprint(x, y)}


def domain(**changes: jcs.Json) -> dict[str, jcs.Json]:
    return {
        "id": "0b8f5c3e-6f2b-4f0a-9d5e-1d7f3f1c2a3b",
        "name": "acme",
        "models": ["smollm2"],
        "tokens": {"keys": [jwk("tokens")], "revoked": []},
        **changes,
    }


def test_a_domain_set_reads() -> None:
    body = {"domains": [domain()]}
    found = domains.parse(body, models=["smollm2"])
    assert found.digest == dsse.digest(jcs.dumps(body))
    assert found.domains[0].name == "acme"
    assert found.domains[0].keys[0].to_json()["kid"] == jwk("tokens")["kid"]
    assert domains.parse({"domains": []}).domains == ()


def _tokens(**changes: jcs.Json) -> dict[str, jcs.Json]:
    return {"keys": [jwk("tokens")], "revoked": [], **changes}


@pytest.mark.parametrize(
    "listed",
    [
        [domain(), domain()],
        [domain(), domain(id="1b8f5c3e-6f2b-4f0a-9d5e-1d7f3f1c2a3b", name="other")],
        [domain(id="no uuid")],
        [domain(name="No Name")],
        [domain(models=["gpt"])],
        [domain(models=["smollm2", "smollm2"])],
        [domain(surprise=1)],
        [domain(tokens=_tokens(revoked=["a b"]))],
        [domain(tokens=_tokens(keys=[{**jwk("tokens"), "d": "secret"}]))],
        [domain(tokens=_tokens(keys=[{**jwk("tokens"), "kid": "other"}]))],
        [domain(tokens=_tokens(keys=[{**jwk("tokens"), "crv": "P-384"}]))],
        [domain(tokens=_tokens(keys=[{**jwk("tokens"), "x": "short"}]))],
        [domain(tokens=_tokens(keys=[{**jwk("tokens"), "alg": "HS256"}]))],
    ],
)
def test_domain_sets_that_are_refused(listed: list[jcs.Json]) -> None:
    with pytest.raises(BadInput):
        domains.parse({"domains": listed}, models=["smollm2"])


def message(**changes: object) -> control.ControlMessage:
    admit = control.Admit(900, NOW + timedelta(minutes=15), "PEM", "sha256:" + "00" * 32)
    base = control.ControlMessage(
        environment="local",
        method="POST",
        path="/control/v1/admit",
        boot="44" * 16,
        tls_spki="sha256:" + "11" * 32,
        generation=0,
        time=NOW,
        body=admit.to_json(),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_control_messages_round_trip() -> None:
    sent = message()
    found = control.ControlMessage.verify(sent.sign(ec_key("control")), [spki(ec_key("control"))])
    assert found == sent
    assert control.Admit.from_json(found.body).lease_seconds == 900
    assert control.parse_revoke({"reason": "tpm.pcr.mismatch"}) == "tpm.pcr.mismatch"


@pytest.mark.parametrize(
    "change",
    [
        {"method": "GET"},
        {"path": "/control/v1/state"},
        {"boot": "44"},
        {"tls_spki": ""},
        {"generation": -1},
        {"environment": "a b"},
        {"body": []},
    ],
)
def test_control_messages_that_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        control.ControlMessage.verify(message(**change).sign(ec_key("control")), [spki(ec_key("control"))])


@pytest.mark.parametrize("seconds", [0, 86401])
def test_leases_beyond_their_limits(seconds: int) -> None:
    with pytest.raises(BadInput):
        control.Admit.from_json({**message().body, "lease_seconds": seconds})


@pytest.mark.parametrize("seconds", [1, 86400])
def test_leases_at_their_limits(seconds: int) -> None:
    assert control.Admit.from_json({**message().body, "lease_seconds": seconds}).lease_seconds == seconds


@pytest.mark.parametrize("reason", ["", "A sentence", "x" * 101])
def test_revocations_need_a_code(reason: str) -> None:
    with pytest.raises(BadInput):
        control.parse_revoke({"reason": reason})


def test_a_manifest_reads() -> None:
    read = manifest.parse(World().manifest_payload())
    assert read.id == "cube-local-1"
    assert not read.debug
    assert set(read.reference.pcrs) == {2, 4, 5, 7, 9, 11}
    assert manifest.parse(World(flavour="gcp-debug").manifest_payload()).debug


@pytest.mark.parametrize("pcr", ["24", "-1", "01", "x", "²"])
def test_manifests_with_other_pcrs_are_refused(pcr: str) -> None:
    payload = World().manifest_payload()
    payload["reference"] = {"pcrs": {"sha256": {pcr: "00" * 32}}, "events": []}
    with pytest.raises(BadInput):
        manifest.parse(payload)


# --- policies


def test_a_policy_reads() -> None:
    text = World().policy_toml().encode()
    rules = policy.load(text)
    assert rules.digest == dsse.digest(text)
    assert rules.tpm.pcrs == (2, 4, 5, 7, 8, 9, 11)
    assert rules.max_clock_skew_s == 60


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("version", "2", "policy.version"),
        ("environment", '""', "policy.environment"),
        ("lowest_tier", '"none"', "policy.lowest_tier"),
        ("lowest_tier", "", "policy.lowest_tier"),
        ("max_clock_skew_s", "0", "policy.max_clock_skew_s"),
        ("max_clock_skew_s", "3601", "policy.max_clock_skew_s"),
        ("surprise", "1", "surprise"),
        ("image.signers", "[]", "policy.image.signers"),
        ("image.signers", "", "policy.image"),
        ("image.signers", '["*"]', "policy.image.signers"),
        ("image.allowed", "[]", "policy.image.allowed"),
        ("image.debug", "1", "policy.image.debug"),
        ("launch.signers", "", "policy.launch"),
        ("launch.minimum_revision", "-1", "policy.launch.minimum_revision"),
        ("tpm.ek_roots", "[]", "policy.tpm.ek_roots"),
        ("tpm.ak_issuers", "[]", "policy.tpm.ak_issuers"),
        ("tpm.pcrs", "[]", "policy.tpm.pcrs"),
        ("tpm.pcrs", "[4, 8, 9]", "policy.tpm.pcrs"),
        ("tpm.pcrs", "[4, 8, 9, 11, 11]", "policy.tpm.pcrs"),
        ("tpm.pcrs", "[4, 8, 9, 11, 24]", "policy.tpm.pcrs"),
        ("tpm.surprise", "1", "surprise"),
        ("freshness.receipt_keys", '["x"]', "policy.freshness.receipt_keys"),
        ("image.allowed", "[", "TOML"),
    ],
)
def test_policies_that_are_refused(name: str, value: str, says: str) -> None:
    world = World()
    world.policy[name] = value
    with pytest.raises(BadInput) as caught:
        world.the_policy()
    assert says in caught.value.diagnostics()


@pytest.mark.parametrize("name", ["image", "launch", "tpm"])
def test_policies_without_a_section_are_refused(name: str) -> None:
    world = World()
    world.policy |= dict.fromkeys(("image.signers", "launch.signers", "launch.minimum_revision"), "")
    world.policy |= dict.fromkeys(("tpm.ek_roots", "tpm.ak_issuers", "tpm.pcrs"), "")
    for key in list(world.policy):
        if not key.startswith(name):
            del world.policy[key]
    with pytest.raises(BadInput, match="missing"):
        world.the_policy()


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_policy_or_bad_input(data: bytes) -> None:
    with pytest.raises(BadInput):
        policy.load(data)


# --- every reader of JSON from outside

READERS: list[Callable[[object], object]] = [
    Claims.from_json,
    Collection.from_json,
    launch.parse,
    domains.parse,
    manifest.parse,
    control.Admit.from_json,
    control.parse_revoke,
    lambda value: dsse.verify(value, dsse.CONTROL, ["sha256:" + "00" * 32]),
]
SAMPLES: list[dict[str, jcs.Json]] = [
    CLAIMS,
    World().evidence().to_json(),
    World().launch,
    {"domains": [domain()]},
    World().manifest_payload(),
    message().body,
    {"reason": "x"},
    envelope(),
]


@settings(max_examples=400)
@given(st.data())
def test_any_change_of_a_document_is_read_or_refused(data: st.DataObject) -> None:
    """Replace any one value anywhere in a good document by any JSON value: only our errors come out."""
    which = data.draw(st.integers(0, len(READERS) - 1))
    document = jcs.loads(jcs.dumps(SAMPLES[which]))
    spot = document
    while isinstance(spot, dict | list) and spot:
        keys: list[str] | list[int] = sorted(spot) if isinstance(spot, dict) else list(range(len(spot)))
        key = data.draw(st.sampled_from(keys))
        inner = spot[key]  # type: ignore[index,call-overload]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            spot[key] = data.draw(JSON_VALUES)  # type: ignore[index,call-overload]
            break
        spot = inner
    with contextlib.suppress(AttestationError):
        READERS[which](document)


def test_errors_say_what_where_and_what_to_do() -> None:
    error = BadInput("is missing", where="policy.tpm", todo="add it")
    assert error.diagnostics() == str(error) == "policy.tpm: is missing; add it"


def test_small_modules_import_without_heavy_ones() -> None:
    """The guest pays for what it imports: these need the standard library's light part only."""
    code = (
        "import sys; from cube_attestation import jcs, claims, dsse, cmw, launch, domains, control, bundle;"
        "bad = {'cryptography', 'lxml', 'joserfc', 'asyncio', 'ssl', 'http', 'tomllib'} & set(sys.modules);"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
