# SPDX-License-Identifier: Apache-2.0
"""The gate: fresh evidence → verdict → admission lease. No Pulumi, no files.

`collect` asks a machine for evidence over a nonce, has its TPM prove that the quoting key is its own, and adds what
the verifier needs, so that the bundle stands alone. `admit` lets a machine in whose verdict passed, `revoke` throws
it out. Everything goes to the TLS key that the evidence names.
"""

from __future__ import annotations

import hmac
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cube_attestation import bundle as bundles
from cube_attestation import client, cmw, manifest
from cube_attestation.bundle import Bundle
from cube_attestation.claims import Claims
from cube_attestation.client import Dial, MachineState, StaleGeneration
from cube_attestation.control import METHODS, PREFIX, Admit, ControlMessage
from cube_attestation.errors import AttestationError, BadInput, KeyMismatch, Unreachable
from cube_attestation.policy import Policy
from cube_attestation.tpm import items as tpm_items
from cube_attestation.tpm import verify as tpm_verify
from cube_attestation.tpm.credential import make_credential
from cube_attestation.verdict import Reason, Verdict
from cube_attestation.verifier import verify
from cube_attestation.x509 import certificate as certificates
from cube_attestation.x509 import keys as public_keys

from cube_stacks.ca import EnvironmentCA
from cube_stacks.keys import SigningKey

Clock = Callable[[], datetime]
_NONCE_BYTES = 32
_ATTEMPTS = 3
_POLL_S = 0.2
_SUSPICION_S = 20.0  # a corrupted block may be the root's or a model's: see whether the machine comes up


def utc_now() -> datetime:
    """The clock of the gate."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Trust:
    """What the gate of an environment knows beforehand. `manifest`: the signed envelope's bytes."""

    environment: str
    policy: Policy
    manifest: bytes
    ek_chain: tuple[x509.Certificate, ...]
    ca: EnvironmentCA
    control: SigningKey
    dial: Dial | None = None
    clock: Clock = utc_now


@dataclass(frozen=True)
class Examined:
    """One machine's evidence with everything added, the verdict over it, and the TLS key that brought it."""

    bundle: Bundle
    verdict: Verdict
    claims: Claims | None
    tls_spki: str
    tls_key: Any
    extra: tuple[Reason, ...] = ()

    @property
    def passed(self) -> bool:
        return self.verdict.passed and not self.extra

    @property
    def reasons(self) -> tuple[Reason, ...]:
        return (*self.verdict.reasons, *self.extra)

    def refusal(self) -> str:
        """Every reason once, code and words, the most basic first."""
        seen: dict[str, str] = {}
        for reason in self.reasons:
            seen.setdefault(reason.code, reason.words)
        return "; ".join(f"{code}: {words}" for code, words in seen.items())


class Refused(Exception):
    """The verdict over a machine did not pass; `examined` has the evidence and every reason."""

    def __init__(self, examined: Examined) -> None:
        super().__init__(examined.refusal())
        self.examined = examined


class BootFailed(Exception):
    """The machine will not come up; the reason is the console's or the emulator's."""

    code = "machine.boot.failed"


class Overdue(Exception):
    """The deadline passed before the machine gave evidence."""


@dataclass(frozen=True)
class Down:
    """Why a machine can't be reached: `final` when waiting is of no use."""

    reason: str
    final: bool


@dataclass(frozen=True)
class Waiting:
    """How to wait for a machine: `down` and `stage` look at it from outside, `pause` sleeps or raises."""

    deadline_s: float
    down: Callable[[], Down | None]
    stage: Callable[[], str]
    progress: Callable[[str], None]
    pause: Callable[[float], None]


@dataclass(frozen=True)
class Admission:
    """A lease in force: when it ends, and the machine's control state after it began."""

    expires: datetime
    certificate: str
    state: MachineState


def examine(
    address: str,
    trust: Trust,
    *,
    timeout: float = 30.0,
    launch_digest: str | None = None,
    expected_spki: str | None = None,
    domains_digest: str | None = None,
) -> Examined:
    """Fetch fresh evidence of the machine at `address` and appraise it.

    `launch_digest`: the document that this deployment gave the machine. `expected_spki`, `domains_digest`: what an
    earlier step already established. Raises Unreachable, and BadInput for an answer that is no evidence; bad
    evidence is part of the result.
    """
    nonce = os.urandom(_NONCE_BYTES)
    fetched = client.fetch(address, nonce, timeout=timeout, dial=trust.dial)
    evidence = _with_endorsements(fetched, address, trust, timeout)
    now = trust.clock()
    bundle = Bundle(evidence)
    verdict = verify(bundle, trust.policy, now=now, nonce=nonce, tls_spki=fetched.tls_spki)
    claims = _claims(evidence)
    extra = tuple(_deployment_reasons(claims, fetched.tls_spki, launch_digest, expected_spki, domains_digest))
    if verdict.passed and not extra:
        bundle = bundles.with_receipt(
            bundle, nonce=nonce, time=now, environment=trust.environment, key=trust.control
        )
        verdict = verify(bundle, trust.policy, now=now, nonce=nonce, tls_spki=fetched.tls_spki)
    key = x509.load_der_x509_certificate(fetched.certificate).public_key()
    return Examined(bundle, verdict, claims, fetched.tls_spki, key, extra)


def _claims(evidence: cmw.Collection) -> Claims | None:
    try:
        return Claims.decode(evidence.get("claims") or b"")
    except BadInput:
        return None


def _deployment_reasons(
    claims: Claims | None,
    tls_spki: str,
    launch_digest: str | None,
    expected_spki: str | None,
    domains_digest: str | None,
) -> list[Reason]:
    """What only the deployment knows: which document, key and domain set it must be."""
    reasons: list[Reason] = []
    if expected_spki is not None and tls_spki != expected_spki:
        words = f"the connection ends in key {tls_spki}, the attested one is {expected_spki}"
        reasons.append(Reason("claims.tls_key_mismatch", words))
    if claims is None:
        return reasons
    if launch_digest is not None and claims.launch != launch_digest:
        words = f"the machine was launched with document {claims.launch}, this deployment gave it {launch_digest}"
        reasons.append(Reason("launch.not_allowed", words))
    if domains_digest is not None and claims.domains.digest != domains_digest:
        words = f"the machine has domain set {claims.domains.digest or 'none'}, expected {domains_digest}"
        reasons.append(Reason("domains.mismatch", words))
    return reasons


def _with_endorsements(fetched: client.Fetched, address: str, trust: Trust, timeout: float) -> cmw.Collection:
    """The machine's evidence and what the gate adds: manifest, chains, and an AK certificate if it is earned."""
    evidence = fetched.evidence.with_item(
        "image-manifest", manifest.MEDIA_TYPE, trust.manifest, cmw.REFERENCE_VALUES
    ).with_item("ek-chain", tpm_items.CHAIN, _pem(trust.ek_chain), cmw.ENDORSEMENTS)
    certificate = _ak_certificate(fetched, address, trust, timeout)
    if certificate is None:
        return evidence
    der = certificate.public_bytes(serialization.Encoding.DER)
    return evidence.with_item("ak-certificate", tpm_items.CERTIFICATE, der, cmw.ENDORSEMENTS).with_item(
        "ak-chain", tpm_items.CHAIN, trust.ca.pem.encode(), cmw.ENDORSEMENTS
    )


def _pem(chain: Sequence[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in chain)


def _ak_certificate(fetched: client.Fetched, address: str, trust: Trust, timeout: float) -> x509.Certificate | None:
    """A certificate for the quoting key, if the TPM of an accepted EK proves that it holds it; else None.

    None is no error here: the verdict then says what is missing.
    """
    try:
        ek_certificate = certificates.parse(fetched.evidence.get("ek-certificate") or b"")
        ek = public_keys.public_key(ek_certificate.spki)
        quote = tpm_verify.QuoteEvidence.decode(fetched.evidence.get("tpm-quote") or b"")
        ak = quote.ak.key()
    except BadInput:
        return None
    now = trust.clock()
    chain = certificates.load_all([_pem(trust.ek_chain)], where="EK chain")
    if tpm_verify.verify_ek(ek_certificate, chain, trust.policy.tpm.ek_roots, now):
        return None
    secret = os.urandom(32)
    try:
        challenge = make_credential(ek, quote.ak.name(), secret)
        opened = client.activate(
            address, challenge, expected_spki=fetched.tls_spki, timeout=timeout, dial=trust.dial
        )
    except Unreachable as error:
        if 400 <= error.status < 500 and error.status != 429:
            return None  # the TPM could not open it: the key is not beside that EK
        raise
    if not hmac.compare_digest(secret, opened):
        return None
    return trust.ca.ak_certificate(ak, ek_certificate.spki_digest, now)


def examine_when_up(address: str, trust: Trust, waiting: Waiting, *, launch_digest: str) -> Examined:
    """Poll until the machine gives evidence, then appraise it once: what is refused stays refused.

    Raises Refused, BootFailed, Overdue.
    """
    started = time.monotonic()
    suspicious_since: float | None = None
    last = "it did not answer"
    while True:
        left = waiting.deadline_s - (time.monotonic() - started)
        if left <= 0:
            raise Overdue(f"no evidence within {waiting.deadline_s:g} s, got as far as {waiting.stage()}: {last}")
        try:
            client.ready(address, timeout=min(_probe_s(waiting.deadline_s - left), left), dial=trust.dial)
            waiting.progress("machine is up, verifying its evidence")
            examined = examine(address, trust, timeout=min(30.0, left), launch_digest=launch_digest)
        except (Unreachable, KeyMismatch, BadInput) as error:  # another key: it rebooted in between
            last = error.what
        else:
            if not examined.passed:
                raise Refused(examined)
            return examined
        down = waiting.down()
        if down is None:
            suspicious_since = None
        else:
            suspicious_since = suspicious_since or time.monotonic()
            if down.final or time.monotonic() - suspicious_since > _SUSPICION_S:
                raise BootFailed(down.reason)
        waiting.progress(f"waiting for the machine: {waiting.stage()}")
        waiting.pause(_POLL_S)


def _probe_s(elapsed: float) -> float:
    """Short at first, so that no probe of a booting machine outlasts its boot; longer for one that is only slow."""
    return min(1.0 + elapsed / 30, 5.0)


def admit(
    examined: Examined,
    address: str,
    trust: Trust,
    hostnames: Sequence[str],
    lease: timedelta,
    *,
    timeout: float = 15.0,
) -> Admission:
    """Give the machine that passed a certificate and a lease from now on.

    Raises ValueError for a machine that did not pass: there is no way to admit it.
    """
    if not examined.passed or examined.claims is None:
        raise ValueError("only a machine whose verdict passed can be admitted")
    now = trust.clock().replace(microsecond=0)
    expires = now + lease
    leaf = trust.ca.tls_leaf(examined.tls_key, hostnames, expires, now)
    certificate = leaf.public_bytes(serialization.Encoding.PEM).decode() + trust.ca.pem
    body = Admit(int(lease.total_seconds()), expires, certificate, examined.bundle.digest()).to_json()
    state = send(address, trust, "admit", body, examined.claims.boot, examined.tls_spki, timeout=timeout)
    return Admission(expires, certificate, state)


def revoke(address: str, trust: Trust, boot: str, tls_spki: str, reason: str, *, timeout: float = 3.0) -> bool:
    """End the lease of that boot; whether there was a machine of that boot and key to take it."""
    try:
        send(address, trust, "revoke", {"reason": reason}, boot, tls_spki, timeout=timeout)
    except AttestationError:
        return False
    return True


def send(
    address: str,
    trust: Trust,
    action: str,
    body: Mapping[str, Any],
    boot: str,
    tls_spki: str,
    *,
    state: MachineState | None = None,
    timeout: float = 15.0,
) -> MachineState:
    """Sign and send one control message for that boot and key; a few tries if somebody else was first.

    `state`: the machine's, if the caller just asked for it. Raises KeyMismatch when another key answers (nothing
    was sent), Unreachable when the machine refuses.
    """
    if state is None:
        state = client.state(address, expected_spki=tls_spki, timeout=timeout, dial=trust.dial)
    for attempt in range(1, _ATTEMPTS + 1):
        if state.boot != boot:
            raise Unreachable(
                f"the machine says boot {state.boot[:32]}, attested was {boot}",
                where=address,
                todo="attest it again",
            )
        message = ControlMessage(
            environment=trust.environment,
            method=METHODS[action],
            path=PREFIX + action,
            boot=boot,
            tls_spki=tls_spki,
            generation=state.generation,
            time=trust.clock(),
            body=dict(body),
        )
        try:
            return client.control_call(
                address,
                action,
                message.sign(trust.control),
                expected_spki=tls_spki,
                timeout=timeout,
                dial=trust.dial,
            )
        except StaleGeneration as stale:
            if attempt == _ATTEMPTS:
                raise
            state = stale.state
    raise AssertionError("unreachable")


def summary(examined: Examined) -> list[str]:
    """The verdict in three lines that stay the same from one verification to the next of the same machine."""
    outcome, rests, third = examined.verdict.summary()
    if examined.passed and examined.claims is not None:
        claims = examined.claims
        third = f"environment {claims.environment}, image {claims.image}, launch document {claims.launch}"
    elif examined.verdict.passed:
        outcome, third = "REFUSED: not the machine that this deployment started", examined.refusal()
    return [outcome, rests, third]
