# SPDX-License-Identifier: Apache-2.0
"""Folders of the user's machine: an environment's state, the shared cache, and writes that are never half done."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cube_images.paths import cache_dir, state_dir

_ENVIRONMENT = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def state_folder(environment: str) -> Path:
    """`${XDG_STATE_HOME:-~/.local/state}/cube-confidential/<environment>`, made 0700 if it is missing.

    Raises ValueError when `environment` is not a DNS label: it becomes a folder name and a token audience.
    """
    if not _ENVIRONMENT.fullmatch(environment):
        raise ValueError(
            f"environment {environment!r}: use 1 to 63 lower-case letters, digits and dashes, e.g. 'local'"
        )
    folder = state_dir() / environment
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def cache_folder() -> Path:
    """`${XDG_CACHE_HOME:-~/.cache}/cube-confidential`, made if it is missing."""
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_atomically(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write beside `path` and rename over it, so that a reader sees the old bytes or the new ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Keep a JSON object that another command will read: readable by the user alone."""
    write_atomically(path, json.dumps(record, indent=1, sort_keys=True).encode() + b"\n", 0o600)


def read_record(path: Path) -> dict[str, Any] | None:
    """The object that `write_record` kept; None when there is none, or none that can be read."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
