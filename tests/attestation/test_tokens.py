# SPDX-License-Identifier: Apache-2.0
"""Every rule about attestation tokens and every reason code, on tokens that fake services sign."""

from __future__ import annotations

import ast
import base64
import json
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import cube_attestation.tokens as package
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cube_attestation.anchors.nvidia import NRAS_ISSUERS
from cube_attestation.errors import AttestationError, BadInput
from cube_attestation.fields import Fields
from cube_attestation.tokens import abi
from cube_attestation.tokens.appraise import TokenPolicy, appraise, claim
from cube_attestation.tokens.verify import ISSUERS, verify
from fake_tokens import (
    ISS,
    KIDS,
    NONCE,
    NOW,
    FakeToken,
    b64url,
    certificate,
    jwk,
    key,
    key_set,
    sign,
    spki_digest,
    token_set,
    x5c,
)
from hypothesis import given, settings
from hypothesis import strategies as st

SECOND = timedelta(seconds=1)
EPOCH = int(NOW.timestamp())
fired: set[str] = set()


def keys(issuer: str) -> tuple[abi.Key, ...]:
    return abi.load_keys(key_set(jwk(issuer, KIDS[issuer])))


def rules(issuer: str, **given: object) -> TokenPolicy:
    base: dict[str, Any] = {"issuer": issuer, "iss": (ISS[issuer],), "keys": frozenset({spki_digest(issuer)})}
    return TokenPolicy(**(base | given))


def judge(
    token: FakeToken | bytes,
    issuer: str = "",
    given: tuple[abi.Key, ...] | None = None,
    policy: TokenPolicy | None = None,
    now: datetime = NOW,
    nonce: str | None = NONCE,
) -> list[str]:
    """Reason codes."""
    issuer = issuer or (token.issuer if isinstance(token, FakeToken) else "nras")
    data = token.data() if isinstance(token, FakeToken) else token
    items = appraise(data, keys(issuer) if given is None else given, policy or rules(issuer), now, nonce=nonce)
    found = [reason.code for item in items for reason in item.reasons]
    assert all(reason.words and "\n" not in reason.words for item in items for reason in item.reasons)
    fired.update(found)
    return sorted(set(found))


@pytest.mark.parametrize("issuer", ISSUERS)
def test_good_token(issuer: str) -> None:
    (item,) = appraise(FakeToken(issuer).data(), keys(issuer), rules(issuer), NOW, nonce=NONCE)
    assert item.acceptable, item.reasons
    assert item.item == f"token-{issuer}"
    assert item.facts["kid"] == KIDS[issuer]
    assert item.facts["iss"] == ISS[issuer]


@pytest.mark.parametrize("issuer", ISSUERS)
@pytest.mark.parametrize("algorithm", ["none", "HS256", "RS256", "PS384", "ES384", "ES256", "EdDSA", None, 7])
def test_one_algorithm_per_issuer(issuer: str, algorithm: object) -> None:
    token = FakeToken(issuer, header={"alg": algorithm})
    expected = [] if algorithm == ISSUERS[issuer].algorithm else ["token.alg.not_allowed"]
    if algorithm is None:
        token = FakeToken(issuer)
        _, payload, signature = token.text().split(".")
        header = b64url(json.dumps({"kid": KIDS[issuer]}).encode())
        assert judge(f"{header}.{payload}.{signature}".encode(), issuer) == expected
        return
    assert judge(token) == expected


def test_the_public_key_as_a_shared_secret() -> None:
    """The classic confusion: HS256 with the public key's bytes."""
    import hashlib
    import hmac

    pem = key("maa").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    content = f"{b64url(json.dumps({'alg': 'HS256', 'kid': KIDS['maa']}).encode())}.{b64url(b'{}')}"
    tag = b64url(hmac.new(pem, content.encode(), hashlib.sha256).digest())
    assert "token.alg.not_allowed" in judge(f"{content}.{tag}".encode(), "maa")


HEADERS: list[tuple[str, dict[str, Any]]] = [
    ("token.header.not_allowed", {"crit": ["exp"]}),
    ("token.header.not_allowed", {"b64": False}),
    ("token.header.not_allowed", {"zip": "DEF"}),
    ("token.kid.invalid", {"kid": None}),
    ("token.kid.invalid", {"kid": 1234}),
    ("token.kid.invalid", {"kid": "1234"}),
    ("token.key.unknown", {"kid": "f" * 96}),
]


@pytest.mark.parametrize(("code", "header"), HEADERS)
def test_header_rules(code: str, header: dict[str, Any]) -> None:
    assert judge(FakeToken("ita", header=header)) == [code]


def test_keys_of_the_header_are_never_used() -> None:
    """jku, x5u, jwk and x5c of the token are as if they were not there."""
    evil = certificate("ita evil", ca=True)
    header = {
        "jku": "https://evil.example/keys",
        "x5u": "https://evil.example/cert",
        "jwk": jwk("ita evil", KIDS["ita"]),
        "x5c": x5c(evil),
    }
    assert judge(FakeToken("ita", header=header)) == []
    assert judge(FakeToken("ita", header=header, role="ita evil")) == ["token.signature.invalid"]
    assert judge(FakeToken("ita", header=header, role="ita evil"), given=()) == ["token.key.unknown"]


def test_keys_need_somebody_who_vouches() -> None:
    """A key set that came with the evidence is no anchor: its key must be named, or lead to one that is."""
    token = FakeToken("nras", role="nras leaf")
    root, leaf = certificate("nras root", ca=True), certificate("nras leaf", "nras root")
    given = abi.load_keys(key_set(jwk("nras leaf", KIDS["nras"], x5c=x5c(leaf, root))))
    bare = abi.load_keys(key_set(jwk("nras leaf", KIDS["nras"])))
    rooted = rules("nras", keys=frozenset({spki_digest("nras root")}))
    pinned = rules("nras", keys=frozenset({spki_digest("nras leaf")}))
    assert judge(token, given=given, policy=rooted) == []
    assert judge(token, given=given, policy=pinned) == []
    assert judge(token, given=bare, policy=pinned) == []
    assert judge(token, given=bare, policy=rooted) == ["token.key.untrusted"]
    assert judge(token, given=given, policy=rules("nras")) == ["token.key.untrusted"]
    forged = certificate("nras leaf", "nras other")
    given = abi.load_keys(key_set(jwk("nras leaf", KIDS["nras"], x5c=x5c(forged, root))))
    assert judge(token, given=given, policy=rooted) == ["token.key.untrusted"]
    for born, expected in (
        (NOW - timedelta(days=2), []),
        (NOW - timedelta(days=2) - SECOND, ["token.key.expired"]),
        (NOW, []),
        (NOW + SECOND, ["token.key.expired"]),
    ):
        old = certificate("nras leaf", "nras root", born=born)
        given = abi.load_keys(key_set(jwk("nras leaf", KIDS["nras"], x5c=x5c(old, root))))
        assert judge(token, given=given, policy=rooted) == expected
        assert judge(token, given=given, policy=pinned) == expected


def test_a_bare_certificate_or_key_may_have_any_id() -> None:
    der = certificate("ita").public_bytes(Encoding.DER)
    pem = certificate("ita").public_bytes(Encoding.PEM)
    public = key("ita").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for data in (der, pem, public):
        assert judge(FakeToken("ita"), given=abi.load_keys(data)) == []
    assert judge(FakeToken("ita", role="ita other"), given=abi.load_keys(der)) == ["token.signature.invalid"]


def test_a_key_of_another_kind_never_holds() -> None:
    token = FakeToken("nras")
    given = abi.load_keys(key_set(jwk("maa", KIDS["nras"])))
    policy = rules("nras", keys=frozenset({spki_digest("maa")}))
    assert judge(token, given=given, policy=policy) == ["token.signature.invalid"]


def test_changed_parts() -> None:
    header, payload, signature = FakeToken("maa").text().split(".")
    other = FakeToken("maa", claims={"x-ms-ver": "2"}).text().split(".")[1]
    assert judge(f"{header}.{other}.{signature}".encode(), "maa") == ["token.signature.invalid"]
    flipped = signature[:-3] + ("A" if signature[-3] != "A" else "B") + signature[-2:]
    assert judge(f"{header}.{payload}.{flipped}".encode(), "maa") == ["token.signature.invalid"]


CLAIMS: list[tuple[str, FakeToken]] = [
    ("token.iss.not_allowed", FakeToken("maa", claims={"iss": "https://evil.weu.attest.azure.net"})),
    ("token.iss.not_allowed", FakeToken("maa", claims={"iss": None})),
    ("token.nonce.mismatch", FakeToken("maa", claims={"x-ms-runtime": {}})),
    ("token.nonce.mismatch", FakeToken("confidential-space", claims={"eat_nonce": [NONCE[:-1]]})),
    ("token.nonce.mismatch", FakeToken("ita", claims={"verifier_nonce": {"val": NONCE.upper()}})),
    ("token.nonce.mismatch", FakeToken("nras", claims={"eat_nonce": "\ud800"})),
    ("token.debug.enabled", FakeToken("maa", claims={"x-ms-sevsnpvm-is-debuggable": True})),
    ("token.debug.enabled", FakeToken("maa", claims={"x-ms-isolation-tee": {"x-ms-sevsnpvm-is-debuggable": 0}})),
    ("token.debug.enabled", FakeToken("confidential-space", claims={"dbgstat": "enabled"})),
    ("token.debug.enabled", FakeToken("ita", claims={"tdx": {"tdx_td_attributes_debug": True}})),
    ("token.debug.unknown", FakeToken("ita", claims={"tdx": None})),
    ("token.debug.unknown", FakeToken("confidential-space", claims={"dbgstat": None})),
    ("token.result.failed", FakeToken("nras", claims={"x-nvidia-overall-att-result": False})),
    ("token.result.failed", FakeToken("nras", claims={"x-nvidia-overall-att-result": "true"})),
    ("token.result.failed", FakeToken("nras", claims={"x-nvidia-overall-att-result": None})),
    ("token.exp.missing", FakeToken("nras", claims={"exp": None})),
    ("token.exp.expired", FakeToken("nras", claims={"exp": EPOCH - 1})),
    ("token.exp.too_long", FakeToken("nras", claims={"exp": EPOCH - 60 + 86401})),
    ("token.iat.missing", FakeToken("nras", claims={"iat": None, "nbf": None})),
    ("token.time.not_yet_valid", FakeToken("nras", claims={"nbf": EPOCH + 61})),
    ("token.time.not_yet_valid", FakeToken("nras", claims={"iat": EPOCH + 61})),
    ("token.time.invalid", FakeToken("nras", claims={"exp": "tomorrow"})),
    ("token.time.invalid", FakeToken("nras", claims={"iat": True})),
    ("token.time.invalid", FakeToken("nras", claims={"nbf": 1.5})),
    ("token.time.invalid", FakeToken("nras", claims={"exp": 1 << 62})),
]


@pytest.mark.parametrize(("code", "token"), CLAIMS)
def test_claim_rules(code: str, token: FakeToken) -> None:
    assert judge(token) == [code]


@pytest.mark.parametrize(
    "claims", [{"exp": EPOCH}, {"exp": EPOCH - 60 + 86400}, {"nbf": EPOCH + 60}, {"iat": EPOCH + 60}, {"iat": None}]
)
def test_boundaries_of_times(claims: dict[str, Any]) -> None:
    assert judge(FakeToken("nras", claims=claims)) == []


def test_policy_rules() -> None:
    token = FakeToken("confidential-space")
    path = "submods.container.image_digest"
    assert judge(token, policy=rules("confidential-space", audience=("https://verifier.example",))) == []
    several = FakeToken("confidential-space", claims={"aud": ["a", "b"]})
    assert judge(several, policy=rules("confidential-space", audience=("b",))) == []
    assert judge(token, policy=rules("confidential-space", audience=("b",))) == ["token.aud.not_allowed"]
    absent = FakeToken("confidential-space", claims={"aud": None})
    assert judge(absent, policy=rules("confidential-space", audience=("b",))) == ["token.aud.not_allowed"]
    for accepted, expected in (
        (("sha256:" + "ab" * 32,), []),
        (("x", "sha256:" + "ab" * 32), []),
        (("sha256:" + "ac" * 32,), ["token.claim.not_allowed"]),
    ):
        assert judge(token, policy=rules("confidential-space", claims={path: accepted})) == expected
    assert judge(token, policy=rules("confidential-space", claims={"a.b": ("c",)})) == ["token.claim.missing"]
    number = FakeToken("confidential-space", claims={"n": 1})
    assert judge(number, policy=rules("confidential-space", claims={"n": (True,)})) == ["token.claim.not_allowed"]
    debug = FakeToken("confidential-space", claims={"dbgstat": "enabled"})
    assert judge(debug, policy=rules("confidential-space", debug=True)) == []


def test_claims_by_path() -> None:
    claims = {"a.b": 1, "a": {"b": 2, "c.d": 3, "e": {"f": 4}}}
    assert [claim(claims, path) for path in ("a.b", "a.c.d", "a.e.f", "a.x", "x", "a.b.c")] == [
        1,
        3,
        4,
        None,
        None,
        None,
    ]


GPU = FakeToken("nras", device=True)


def test_nras_set() -> None:
    text = GPU.text()
    data = token_set(
        FakeToken("nras"), GPU_0=text, GPU_1=FakeToken("nras", device=True, claims={"ueid": "2"}).text()
    )
    overall, first, second = appraise(data, keys("nras"), rules("nras"), NOW, nonce=NONCE)
    assert overall.acceptable
    assert first.acceptable
    assert first.item == "token-nras-gpu-0"
    assert second.facts["ueid"] == "2"
    other = FakeToken("nras", device=True, claims={"ueid": "3"}).text()
    swapped = json.loads(data)
    swapped[1]["GPU-1"] = other
    assert judge(json.dumps(swapped).encode()) == ["token.set.digest_mismatch"]
    del swapped[1]["GPU-1"]
    assert judge(json.dumps(swapped).encode()) == ["token.set.members"]
    assert judge(token_set(FakeToken("nras"))) == ["token.set.members"]
    assert judge(abi.parse_set(data).overall.text.encode()) == ["token.set.members"]
    assert judge(token_set(FakeToken("nras", claims={"submods": "all"}), GPU_0=text)) == ["token.set.members"]
    strange = FakeToken("nras", device=True, claims={"eat_nonce": "other"}).text()
    assert judge(token_set(FakeToken("nras"), GPU_0=strange)) == ["token.nonce.mismatch", "token.set.nonces"]
    foreign = FakeToken("nras", device=True, role="nras foreign").text()
    assert judge(token_set(FakeToken("nras"), GPU_0=foreign)) == ["token.signature.invalid"]


@pytest.mark.parametrize(
    ("code", "claims"),
    [
        ("token.result.failed", {"measres": "fail"}),
        ("token.result.failed", {"measres": None}),
        ("token.result.failed", {"secboot": False}),
        ("token.result.failed", {"x-nvidia-gpu-arch-check": False}),
        ("token.debug.enabled", {"dbgstat": "enabled"}),
        ("token.debug.unknown", {"dbgstat": None}),
        ("token.exp.expired", {"exp": EPOCH - 1}),
    ],
)
def test_nras_device_rules(code: str, claims: dict[str, Any]) -> None:
    text = FakeToken("nras", device=True, claims=claims).text()
    assert judge(token_set(FakeToken("nras"), GPU_0=text)) == [code]


def test_policy_entry() -> None:
    digest = "sha256:" + "ab" * 32
    read = TokenPolicy.read(
        Fields(
            {
                "issuer": "maa",
                "iss": ["https://acme.weu.attest.azure.net"],
                "keys": [digest],
                "audience": ["me"],
                "claims": {"x-ms-isolation-tee.x-ms-compliance-status": ["azure-compliant-cvm"]},
                "max_life_s": 3600,
            },
            "policy.tokens",
        )
    )
    assert read.max_life == timedelta(hours=1)
    assert not read.debug
    default = TokenPolicy.read(Fields({"issuer": "nras"}, "policy.tokens"))
    assert default.keys == frozenset(NRAS_ISSUERS)
    assert default.iss == ("https://nras.attestation.nvidia.com",)
    wrongs: tuple[dict[str, object], ...] = (
        {"issuer": "other"},
        {"issuer": "maa", "keys": [digest]},
        {"issuer": "ita"},
        {"issuer": "ita", "keys": []},
        {"issuer": "nras", "claims": {"a": []}},
        {"issuer": "nras", "claims": {"a": [1.5]}},
        {"issuer": "nras", "anything": 1},
    )
    for wrong in wrongs:
        with pytest.raises(BadInput):
            TokenPolicy.read(Fields(wrong, "policy.tokens"))


def compact(header: bytes, payload: bytes) -> bytes:
    content = f"{b64url(header)}.{b64url(payload)}".encode()
    return content + b"." + b64url(sign("maa", "RS256", content)).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a.b",
        b"a.b.c.d",
        b"..",
        b"\xff\xfe",
        FakeToken("maa").data() + b"=",
        FakeToken("maa").data().replace(b".", b" .", 1),
        FakeToken("maa").data()[:-1] + b"_",
        compact(b"[]", b"{}"),
        compact(b"{}", b"1"),
        compact(b"{", b"{}"),
        compact(b'{"alg":"RS256","alg":"none"}', b"{}"),
        compact(b'{"alg":"RS256"}', b'{"a":NaN}'),
        compact(b'{"alg":"RS256"}', b'{"a":{"b":1,"b":2}}'),
        compact(b'{"a":"' + b"x" * (16 << 10) + b'"}', b"{}"),
        compact(b"{}", b'{"a":"' + b"x" * (128 << 10) + b'"}'),
        b"[1]",
        b'[["JWT",1],{}]',
        b'[["JWE","a.b.c"],{}]',
        b'[["JWT","a.b.c"],[]]',
    ],
)
def test_other_shapes_are_bad_input(data: bytes) -> None:
    with pytest.raises(BadInput):
        appraise(data, keys("maa"), rules("nras" if data[:1] == b"[" else "maa"), NOW)


def test_a_set_of_another_issuer_is_bad_input() -> None:
    with pytest.raises(BadInput):
        appraise(token_set(FakeToken("nras"), GPU_0=GPU.text()), (), rules("maa"), NOW)
    with pytest.raises(BadInput):
        verify(abi.parse(FakeToken("maa").data()), "other", (), (), NOW)


def test_key_sets() -> None:
    leaf = certificate("nras leaf", "nras root")
    mixed = key_set(
        jwk("maa", "one"),
        {"kty": "oct", "k": "AAAA"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "EC", "kid": "two", "x5c": x5c(leaf)},
        jwk("maa", "three", use="enc"),
        jwk("maa", "short") | {"n": b64url(b"\xf1" * 128)},
    )
    assert [found.kid for found in abi.load_keys(mixed)] == ["one", "two"]
    assert abi.load_keys(json.dumps(jwk("maa", "one")).encode())[0].spki == spki_digest("maa")
    wrongs: tuple[dict[str, object], ...] = (
        jwk("maa", "one") | {"kid": 7},
        jwk("maa", "one") | {"n": "*"},
        jwk("nras", "one") | {"x": "AA"},
        jwk("nras", "one", x5c=x5c(leaf)),
        {"kty": "RSA", "kid": "one"},
        {"kty": "RSA", "x5c": ["*"]},
        {"kty": "RSA", "x5c": [base64.b64encode(b"no certificate").decode()]},
    )
    for wrong in wrongs:
        with pytest.raises(BadInput):
            abi.load_keys(key_set(wrong))
    for data in (b"", b"{", b"text", b"\x30\x00", b"-----BEGIN PUBLIC KEY-----\n", b'{"keys": 1}'):
        with pytest.raises(BadInput):
            abi.load_keys(data)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    for reader in (abi.parse, abi.parse_set, abi.load_keys):
        try:
            reader(data)
        except AttestationError:
            continue


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["alg", "kid", "iss", "aud", "exp", "iat", "nbf", "eat_nonce", "submods", "dbgstat", "measres", "x-ms-runtime"]
)


@settings(max_examples=300, deadline=None)
@given(
    header=st.dictionaries(NAMES, JSON, max_size=3),
    claims=st.dictionaries(NAMES | st.text(max_size=8), JSON, max_size=6),
    issuer=st.sampled_from(sorted(ISSUERS)),
)
def test_any_claims(header: dict[str, Any], claims: dict[str, Any], issuer: str) -> None:
    """Claims of any shape give a verdict that can be written, or BadInput."""
    from cube_attestation import jcs

    header = {"alg": ISSUERS[issuer].algorithm, "kid": KIDS[issuer]} | header
    text = f"{b64url(json.dumps(header).encode())}.{b64url(json.dumps(claims).encode())}.AAAA"
    policy = rules(issuer, claims={"a.b": ("c",)}, audience=("me",))
    try:
        items = appraise(text.encode(), keys(issuer), policy, NOW, nonce=NONCE)
    except BadInput:
        return
    assert not items[0].acceptable
    assert jcs.dumps(items[0].to_json())


MIB = 1 << 20


@pytest.mark.parametrize(
    "data", [b"[" * MIB, b"A" * MIB, b"A." * (MIB // 2), b'{"keys":[' + b"{}," * 300000 + b"{}]}"]
)
def test_hostile_megabyte_is_refused_at_once(data: bytes) -> None:
    import time

    for reader in (abi.parse, abi.parse_set, abi.load_keys):
        start = time.process_time()
        with pytest.raises(BadInput):
            reader(data)
        assert time.process_time() - start < 0.1


def test_every_code_is_documented_and_fires() -> None:
    emitted = {
        node.value
        for path in Path(package.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"token(\.[a-z_]+){1,2}", node.value)
    }
    table = Path(__file__).resolve().parents[2] / "docs" / "reason-codes.md"
    documented = set(re.findall(r"^\| `([a-z0-9_.]+)` \|", table.read_text(), flags=re.MULTILINE))
    assert emitted - documented == set(), "codes without a row"
    assert {row for row in documented if row.startswith("token.")} - emitted == set(), "rows without code"
    bundled = {"token.missing", "token.malformed", "token.no_claims", "token.issuer.not_allowed"}
    assert emitted - fired - bundled == set(), "codes that neither a test here nor test_tokens_items makes fire"
