# SPDX-License-Identifier: Apache-2.0
"""The control state machine: (who this boot is, state, message, clock) → new state, or a refusal. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from cube_attestation import control, domains, jcs
from cube_attestation.errors import BadInput, NotAuthentic

from . import lease as leases
from .clock import TOLERANCE_SECONDS, Clock, Floor, now, raised
from .http import HttpError
from .lease import Lease
from .tls import leaf_spki

STATE = control.PREFIX + "state"
ADMIT = control.PREFIX + "admit"
REVOKE = control.PREFIX + "revoke"
DOMAINS = control.PREFIX + "domains"


@dataclass(frozen=True)
class Boot:
    """What a control message must be for: this environment, this boot, this TLS key, signed by these keys."""

    environment: str
    id: str
    tls_spki: str
    control_keys: tuple[bytes, ...]
    models: Collection[str]


@dataclass(frozen=True)
class State:
    """Everything that control messages change.

    ``bundle`` is the digest of the evidence that earned the lease; ``domains_generation`` the generation that set
    ``domains``.
    """

    generation: int = 0
    floor: Floor | None = None
    lease: Lease | None = None
    certificate: str = ""
    bundle: str = ""
    domains: domains.DomainSet | None = None
    domains_generation: int = 0

    def lease_status(self, clock: Clock) -> str:
        return leases.status(self.lease, clock, self.floor)


class Refusal(HttpError):
    """A message that changes nothing: 400 malformed, 403 not for us or not by who may, 409 stale generation."""


def apply(boot: Boot, state: State, body: bytes, method: str, path: str, clock: Clock) -> State:
    """The state after the message in ``body`` (a DSSE envelope), which came as ``method path``.

    Raises Refusal and leaves ``state`` as it was.
    """
    message = _message(boot, body, method, path)
    if message.generation != state.generation:
        raise Refusal(
            409,
            "generation.stale",
            f"The message is for generation {message.generation}, the machine is at {state.generation}.",
        )
    floor = _floor(state, message.time.timestamp(), clock)
    state = replace(state, generation=state.generation + 1, floor=floor)
    try:
        if path == ADMIT:
            return _admit(boot, state, control.Admit.from_json(message.body), clock)
        if path == REVOKE:
            return _revoke(state, control.parse_revoke(message.body), clock)
        found = domains.parse(message.body, models=boot.models)
        return replace(state, domains=found, domains_generation=state.generation)
    except BadInput as error:
        raise Refusal(400, "body.invalid", f"{error}.") from error


def _message(boot: Boot, body: bytes, method: str, path: str) -> control.ControlMessage:
    try:
        message = control.ControlMessage.verify(jcs.loads(body, where="message"), boot.control_keys)
    except BadInput as error:
        raise Refusal(400, "message.malformed", f"{error}.") from error
    except NotAuthentic as error:
        raise Refusal(403, f"signature.{error.why}", f"{error}.") from error
    for what, said, real in (
        ("environment", message.environment, boot.environment),
        ("method", message.method, method),
        ("path", message.path, path),
        ("boot", message.boot, boot.id),
        ("tls_spki", message.tls_spki, boot.tls_spki),
    ):
        if said != real:
            raise Refusal(403, f"{what}.mismatch", f"The message is for {what} {said}, this is {real}.")
    return message


def _floor(state: State, time: float, clock: Clock) -> Floor:
    here = now(clock, state.floor)
    if abs(time - clock.wall) > TOLERANCE_SECONDS or time < here - TOLERANCE_SECONDS:
        raise Refusal(
            403,
            "time.skew",
            f"The message's time is {time - clock.wall:+.0f} s from this machine's clock and {time - here:+.0f} s "
            f"from its floor; {TOLERANCE_SECONDS} s are allowed.",
        )
    return raised(state.floor, clock, time)


def _admit(boot: Boot, state: State, admit: control.Admit, clock: Clock) -> State:
    found = leaf_spki(admit.certificate)
    if found != boot.tls_spki:
        raise Refusal(403, "certificate.key_mismatch", f"The certificate is for {found}, not for this boot's key.")
    expires = admit.expires.timestamp()
    here = now(clock, state.floor)
    if expires <= here:
        raise Refusal(400, "lease.past", f"The lease would have ended {here - expires:.0f} s ago.")
    granted = Lease(clock.monotonic + admit.lease_seconds, min(expires, here + admit.lease_seconds))
    return replace(state, lease=granted, certificate=admit.certificate, bundle=admit.bundle)


def _revoke(state: State, reason: str, clock: Clock) -> State:
    ended = Lease(clock.monotonic, now(clock, state.floor), revoked=reason)
    return replace(state, lease=ended)


def describe(boot: Boot, state: State, clock: Clock) -> dict[str, jcs.Json]:
    """``GET /control/v1/state`` (formats §2)."""
    held = state.lease
    return {
        "boot": boot.id,
        "environment": boot.environment,
        "tls_spki": boot.tls_spki,
        "generation": state.generation,
        "lease": {"state": state.lease_status(clock), "expires": held.expires_text() if held else None},
        "domains": {
            "generation": state.domains_generation,
            "digest": state.domains.digest if state.domains else "",
        },
        "time": _text(clock.wall),
    }


def reasons(state: State, models: dict[str, str], clock: Clock) -> list[str]:
    """Why the machine is not ready; empty when it is. ``models``: name → state."""
    found: list[str] = []
    if (status := state.lease_status(clock)) != "valid":
        found.append(f"lease.{status}")
    if state.domains is None:
        found.append("domains.none")
    return found + [f"model.{name}.{model}" for name, model in sorted(models.items()) if model != "ready"]


def serves(state: State, clock: Clock) -> bool:
    """Whether inference may be routed at all: a valid lease and a domain set."""
    return state.domains is not None and state.lease_status(clock) == "valid"


def _text(wall: float) -> str:
    return Lease(0, wall).expires_text()
