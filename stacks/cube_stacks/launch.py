# SPDX-License-Identifier: Apache-2.0
"""Launch documents: made from configuration and volumes, signed by the control key (formats §6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cube_attestation import dsse, launch
from cube_attestation.launch import Model

from cube_stacks.keys import SigningKey, public_pem


@dataclass(frozen=True)
class SignedLaunch:
    """The envelope that a machine is given, and the digest of its payload that the gate then expects."""

    envelope: Mapping[str, Any]
    digest: str


def sign(
    environment: str,
    revision: int,
    hostnames: Sequence[str],
    models: Mapping[str, Model],
    limits: Mapping[str, int],
    control: SigningKey,
) -> SignedLaunch:
    """A launch document whose control key is the one that signs it. Raises BadInput if no machine would read it."""
    payload = {
        "version": 1,
        "environment": environment,
        "revision": revision,
        "control_keys": [public_pem(control.public_key)],
        "hostnames": list(hostnames),
        "models": {name: asdict(model) for name, model in models.items()},
        "limits": dict(limits),
    }
    launch.parse(payload)
    envelope = dsse.sign(dsse.LAUNCH, payload, control)
    return SignedLaunch(envelope, launch.peek(envelope)[1])
