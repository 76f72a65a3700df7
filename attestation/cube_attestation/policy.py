# SPDX-License-Identifier: Apache-2.0
"""Policies: what a verifier accepts (formats §9). Unknown members and policies that take everything are refused."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from . import dsse, jcs
from .errors import BadInput
from .fields import ENVIRONMENT, Fields
from .verdict import TIERS

if TYPE_CHECKING:
    from .azure.policy import AzurePolicy
    from .nvidia.policy import NvidiaPolicy
    from .snp.policy import SnpPolicy
    from .tdx.policy import TdxPolicy
    from .tokens.appraise import TokenPolicy

_T = TypeVar("_T")

# Without these PCRs a boot is not pinned: 4 the programs that the firmware started, 8 the launch document, 9 the
# kernel's command line and initrd as loaded, 11 the unified kernel image and the boot's phases.
NEEDED_PCRS = (4, 8, 9, 11)
MAX_BYTES = 64 << 10


@dataclass(frozen=True)
class ImageRules:
    """``allowed`` empty: every manifest of ``signers``."""

    signers: tuple[str, ...]
    allowed: tuple[str, ...]
    debug: bool


@dataclass(frozen=True)
class LaunchRules:
    """A launch document is accepted if ``signers`` signed it or its digest is in ``allowed``."""

    signers: tuple[str, ...]
    allowed: tuple[str, ...]
    minimum_revision: int


@dataclass(frozen=True)
class TpmRules:
    """SPKI digests of EK roots and AK issuers of the software tier, and the PCRs that must equal predictions."""

    ek_roots: tuple[str, ...]
    ak_issuers: tuple[str, ...]
    pcrs: tuple[int, ...]


@dataclass(frozen=True)
class Policy:
    """A valid policy; ``digest`` is over the file's bytes. Sections that the file lacks are None."""

    environment: str
    lowest_tier: str
    max_clock_skew_s: int
    image: ImageRules
    launch: LaunchRules
    tpm: TpmRules
    receipt_keys: tuple[str, ...]
    digest: str
    snp: SnpPolicy | None = None
    azure: AzurePolicy | None = None
    tdx: TdxPolicy | None = None
    nvidia: NvidiaPolicy | None = None
    tokens: tuple[TokenPolicy, ...] = ()


def load(data: bytes, *, where: str = "policy") -> Policy:
    """Read a TOML policy. Raises BadInput that names the member."""
    if len(data) > MAX_BYTES:
        raise BadInput(f"larger than {MAX_BYTES >> 10} KiB", where=where)
    try:
        value = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadInput(f"not TOML: {str(error)[:120]}", where=where) from error
    fields = Fields(value, where)
    fields.version()
    environment = fields.text("environment", pattern=ENVIRONMENT)
    lowest = fields.choice("lowest_tier", *TIERS)
    skew = fields.integer("max_clock_skew_s", 1, 3600) if fields.has("max_clock_skew_s") else 60
    policy = Policy(
        environment=environment,
        lowest_tier=lowest,
        max_clock_skew_s=skew,
        image=_image(fields.member("image")),
        launch=_launch(fields.member("launch")),
        tpm=_tpm(fields.member("tpm"), needed=not any(fields.has(name) for name in ("azure", "snp", "tdx"))),
        receipt_keys=_freshness(fields.member("freshness")) if fields.has("freshness") else (),
        digest=dsse.digest(data),
        snp=_section(fields, "snp", _snp),
        azure=_section(fields, "azure", _azure),
        tdx=_section(fields, "tdx", _tdx),
        nvidia=_section(fields, "nvidia", _nvidia),
        tokens=_tokens(fields) if fields.has("tokens") else (),
    )
    fields.done()
    return policy


def _section(fields: Fields, name: str, read: Callable[[Fields], _T]) -> _T | None:
    return read(fields.member(name)) if fields.has(name) else None


def _snp(fields: Fields) -> SnpPolicy:
    from .snp.policy import read_policy  # each imported only for a policy that has its section

    return read_policy(fields)


def _azure(fields: Fields) -> AzurePolicy:
    from .azure.policy import read_policy

    return read_policy(fields)


def _tdx(fields: Fields) -> TdxPolicy:
    from .tdx.policy import read_policy

    return read_policy(fields)


def _nvidia(fields: Fields) -> NvidiaPolicy:
    from .nvidia.policy import NvidiaPolicy

    return NvidiaPolicy.read(fields)


def _tokens(fields: Fields) -> tuple[TokenPolicy, ...]:
    from .tokens.appraise import TokenPolicy

    where = fields.path("tokens")
    entries = enumerate(fields.array("tokens", 8))
    found = tuple(TokenPolicy.read(Fields(entry, f"{where}[{i}]")) for i, entry in entries)
    if len({entry.issuer for entry in found}) != len(found):
        raise BadInput("an issuer occurs twice", where=where, todo="write one entry with all that is accepted")
    return found


def _optional(fields: Fields, name: str) -> tuple[str, ...]:
    return fields.digests(name) if fields.has(name) else ()


def _needed(fields: Fields, name: str) -> tuple[str, ...]:
    found = fields.digests(name)
    if not found:
        raise BadInput("is empty, so nothing could ever be accepted", where=fields.path(name), todo="name a key")
    return found


def _image(fields: Fields) -> ImageRules:
    rules = ImageRules(
        signers=_needed(fields, "signers"),
        allowed=_needed(fields, "allowed") if fields.has("allowed") else (),
        debug=fields.boolean("debug") if fields.has("debug") else False,
    )
    fields.done()
    return rules


def _launch(fields: Fields) -> LaunchRules:
    lowest = fields.integer("minimum_revision", 0, jcs.MAX_INTEGER) if fields.has("minimum_revision") else 0
    rules = LaunchRules(_optional(fields, "signers"), _optional(fields, "allowed"), lowest)
    fields.done()
    if not rules.signers and not rules.allowed:
        raise BadInput(
            "neither signers nor allowed digests, so any launch document would do",
            where=fields.where,
            todo="name the operator's key in signers or the payload's digest in allowed",
        )
    return rules


def _tpm(fields: Fields, *, needed: bool) -> TpmRules:
    """``needed``: nothing but the TPM vouches for the machine, so its roots have to be named."""
    pcrs: list[int] = []
    for i, value in enumerate(fields.array("pcrs", 24)):
        pcrs.append(Fields({"pcr": value}, f"{fields.path('pcrs')}[{i}]").integer("pcr", 0, 23))
    missing = [pcr for pcr in NEEDED_PCRS if pcr not in pcrs]
    if missing:
        raise BadInput(
            f"PCR {', '.join(map(str, missing))} missing, so other software would pass",
            where=fields.path("pcrs"),
            todo=f"list at least {', '.join(map(str, NEEDED_PCRS))}",
        )
    if len(set(pcrs)) != len(pcrs):
        raise BadInput("a PCR occurs twice", where=fields.path("pcrs"))
    ek_roots, ak_issuers = (
        _needed(fields, name) if needed or fields.has(name) else () for name in ("ek_roots", "ak_issuers")
    )
    rules = TpmRules(ek_roots, ak_issuers, tuple(sorted(pcrs)))
    fields.done()
    return rules


def _freshness(fields: Fields) -> tuple[str, ...]:
    keys = _optional(fields, "receipt_keys")
    fields.done()
    return keys
