# SPDX-License-Identifier: Apache-2.0
"""From evidence to what its verification lacks. Pure: no network, no clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cube_attestation.cmw import Collection
from cube_attestation.errors import BadInput

from . import amd, intel, issuers, nvidia, tokens
from .model import Context, Need

KINDS: dict[str, Callable[[Collection, Context], tuple[Need, ...]]] = {
    "amd": amd.needs,
    "intel": intel.needs,
    "issuers": issuers.needs,
    "nvidia": nvidia.needs,
    "tokens": tokens.needs,
}


def find(evidence: Collection, context: Context) -> tuple[Need, ...]:
    """Everything that is lacking now. What one piece brings with it (a manifest's signers) shows once it is there.

    A part that can't be read is a need without a request: no collateral helps there.
    """
    found: list[Need] = []
    for kind, needs in KINDS.items():
        try:
            found += needs(evidence, context)
        except BadInput as error:
            todo = "see `attestation inspect` for what the bundle holds"
            found.append(Need(f"{kind}.malformed", error.where or kind, "readable evidence", error.what, todo=todo))
    allowed = context.allow_missing()
    return tuple(replace(need, optional=need.allowance in allowed) for need in found)
