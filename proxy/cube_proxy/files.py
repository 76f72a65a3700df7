# SPDX-License-Identifier: Apache-2.0
"""Files that Envoy watches: written beside their place, then renamed, so that nobody sees half of one."""

from __future__ import annotations

import json
import os
from pathlib import Path


def write_json(path: Path, value: object, *, group: int = -1) -> None:
    """Replace ``path`` by ``value`` as JSON, readable by root and ``group`` (a numeric id; -1: leave it)."""
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    with os.fdopen(descriptor, "w") as file:
        os.fchown(descriptor, -1, group)
        json.dump(value, file, separators=(",", ":"))
    temporary.replace(path)
