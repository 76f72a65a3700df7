# SPDX-License-Identifier: Apache-2.0
"""The Pulumi program of this project: reads the environment's configuration, declares it, exports its outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pulumi

from cube_stacks.components import ConfidentialInference
from cube_stacks.config import PROJECT, Configuration, ConfigurationError, read
from cube_stacks.keys import KeyFailure

_TEXTS: Final = frozenset({"target", "image", "domains"})


def run() -> None:
    """Entry of `pulumi up`."""
    try:
        configuration = read(
            settings(pulumi.runtime.get_config_env()), Path(pulumi.get_root_directory()), pulumi.get_stack()
        )
        for name, value in declare(configuration).items():
            pulumi.export(name, value)
    except (ConfigurationError, KeyFailure) as error:
        raise pulumi.RunError(str(error)) from error


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


def declare(configuration: Configuration) -> dict[str, Any]:
    """Declare an environment's resources; returns the stack's outputs."""
    inference = ConfidentialInference("cube", configuration)
    image, gate, domains = inference.image, inference.gate, inference.domains
    return {
        "environment": configuration.environment,
        "endpoint": inference.edge.endpoint,
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
