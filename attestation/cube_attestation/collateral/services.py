# SPDX-License-Identifier: Apache-2.0
"""The services that publish collateral: the one table that names their hosts, and what may stand in their place."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from cube_attestation.errors import BadInput


@dataclass(frozen=True)
class Service:
    """``base`` is the default address. ``hosts``: instead of one address every host that matches may be asked,
    when certificates or tokens name it."""

    what: str
    base: str = ""
    hosts: str = ""


SERVICES: Mapping[str, Service] = {
    "amd-kds": Service("AMD key distribution service", "https://kdsintf.amd.com"),
    "intel-pcs": Service(
        "Intel provisioning certification service, or a PCCS in its place", "https://api.trustedservices.intel.com"
    ),
    "intel-root-crl": Service("Intel's root CA list", "https://certificates.trustedservices.intel.com"),
    "nvidia-rim": Service("NVIDIA RIM service", "https://rim.attestation.nvidia.com"),
    "nvidia-ocsp": Service("NVIDIA OCSP responder", "https://ocsp.ndis.nvidia.com"),
    "google-tcb": Service("Google's launch endorsements", "https://storage.googleapis.com"),
    "microsoft-pki": Service(
        "Microsoft's certificates and lists",
        hosts=r"(?:www|crl)\.microsoft\.com|(?:primary|secondary)-cdn\.pki\.core\.windows\.net",
    ),
    "google-pki": Service(
        "Google's certificates", hosts=r"pki\.goog|privateca-content-[0-9a-f-]{36}\.storage\.googleapis\.com"
    ),
    "nras": Service("keys of NVIDIA's attestation service", "https://nras.attestation.nvidia.com"),
    "confidential-space": Service("keys of Google Confidential Space", "https://www.googleapis.com"),
    "ita": Service(
        "keys of Intel Trust Authority", hosts=r"portal\.(?:eu\.)?trustauthority\.intel\.com"
    ),
    "maa": Service(
        "keys of a Microsoft Azure Attestation instance",
        hosts=r"[a-z0-9]{3,24}\.[a-z0-9]{2,10}\.attest\.azure\.net",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Endpoints:
    """Where requests go: the table, with the operator's replacements (service → base address)."""

    replaced: Mapping[str, str]

    @classmethod
    def read(cls, options: Iterable[str]) -> Endpoints:
        """From ``NAME=URL`` texts. Raises BadInput for unknown names and addresses that are not safe to ask."""
        found: dict[str, str] = {}
        for text in options:
            name, _, address = text.partition("=")
            where = f"--service {name[:40]}"
            if name not in SERVICES:
                raise BadInput("no such service", where=where, todo=f"known: {', '.join(SERVICES)}")
            if name in found:
                raise BadInput("given twice", where=where)
            check_address(address, where=where)
            found[name] = address.rstrip("/")
        return cls(found)

    def has_pccs(self) -> bool:
        """Whether a PCCS stands in for Intel's service: then it serves the root's list too."""
        return "intel-pcs" in self.replaced and "intel-root-crl" not in self.replaced

    def url(self, service: str, path: str, host: str = "") -> str:
        """The address of ``path`` (with its query). ``host``: the one that evidence names, for services with
        several. Raises BadInput for a host that the table does not have."""
        base = self.replaced.get(service)
        if base is None and SERVICES[service].hosts:
            if not re.fullmatch(SERVICES[service].hosts, host):
                raise BadInput(f"{host[:80]!r} is no host of {service}", todo=f"give --service {service}=https://…")
            base = f"https://{host}"
        return (base or SERVICES[service].base) + path


def names(service: str, host: str) -> bool:
    """Whether ``host``, as a certificate or token names it, is one of the service's."""
    return re.fullmatch(SERVICES[service].hosts, host) is not None


def check_address(url: str, *, where: str) -> None:
    """Only https, or http to this very machine. Raises BadInput."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise BadInput(
            f"{url[:100]!r} is no address", where=where, todo="write https://host[:port][/path]"
        ) from error
    if not host or parts.username or parts.password or parts.query or parts.fragment or not url.isprintable():
        raise BadInput(f"{url[:100]!r} is no base address", where=where, todo="write https://host[:port][/path]")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        raise BadInput(f"{url[:100]!r} is not https", where=where, todo="http is for loopback addresses only")


def is_loopback(host: str) -> bool:
    """Whether ``host`` is a loopback address or ``localhost``; no name is looked up."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
