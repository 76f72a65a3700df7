# SPDX-License-Identifier: Apache-2.0
"""Everything that a set of files holds, sorted by what it is; bytes that nobody has checked yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace


@dataclass(frozen=True)
class Quote:
    """A TPM quote that came in one piece: TPMS_ATTEST, its signature (TPMT_SIGNATURE or bare RSA), PCR values."""

    attest: bytes
    signature: bytes
    pcrs: Mapping[str, Mapping[int, bytes]]


@dataclass(frozen=True)
class Device:
    """An NVIDIA device's SPDM request and response, and its PEM chain; empty where it came in another file."""

    report: bytes
    chain: bytes = b""


@dataclass(frozen=True)
class Material:
    """Parts in the order in which they were met.

    ``certificates`` and ``crls`` are DER. ``collateral`` are Intel's JSON documents, ``keys`` JWK sets or public
    keys that came in an option, ``offered_keys`` those that came with the evidence. ``logs`` are TCG or CC logs,
    ``cc_events`` dstack's JSON. ``blobs`` are bytes without a mark, which only a kind can tell apart (bare
    signatures, PCR values); ``notes`` say what else was recognised, which is no evidence.
    """

    snp_reports: tuple[bytes, ...] = ()
    snp_tables: tuple[bytes, ...] = ()
    tdx_quotes: tuple[bytes, ...] = ()
    td_reports: tuple[bytes, ...] = ()
    collateral: tuple[bytes, ...] = ()
    endorsements: tuple[bytes, ...] = ()
    certificates: tuple[bytes, ...] = ()
    crls: tuple[bytes, ...] = ()
    hcl_reports: tuple[bytes, ...] = ()
    quotes: tuple[Quote, ...] = ()
    attests: tuple[bytes, ...] = ()
    signatures: tuple[bytes, ...] = ()
    publics: tuple[bytes, ...] = ()
    pcrs: tuple[Mapping[str, Mapping[int, bytes]], ...] = ()
    logs: tuple[bytes, ...] = ()
    systemd_logs: tuple[bytes, ...] = ()
    cc_events: tuple[bytes, ...] = ()
    devices: tuple[Device, ...] = ()
    rims: tuple[bytes, ...] = ()
    ocsp: tuple[bytes, ...] = ()
    tokens: tuple[bytes, ...] = ()
    keys: tuple[bytes, ...] = ()
    offered_keys: tuple[bytes, ...] = ()
    blobs: tuple[bytes, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()

    def __add__(self, other: Material) -> Material:
        """Both, each different part once; devices as often as they occur."""
        joined: dict[str, tuple[object, ...]] = {}
        for one in fields(self):
            mine, theirs = getattr(self, one.name), getattr(other, one.name)
            again = one.name == "devices"  # one device twice is a finding, not an accident
            joined[one.name] = (*mine, *(part for part in theirs if again or part not in mine)) if theirs else mine
        return Material(**joined)  # type: ignore[arg-type]  # each member keeps its own type

    def __bool__(self) -> bool:
        return any(getattr(self, one.name) for one in fields(self))

    @property
    def known(self) -> bool:
        """Whether anything was recognised, beyond bytes without a mark."""
        return bool(replace(self, blobs=()))
