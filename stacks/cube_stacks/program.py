# SPDX-License-Identifier: Apache-2.0
"""The Pulumi program: reads an environment's configuration and wires the five steps.

Order is by data: each step takes outputs that exist only after the one before it succeeded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pulumi

from cube_stacks import keys, tokens
from cube_stacks.config import PROJECT, Configuration, ConfigurationError, read
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

_TEXTS: Final = frozenset({"target", "image", "domains"})


def run() -> None:
    """Entry of `pulumi up`: declare every resource of the stack and export its outputs."""
    try:
        configuration = read(
            settings(pulumi.runtime.get_config_env()), Path(pulumi.get_root_directory()), pulumi.get_stack()
        )
        outputs = deploy(configuration)
    except (ConfigurationError, keys.KeyFailure) as error:
        raise pulumi.RunError(str(error)) from error
    for name, value in outputs.items():
        pulumi.export(name, value)


def settings(environment: Mapping[str, str]) -> dict[str, object]:
    """The project's own settings out of the engine's flat configuration; structured ones come as JSON."""
    found: dict[str, object] = {}
    for key, value in environment.items():
        namespace, _, name = key.partition(":")
        if namespace == PROJECT:
            found[name] = value if name in _TEXTS else _decoded(value)
    return found


def _decoded(value: str) -> object:
    try:
        decoded: object = json.loads(value)
    except ValueError:
        return value
    return decoded


def deploy(configuration: Configuration) -> dict[str, Any]:
    """Declare the resources of an environment; returns the stack's outputs."""
    environment = configuration.environment
    control, ca, image_key = (
        configuration.keys.get(role) or keys.environment_key(environment, role) for role in keys.ROLES
    )
    attestation, machine = configuration.attestation, configuration.machine

    image = MeasuredImage("image", MeasuredImageArgs(source=configuration.image, image_key=image_key))
    instance = LocalMachine(
        "machine",
        LocalMachineArgs(
            name="machine",
            environment=environment,
            image_directory=image.directory,
            image_digest=image.image_digest,
            launch=launch(configuration),
            cpus=machine.cpus,
            memory_mib=machine.memory_mib,
            accelerator=machine.accelerator,
            control_key=control,
        ),
    )
    gate = AttestationGate(
        "gate",
        AttestationGateArgs(
            instance_id=instance.instance_id,
            management_address=instance.management_address,
            console=instance.console,
            environment=environment,
            policy=str(attestation.policy),
            lowest_tier=attestation.lowest_tier,
            manifest=image.manifest,
            launch_digest=instance.launch_digest,
            ek_root=instance.ek_root,
            control_key=control,
            ca_key=ca,
            image_signer=keys.open_key(image_key).keyid,
            hostnames=[configuration.hostname],
            lease_seconds=attestation.lease_s,
            deadline_seconds=attestation.deadline_s,
        ),
    )
    domains = DomainSet(
        "domains",
        DomainSetArgs(
            attested_address=gate.attested_address,
            attested_key=gate.attested_key,
            boot=gate.boot,
            environment=environment,
            domains=tenants(configuration),
            control_key=control,
            policy=gate.policy,
            manifest=image.manifest,
            ca_key=ca,
        ),
    )
    edge = Edge(
        "edge",
        EdgeArgs(
            listen=configuration.listen,
            members=[
                {"serviceAddress": instance.service_address, "managementAddress": gate.attested_address},
            ],
            ca=gate.ca,
            hostname=configuration.hostname,
        ),
        pulumi.ResourceOptions(depends_on=[domains]),
    )
    return {
        "environment": environment,
        "endpoint": edge.endpoint,
        "management": gate.attested_address,
        "ca": gate.ca,
        "domains": domains.domains,
        "image": {
            "digest": image.image_digest,
            "manifest": image.manifest,
            "manifestDigest": image.manifest_digest,
            "pcrs": image.pcrs,
        },
        "verdict": gate.verdict,
        "bundle": domains.bundle,
        "policy": gate.policy,
    }


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
        found.append(
            {
                "id": domain.id,
                "name": domain.name,
                "models": list(domain.models),
                "tokens": {
                    "keys": [key.to_json() for key in own],
                    "revoked": sorted({*domain.revoked, *tokens.revoked(environment, domain.name)}),
                },
            }
        )
    return found
