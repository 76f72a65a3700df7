# SPDX-License-Identifier: Apache-2.0
"""The gate against the real agent, Envoy and swtpm."""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cube_attestation import bundle as bundles
from cube_attestation import client, verifier
from cube_attestation.control import PREFIX, ControlMessage
from cube_attestation.errors import KeyMismatch, Unreachable
from cube_stacks import domain_set, gate, keys, tokens
from cube_stacks.ca import tpm_manufacturer
from cube_stacks.gate import BootFailed, Down, Overdue, Refused, Trust, Waiting
from cube_stacks.launch import SignedLaunch, sign

pytestmark = pytest.mark.slow

LEASE = timedelta(minutes=15)


def domains(*names: str, revoked: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    return [
        {
            "id": f"00000000-0000-4000-8000-{number:012d}",
            "name": name,
            "models": ["smollm2"],
            "tokens": {
                "keys": [tokens.token_key(keys.open_key(keys.domain_key("local", name))).to_json()],
                "revoked": list(revoked),
            },
        }
        for number, name in enumerate(names)
    ]


def admitted(machine: Any, trust: Trust, digest: str) -> gate.Examined:
    examined = gate.examine(machine.management, trust, launch_digest=digest)
    assert examined.passed, examined.refusal()
    gate.admit(examined, machine.management, trust, ["localhost"], LEASE)
    return examined


def codes(examined: gate.Examined) -> set[str]:
    return {reason.code for reason in examined.reasons}


def test_a_machine_that_passes_is_admitted(machine: Any, trust: Trust, signed: SignedLaunch) -> None:
    started = time.monotonic()
    examined = gate.examine(machine.management, trust, launch_digest=signed.digest)
    took = time.monotonic() - started
    assert examined.passed, examined.refusal()
    assert took < 2
    assert examined.verdict.tier == "software"
    assert gate.summary(examined)[0].startswith("PASSED")
    admission = gate.admit(examined, machine.management, trust, ["localhost"], LEASE)
    assert admission.state.lease == "valid"
    assert admission.state.generation == 1
    assert client.ready(machine.management)[1][0] == "domains.none"

    stored = bundles.load(bundles.dump(examined.bundle))
    offline = verifier.verify(stored, trust.policy, now=datetime.now(UTC) + timedelta(days=400))
    assert offline.passed
    assert offline.freshness == "receipt"


def test_domains_come_after_the_lease_and_the_second_bundle_names_them(
    machine: Any, trust: Trust, signed: SignedLaunch
) -> None:
    examined = admitted(machine, trust, signed.digest)
    assert examined.claims is not None
    assert examined.claims.domains.digest == ""
    boot, spki = examined.claims.boot, examined.tls_spki
    done = domain_set.install(machine.management, spki, boot, domains("acme", "globex"), trust)
    assert done.examined.claims is not None
    assert done.examined.claims.domains.digest == done.digest
    assert done.examined.verdict.freshness == "nonce"
    end = time.monotonic() + 10
    while not client.ready(machine.management)[0]:
        assert time.monotonic() < end
        time.sleep(0.1)
    again = domain_set.install(machine.management, spki, boot, domains("acme", "globex"), trust)
    assert again.generation == done.generation  # in force already: nothing was sent
    other = domain_set.install(machine.management, spki, boot, domains("acme", revoked=("x" * 22,)), trust)
    assert other.generation == done.generation + 1
    domain_set.clear(machine.management, spki, boot, trust)
    assert client.state(machine.management, expected_spki=spki).domains_digest == domain_set.digest([])


def test_nothing_replays_after_a_reboot(machine: Any, trust: Trust, signed: SignedLaunch) -> None:
    examined = admitted(machine, trust, signed.digest)
    assert examined.claims is not None
    boot, spki = examined.claims.boot, examined.tls_spki
    body: dict[str, Any] = {"domains": domains("acme")}
    message = ControlMessage("local", "PUT", PREFIX + "domains", boot, spki, 0, datetime.now(UTC), body)
    old = message.sign(trust.control)
    machine.reboot()
    assert client.ready(machine.management)[1][0] == "lease.none"
    with pytest.raises(KeyMismatch):
        domain_set.install(machine.management, spki, boot, domains("acme"), trust)
    now = gate.examine(machine.management, trust, launch_digest=signed.digest)
    assert now.passed
    assert now.tls_spki != spki
    with pytest.raises(Unreachable, match="boot") as refused:
        client.control_call(machine.management, "domains", old, expected_spki=now.tls_spki)
    assert refused.value.status == 403
    with pytest.raises(Unreachable, match="attested was"):
        domain_set.install(machine.management, now.tls_spki, boot, domains("acme"), trust)
    assert not gate.revoke(machine.management, trust, boot, spki, "test")
    assert client.state(machine.management, expected_spki=now.tls_spki).generation == 0


def test_a_revoked_lease_takes_the_machine_out(machine: Any, trust: Trust, signed: SignedLaunch) -> None:
    examined = admitted(machine, trust, signed.digest)
    assert examined.claims is not None
    domain_set.install(machine.management, examined.tls_spki, examined.claims.boot, domains("acme"), trust)
    assert gate.revoke(machine.management, trust, examined.claims.boot, examined.tls_spki, "tpm.pcr.mismatch")
    ready, reasons = client.ready(machine.management)
    assert not ready
    assert reasons == ("lease.revoked",)


def test_a_man_in_the_middle_is_refused_by_key(
    machine: Any, trust: Trust, signed: SignedLaunch, relays: Callable[..., str], tmp_path: Path
) -> None:
    """The relay passes evidence and activation on unchanged, so all of the evidence is real and fresh."""
    middle = relays(machine.management, tmp_path)
    examined = gate.examine(middle, trust, launch_digest=signed.digest)
    assert codes(examined) == {"claims.tls_key_mismatch"}
    assert "somebody is in the middle" in examined.refusal()
    assert examined.bundle.receipt is None
    with pytest.raises(ValueError, match="passed"):
        gate.admit(examined, middle, trust, ["localhost"], LEASE)

    real = admitted(machine, trust, signed.digest)
    assert real.claims is not None
    with pytest.raises(KeyMismatch, match="somebody is in the middle"):
        domain_set.install(middle, real.tls_spki, real.claims.boot, domains("acme"), trust)
    assert client.state(machine.management, expected_spki=real.tls_spki).domains_digest == ""
    assert not gate.revoke(middle, trust, real.claims.boot, real.tls_spki, "test")


def test_other_software_is_refused_and_named(
    machines: Callable[..., Any], trust: Trust, signed: SignedLaunch
) -> None:
    machine = machines()
    machine.events[-1] = (11, 0xD, ".cmdline of another image")
    machine.boot()
    machine.wait()
    examined = gate.examine(machine.management, trust, launch_digest=signed.digest)
    assert codes(examined) == {"tpm.pcr.mismatch"}
    assert "PCR 11: .cmdline differs from the predicted one" in examined.refusal()


def test_a_tpm_of_another_maker_is_refused(
    machines: Callable[..., Any], trust: Trust, signed: SignedLaunch
) -> None:
    machine = machines(maker=tpm_manufacturer("elsewhere", datetime.now(UTC)))
    machine.boot()
    machine.wait()
    examined = gate.examine(machine.management, trust, launch_digest=signed.digest)
    assert "tpm.ek.untrusted_root" in codes(examined)
    assert examined.bundle.evidence.get("ak-certificate") is None


@pytest.mark.parametrize(
    ("environment", "revision", "code"),
    [
        ("local", 2, "launch.revision.too_old"),
        ("local", 4, "launch.not_allowed"),
        ("other", 3, "launch.environment_mismatch"),
    ],
)
def test_another_launch_document_is_refused(
    machines: Callable[..., Any],
    trust: Trust,
    signed: SignedLaunch,
    control: keys.SigningKey,
    environment: str,
    revision: int,
    code: str,
) -> None:
    from cube_attestation import launch

    document, _ = launch.peek(signed.envelope)
    machine = machines()
    machine.envelope = sign(
        environment, revision, ["localhost"], document.models, {"max_body_bytes": 1 << 20}, control
    ).envelope
    machine.boot()
    machine.wait()
    examined = gate.examine(machine.management, trust, launch_digest=signed.digest)
    assert {code, "launch.not_allowed"} <= codes(examined)


def test_a_launch_document_that_nobody_signed_is_refused(
    machines: Callable[..., Any], trust: Trust, signed: SignedLaunch
) -> None:
    machine = machines()
    machine.envelope = {**signed.envelope, "signatures": []}
    machine.boot()
    machine.wait()
    examined = gate.examine(machine.management, trust, launch_digest=signed.digest)
    assert "launch.signature.untrusted_key" in codes(examined)


def test_evidence_of_another_nonce_is_refused(machine: Any, trust: Trust, signed: SignedLaunch) -> None:
    old = gate.examine(machine.management, trust, launch_digest=signed.digest)
    verdict = verifier.verify(
        old.bundle, trust.policy, now=datetime.now(UTC), nonce=b"n" * 32, tls_spki=old.tls_spki
    )
    assert "claims.nonce_mismatch" in verdict.codes


def test_a_gate_whose_clock_is_wrong_refuses(machine: Any, trust: Trust, signed: SignedLaunch) -> None:
    late = replace(trust, clock=lambda: datetime.now(UTC) + timedelta(minutes=2))
    assert "claims.clock_skew" in codes(gate.examine(machine.management, late, launch_digest=signed.digest))


class Watcher:
    """A `Waiting` that notes what it was told and sleeps little."""

    def __init__(self, deadline_s: float, down: Down | None = None) -> None:
        self.said: list[str] = []
        self.waiting = Waiting(
            deadline_s=deadline_s,
            down=lambda: down,
            stage=lambda: "kernel",
            progress=self.said.append,
            pause=lambda seconds: time.sleep(min(seconds, 0.05)),
        )


def nobody() -> str:
    from cube_stacks.local.ports import free_ports

    return f"127.0.0.1:{free_ports(1)[0]}"


def test_a_machine_that_never_answers_is_overdue(trust: Trust) -> None:
    watcher = Watcher(0.5)
    with pytest.raises(Overdue, match=r"no evidence within 0.5 s, got as far as kernel: can't connect"):
        gate.examine_when_up(nobody(), trust, watcher.waiting, launch_digest="sha256:" + "0" * 64)
    assert watcher.said[0] == "waiting for the machine: kernel"


def test_a_machine_whose_console_says_why_fails_at_once(trust: Trust) -> None:
    watcher = Watcher(60, Down("no root device", final=True))
    with pytest.raises(BootFailed, match="no root device"):
        gate.examine_when_up(nobody(), trust, watcher.waiting, launch_digest="sha256:" + "0" * 64)


def test_a_suspicion_is_given_time(trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "_SUSPICION_S", 0.3)
    watcher = Watcher(60, Down("a block is corrupted", final=False))
    started = time.monotonic()
    with pytest.raises(BootFailed, match="corrupted"):
        gate.examine_when_up(nobody(), trust, watcher.waiting, launch_digest="sha256:" + "0" * 64)
    assert time.monotonic() - started >= 0.3


def test_waiting_ends_with_the_machine(machines: Callable[..., Any], trust: Trust, signed: SignedLaunch) -> None:
    machine = machines()
    machine.boot()
    examined = gate.examine_when_up(machine.management, trust, Watcher(30).waiting, launch_digest=signed.digest)
    assert examined.passed
    machine.events[0] = (2, 0x4, "an option ROM")
    machine.stop()
    machine.boot()
    with pytest.raises(Refused, match=r"tpm\.pcr\.mismatch: PCR 2"):
        gate.examine_when_up(machine.management, trust, Watcher(30).waiting, launch_digest=signed.digest)
