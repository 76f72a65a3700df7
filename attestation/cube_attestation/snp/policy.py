# SPDX-License-Identifier: Apache-2.0
"""The ``[snp]`` section of a policy (formats §9)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

from cube_attestation.anchors import amd
from cube_attestation.errors import BadInput
from cube_attestation.fields import Fields

from . import abi
from .appraise import DEMANDABLE, Rules
from .verify import ALLOW_MISSING_CRL

PRODUCTS = ("Milan", "Genoa", "Turin")
_HEX = {size: re.compile(f"[0-9a-f]{{{2 * size}}}") for size in (16, 32, 48, 64)}
_FIRMWARE = re.compile(r"\d{1,3}\.\d{1,3}\.\d{1,3}")
_BITS = re.compile(r"[a-z0-9_]{1,40}")


@dataclass(frozen=True)
class SnpPolicy:
    """Rules, and what the report's authenticity is measured against. ``roots``: SPKI digest of an ARK → product."""

    rules: Rules = field(default_factory=Rules)
    roots: Mapping[str, str] = field(default_factory=lambda: dict(amd.ROOTS))
    allow_missing: tuple[str, ...] = ()
    max_crl_age: timedelta | None = None


def read_policy(fields: Fields) -> SnpPolicy:
    """Read the section; members that are left out keep the defaults of ``Rules``. Raises BadInput."""
    values: dict[str, object] = {}
    for name, size in (
        ("measurements", 48),
        ("id_keys", 48),
        ("author_keys", 48),
        ("family_ids", 16),
        ("image_ids", 16),
        ("host_data", 32),
        ("chip_ids", 64),
    ):
        if fields.has(name):
            values[name] = _listed(fields, name, _HEX[size])
    for name in ("any_firmware", "provisional_firmware", "smt", "migration_agent", "cxl"):
        if fields.has(name):
            values[name] = fields.boolean(name)
    for name, high in (
        ("minimum_guest_svn", 2**32 - 1),
        ("minimum_version", max(abi.VERSIONS)),
        ("launch_mitigations", 2**53 - 1),
        ("current_mitigations", 2**53 - 1),
    ):
        if fields.has(name):
            values[name] = fields.integer(name, 0, high)
    for name, known in (
        ("products", PRODUCTS),
        ("signing_keys", ("vcek", "vlek")),
        ("demanded_policy", DEMANDABLE),
        ("demanded_platform", tuple(abi.PLATFORM_BITS.values())),
    ):
        if fields.has(name):
            values[name] = _known(fields, name, known)
    if fields.has("csps"):
        values["csps"] = _listed(fields, "csps", re.compile(r"[\x20-\x7e]{1,200}"))
    if fields.has("vmpls"):
        values["vmpls"] = tuple(_number(fields, "vmpls", entry, 3) for entry in fields.array("vmpls", 4))
    if fields.has("minimum_firmware"):
        major, minor, build = fields.text("minimum_firmware", pattern=_FIRMWARE).split(".")
        values["minimum_firmware"] = (int(major), int(minor), int(build))
    if fields.has("minimum_tcb"):
        values["minimum_tcb"] = _tcbs(fields.member("minimum_tcb"))
    policy = SnpPolicy(
        rules=replace(Rules(), **values),  # type: ignore[arg-type] # each member was read by its type above
        roots=_roots(fields.member("roots")) if fields.has("roots") else dict(amd.ROOTS),
        allow_missing=_known(fields, "allow_missing", (ALLOW_MISSING_CRL,)) if fields.has("allow_missing") else (),
        max_crl_age=max_age(fields),
    )
    fields.done()
    return policy


def max_age(fields: Fields) -> timedelta | None:
    """The optional member ``max_crl_age_days``."""
    if not fields.has("max_crl_age_days"):
        return None
    return timedelta(days=fields.integer("max_crl_age_days", 1, 3650))


def _listed(fields: Fields, name: str, pattern: re.Pattern[str]) -> tuple[str, ...]:
    found = fields.texts(name, 256, pattern=pattern)
    if not found:
        raise BadInput("is empty, so it is no rule", where=fields.path(name), todo="name a value or leave it out")
    return found


def _known(fields: Fields, name: str, known: tuple[str, ...]) -> tuple[str, ...]:
    found = _listed(fields, name, _BITS if name.startswith("demanded") else re.compile(r"[A-Za-z.-]{1,40}"))
    for value in found:
        if value not in known:
            raise BadInput(f"{value!r} is none of {', '.join(known)}", where=fields.path(name))
    return found


def _number(fields: Fields, name: str, value: object, high: int) -> int:
    return Fields({"entry": value}, fields.path(name)).integer("entry", 0, high)


def _tcbs(fields: Fields) -> dict[str, abi.Tcb]:
    found: dict[str, abi.Tcb] = {}
    for product in list(fields.names()):
        if product not in PRODUCTS:
            raise BadInput(f"{product[:40]!r} is none of {', '.join(PRODUCTS)}", where=fields.where)
        tcb = fields.member(product)
        parts = {part: tcb.integer(part, 0, 255) for part in ("bootloader", "tee", "snp", "microcode")}
        fmc = tcb.integer("fmc", 0, 255) if product == "Turin" else 0
        tcb.done()
        found[product] = abi.Tcb(fmc=fmc, **parts)
    return found


def _roots(fields: Fields) -> dict[str, str]:
    roots = {digest: fields.choice(digest, *PRODUCTS) for digest in list(fields.names())}
    for digest in roots:
        Fields({"digest": digest}, fields.where).digest("digest")
    return roots
