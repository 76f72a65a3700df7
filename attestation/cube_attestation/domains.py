# SPDX-License-Identifier: Apache-2.0
"""Domain sets: who may use which models and whose tokens count (formats §4)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Collection as Names
from collections.abc import Mapping
from dataclasses import dataclass, field

from . import dsse, jcs
from .errors import BadInput
from .fields import MODEL, Fields

MAX_DOMAINS = 1024
SCOPES = (
    "llm_read",
    "llm_chat_completions",
    "llm_completions",
    "llm_embeddings",
    "llm_transcription",
    "llm_translation",
    "audit_log",
    "membership",
)

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_JTI = re.compile(r"[A-Za-z0-9._-]{1,128}")
_COORDINATE = re.compile(r"[A-Za-z0-9_-]{43}")
_MODEL_ENTRY = re.compile(f"(?:{MODEL.pattern}=)?{MODEL.pattern}")
_ISSUER = re.compile(r"https://[!-~]{1,240}")
_WORD = re.compile(r"[!-~]{1,128}")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]{1,1400}")


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
class Issuer:
    """An OIDC issuer whose JWTs count in a domain.

    ``keys`` are its public JWKs as written (EC P-256 for ES256, RSA of 2048 to 8192 bits for RS256), each with kid
    and alg. ``claims`` are what a token must say besides: equal to the value, or a list that has it.
    """

    issuer: str
    audiences: tuple[str, ...]
    keys: tuple[Mapping[str, str], ...]
    claims: Mapping[str, str]

    def to_json(self) -> dict[str, jcs.Json]:
        return {
            "issuer": self.issuer,
            "audiences": list(self.audiences),
            "keys": [dict(key) for key in self.keys],
            "claims": dict(self.claims),
        }


@dataclass(frozen=True)
class Limits:
    """What a domain may use at most: bytes of a body, requests a minute, requests at the same time."""

    max_body_bytes: int | None = None
    requests_per_minute: int | None = None
    concurrent_requests: int | None = None

    def to_json(self) -> dict[str, jcs.Json]:
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Domain:
    """One tenant: its id, name, models, token keys and revoked token ids, issuers and limits.

    An entry of ``models`` is ``NAME`` or ``NAME=MODEL``: what its clients say, and which model that is.
    """

    id: str
    name: str
    models: tuple[str, ...]
    keys: tuple[TokenKey, ...]
    revoked: tuple[str, ...]
    issuers: tuple[Issuer, ...] = ()
    limits: Limits = field(default_factory=Limits)

    @property
    def mapping(self) -> dict[str, str]:
        """The launch document's model by the name that the domain's clients use."""
        return dict(_split(entry) for entry in self.models)

    def to_json(self) -> dict[str, jcs.Json]:
        """The domain as a ``domains`` body carries it; optional members only when they say something."""
        value: dict[str, jcs.Json] = {
            "id": self.id,
            "name": self.name,
            "models": list(self.models),
            "tokens": {"keys": [key.to_json() for key in self.keys], "revoked": list(self.revoked)},
        }
        if self.issuers:
            value["issuers"] = [issuer.to_json() for issuer in self.issuers]
        if limits := self.limits.to_json():
            value["limits"] = limits
        return value


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
    named = fields.texts("models", 64, pattern=_MODEL_ENTRY)
    pairs = [_split(entry) for entry in named]
    if len({shown for shown, _ in pairs}) != len(pairs):
        raise BadInput("a name stands for two models", where=fields.path("models"))
    if models is not None and (unknown := [model for _, model in pairs if model not in models]):
        raise BadInput(f"the launch document has no model {unknown[0]}", where=fields.path("models"))
    tokens = fields.member("tokens")
    keys = tuple(_key(Fields(k, f"{tokens.where}.keys[{i}]")) for i, k in enumerate(tokens.array("keys", 8)))
    revoked = tokens.texts("revoked", 100_000, pattern=_JTI)
    tokens.done()
    issuers: tuple[Issuer, ...] = ()
    if fields.has("issuers"):
        where = fields.path("issuers")
        issuers = tuple(_issuer(Fields(v, f"{where}[{i}]")) for i, v in enumerate(fields.array("issuers", 4)))
        if len({issuer.issuer for issuer in issuers}) != len(issuers):
            raise BadInput("an issuer occurs twice", where=where)
    limits = _limits(fields.member("limits")) if fields.has("limits") else Limits()
    fields.done()
    return Domain(identity, name, named, keys, revoked, issuers, limits)


def _split(entry: str) -> tuple[str, str]:
    shown, _, model = entry.partition("=")
    return shown, model or shown


def _limits(fields: Fields) -> Limits:
    bounds = {
        "max_body_bytes": (1024, 1 << 30),
        "requests_per_minute": (1, 1_000_000),
        "concurrent_requests": (1, 1024),
    }
    found = {name: fields.integer(name, *bound) for name, bound in bounds.items() if fields.has(name)}
    fields.done()
    return Limits(**found)


def _issuer(fields: Fields) -> Issuer:
    name = fields.text("issuer", pattern=_ISSUER)
    audiences = fields.texts("audiences", 8, pattern=_WORD)
    if not audiences:
        raise BadInput("at least one audience is needed", where=fields.path("audiences"))
    where = fields.path("keys")
    keys = tuple(_issuer_key(Fields(k, f"{where}[{i}]")) for i, k in enumerate(fields.array("keys", 16)))
    if len({key["kid"] for key in keys}) != len(keys):
        raise BadInput("two keys have the same kid", where=where)
    claims: dict[str, str] = {}
    if fields.has("claims"):
        required = fields.member("claims")
        claims = {claim: required.text(claim, pattern=_WORD) for claim in sorted(required.names())}
        if not all(_WORD.fullmatch(claim) for claim in claims):
            raise BadInput("a claim's name is not printable", where=required.where)
        required.done()
    fields.done()
    return Issuer(name, audiences, keys, claims)


def _issuer_key(fields: Fields) -> dict[str, str]:
    """A public JWK, reduced to what a signature check needs. Symmetric and private keys are refused."""
    kind = fields.choice("kty", "EC", "RSA")
    key = {"kty": kind, "kid": fields.text("kid", pattern=_WORD)}
    if kind == "EC":
        key["crv"] = fields.choice("crv", "P-256")
        key["alg"] = fields.choice("alg", "ES256") if fields.has("alg") else "ES256"
        key["x"], key["y"] = _coordinate(fields, "x"), _coordinate(fields, "y")
    else:
        key["alg"] = fields.choice("alg", "RS256") if fields.has("alg") else "RS256"
        key["n"], key["e"] = _modulus(fields), fields.choice("e", "AQAB")
    key["use"] = fields.choice("use", "sig") if fields.has("use") else "sig"
    if fields.has("x5t#S256"):
        fields.text("x5t#S256", limit=64)
    fields.done()
    return key


def _modulus(fields: Fields) -> str:
    text = fields.text("n", pattern=_BASE64URL)
    bits = int.from_bytes(_unbase64url(text, fields.path("n")), "big").bit_length()
    if not 2048 <= bits <= 8192:
        raise BadInput(f"an RSA key of {bits} bits", where=fields.path("n"), todo="use 2048 to 8192 bits")
    return text


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
    _unbase64url(text, fields.path(name))
    return text


def _unbase64url(text: str, where: str) -> bytes:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise BadInput("not base64url", where=where) from error
    if base64.urlsafe_b64encode(raw).decode().rstrip("=") != text:
        raise BadInput("base64url with stray bits", where=where)
    return raw
