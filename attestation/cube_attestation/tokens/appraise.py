# SPDX-License-Identifier: Apache-2.0
"""Is an authentic token acceptable? Issuer, times, nonce, audience, debug state, result, and claims by name."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cube_attestation import jcs, times
from cube_attestation.anchors import nvidia as anchors
from cube_attestation.errors import BadInput
from cube_attestation.fields import Fields
from cube_attestation.verdict import Comparison, Findings, ItemVerdict, Reason

from . import abi, verify

Scalar = str | int | bool
SKEW = timedelta(seconds=60)
MAX_LIFE = timedelta(days=1)

# Where a service puts the caller's nonce, and what it says of debugging: claim path → value that means "off"
_NONCES: Mapping[str, tuple[str, ...]] = {
    "nras": ("eat_nonce",),
    "maa": ("x-ms-runtime.client-payload.nonce", "x-ms-runtime.nonce", "nonce"),
    "confidential-space": ("eat_nonce",),
    "ita": ("verifier_nonce.val", "eat_nonce"),
}
_DEBUG: Mapping[str, Mapping[str, Scalar]] = {
    "nras": {"dbgstat": "disabled"},
    "maa": {
        "x-ms-sevsnpvm-is-debuggable": False,
        "x-ms-isolation-tee.x-ms-sevsnpvm-is-debuggable": False,
        "tdx_td_attributes_debug": False,
        "x-ms-isolation-tee.tdx_td_attributes_debug": False,
        "x-ms-sgx-is-debuggable": False,
    },
    "confidential-space": {"dbgstat": "disabled-since-boot"},
    "ita": {"tdx_td_attributes_debug": False, "tdx.tdx_td_attributes_debug": False, "sgx_is_debuggable": False},
}
# What a good NRAS token of one device says; absent members are judged by measres, which must be there
_DEVICE_RESULT: Mapping[str, Scalar] = {"measres": "success", "secboot": True, "dbgstat": "disabled"}


@dataclass(frozen=True)
class TokenPolicy:
    """One ``[[tokens]]`` entry of a policy.

    ``iss``: accepted issuer names, by default the service's own; ``keys``: SPKI digests of signing keys or of
    certificates above them, by default NVIDIA's for NRAS and nothing for the others; ``audience``: accepted values
    of ``aud``, empty to leave it alone; ``claims``: dotted path → accepted values, all must hold; ``debug``: take
    debuggable machines too; ``max_life``: the longest time from issue to end that is accepted.
    """

    issuer: str
    iss: tuple[str, ...]
    keys: frozenset[str]
    audience: tuple[str, ...] = ()
    claims: Mapping[str, tuple[Scalar, ...]] = field(default_factory=dict)
    debug: bool = False
    max_life: timedelta = MAX_LIFE

    @classmethod
    def read(cls, fields: Fields) -> TokenPolicy:
        """Read the entry. Raises BadInput with the member's path."""
        issuer = fields.choice("issuer", *verify.ISSUERS)
        iss = fields.texts("iss", 16) if fields.has("iss") else verify.ISSUERS[issuer].iss
        default = anchors.NRAS_ISSUERS if issuer == "nras" else ()
        keys = fields.digests("keys") if fields.has("keys") else default
        for name, value in (("iss", iss), ("keys", keys)):
            if not value:
                raise BadInput("is needed for this issuer", where=fields.path(name))
        claims: dict[str, tuple[Scalar, ...]] = {}
        if fields.has("claims"):
            wanted = fields.member("claims")
            for path in wanted.names():
                values = wanted.array(path, 64)
                scalars = tuple(value for value in values if isinstance(value, str | int))
                if not scalars or len(scalars) != len(values):
                    raise BadInput("expected strings, integers or booleans", where=wanted.path(path))
                claims[path] = scalars
            wanted.done()
        seconds = fields.integer("max_life_s", 60, 366 * 86400) if fields.has("max_life_s") else 86400
        rules = cls(
            issuer=issuer,
            iss=iss,
            keys=frozenset(keys),
            audience=fields.texts("audience", 16) if fields.has("audience") else (),
            claims=claims,
            debug=fields.boolean("debug") if fields.has("debug") else False,
            max_life=timedelta(seconds=seconds),
        )
        fields.done()
        return rules


def appraise(
    data: bytes,
    keys: Sequence[abi.Key],
    rules: TokenPolicy,
    now: datetime,
    *,
    nonce: str | None = None,
) -> tuple[ItemVerdict, ...]:
    """One item ``token-<issuer>``; for NRAS's sets one more per device (``token-nras-gpu-0`` …).

    ``nonce``: the text that the token must carry, None to leave it alone. Raises BadInput for what is no token.
    """
    if not abi.is_set(data):
        token = abi.parse(data)
        findings = _token(token, keys, rules, now, nonce)
        if rules.issuer == "nras" and "submods" in token.claims:
            _members(abi.TokenSet(token, {}), findings)  # it speaks for devices whose tokens are not here
        return (findings.verdict(f"token-{rules.issuer}"),)
    if rules.issuer != "nras":
        raise BadInput(f"a set of tokens, which {rules.issuer} does not give", where="token")
    found = abi.parse_set(data)
    overall = _token(found.overall, keys, rules, now, nonce)
    _members(found, overall)
    items = [overall.verdict("token-nras")]
    for name, token in found.devices.items():
        device = _token(token, keys, rules, now, nonce, device=True)
        items.append(device.verdict(f"token-nras-{name.lower()}"))
    return tuple(items)


def _token(
    token: abi.Token,
    keys: Sequence[abi.Key],
    rules: TokenPolicy,
    now: datetime,
    nonce: str | None,
    *,
    device: bool = False,
) -> Findings:
    findings = Findings(list(verify.verify(token, rules.issuer, keys, rules.keys, now)))
    findings.facts = _facts(token)
    claims = token.claims
    if claims.get("iss") not in rules.iss:
        findings.refuse("token.iss.not_allowed", f"issued by {_show(claims.get('iss'))}")
        findings.compared.append(Comparison("iss", " or ".join(rules.iss), _show(claims.get("iss"))))
    _times(claims, rules, now, findings)
    if nonce is not None:
        _nonce(claims, rules.issuer, nonce, findings)
    if rules.audience:
        audience = claims.get("aud")
        named = audience if isinstance(audience, list) else [audience]
        if not any(isinstance(name, str) and name in rules.audience for name in named):
            findings.refuse("token.aud.not_allowed", f"made for {_show(audience)}")
    if rules.issuer == "nras":
        _result(claims, device, findings)
    if not rules.debug and not (rules.issuer == "nras" and not device):
        _debug(claims, rules.issuer, findings)
    for path, accepted in () if device else rules.claims.items():
        found = claim(claims, path)
        if found is None:
            findings.refuse("token.claim.missing", f"has no claim {path}")
        elif not any(type(found) is type(value) and found == value for value in accepted):
            findings.refuse("token.claim.not_allowed", f"{path} is {_show(found)}")
            expected = " or ".join(str(value) for value in accepted)
            findings.compared.append(Comparison(path, expected, _clean(str(found), 200)))
    return findings


def claim(claims: Mapping[str, object], path: str) -> object:
    """The claim at a dotted path, None when there is none. A member whose name has dots is found whole first."""
    value: object = claims
    while True:
        if not isinstance(value, Mapping):
            return None
        if path in value:
            return value[path]
        head, dot, path = path.partition(".")
        if not dot or head not in value:
            return None
        value = value[head]


def _facts(token: abi.Token) -> dict[str, jcs.Json]:
    """The claims that people ask for first."""
    facts: dict[str, jcs.Json] = {}
    for source, names in ((token.header, ("alg", "kid")), (token.claims, _SHOWN)):
        for name in names:
            value = source.get(name)
            if isinstance(value, str | bool) or (isinstance(value, int) and abs(value) <= jcs.MAX_INTEGER):
                facts[name] = _clean(value, 200) if isinstance(value, str) else value
    return facts


_SHOWN = (
    "iss", "sub", "iat", "nbf", "exp", "hwmodel", "swname", "dbgstat", "secboot", "measres", "ueid", "eat_nonce",
    "x-nvidia-overall-att-result", "x-nvidia-gpu-driver-version", "x-nvidia-gpu-vbios-version",
    "x-nvidia-switch-bios-version", "x-ms-attestation-type", "x-ms-compliance-status", "x-ms-policy-hash",
    "x-ms-sevsnpvm-launchmeasurement", "x-ms-sevsnpvm-is-debuggable", "tdx_mrtd", "attester_tcb_status",
)  # fmt: skip


def _times(claims: Mapping[str, object], rules: TokenPolicy, now: datetime, findings: Findings) -> None:
    """exp is needed; iat and nbf may not lie ahead; the whole life is bounded."""
    stamps: dict[str, datetime] = {}
    for name in ("iat", "nbf", "exp"):
        value = claims.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 34:
            stamps[name] = datetime.fromtimestamp(value, UTC)
        elif value is not None:
            findings.refuse("token.time.invalid", f"{name} is {_show(value)}")
    for name in ("iat", "nbf"):
        if name in stamps and stamps[name] > now + SKEW:
            words = f"{name} is {times.format_time(stamps[name])}, after the clock"
            findings.refuse("token.time.not_yet_valid", words)
    if "exp" not in stamps:
        if claims.get("exp") is None:
            findings.refuse("token.exp.missing", "has no end")
        return
    if now > stamps["exp"]:
        findings.refuse("token.exp.expired", f"was valid until {times.format_time(stamps['exp'])}")
    start = stamps.get("iat", stamps.get("nbf"))
    if start is None:
        findings.refuse("token.iat.missing", "does not say when it was issued")
    elif stamps["exp"] - start > rules.max_life:
        findings.refuse(
            "token.exp.too_long", f"lives {stamps['exp'] - start}, at most {rules.max_life} is accepted"
        )


def _nonce(claims: Mapping[str, object], issuer: str, nonce: str, findings: Findings) -> None:
    for path in _NONCES[issuer]:
        found = claim(claims, path)
        values = found if isinstance(found, list) else [found]
        if any(isinstance(value, str) and hmac.compare_digest(_bytes(value), _bytes(nonce)) for value in values):
            return
    shown = next((_show(value) for path in _NONCES[issuer] if (value := claim(claims, path)) is not None), "none")
    findings.refuse("token.nonce.mismatch", f"carries nonce {shown}")
    findings.compared.append(Comparison("nonce", nonce[:200], shown))


def _debug(claims: Mapping[str, object], issuer: str, findings: Findings) -> None:
    """Every debug claim that is there must say off, and one must be there."""
    stated = False
    for path, off in _DEBUG[issuer].items():
        found = claim(claims, path)
        if found is None:
            continue
        stated = True
        if type(found) is not type(off) or found != off:
            findings.refuse("token.debug.enabled", f"{path} is {_show(found)}")
    if not stated:
        findings.refuse("token.debug.unknown", "does not say whether the machine can be debugged")


def _result(claims: Mapping[str, object], device: bool, findings: Findings) -> None:
    """NVIDIA's own outcome, and no single check of a device that failed."""
    if not device:
        if claims.get("x-nvidia-overall-att-result") is not True:
            found = _show(claims.get("x-nvidia-overall-att-result"))
            findings.refuse("token.result.failed", f"x-nvidia-overall-att-result is {found}")
        return
    for name, good in _DEVICE_RESULT.items():
        if name != "dbgstat" and (type(claims.get(name)) is not type(good) or claims.get(name) != good):
            findings.refuse("token.result.failed", f"{name} is {_show(claims.get(name))}")
    for name, value in claims.items():
        if re.fullmatch(r"x-nvidia-(gpu|switch)-[a-z-]+", name) and value is False:
            findings.refuse("token.result.failed", f"{name} is false")


def _members(found: abi.TokenSet, findings: Findings) -> None:
    """The overall token names every device's token by digest, and no other."""
    named = found.overall.claims.get("submods")
    if not isinstance(named, Mapping) or set(named) != set(found.devices) or not named:
        listed = sorted(named) if isinstance(named, Mapping) else []
        words = f"the overall token names {_show(', '.join(map(str, listed))) or 'nothing'}, given are "
        findings.forged.append(Reason("token.set.members", words + (", ".join(sorted(found.devices)) or "none")))
        return
    for name, token in found.devices.items():
        digest = hashlib.sha256(token.text.encode()).hexdigest()
        if named[name] != ["DIGEST", ["SHA-256", digest]]:
            findings.forged.append(Reason("token.set.digest_mismatch", f"the token of {name} is another one"))
        if token.claims.get("eat_nonce") != found.overall.claims.get("eat_nonce"):
            findings.refuse("token.set.nonces", f"the token of {name} answers another nonce")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _show(value: object) -> str:
    return _clean(value if isinstance(value, str) else repr(value), 120)


def _clean(text: str, limit: int) -> str:
    """A foreign text for a report: cut, and without control characters or halves of surrogate pairs."""
    return "".join(c if c.isprintable() else "?" for c in text[:limit])
