# SPDX-License-Identifier: Apache-2.0
"""Bring a deployed environment back to what it should be: verify, renew, admit, restore domains, keep the edge.

It works from the records of the last `pulumi up` and changes nothing that is declared: a machine that is gone, or
refused, is for `pulumi up` and for people.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cube_stacks import edge, records, tokens
from cube_stacks.edge import Edge, Member
from cube_stacks.provider import attestation_gate, domain_set
from cube_stacks.provider.base import Failed, Properties, State, Unhealthy
from cube_stacks.provider.failures import explained

_READ_S = 20.0


@dataclass(frozen=True)
class Outcome:
    """What was done about one resource: well or not, in words."""

    kind: records.Kind
    name: str
    well: bool
    words: str


def reconcile(
    environment: str, progress: Callable[[str], None], *, ready_s: float = edge.READY_S
) -> Iterator[Outcome]:
    """Go over gates, then domain sets, then edges; yields an outcome for each.

    An edge has `ready_s` seconds to find a member ready: a new boot first tries its models.
    """
    passed: dict[str, Properties] = {}
    for name, record in records.all_of(environment, "gates").items():
        try:
            outputs, words = _gate(name, record, progress)
        except Failed as error:
            yield Outcome("gates", name, False, error.message)
        else:
            passed[outputs["attestedAddress"]] = outputs
            yield Outcome("gates", name, True, words)
    for name, record in records.all_of(environment, "domain-sets").items():
        yield _domains(environment, name, record, passed)
    for name, record in records.all_of(environment, "edges").items():
        yield _edge(environment, name, record, ready_s, progress)


def _gate(name: str, record: dict[str, Any], progress: Callable[[str], None]) -> tuple[Properties, str]:
    inputs, outputs = record["inputs"], record["outputs"]
    try:
        state = attestation_gate.reverify(name, inputs["instanceId"], inputs, outputs, timeout=_READ_S)
    except Unhealthy as error:
        if not _can_pass_again(error.reasons):
            raise Failed("FAILED_PRECONDITION", "; ".join(error.reasons)) from error
        waiting = attestation_gate.waiting_for(inputs, inputs["deadlineSeconds"], progress, time.sleep)
        state = attestation_gate.pass_gate(name, inputs, outputs, waiting)
        return state.outputs, f"new boot verified and admitted until {state.outputs['leaseExpires']}"
    if state is None:
        raise Failed("FAILED_PRECONDITION", f"machine {inputs['instanceId']} is gone; run: pulumi up")
    return state.outputs, f"verified, lease renewed until {state.outputs['leaseExpires']}"


def _can_pass_again(reasons: list[str]) -> bool:
    """A new boot, or a machine that is on its way up, may pass; a refused one is not asked twice."""
    return all(reason.startswith((attestation_gate.REBOOTED, attestation_gate.UNREACHABLE)) for reason in reasons)


def _domains(environment: str, name: str, record: dict[str, Any], passed: dict[str, Properties]) -> Outcome:
    inputs = record["inputs"]
    gate = passed.get(inputs["attestedAddress"])
    if gate is None:
        return Outcome("domain-sets", name, False, "its machine is not admitted")
    inputs = inputs | {part: gate[part] for part in ("attestedKey", "boot", "policy")}
    before = (record["inputs"]["boot"], record["outputs"].get("generation"))
    try:
        state = domain_set.install(name, with_revocations(environment, inputs))
    except Failed as error:
        return Outcome("domain-sets", name, False, error.message)
    same = (gate["boot"], state.outputs["generation"]) == before
    return Outcome("domain-sets", name, True, _counted(state, "in force" if same else "restored"))


def _counted(state: State, done: str) -> str:
    return f"{len(state.outputs['domains'])} domains {done}, generation {state.outputs['generation']}"


def with_revocations(environment: str, inputs: Properties) -> Properties:
    """A domain set's inputs with every revocation that the operator keeps."""
    domains = []
    for domain in inputs["domains"]:
        revoked = sorted({*domain["tokens"]["revoked"], *tokens.revoked(environment, domain["name"])})
        domains.append(domain | {"tokens": domain["tokens"] | {"revoked": revoked}})
    return inputs | {"domains": domains}


def _edge(
    environment: str, name: str, record: dict[str, Any], ready_s: float, progress: Callable[[str], None]
) -> Outcome:
    inputs = record["inputs"]
    members = tuple(Member(each["serviceAddress"], each["managementAddress"]) for each in inputs["members"])
    folder = records.folder(environment, "edges", name)
    try:
        with explained():
            edge.apply(folder, Edge(inputs["listen"], members, inputs["ca"], inputs["hostname"]))
    except Failed as error:
        return Outcome("edges", name, False, error.message)
    why = edge.wait_for_member(folder, members, ready_s, progress, time.sleep)
    words = f"{edge.healthy(folder)} of {len(members)} members ready"
    return Outcome("edges", name, not why, f"{words}: {why}" if why else words)
