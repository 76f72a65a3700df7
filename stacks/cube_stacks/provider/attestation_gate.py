# SPDX-License-Identifier: Apache-2.0
"""`AttestationGate`: passes when a machine's fresh evidence satisfies the policy, and admits it for a lease.

Its outputs exist only after a passing verdict, so whatever takes them waits for it. Reading it verifies again: a
machine that still passes gets its lease renewed, one that does not loses it at once.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from cube_attestation import bundle as bundles
from cube_attestation import times
from cube_attestation.errors import BadInput, KeyMismatch, Unreachable
from cube_attestation.verdict import TIERS

from cube_stacks import gate, records, trust
from cube_stacks.gate import Examined, Refused, Trust, Waiting
from cube_stacks.local import watch
from cube_stacks.provider.base import UNKNOWN, Context, Failed, Properties, Resource, State, Unhealthy
from cube_stacks.provider.failures import explained
from cube_stacks.state import write_atomically

REBOOTED, UNREACHABLE = "machine.rebooted", "machine.unreachable"
_READ_S = 8.0  # `pulumi preview` reads too


class AttestationGate(Resource):
    token = "cube-confidential:index:AttestationGate"  # noqa: S105
    refresh_before_update = True
    replace_on = frozenset({"instanceId"})

    def check(self, inputs: Properties) -> tuple[Properties, list[tuple[str, str]]]:
        problems = []
        if inputs["lowestTier"] is not UNKNOWN and inputs["lowestTier"] not in TIERS:
            problems.append(("lowestTier", f"must be one of {', '.join(TIERS)}"))
        for name, limit in (("leaseSeconds", 86400), ("deadlineSeconds", 7200)):
            if inputs[name] is not UNKNOWN and not 1 <= inputs[name] <= limit:
                problems.append((name, f"must be between 1 and {limit}"))
        return inputs, problems

    def create(self, ctx: Context, inputs: Properties) -> State:
        return _pass(ctx, inputs, {})

    def update(self, ctx: Context, id: str, old_outputs: Properties, inputs: Properties) -> State:  # noqa: ARG002
        return _pass(ctx, inputs, old_outputs)

    def read(self, ctx: Context, id: str, inputs: Properties, outputs: Properties) -> State | None:
        if not inputs:
            raise Failed("INVALID_ARGUMENT", "a gate can't be imported: it exists by verifying; run pulumi up")
        return reverify(records.name_of(ctx.urn), id, inputs, outputs)

    def delete(self, ctx: Context, id: str, outputs: Properties) -> None:
        name = records.name_of(ctx.urn)
        environment = records.environment_of(ctx.urn)
        record = records.find(environment, "gates", name)
        if record is None or record["inputs"].get("instanceId") != id:
            return  # replaced: the record and the lease belong to the next one
        try:
            known = _trust(record["inputs"], name)
            gate.revoke(outputs["attestedAddress"], known, outputs["boot"], outputs["attestedKey"], "gate.removed")
        except (BadInput, Failed) as error:
            ctx.warn(f"the lease was not revoked and ends by itself at {outputs.get('leaseExpires')}: {error}")
        records.forget(environment, "gates", name)


def _pass(ctx: Context, inputs: Properties, old: Properties) -> State:
    deadline = min(inputs["deadlineSeconds"], ctx.timeout_s or inputs["deadlineSeconds"])
    return pass_gate(records.name_of(ctx.urn), inputs, old, waiting_for(inputs, deadline, ctx.progress, ctx.pause))


def pass_gate(name: str, inputs: Properties, old: Properties, waiting: Waiting) -> State:
    """Wait for the machine, verify and admit it. Raises Failed; a lease that it had from `old` is revoked then."""
    with explained():
        known = _trust(inputs, name)
        try:
            examined = gate.examine_when_up(
                inputs["managementAddress"], known, waiting, launch_digest=inputs["launchDigest"]
            )
        except Refused as error:
            place = _keep_refused(inputs, name, error.examined)
            _revoke(inputs, known, old, error.examined)
            message = f"the machine is not admitted: {error} (evidence and machine are kept: {place})"
            raise Failed("FAILED_PRECONDITION", message) from error
        return _admit(inputs, name, known, examined)


def waiting_for(
    inputs: Properties, deadline_s: float, progress: Callable[[str], None], pause: Callable[[float], None]
) -> Waiting:
    """How to wait for the machine of these inputs."""
    watched = watch.Watch(Path(inputs["console"]), inputs["instanceId"], progress)
    return Waiting(
        deadline_s=deadline_s,
        down=watched.down,
        stage=watched.stage,
        progress=progress,
        pause=pause,
    )


def reverify(
    name: str, id: str, inputs: Properties, outputs: Properties, *, timeout: float = _READ_S
) -> State | None:
    """The gate as it is now: its lease renewed, or None when the machine is gone.

    Raises Unhealthy: not reachable, rebooted (not admitted: that is an update's), refused (its lease is revoked).
    """
    console, address = Path(inputs["console"]), inputs["managementAddress"]
    with explained():
        known = _trust(inputs, name)
        try:
            examined = gate.examine(address, known, timeout=timeout, launch_digest=inputs["launchDigest"])
        except (Unreachable, KeyMismatch, BadInput) as error:
            if watch.gone(console, inputs["instanceId"]):
                return None
            down = watch.down(console, inputs["instanceId"])
            reason = f"{gate.BootFailed.code}: {down.reason}" if down else f"{UNREACHABLE}: {error}"
            raise Unhealthy(id, outputs, [reason]) from error
        if not examined.passed or examined.claims is None:
            _keep_refused(inputs, name, examined)
            revoked = _revoke(inputs, known, outputs, examined)
            reasons = [f"{reason.code}: {reason.words}" for reason in examined.reasons]
            lease = "is revoked" if revoked else f"could not be revoked and ends at {outputs['leaseExpires']}"
            raise Unhealthy(id, outputs, [*reasons, f"its lease {lease}"])
        if examined.claims.boot != outputs.get("boot"):
            words = f"{REBOOTED}: another boot than the admitted one; it serves nothing until it is admitted"
            raise Unhealthy(id, outputs, [words])
        try:
            return _admit(inputs, name, known, examined)
        except (Unreachable, KeyMismatch) as error:
            raise Unhealthy(id, outputs, [f"{UNREACHABLE}: verified, but {error}"]) from error


def _trust(inputs: Properties, name: str) -> Trust:
    """Read everything anew, and write the complete policy for auditors."""
    complete = trust.resolved_policy(
        Path(inputs["policy"]),
        inputs["environment"],
        inputs["lowestTier"],
        image_signer=inputs["imageSigner"],
        ek_root=inputs["ekRoot"],
        control=inputs["controlKey"],
        ca=inputs["caKey"],
    )
    write_atomically(_place(inputs, name) / "policy.toml", complete)
    return trust.load(
        inputs["environment"],
        complete,
        Path(inputs["manifest"]),
        control=inputs["controlKey"],
        ca=inputs["caKey"],
    )


def _place(inputs: Properties, name: str) -> Path:
    return records.folder(inputs["environment"], "gates", name)


def _admit(inputs: Properties, name: str, known: Trust, examined: Examined) -> State:
    address, claims = inputs["managementAddress"], examined.claims
    assert claims is not None  # noqa: S101 - it passed
    lease = timedelta(seconds=inputs["leaseSeconds"])
    admission = gate.admit(examined, address, known, inputs["hostnames"], lease)
    place = _place(inputs, name)
    write_atomically(place / "bundle.json", bundles.dump(examined.bundle))
    outputs: Properties = {
        "attestedAddress": address,
        "attestedKey": examined.tls_spki,
        "boot": claims.boot,
        "bundleDigest": examined.bundle.digest(),
        "verifiedAt": times.format_time(examined.verdict.now),
        "leaseExpires": times.format_time(admission.expires),
        "tier": examined.verdict.tier,
        "verdict": gate.summary(examined),
        "policy": str(place / "policy.toml"),
        "bundle": str(place / "bundle.json"),
        "ca": known.ca.pem,
    }
    records.keep(inputs["environment"], "gates", name, inputs, outputs)
    return State(inputs["instanceId"], outputs)


def _keep_refused(inputs: Properties, name: str, examined: Examined) -> Path:
    place = _place(inputs, name) / "refused"
    write_atomically(place / "bundle.json", bundles.dump(examined.bundle))
    write_atomically(place / "verdict.json", examined.verdict.dump())
    return place


def _revoke(inputs: Properties, known: Trust, outputs: Properties, examined: Examined) -> bool:
    """Take back the lease that this machine had from us, if it is still the boot that had it."""
    if not outputs:
        return False
    code = examined.reasons[0].code if examined.reasons else "gate.refused"
    return gate.revoke(inputs["managementAddress"], known, outputs["boot"], outputs["attestedKey"], code)
