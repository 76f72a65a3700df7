# SPDX-License-Identifier: Apache-2.0
"""What the gate of an environment trusts, read from files and key references."""

from __future__ import annotations

from pathlib import Path

from cube_attestation import policy
from cube_attestation.errors import BadInput

from cube_stacks.ca import environment_ca, tpm_manufacturer
from cube_stacks.gate import Trust, utc_now
from cube_stacks.keys import open_key
from cube_stacks.policy_resolve import Anchors, resolve


def read(path: Path, what: str) -> bytes:
    """The bytes of a file of the configuration. Raises BadInput that names it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{what} can't be read: {error.strerror}", where=str(path), todo="check the path") from error


def resolved_policy(
    path: Path, environment: str, lowest_tier: str, *, image_signer: str, ek_root: str, control: str, ca: str
) -> bytes:
    """The policy in `path`, completed with the anchors of the environment; `control` and `ca` are references."""
    keyid = open_key(control).keyid
    anchors = Anchors(
        image_signer=image_signer,
        launch_signer=keyid,
        ek_root=ek_root,
        ak_issuer=open_key(ca).keyid,
        receipt_key=keyid,
    )
    return resolve(read(path, "the policy"), anchors, environment, lowest_tier, where=str(path))


def load(environment: str, complete_policy: bytes, manifest: Path, *, control: str, ca: str) -> Trust:
    """Everything that `gate` needs. Raises BadInput, KeyFailure."""
    now = utc_now()
    return Trust(
        environment=environment,
        policy=policy.load(complete_policy),
        manifest=read(manifest, "the image's manifest"),
        ek_chain=tuple(tpm_manufacturer(environment, now).chain()),
        ca=environment_ca(environment, open_key(ca), now),
        control=open_key(control),
    )
