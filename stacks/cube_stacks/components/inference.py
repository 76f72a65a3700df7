# SPDX-License-Identifier: Apache-2.0
"""The five steps as one component: image, machine, gate, domains, edge.

Order is by data: each step takes outputs that exist only after the one before it succeeded, so nothing can be
routed to a machine that did not pass, and no `depends_on` can be forgotten.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pulumi

from cube_stacks import keys, tokens
from cube_stacks.config import Configuration
from cube_stacks.resources import (
    AttestationGate,
    AttestationGateArgs,
    DomainSet,
    DomainSetArgs,
    Edge,
    EdgeArgs,
    LocalMachine,
    LocalMachineArgs,
    MeasuredImage,
    MeasuredImageArgs,
)


class ConfidentialInference(pulumi.ComponentResource):
    """An endpoint whose machine was measured, verified and admitted. The steps are its attributes."""

    image: MeasuredImage
    machine: LocalMachine
    gate: AttestationGate
    domains: DomainSet
    edge: Edge

    def __init__(self, name: str, configuration: Configuration, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("cube-confidential:index:ConfidentialInference", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        environment = configuration.environment
        control, ca, image_key = (
            configuration.keys.get(role) or keys.environment_key(environment, role) for role in keys.ROLES
        )
        attestation, machine = configuration.attestation, configuration.machine

        self.image = MeasuredImage(
            f"{name}-image", MeasuredImageArgs(source=configuration.image, image_key=image_key), child
        )
        self.machine = LocalMachine(
            f"{name}-machine",
            LocalMachineArgs(
                name=f"{name}-machine",
                environment=environment,
                image_directory=self.image.directory,
                image_digest=self.image.image_digest,
                launch=launch(configuration),
                cpus=machine.cpus,
                memory_mib=machine.memory_mib,
                accelerator=machine.accelerator,
                control_key=control,
            ),
            child,
        )
        self.gate = AttestationGate(
            f"{name}-gate",
            AttestationGateArgs(
                instance_id=self.machine.instance_id,
                management_address=self.machine.management_address,
                console=self.machine.console,
                environment=environment,
                policy=str(attestation.policy),
                lowest_tier=attestation.lowest_tier,
                manifest=self.image.manifest,
                launch_digest=self.machine.launch_digest,
                ek_root=self.machine.ek_root,
                control_key=control,
                ca_key=ca,
                image_signer=keys.open_key(image_key).keyid,
                hostnames=[configuration.hostname],
                lease_seconds=attestation.lease_s,
                deadline_seconds=attestation.deadline_s,
            ),
            child,
        )
        self.domains = DomainSet(
            f"{name}-domains",
            DomainSetArgs(
                attested_address=self.gate.attested_address,
                attested_key=self.gate.attested_key,
                boot=self.gate.boot,
                environment=environment,
                domains=tenants(configuration),
                control_key=control,
                policy=self.gate.policy,
                manifest=self.image.manifest,
                ca_key=ca,
            ),
            child,
        )
        self.edge = Edge(
            f"{name}-edge",
            EdgeArgs(
                listen=configuration.listen,
                members=[
                    {
                        "serviceAddress": self.machine.service_address,
                        "managementAddress": self.gate.attested_address,
                    },
                ],
                ca=self.gate.ca,
                hostname=configuration.hostname,
            ),
            # The one order that no data carries: a route opens after the domains are in force.
            pulumi.ResourceOptions(parent=self, depends_on=[self.domains]),
        )
        self.register_outputs({"endpoint": self.edge.endpoint, "verdict": self.gate.verdict})


def launch(configuration: Configuration) -> dict[str, Any]:
    """What the launch document says of models, limits and names."""
    return {
        "revision": configuration.revision,
        "models": {
            name: {"backend": model.backend, "volume": model.volume} for name, model in configuration.models.items()
        },
        "limits": {"max_body_bytes": configuration.max_body_bytes},
        "hostnames": [configuration.hostname],
    }


def tenants(configuration: Configuration) -> list[dict[str, Any]]:
    """The domain set (formats §4): files of the domains, with the environment's token keys and revocations."""
    environment = configuration.environment
    found = []
    for domain in configuration.domains:
        own = domain.keys or (tokens.token_key(keys.open_key(keys.domain_key(environment, domain.name))),)
        revoked = sorted({*domain.revoked, *tokens.revoked(environment, domain.name)})
        found.append(replace(domain, keys=own, revoked=tuple(revoked)).to_json())
    return found
