# SPDX-License-Identifier: Apache-2.0
"""A register of a machine: what it will hold and why, or why nobody can say before a machine has booted."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cube_images.predict import Measurement

PREDICTED, UNKNOWN = "predicted", "unknown"
SEPARATOR = "EV_SEPARATOR"


@dataclass(frozen=True)
class Alternative:
    """Another value that the register may have, and when."""

    value: bytes
    when: str


@dataclass(frozen=True)
class Register:
    """`basis` is what the prediction of a predicted register rests on, or why an unknown one is unknown."""

    name: str
    bank: str
    basis: str
    events: tuple[Measurement, ...] = ()
    value: bytes | None = None
    alternatives: tuple[Alternative, ...] = ()

    @property
    def state(self) -> str:
        """`predicted` or `unknown`."""
        return UNKNOWN if self.value is None else PREDICTED


@dataclass(frozen=True)
class Prediction:
    """All registers of one target's machines. `assumes` has to hold for the predicted ones, in words."""

    target: str
    machine: str
    assumes: tuple[str, ...]
    registers: tuple[Register, ...]

    def value(self, name: str) -> bytes | None:
        """The predicted value of a register, None when it is unknown or there is no such register."""
        return next((register.value for register in self.registers if register.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """As one JSON object."""
        return {
            "version": 1,
            "target": self.target,
            "machine": self.machine,
            "assumes": list(self.assumes),
            "registers": [_row(register) for register in self.registers],
        }

    def lines(self) -> list[str]:
        """For people."""
        found = [f"{self.target}: {self.machine}", *(f"assumes: {text}" for text in self.assumes)]
        for register in self.registers:
            if register.value is None:
                found.append(f"{register.name:<6} unknown: {register.basis}")
                continue
            found.append(f"{register.name:<6} {register.value.hex()}")
            found += [f"       or {item.value.hex()} {item.when}" for item in register.alternatives]
            found += [
                f"         {item.digest.hex()[:16]}…  {item.what}  [{item.source}]" for item in register.events
            ]
            found.append(f"         rests on: {register.basis}")
        return found


def _row(register: Register) -> dict[str, Any]:
    row: dict[str, Any] = {"name": register.name, "bank": register.bank, "state": register.state}
    if register.value is None:
        return {**row, "reason": register.basis}
    return {
        **row,
        "value": register.value.hex(),
        "basis": register.basis,
        "alternatives": [{"value": item.value.hex(), "when": item.when} for item in register.alternatives],
        "events": [
            {"digest": item.digest.hex(), "type": item.type, "what": item.what, "from": item.source}
            for item in register.events
        ],
    }


def fold(bank: str, events: Sequence[Measurement]) -> bytes:
    """The value that extends lead to from zeros."""
    value = bytes(hashlib.new(bank).digest_size)
    for event in events:
        value = hashlib.new(bank, value + event.digest).digest()
    return value


def predicted(
    name: str,
    bank: str,
    events: Sequence[Measurement],
    basis: str,
    alternatives: Mapping[str, Sequence[Measurement]] | None = None,
) -> Register:
    """A register that `events` lead to; `alternatives` maps when to the events that lead there then."""
    others = tuple(Alternative(fold(bank, other), when) for when, other in (alternatives or {}).items())
    return Register(name, bank, basis, tuple(events), fold(bank, events), others)


def unknown(name: str, bank: str, reason: str) -> Register:
    """A register that can't be predicted."""
    return Register(name, bank, reason)


def of_pcr(found: Sequence[Measurement], pcr: int) -> tuple[Measurement, ...]:
    """The extends of one PCR, in order."""
    return tuple(item for item in found if item.pcr == pcr)


def launch_register(payload: bytes | None) -> Register:
    """PCR 8: one extend with the SHA-256 of the launch document's payload (docs/formats.md, section 6)."""
    if payload is None:
        return unknown("PCR 8", "sha256", "depends on the launch document; give it with --launch")
    event = Measurement(8, hashlib.sha256(payload).digest(), "launch", "launch document", "launch document")
    return predicted("PCR 8", "sha256", [event], "the agent's only extend of it, before anything uses the document")
