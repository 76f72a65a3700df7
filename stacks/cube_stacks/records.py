# SPDX-License-Identifier: Apache-2.0
"""What is deployed, as the `cube` command finds it: one folder for each resource of an environment.

`<state>/<kind>/<name>/record.json` holds the resource's inputs and outputs (references to keys, never keys), beside
the bundles and the policy that it wrote. The engine's state stays the engine's: the command works without it, and
without the stack's passphrase.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from cube_stacks.state import read_record, state_folder, write_record

Kind = Literal["gates", "domain-sets", "edges"]
_RECORD = "record.json"


def folder(environment: str, kind: Kind, name: str) -> Path:
    """The folder of one resource; `name` is its name in the program."""
    return state_folder(environment) / kind / name


def keep(environment: str, kind: Kind, name: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    """Write the record of a resource as it is now."""
    place = folder(environment, kind, name)
    place.mkdir(parents=True, exist_ok=True)
    write_record(place / _RECORD, {"inputs": dict(inputs), "outputs": dict(outputs)})


def find(environment: str, kind: Kind, name: str) -> dict[str, Any] | None:
    """`{"inputs": …, "outputs": …}` of one resource, or None."""
    record = read_record(folder(environment, kind, name) / _RECORD)
    if record is None or not all(isinstance(record.get(part), dict) for part in ("inputs", "outputs")):
        return None
    return record


def all_of(environment: str, kind: Kind) -> dict[str, dict[str, Any]]:
    """Every resource of a kind, by name."""
    place = state_folder(environment) / kind
    names = sorted(entry.name for entry in place.iterdir()) if place.is_dir() else []
    found = {name: find(environment, kind, name) for name in names}
    return {name: record for name, record in found.items() if record is not None}


def forget(environment: str, kind: Kind, name: str) -> None:
    """Remove the record; bundles stay for auditors."""
    (folder(environment, kind, name) / _RECORD).unlink(missing_ok=True)


def remove(environment: str, kind: Kind, name: str) -> None:
    """Remove everything of one resource."""
    shutil.rmtree(folder(environment, kind, name), ignore_errors=True)


def name_of(urn: str) -> str:
    """The resource's name in its URN."""
    return urn.rsplit("::", 1)[-1]


def environment_of(urn: str) -> str:
    """The environment, which is the stack, in a resource's URN."""
    return urn.split("::", 1)[0].removeprefix("urn:pulumi:")
