# SPDX-License-Identifier: Apache-2.0
"""From a source policy, which may leave the environment's own keys out, to a complete one that any auditor can use.

What the source names stays as it is; only what it leaves out is filled in. The lowest tier can only be raised.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cube_attestation import policy
from cube_attestation.errors import BadInput
from cube_attestation.verdict import TIERS


@dataclass(frozen=True)
class Anchors:
    """Key digests of one environment, by the member that they fill."""

    image_signer: str
    launch_signer: str
    ek_root: str
    ak_issuer: str
    receipt_key: str


def resolve(source: bytes, anchors: Anchors, environment: str, lowest_tier: str, *, where: str = "policy") -> bytes:
    """The complete policy as TOML, valid for `cube_attestation.policy.load`.

    Raises BadInput: no TOML, another environment's policy, an unknown tier or member.
    """
    try:
        value = tomllib.loads(source.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInput(f"not TOML: {str(error)[:120]}", where=where, todo="correct the file") from error
    named = value.get("environment")
    if named != environment:
        raise BadInput(
            f"is for environment {named!r}, this one is {environment!r}",
            where=f"{where}.environment",
            todo="use a policy of this environment",
        )
    for tier in (lowest_tier, value.get("lowest_tier")):
        if tier not in TIERS:
            raise BadInput(f"tier {tier!r} is none of {', '.join(TIERS)}", where=f"{where}.lowest_tier")
    value["lowest_tier"] = max(lowest_tier, value["lowest_tier"], key=TIERS.index)
    _fill(value, "image", "signers", anchors.image_signer, where)
    if "allowed" not in _table(value, "launch", where):
        _fill(value, "launch", "signers", anchors.launch_signer, where)
    _fill(value, "tpm", "ek_roots", anchors.ek_root, where)
    _fill(value, "tpm", "ak_issuers", anchors.ak_issuer, where)
    _fill(value, "freshness", "receipt_keys", anchors.receipt_key, where)
    complete = _toml(value, where).encode()
    policy.load(complete, where=where)
    return complete


def _table(value: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    table = value.setdefault(name, {})
    if not isinstance(table, dict):
        raise BadInput("expected a table", where=f"{where}.{name}")
    return table


def _fill(value: dict[str, Any], table: str, member: str, digest: str, where: str) -> None:
    _table(value, table, where).setdefault(member, [digest])


def _toml(value: Mapping[str, Any], where: str) -> str:
    lines = [f"{name} = {_scalar(item, f'{where}.{name}')}" for name, item in value.items() if not _is_table(item)]
    for name, table in value.items():
        if _is_table(table):
            lines += ["", f"[{name}]"]
            lines += [f"{key} = {_scalar(item, f'{where}.{name}.{key}')}" for key, item in table.items()]
    return "\n".join(lines) + "\n"


def _is_table(item: object) -> bool:
    return isinstance(item, dict)


def _scalar(item: object, where: str) -> str:
    if isinstance(item, bool):
        return "true" if item else "false"
    if isinstance(item, int):
        return str(item)
    if isinstance(item, str):
        return _string(item)
    if isinstance(item, list):
        return "[" + ", ".join(_scalar(entry, where) for entry in item) + "]"
    raise BadInput("a policy holds strings, integers, booleans and lists of them", where=where)


def _string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'
