# SPDX-License-Identifier: Apache-2.0
"""Control messages: signed, and good for one boot, one key, one path and one generation only (formats §4)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from . import dsse, jcs, times
from .errors import BadInput
from .fields import ENVIRONMENT, Fields

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

PREFIX = "/control/v1/"
METHODS = {"admit": "POST", "revoke": "POST", "domains": "PUT"}
_BOOT = re.compile(r"[0-9a-f]{32}")
_PATH = re.compile(r"/control/v1/(admit|revoke|domains)")


@dataclass(frozen=True)
class ControlMessage:
    """One message; ``body`` is the object that the path's own rules check (``Admit``, ``domains.parse`` …)."""

    environment: str
    method: str
    path: str
    boot: str
    tls_spki: str
    generation: int
    time: datetime
    body: dict[str, jcs.Json]

    def to_json(self) -> dict[str, jcs.Json]:
        return {
            "version": 1,
            "environment": self.environment,
            "method": self.method,
            "path": self.path,
            "boot": self.boot,
            "tls_spki": self.tls_spki,
            "generation": self.generation,
            "time": times.format_time(self.time),
            "body": self.body,
        }

    def sign(self, key: dsse.Signer | ec.EllipticCurvePrivateKey) -> dict[str, jcs.Json]:
        """The message's DSSE envelope: the request body."""
        return dsse.sign(dsse.CONTROL, self.to_json(), key)

    @classmethod
    def verify(cls, envelope: object, keys: Iterable[bytes | str]) -> ControlMessage:
        """The message if one of ``keys`` signed it; boot, key, time and generation are the caller's to compare.

        Raises BadInput for a malformed message, NotAuthentic for a wrong signature or signer.
        """
        verified = dsse.verify(envelope, dsse.CONTROL, keys, where="message")
        fields = Fields(verified.payload, "message")
        fields.version()
        body = fields.raw("body")
        if not isinstance(body, dict):
            raise BadInput("expected an object", where="message.body")
        message = cls(
            environment=fields.text("environment", pattern=ENVIRONMENT),
            method=fields.choice("method", "POST", "PUT"),
            path=fields.text("path", pattern=_PATH),
            boot=fields.text("boot", pattern=_BOOT),
            tls_spki=fields.digest("tls_spki"),
            generation=fields.integer("generation", 0, jcs.MAX_INTEGER),
            time=fields.time("time"),
            body=body,
        )
        fields.done()
        return message


@dataclass(frozen=True)
class Admit:
    """Body of ``admit``: the lease, the leaf certificate for the boot's TLS key, the bundle that earned it."""

    lease_seconds: int
    expires: datetime
    certificate: str
    bundle: str

    def to_json(self) -> dict[str, jcs.Json]:
        return {
            "lease_seconds": self.lease_seconds,
            "expires": times.format_time(self.expires),
            "certificate": self.certificate,
            "bundle": self.bundle,
        }

    @classmethod
    def from_json(cls, body: object) -> Admit:
        """Raises BadInput."""
        fields = Fields(body, "body")
        admit = cls(
            lease_seconds=fields.integer("lease_seconds", 1, 86400),
            expires=fields.time("expires"),
            certificate=fields.text("certificate", limit=65536),
            bundle=fields.digest("bundle"),
        )
        fields.done()
        return admit


def parse_revoke(body: object) -> str:
    """The reason code of a ``revoke`` body. Raises BadInput."""
    fields = Fields(body, "body")
    reason = fields.text("reason", pattern=re.compile(r"[a-z0-9_.-]{1,100}"))
    fields.done()
    return reason
