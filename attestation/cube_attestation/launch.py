# SPDX-License-Identifier: Apache-2.0
"""The launch document: what a machine is told from outside, as data, once per boot (formats §6)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from . import dsse, jcs
from .errors import BadInput
from .fields import ENVIRONMENT, HEX32, MODEL, Fields

MEDIA_TYPE = "application/vnd.cube.launch+dsse"
VOLUME_MAGIC = b"CUBELNCH"
VOLUME_BYTES = 1 << 20
BACKENDS = ("ollama", "vllm")

_SERIAL = re.compile(r"[A-Za-z0-9._-]{1,20}")  # virtio-blk cuts a serial at 20 bytes
_HOSTNAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,62})(\.[a-z0-9]([a-z0-9-]{0,62}))*")


@dataclass(frozen=True)
class Model:
    """A model on a read-only verity volume: sizes and offsets in bytes, ``file`` relative to the volume's root."""

    backend: str
    root: str
    hash_offset: int
    size: int
    serial: str
    file: str


@dataclass(frozen=True)
class LaunchDocument:
    """A valid payload. ``control_keys`` are DER SubjectPublicKeyInfo."""

    environment: str
    revision: int
    control_keys: tuple[bytes, ...]
    hostnames: tuple[str, ...]
    models: Mapping[str, Model]
    max_body_bytes: int

    def control_key_digests(self) -> tuple[str, ...]:
        return tuple(dsse.spki_digest(key) for key in self.control_keys)


def parse(payload: object, *, where: str = "launch") -> LaunchDocument:
    """Validate the payload of a launch document. Who signed it is the caller's question. Raises BadInput."""
    fields = Fields(payload, where)
    fields.version()
    environment = fields.text("environment", pattern=ENVIRONMENT)
    revision = fields.integer("revision", 1, jcs.MAX_INTEGER)
    pems = fields.texts("control_keys", 8)
    keys = tuple(dsse.spki_from_pem(pem, where=fields.path("control_keys")) for pem in pems)
    if not keys:
        raise BadInput("at least one key is needed", where=fields.path("control_keys"))
    hostnames = fields.texts("hostnames", 32, pattern=_HOSTNAME)
    if not hostnames:
        raise BadInput("at least one name is needed", where=fields.path("hostnames"))
    limits = fields.member("limits")
    max_body = limits.integer("max_body_bytes", 1024, 1 << 30)
    limits.done()
    models: dict[str, Model] = {}
    listed = fields.member("models")
    for name in listed.names():
        if not MODEL.fullmatch(name):
            raise BadInput(f"{name[:80]!r} is no model name", where=listed.where)
        models[name] = _model(listed.member(name))
    if not 1 <= len(models) <= 64:
        raise BadInput("between 1 and 64 models are needed", where=listed.where)
    fields.done()
    return LaunchDocument(environment, revision, keys, hostnames, models, max_body)


def _model(fields: Fields) -> Model:
    model = Model(
        backend=fields.choice("backend", *BACKENDS),
        root=fields.text("root", pattern=HEX32),
        hash_offset=fields.integer("hash_offset", 512, jcs.MAX_INTEGER),
        size=fields.integer("size", 512, jcs.MAX_INTEGER),
        serial=fields.text("serial", pattern=_SERIAL),
        file=fields.text("file", limit=1024),
    )
    path = PurePosixPath(model.file)
    if path.is_absolute() or ".." in path.parts or "\0" in model.file or not path.parts:
        raise BadInput("must be a path inside the volume", where=fields.path("file"))
    if model.hash_offset % 512 or model.size % 512:
        raise BadInput("hash_offset and size must be multiples of 512 bytes", where=fields.where)
    fields.done()
    return model


def peek(envelope: object) -> tuple[LaunchDocument, str]:
    """The document and its payload's digest, without any check of who signed it. Raises BadInput."""
    verified = dsse.peek(envelope, dsse.LAUNCH, where="launch")
    return parse(verified.payload), verified.digest


def write_volume(envelope: object) -> bytes:
    """The raw 1 MiB disk that carries ``envelope`` into a local machine."""
    data = jcs.dumps(envelope)
    frame = VOLUME_MAGIC + len(data).to_bytes(4, "big") + data
    if len(frame) > VOLUME_BYTES:
        raise BadInput("the launch document does not fit into 1 MiB", where="launch")
    return frame.ljust(VOLUME_BYTES, b"\0")


def read_volume(data: bytes) -> jcs.Json:
    """The envelope on a launch disk (the first MiB is enough). Raises BadInput."""
    if data[:8] != VOLUME_MAGIC:
        raise BadInput("does not start with CUBELNCH", where="launch disk", todo="attach the launch disk")
    length = int.from_bytes(data[8:12], "big")
    if not 0 < length <= VOLUME_BYTES - 12 or len(data) < 12 + length:
        raise BadInput(f"length {length} does not fit", where="launch disk")
    if any(data[12 + length : VOLUME_BYTES]):
        raise BadInput("bytes after the document are not zero", where="launch disk")
    return jcs.loads(data[12 : 12 + length], where="launch disk")
