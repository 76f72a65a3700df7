# SPDX-License-Identifier: Apache-2.0
"""Domain sets: who may use which models and whose tokens count (formats §4)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Collection as Names
from dataclasses import dataclass

from . import dsse, jcs
from .errors import BadInput
from .fields import MODEL, Fields

MAX_DOMAINS = 1024

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_JTI = re.compile(r"[A-Za-z0-9._-]{1,128}")
_COORDINATE = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True)
class TokenKey:
    """A public P-256 JWK of a domain's token key; ``x`` and ``y`` are base64url."""

    kid: str
    x: str
    y: str

    def to_json(self) -> dict[str, jcs.Json]:
        return {
            "kty": "EC",
            "crv": "P-256",
            "x": self.x,
            "y": self.y,
            "kid": self.kid,
            "alg": "ES256",
            "use": "sig",
        }


@dataclass(frozen=True)
class Domain:
    """One tenant: its id, name, models, token keys and revoked token ids."""

    id: str
    name: str
    models: tuple[str, ...]
    keys: tuple[TokenKey, ...]
    revoked: tuple[str, ...]


@dataclass(frozen=True)
class DomainSet:
    """All domains of a machine; ``digest`` is over the canonical JSON of the body ``{"domains": […]}``."""

    domains: tuple[Domain, ...]
    digest: str


def digest(body: object) -> str:
    """The digest of a ``domains`` body, as claims carry it."""
    return dsse.digest(jcs.dumps(body))


def thumbprint(x: str, y: str) -> str:
    """RFC 7638 thumbprint of a P-256 JWK, base64url."""
    canonical = jcs.dumps({"crv": "P-256", "kty": "EC", "x": x, "y": y})
    return base64.urlsafe_b64encode(hashlib.sha256(canonical).digest()).decode().rstrip("=")


def parse(body: object, *, models: Names[str] | None = None, where: str = "body") -> DomainSet:
    """Validate a ``domains`` body. ``models``: names of the launch document, when known. Raises BadInput."""
    fields = Fields(body, where)
    found = [
        _domain(Fields(entry, f"{where}.domains[{i}]"), models)
        for i, entry in enumerate(fields.array("domains", MAX_DOMAINS))
    ]
    fields.done()
    for what, values in (("id", [d.id for d in found]), ("name", [d.name for d in found])):
        if len(set(values)) != len(values):
            raise BadInput(f"two domains have the same {what}", where=f"{where}.domains")
    kids = [key.kid for domain in found for key in domain.keys]
    if len(set(kids)) != len(kids):
        raise BadInput("a token key occurs twice", where=f"{where}.domains", todo="give each domain its own key")
    return DomainSet(tuple(found), digest(body))


def _domain(fields: Fields, models: Names[str] | None) -> Domain:
    identity = fields.text("id", pattern=_UUID)
    name = fields.text("name", pattern=_NAME)
    named = fields.texts("models", 64, pattern=MODEL)
    if models is not None and (unknown := [model for model in named if model not in models]):
        raise BadInput(f"the launch document has no model {unknown[0]}", where=fields.path("models"))
    tokens = fields.member("tokens")
    keys = tuple(_key(Fields(k, f"{tokens.where}.keys[{i}]")) for i, k in enumerate(tokens.array("keys", 8)))
    revoked = tokens.texts("revoked", 100_000, pattern=_JTI)
    tokens.done()
    fields.done()
    return Domain(identity, name, named, keys, revoked)


def _key(fields: Fields) -> TokenKey:
    fields.choice("kty", "EC")
    fields.choice("crv", "P-256")
    if fields.has("alg"):
        fields.choice("alg", "ES256")
    if fields.has("use"):
        fields.choice("use", "sig")
    key = TokenKey(fields.text("kid", limit=128), _coordinate(fields, "x"), _coordinate(fields, "y"))
    fields.done()  # also refuses a private part ("d")
    if key.kid != thumbprint(key.x, key.y):
        raise BadInput("is not the key's RFC 7638 thumbprint", where=fields.path("kid"))
    return key


def _coordinate(fields: Fields, name: str) -> str:
    text = fields.text(name, pattern=_COORDINATE)
    try:
        raw = base64.b64decode(text + "=", altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise BadInput("not base64url", where=fields.path(name)) from error
    if base64.urlsafe_b64encode(raw).decode().rstrip("=") != text:
        raise BadInput("base64url with stray bits", where=fields.path(name))
    return text
