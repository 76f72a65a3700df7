# SPDX-License-Identifier: Apache-2.0
"""`DomainSet`: the domains that an attested machine serves, installed over the attested channel only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cube_attestation import bundle as bundles
from cube_attestation import client
from cube_attestation.errors import AttestationError, BadInput, KeyMismatch, Unreachable

from cube_stacks import domain_set, records, trust
from cube_stacks.gate import Trust
from cube_stacks.provider.base import Context, Failed, Properties, Resource, State, Unhealthy, holds_unknown
from cube_stacks.provider.failures import explained
from cube_stacks.state import write_atomically

_READ_S = 5.0


class DomainSet(Resource):
    token = "cube-confidential:index:DomainSet"  # noqa: S105
    refresh_before_update = True

    def check(self, inputs: Properties) -> tuple[Properties, list[tuple[str, str]]]:
        if holds_unknown(inputs["domains"]):
            return inputs, []
        try:
            domain_set.digest(inputs["domains"])
        except BadInput as error:
            return inputs, [("domains", str(error))]
        return inputs, []

    def preview(self, inputs: Properties) -> Properties:
        if holds_unknown(inputs["domains"]):
            return {}
        return {"digest": domain_set.digest(inputs["domains"]), "domains": _listed(inputs["domains"])}

    def create(self, ctx: Context, inputs: Properties) -> State:
        return install(records.name_of(ctx.urn), inputs)

    def update(self, ctx: Context, id: str, old_outputs: Properties, inputs: Properties) -> State:  # noqa: ARG002
        return install(records.name_of(ctx.urn), inputs)

    def read(self, ctx: Context, id: str, inputs: Properties, outputs: Properties) -> State | None:
        if not inputs:
            raise Failed("INVALID_ARGUMENT", "a domain set can't be imported; run pulumi up")
        try:
            state = client.state(inputs["attestedAddress"], expected_spki=inputs["attestedKey"], timeout=_READ_S)
        except KeyMismatch as error:
            raise Unhealthy(
                id, outputs, ["domains.none: the machine was rebooted and has no domains yet"]
            ) from error
        except (Unreachable, BadInput) as error:
            ctx.warn(f"the domains can't be looked at: {error}")
            return State(id, outputs)
        if state.domains_digest != outputs["digest"]:
            words = f"domains.changed: the machine has domain set {state.domains_digest or 'none'}"
            raise Unhealthy(id, outputs, [words])
        return State(id, outputs | {"generation": state.domains_generation})

    def delete(self, ctx: Context, id: str, outputs: Properties) -> None:  # noqa: ARG002
        name = records.name_of(ctx.urn)
        environment = records.environment_of(ctx.urn)
        record = records.find(environment, "domain-sets", name)
        if record is None:
            return
        inputs = record["inputs"]
        try:
            known = _trust(inputs)
            domain_set.clear(inputs["attestedAddress"], inputs["attestedKey"], inputs["boot"], known)
        except AttestationError as error:
            ctx.warn(f"the machine does not take the removal of its domains: {error}")
        records.forget(environment, "domain-sets", name)


def install(name: str, inputs: Properties) -> State:
    """Bring the machine to the set in `inputs`. Raises Failed."""
    environment = inputs["environment"]
    with explained():
        done = domain_set.install(
            inputs["attestedAddress"], inputs["attestedKey"], inputs["boot"], inputs["domains"], _trust(inputs)
        )
    place = records.folder(environment, "domain-sets", name)
    write_atomically(place / "bundle.json", bundles.dump(done.examined.bundle))
    outputs: Properties = {
        "generation": done.generation,
        "digest": done.digest,
        "bundle": str(place / "bundle.json"),
        "domains": _listed(inputs["domains"]),
    }
    records.keep(environment, "domain-sets", name, inputs, outputs)
    return State(f"{environment}/{name}", outputs)


def _listed(domains: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"id": domain["id"], "name": domain["name"], "models": domain["models"]} for domain in domains]


def _trust(inputs: Properties) -> Trust:
    return trust.load(
        inputs["environment"],
        trust.read(Path(inputs["policy"]), "the resolved policy"),
        Path(inputs["manifest"]),
        control=inputs["controlKey"],
        ca=inputs["caKey"],
    )
