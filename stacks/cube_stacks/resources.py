# SPDX-License-Identifier: Apache-2.0
"""Our provider's resources as a Pulumi program uses them. `provider.schema` says what each property means.

Arguments are dataclasses in Python's spelling, outputs are attributes; on the wire both are camelCase.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pulumi
from pulumi import Input, Output


def camel(name: str) -> str:
    """`image_digest` → `imageDigest`."""
    return re.sub(r"_([a-z])", lambda found: found[1].upper(), name)


class _Resource(pulumi.CustomResource):
    """Passes the fields of an arguments object as inputs, and offers each annotated output as an attribute."""

    token: ClassVar[str]

    def __init__(self, name: str, args: Any, opts: pulumi.ResourceOptions | None = None) -> None:
        outputs = [field for field in type(self).__annotations__ if field != "token"]
        inputs = {camel(field.name): getattr(args, field.name) for field in dataclasses.fields(args)}
        # Naming an output with no value is how the SDK is told to offer it.
        super().__init__(self.token, name, {camel(output): None for output in outputs} | inputs, opts)
        for output in outputs:
            setattr(self, output, self.__dict__[camel(output)])


@dataclasses.dataclass(frozen=True)
class MeasuredImageArgs:
    source: Input[str]
    image_key: Input[str]


class MeasuredImage(_Resource):
    token = "cube-confidential:index:MeasuredImage"  # noqa: S105
    image_digest: Output[str]
    manifest: Output[str]
    manifest_digest: Output[str]
    directory: Output[str]
    pcrs: Output[Mapping[str, str]]
    definition: Output[str]


@dataclasses.dataclass(frozen=True)
class LocalMachineArgs:
    name: Input[str]
    environment: Input[str]
    image_directory: Input[str]
    image_digest: Input[str]
    launch: Input[Mapping[str, Any]]
    cpus: Input[int]
    memory_mib: Input[int]
    accelerator: Input[str]
    control_key: Input[str]


class LocalMachine(_Resource):
    token = "cube-confidential:index:LocalMachine"  # noqa: S105
    instance_id: Output[str]
    management_address: Output[str]
    service_address: Output[str]
    launch_digest: Output[str]
    accelerator: Output[str]
    console: Output[str]
    ek_root: Output[str]


@dataclasses.dataclass(frozen=True)
class AttestationGateArgs:
    instance_id: Input[str]
    management_address: Input[str]
    console: Input[str]
    environment: Input[str]
    policy: Input[str]
    lowest_tier: Input[str]
    manifest: Input[str]
    launch_digest: Input[str]
    ek_root: Input[str]
    control_key: Input[str]
    ca_key: Input[str]
    image_signer: Input[str]
    hostnames: Input[Sequence[str]]
    lease_seconds: Input[int]
    deadline_seconds: Input[int]


class AttestationGate(_Resource):
    token = "cube-confidential:index:AttestationGate"  # noqa: S105
    attested_address: Output[str]
    attested_key: Output[str]
    boot: Output[str]
    bundle_digest: Output[str]
    verified_at: Output[str]
    lease_expires: Output[str]
    tier: Output[str]
    verdict: Output[Sequence[str]]
    policy: Output[str]
    bundle: Output[str]
    ca: Output[str]


@dataclasses.dataclass(frozen=True)
class DomainSetArgs:
    attested_address: Input[str]
    attested_key: Input[str]
    boot: Input[str]
    environment: Input[str]
    domains: Input[Sequence[Mapping[str, Any]]]
    control_key: Input[str]
    policy: Input[str]
    manifest: Input[str]
    ca_key: Input[str]


class DomainSet(_Resource):
    token = "cube-confidential:index:DomainSet"  # noqa: S105
    generation: Output[int]
    digest: Output[str]
    bundle: Output[str]
    domains: Output[Sequence[Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class EdgeArgs:
    listen: Input[str]
    members: Input[Sequence[Mapping[str, Input[str]]]]
    ca: Input[str]
    hostname: Input[str]


class Edge(_Resource):
    token = "cube-confidential:index:Edge"  # noqa: S105
    endpoint: Output[str]
