# SPDX-License-Identifier: Apache-2.0
"""The control state machine: what is accepted, and every way in which a message is not for this boot."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from cube_attestation import domains, dsse, jcs
from cube_attestation.control import ControlMessage
from cube_proxy import control
from cube_proxy.clock import Clock
from cube_proxy.control import ADMIT, DOMAINS, REVOKE, Boot, Refusal, State
from cube_proxy.tls import TlsKey
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
CLOCK = Clock(NOW.timestamp(), 1000.0)
TLS = TlsKey.generate()
METHODS = {ADMIT: "POST", REVOKE: "POST", DOMAINS: "PUT"}


def later(seconds: float, *, wall: float | None = None) -> Clock:
    return Clock(CLOCK.wall + (seconds if wall is None else wall), CLOCK.monotonic + seconds)


def leaf(key: ec.EllipticCurvePublicKey) -> str:
    issuer = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key)
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .sign(issuer, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


LEAF = leaf(TLS.key.public_key())


def admit_body(**changes: object) -> dict[str, Any]:
    body = {
        "lease_seconds": 900,
        "expires": "2026-11-24T13:00:00Z",
        "certificate": LEAF,
        "bundle": "sha256:" + "0" * 64,
    }
    return {**body, **changes}


@pytest.fixture(scope="session")
def boot(control_key: ec.EllipticCurvePrivateKey) -> Boot:
    keys = (dsse.spki(control_key.public_key()),)
    return Boot("local", "ab" * 16, TLS.spki, keys, frozenset({"smollm2"}))


@pytest.fixture(scope="session")
def make(boot: Boot, control_key: ec.EllipticCurvePrivateKey) -> Callable[..., bytes]:
    def message(target: str, body: dict[str, Any], *, key: Any = None, **changes: Any) -> bytes:
        whole = ControlMessage(boot.environment, METHODS[target], target, boot.id, boot.tls_spki, 0, NOW, body)
        return jcs.dumps(replace(whole, **changes).sign(key or control_key))

    return message


def refused(boot: Boot, state: State, body: bytes, path: str, clock: Clock = CLOCK, method: str = "") -> Refusal:
    with pytest.raises(Refusal) as caught:
        control.apply(boot, state, body, method or METHODS[path], path, clock)
    return caught.value


def test_admit_then_domains_then_revoke(boot: Boot, make: Callable[..., bytes], make_tenant: Any) -> None:
    state = control.apply(boot, State(), make(ADMIT, admit_body()), "POST", ADMIT, CLOCK)
    assert state.generation == 1
    assert state.lease_status(CLOCK) == "valid"
    assert state.certificate == LEAF
    assert control.reasons(state, {"smollm2": "ready"}, CLOCK) == ["domains.none"]
    assert not control.serves(state, CLOCK)

    body = {"domains": [make_tenant("acme", ("smollm2",)).body()]}
    state = control.apply(boot, state, make(DOMAINS, body, generation=1), "PUT", DOMAINS, CLOCK)
    assert (state.generation, state.domains_generation) == (2, 2)
    assert state.domains is not None
    assert state.domains.digest == domains.digest(body)
    assert control.serves(state, CLOCK)
    assert control.reasons(state, {"smollm2": "ready"}, CLOCK) == []
    assert control.reasons(state, {"smollm2": "opened"}, CLOCK) == ["model.smollm2.opened"]
    stated = control.describe(boot, state, CLOCK)
    assert stated["lease"] == {"state": "valid", "expires": "2026-11-24T12:15:00Z"}
    assert stated["domains"] == {"generation": 2, "digest": domains.digest(body)}

    state = control.apply(boot, state, make(REVOKE, {"reason": "gate.failed"}, generation=2), "POST", REVOKE, CLOCK)
    assert state.lease_status(CLOCK) == "revoked"
    assert not control.serves(state, CLOCK)
    again = control.apply(boot, state, make(ADMIT, admit_body(), generation=3), "POST", ADMIT, CLOCK)
    assert control.serves(again, CLOCK)  # the domain set of this boot is still there


def test_a_lease_runs_out_by_itself(boot: Boot, make: Callable[..., bytes]) -> None:
    state = control.apply(boot, State(), make(ADMIT, admit_body(lease_seconds=30)), "POST", ADMIT, CLOCK)
    assert state.lease_status(later(29)) == "valid"
    assert state.lease_status(later(30)) == "expired"
    assert state.lease_status(later(31, wall=-10000)) == "expired"  # the host sets the clock back


def test_expires_caps_the_lease(boot: Boot, make: Callable[..., bytes]) -> None:
    body = admit_body(lease_seconds=86400, expires="2026-11-24T12:00:10Z")
    state = control.apply(boot, State(), make(ADMIT, body), "POST", ADMIT, CLOCK)
    assert state.lease_status(later(9)) == "valid"
    assert state.lease_status(later(10)) == "expired"


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"environment": "prod"}, 403, "environment.mismatch"),
        ({"boot": "cd" * 16}, 403, "boot.mismatch"),
        ({"tls_spki": "sha256:" + "1" * 64}, 403, "tls_spki.mismatch"),
        ({"method": "PUT"}, 403, "method.mismatch"),
        ({"path": REVOKE}, 403, "path.mismatch"),
        ({"generation": 1}, 409, "generation.stale"),
        ({"key": ec.generate_private_key(ec.SECP256R1())}, 403, "signature.untrusted_key"),
        ({"time": NOW - timedelta(seconds=61)}, 403, "time.skew"),
        ({"time": NOW + timedelta(seconds=61)}, 403, "time.skew"),
    ],
)
def test_messages_for_somebody_else(
    boot: Boot, make: Callable[..., bytes], changes: dict[str, Any], status: int, code: str
) -> None:
    found = refused(boot, State(), make(ADMIT, admit_body(), **changes), ADMIT)
    assert (found.status, found.code) == (status, code)


def test_a_message_is_good_once(boot: Boot, make: Callable[..., bytes]) -> None:
    message = make(ADMIT, admit_body())
    state = control.apply(boot, State(), message, "POST", ADMIT, CLOCK)
    found = refused(boot, state, message, ADMIT)
    assert (found.status, found.code) == (409, "generation.stale")


def test_a_message_does_not_replay_after_a_reboot(boot: Boot, make: Callable[..., bytes]) -> None:
    message = make(ADMIT, admit_body())
    other_key = TlsKey.generate().spki
    assert refused(replace(boot, id="ef" * 16, tls_spki=other_key), State(), message, ADMIT).code == "boot.mismatch"
    assert refused(replace(boot, tls_spki=other_key), State(), message, ADMIT).code == "tls_spki.mismatch"


def test_a_message_does_not_work_on_another_path_or_method(boot: Boot, make: Callable[..., bytes]) -> None:
    assert refused(boot, State(), make(ADMIT, admit_body()), REVOKE).code == "path.mismatch"
    assert refused(boot, State(), make(ADMIT, admit_body()), ADMIT, method="PUT").code == "method.mismatch"


def test_time_does_not_go_back(boot: Boot, make: Callable[..., bytes]) -> None:
    state = control.apply(boot, State(), make(ADMIT, admit_body()), "POST", ADMIT, CLOCK)
    # two hours later the host sets the clock back by two hours and replays fresh-looking time
    old = make(REVOKE, {"reason": "x"}, generation=1)
    found = refused(boot, state, old, REVOKE, later(7200, wall=0))
    assert (found.status, found.code) == (403, "time.skew")
    # a message of the true time does not fit the wrong clock either
    true = make(REVOKE, {"reason": "x"}, generation=1, time=NOW + timedelta(seconds=7200))
    assert refused(boot, state, true, REVOKE, later(7200, wall=0)).code == "time.skew"
    assert control.apply(boot, state, true, "POST", REVOKE, later(7200)).lease_status(later(7200)) == "revoked"


def test_a_slow_message_does_not_lower_the_floor(boot: Boot, make: Callable[..., bytes]) -> None:
    state = control.apply(boot, State(), make(ADMIT, admit_body()), "POST", ADMIT, CLOCK)
    slow = make(REVOKE, {"reason": "x"}, generation=1, time=NOW - timedelta(seconds=30))
    after = control.apply(boot, state, slow, "POST", REVOKE, CLOCK)
    assert after.floor == state.floor


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        (ADMIT, admit_body(lease_seconds=0), 400, "body.invalid"),
        (ADMIT, admit_body(lease_seconds=86401), 400, "body.invalid"),
        (ADMIT, admit_body(expires="2026-11-24T11:59:59Z"), 400, "lease.past"),
        (ADMIT, admit_body(certificate="no"), 400, "body.invalid"),
        (ADMIT, admit_body(certificate=leaf(TlsKey.generate().key.public_key())), 403, "certificate.key_mismatch"),
        (ADMIT, admit_body(more=1), 400, "body.invalid"),
        (REVOKE, {}, 400, "body.invalid"),
        (REVOKE, {"reason": "Not a code!"}, 400, "body.invalid"),
        (DOMAINS, {"domains": {}}, 400, "body.invalid"),
        (DOMAINS, {"domains": [{"id": "x"}]}, 400, "body.invalid"),
    ],
)
def test_bad_bodies(
    boot: Boot, make: Callable[..., bytes], path: str, body: dict[str, Any], status: int, code: str
) -> None:
    found = refused(boot, State(), make(path, body), path)
    assert (found.status, found.code) == (status, code)


def test_a_domain_may_name_only_models_of_the_launch_document(
    boot: Boot, make: Callable[..., bytes], make_tenant: Any
) -> None:
    body = {"domains": [make_tenant("acme", ("secret-model",)).body()]}
    found = refused(boot, State(), make(DOMAINS, body), DOMAINS)
    assert found.status == 400
    assert "secret-model" in found.message


def test_a_refusal_names_the_field(boot: Boot, make: Callable[..., bytes], make_tenant: Any) -> None:
    tenant = make_tenant("acme", ("smollm2",)).body()
    tenant["tokens"]["keys"][0]["d"] = "private"
    found = refused(boot, State(), make(DOMAINS, {"domains": [tenant]}), DOMAINS)
    assert "domains[0].tokens.keys[0]" in found.message


def test_a_changed_payload_has_no_signature(boot: Boot, make: Callable[..., bytes]) -> None:
    envelope = json.loads(make(ADMIT, admit_body()))
    other = json.loads(make(ADMIT, admit_body(lease_seconds=86400)))
    envelope["payload"] = other["payload"]
    found = refused(boot, State(), json.dumps(envelope).encode(), ADMIT)
    assert (found.status, found.code) == (403, "signature.invalid")


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_cleanly(boot: Boot, data: bytes) -> None:
    assert refused(boot, State(), data, ADMIT).status in (400, 403)


@pytest.fixture(scope="module")
def revocation(make: Callable[..., bytes]) -> bytes:
    return make(REVOKE, {"reason": "x"})


@given(at=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_any_changed_byte_is_refused(boot: Boot, revocation: bytes, at: int, flip: int) -> None:
    message = bytearray(revocation)
    message[at % len(message)] ^= flip
    try:
        after = control.apply(boot, State(), bytes(message), "POST", REVOKE, CLOCK)
    except Refusal:
        return
    assert after.lease is not None  # only JSON's own freedom (white space, escapes) may be changed
    assert after.lease.revoked == "x"
