# SPDX-License-Identifier: Apache-2.0
"""Domain sets: pushed to one boot of one machine over the attested channel, then proven by a second bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cube_attestation import client, domains

from cube_stacks.gate import Examined, Refused, Trust, examine, send


@dataclass(frozen=True)
class Installed:
    """A set in force: the generation that set it, its digest, and the evidence whose claims name it."""

    generation: int
    digest: str
    examined: Examined


def digest(entries: Sequence[Mapping[str, Any]]) -> str:
    """The digest of a domain set. Raises BadInput for what no machine would take."""
    return domains.parse({"domains": list(entries)}).digest


def install(
    address: str,
    tls_spki: str,
    boot: str,
    entries: Sequence[Mapping[str, Any]],
    trust: Trust,
    *,
    timeout: float = 30.0,
) -> Installed:
    """Make `entries` the machine's whole set and fetch the evidence for it; nothing is sent if it is in force.

    Raises KeyMismatch when another key answers (nothing was sent), Unreachable, Refused.
    """
    wanted = digest(entries)
    state = client.state(address, expected_spki=tls_spki, timeout=timeout, dial=trust.dial)
    if state.boot != boot or state.domains_digest != wanted:
        body = {"domains": [dict(entry) for entry in entries]}
        state = send(address, trust, "domains", body, boot, tls_spki, state=state, timeout=timeout)
    examined = examine(address, trust, timeout=timeout, expected_spki=tls_spki, domains_digest=wanted)
    if not examined.passed:
        raise Refused(examined)
    return Installed(state.domains_generation, wanted, examined)


def clear(address: str, tls_spki: str, boot: str, trust: Trust, *, timeout: float = 3.0) -> None:
    """Take every domain away. Raises KeyMismatch, Unreachable."""
    send(address, trust, "domains", {"domains": []}, boot, tls_spki, timeout=timeout)
