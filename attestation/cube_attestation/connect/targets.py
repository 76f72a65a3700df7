# SPDX-License-Identifier: Apache-2.0
"""What to listen on, what to connect to, and which replica next. No network."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from cube_attestation.client import DEFAULT_PORT, split
from cube_attestation.errors import BadInput

SERVICE_PORT = 8443
LISTEN_PORT = 9000
RESTING_S = 10.0


@dataclass(frozen=True)
class Address:
    """A host and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Target:
    """One replica, or a balancer before several: the service port, and where evidence of its keys is had.

    ``evidence``: URLs of management ports, and files of bundles that a gate made.
    """

    service: Address
    evidence: tuple[str, ...]

    def __str__(self) -> str:
        return f"https://{self.service}"


def targets(urls: Sequence[str], evidence: Sequence[str]) -> tuple[Target, ...]:
    """The replicas of ``urls``, each once. Without ``evidence`` a machine's own management port is asked.

    Raises BadInput for what is no address.
    """
    found: dict[Address, Target] = {}
    places = tuple(dict.fromkeys(_place(place) for place in evidence))
    for url in urls:
        service = _address(url, SERVICE_PORT)
        found[service] = Target(service, places or (f"https://{Address(service.host, DEFAULT_PORT)}",))
    return tuple(found.values())


def is_file(place: str) -> bool:
    """Whether evidence is a bundle's file, no management port."""
    return "://" not in place


def _place(text: str) -> str:
    return text if is_file(text) else f"https://{_address(text, DEFAULT_PORT)}"


def _address(url: str, default_port: int) -> Address:
    address = Address(*split(url, default_port))
    if not address.host.isprintable():
        raise BadInput(f"{address.host[:100]!r} is no host", where="address")
    return address


def listening(text: str, *, remote: bool) -> Address:
    """The address of ``HOST:PORT`` or ``PORT``; only this computer's own unless ``remote``. Raises BadInput."""
    where = "--listen"
    host, _, port = text.rpartition(":")
    host = {"": "127.0.0.1", "localhost": "127.0.0.1"}.get(host, host.removeprefix("[").removesuffix("]"))
    try:
        number, literal = int(port), ipaddress.ip_address(host)
    except ValueError as error:
        raise BadInput(f"{text[:100]!r} is no address", where=where, todo="write e.g. 127.0.0.1:9000") from error
    if not 0 <= number < 65536:
        raise BadInput(f"{number} is no port", where=where, todo="write e.g. 127.0.0.1:9000")
    if not literal.is_loopback and not remote:
        words = f"{literal} can be reached from other computers, and what they send there is not encrypted"
        raise BadInput(words, where=where, todo="listen on 127.0.0.1, or add --allow-remote if that is meant")
    return Address(str(literal), number)


class Rotation:
    """Takes turns among ``count`` replicas; one that just failed comes after those that did not."""

    def __init__(self, count: int) -> None:
        self._failed = [float("-inf")] * count
        self._next = 0

    def order(self, now: float) -> list[int]:
        """Every replica once, in the order to try them at ``now`` (seconds of a monotonic clock)."""
        count = len(self._failed)
        turn = [(self._next + i) % count for i in range(count)]
        self._next = (self._next + 1) % count
        return sorted(turn, key=lambda i: now - self._failed[i] < RESTING_S)

    def failed(self, index: int, now: float) -> None:
        self._failed[index] = now

    def worked(self, index: int) -> None:
        self._failed[index] = float("-inf")
