# SPDX-License-Identifier: Apache-2.0
"""Ollama's model store, made in memory over read-only volumes: manifests, small blobs, links to the GGUF."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from cube_attestation import jcs
from cube_attestation.errors import BadInput
from cube_attestation.fields import Fields

SIDECAR = "ollama.json"
_NAME = re.compile(r"([a-z0-9][a-z0-9._-]{0,79})(?::([A-Za-z0-9_][A-Za-z0-9._-]{0,79}))?")
_MAX_SIDECAR = 1 << 20


@dataclass(frozen=True)
class Sidecar:
    """``ollama.json`` of a volume (formats §6). ``model`` is the hex SHA-256 of the GGUF, ``size`` its bytes."""

    model: str
    size: int
    config: bytes
    template: bytes
    params: bytes


def parse_sidecar(data: bytes, *, where: str = SIDECAR) -> Sidecar:
    """Read ``ollama.json``. Raises BadInput."""
    fields = Fields(jcs.loads(data, where=where), where)
    fields.version()
    config = fields.raw("config")
    params = fields.raw("params")
    for name, value in (("config", config), ("params", params)):
        if not isinstance(value, dict):
            raise BadInput("expected an object", where=fields.path(name))
    sidecar = Sidecar(
        model=fields.digest("model").removeprefix("sha256:"),
        size=fields.integer("size", 1, jcs.MAX_INTEGER),
        config=jcs.dumps(config),
        template=fields.text("template", limit=65536).encode(),
        params=jcs.dumps(params),
    )
    fields.done()
    return sidecar


def read_sidecar(gguf: Path) -> Sidecar:
    """The sidecar beside ``gguf``; also checks that the GGUF has the size it names. Raises BadInput, OSError."""
    path = gguf.parent / SIDECAR
    with path.open("rb") as file:
        data = file.read(_MAX_SIDECAR)
    sidecar = parse_sidecar(data, where=str(path))
    if gguf.stat().st_size != sidecar.size:
        raise BadInput(f"{gguf.name} has {gguf.stat().st_size} bytes, not {sidecar.size}", where=str(path))
    return sidecar


def add(store: Path, name: str, gguf: Path, sidecar: Sidecar) -> None:
    """Make ``gguf`` known to Ollama as ``name`` (``model`` or ``model:tag``). Raises BadInput for another name."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise BadInput(f"{name!r} is no name that Ollama takes", where="launch.models", todo="use a-z, 0-9, . _ -")
    blobs = store / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    link = blobs / f"sha256-{sidecar.model}"
    if not link.is_symlink():
        link.symlink_to(gguf)
    layers = [
        _descriptor("model", sidecar.model, sidecar.size),
        _blob(blobs, "template", sidecar.template),
        _blob(blobs, "params", sidecar.params),
    ]
    config = json.loads(sidecar.config)
    config["rootfs"] = {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": _blob(blobs, "", jcs.dumps(config)),
        "layers": layers,
    }
    place = store / "manifests/registry.ollama.ai/library" / match[1] / (match[2] or "latest")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(jcs.dumps(manifest))


def _blob(blobs: Path, kind: str, data: bytes) -> dict[str, str | int]:
    digest = hashlib.sha256(data).hexdigest()
    (blobs / f"sha256-{digest}").write_bytes(data)
    return _descriptor(kind, digest, len(data))


def _descriptor(kind: str, digest: str, size: int) -> dict[str, str | int]:
    media = f"application/vnd.ollama.image.{kind}" if kind else "application/vnd.docker.container.image.v1+json"
    return {"mediaType": media, "digest": f"sha256:{digest}", "size": size}
