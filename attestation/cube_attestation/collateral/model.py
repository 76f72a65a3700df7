# SPDX-License-Identifier: Apache-2.0
"""Requests, answers and needs as data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from cube_attestation.azure.policy import AzurePolicy
from cube_attestation.cmw import Collection
from cube_attestation.nvidia.policy import NvidiaPolicy
from cube_attestation.policy import Policy
from cube_attestation.snp.policy import SnpPolicy
from cube_attestation.tdx.policy import TdxPolicy
from cube_attestation.tokens.appraise import TokenPolicy


@dataclass(frozen=True)
class Request:
    """One HTTP request. ``host`` only for services whose host evidence names; ``path`` with its query.

    ``media``: content types that an answer may have; bytes without a type pass, what they are is checked anyway.
    ``body`` makes it a POST of type ``sends``; ``about`` then stands for the body in the cache's key, without what
    changes every time. ``limit``: bytes of the answer.
    """

    service: str
    path: str
    media: tuple[str, ...]
    limit: int
    host: str = ""
    body: bytes = b""
    sends: str = ""
    about: str = ""

    @property
    def method(self) -> str:
        return "POST" if self.body else "GET"


@dataclass(frozen=True)
class Answer:
    """What a service gave: the body, the headers that are used (lower-case names), from where, and when.

    ``stored``: from the cache; it answers no nonce of this run.
    """

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    url: str = ""
    time: datetime | None = None
    stored: bool = False


# Checks an answer; gives the evidence with the piece in it
Accept = Callable[[Answer, Collection], Collection]


@dataclass(frozen=True)
class Need:
    """One piece that verification lacks.

    ``name`` tells it from all others of the bundle; ``item``: the bundle's label that it goes to; ``what`` and
    ``why`` are for people. ``requests`` are alternatives, tried in order while a service knows nothing of it; none:
    ``todo`` says how to get it. ``accept`` checks an answer and gives the evidence with the piece in it; it raises
    BadInput or NotAuthentic, and then nothing was changed. ``allowance``: the name in a policy's ``allow_missing``;
    ``optional``: the policy has it there.
    """

    name: str
    item: str
    what: str
    why: str
    requests: tuple[Request, ...] = ()
    todo: str = ""
    accept: Accept | None = None
    allowance: str = ""
    optional: bool = False


@dataclass(frozen=True)
class Context:
    """Clock, anchors and rules that collateral is judged by; ``seed``: secret of this run, makes OCSP nonces."""

    now: datetime
    seed: bytes = b""
    snp: SnpPolicy = field(default_factory=SnpPolicy)
    tdx: TdxPolicy = field(default_factory=TdxPolicy)
    azure: AzurePolicy = field(default_factory=AzurePolicy)
    nvidia: NvidiaPolicy = field(default_factory=NvidiaPolicy)
    tokens: Mapping[str, TokenPolicy] = field(default_factory=dict)
    ak_issuers: tuple[str, ...] = ()
    pccs: bool = False
    nonce_optional: bool = False

    @classmethod
    def of(cls, policy: Policy | None, now: datetime, *, seed: bytes = b"", pccs: bool = False,
           nonce_optional: bool = False) -> Context:  # fmt: skip
        """With the anchors of ``policy``, or the vendors' own."""
        common = cls(now, seed, pccs=pccs, nonce_optional=nonce_optional)
        if policy is None:
            return common
        return cls(
            now,
            seed,
            snp=policy.snp or common.snp,
            tdx=policy.tdx or common.tdx,
            azure=policy.azure or common.azure,
            nvidia=policy.nvidia or common.nvidia,
            tokens={one.issuer: one for one in policy.tokens},
            ak_issuers=policy.tpm.ak_issuers,
            pccs=pccs,
            nonce_optional=nonce_optional,
        )

    def allow_missing(self) -> frozenset[str]:
        """The names of everything that the policy goes on without."""
        sections = (self.snp, self.tdx, self.azure, self.nvidia)
        return frozenset(name for section in sections for name in section.allow_missing)

    def nonce(self, about: str) -> bytes:
        """32 bytes for one OCSP request (RFC 9654)."""
        return hashlib.sha256(b"ocsp\0" + self.seed + about.encode()).digest()
