# SPDX-License-Identifier: Apache-2.0
"""The claims that a machine makes and that its evidence is bound to (formats §1). Standard library only."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

from . import jcs, times
from .errors import BadInput
from .fields import DIGEST, ENVIRONMENT, HEX32, MODEL, Fields

MEDIA_TYPE = "application/vnd.cube.claims+json"
DOMAIN_SEPARATOR = b"cube-claims/1\0"
GPU_SEPARATOR = b"cube-gpu/1\0"
NONCE_BYTES = (16, 64)
MODEL_STATES = ("absent", "opened", "ready", "failed")
_BOOT = re.compile(r"[0-9a-f]{32}")


class DomainsClaim(NamedTuple):
    """The domain set in force: generation 0 and an empty digest before the first set of this boot."""

    generation: int = 0
    digest: str = ""


class ModelClaim(NamedTuple):
    """One model volume: its dm-verity root hash (hex) and how far its opening got."""

    root: str
    state: str


@dataclass(frozen=True)
class Claims:
    """Everything that a machine states about this boot. Digests are ``sha256:<hex>``, ``nonce`` is raw bytes."""

    nonce: bytes
    environment: str
    boot: str
    tls_spki: str
    audit_spki: str
    time: datetime
    launch: str
    domains: DomainsClaim = field(default_factory=DomainsClaim)
    models: Mapping[str, ModelClaim] = field(default_factory=dict)
    image: str = ""
    gpu: str = ""

    def to_json(self) -> dict[str, jcs.Json]:
        """The JSON object; ``gpu`` is left out when there is no GPU evidence."""
        value: dict[str, jcs.Json] = {
            "version": 1,
            "nonce": self.nonce.hex(),
            "environment": self.environment,
            "boot": self.boot,
            "tls_spki": self.tls_spki,
            "audit_spki": self.audit_spki,
            "time": times.format_time(self.time),
            "launch": self.launch,
            "domains": {"generation": self.domains.generation, "digest": self.domains.digest},
            "models": {name: {"root": m.root, "state": m.state} for name, m in self.models.items()},
            "image": self.image,
        }
        if self.gpu:
            value["gpu"] = self.gpu
        return value

    def encode(self) -> bytes:
        """Canonical JSON, checked by reading it back: a machine never signs claims that nobody could read."""
        data = jcs.dumps(self.to_json())
        Claims.from_json(jcs.loads(data))
        return data

    @classmethod
    def from_json(cls, value: object, *, where: str = "claims") -> Claims:
        """Read and validate claims. Raises BadInput with the member's path."""
        fields = Fields(value, where)
        fields.version()
        domains = fields.member("domains")
        force = DomainsClaim(
            domains.integer("generation", 0, jcs.MAX_INTEGER), domains.digest("digest", allow_empty=True)
        )
        domains.done()
        models: dict[str, ModelClaim] = {}
        listed = fields.member("models")
        for name in listed.names():
            if not MODEL.fullmatch(name):
                raise BadInput(f"{name[:80]!r} is no model name", where=listed.where)
            model = listed.member(name)
            models[name] = ModelClaim(model.text("root", pattern=HEX32), model.choice("state", *MODEL_STATES))
            model.done()
        claims = cls(
            nonce=fields.hexadecimal("nonce", *NONCE_BYTES),
            environment=fields.text("environment", pattern=ENVIRONMENT),
            boot=fields.text("boot", pattern=_BOOT),
            tls_spki=fields.digest("tls_spki"),
            audit_spki=fields.digest("audit_spki"),
            time=fields.time("time"),
            launch=fields.digest("launch"),
            domains=force,
            models=models,
            image=fields.text("image", limit=200),
            gpu=fields.text("gpu", pattern=DIGEST) if fields.has("gpu") else "",
        )
        fields.done()
        return claims

    @classmethod
    def decode(cls, data: bytes, *, where: str = "claims") -> Claims:
        """Read claims from their canonical bytes. Raises BadInput."""
        return cls.from_json(jcs.loads(data, canonical=True, where=where), where=where)

    def binding(self) -> bytes:
        """``D``: what report_data and extraData are digests of."""
        return DOMAIN_SEPARATOR + jcs.dumps(self.to_json())

    def extra_data(self) -> bytes:
        """32 bytes for TPM2_Quote's qualifyingData: SHA-256(D)."""
        return hashlib.sha256(self.binding()).digest()

    def report_data(self) -> bytes:
        """64 bytes for the report_data of SNP and TDX: SHA-512(D)."""
        return hashlib.sha512(self.binding()).digest()

    def gpu_nonce(self) -> bytes:
        """32 bytes for the GPU's SPDM request: SHA-256 over the claims without ``gpu``."""
        return hashlib.sha256(GPU_SEPARATOR + jcs.dumps(replace(self, gpu="").to_json())).digest()
