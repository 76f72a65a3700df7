# SPDX-License-Identifier: Apache-2.0
"""Strict reading of JSON and TOML objects: each member is asked for once, what nobody asked for is an error."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from datetime import datetime

from . import times
from .errors import BadInput

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
HEX32 = re.compile(r"[0-9a-f]{64}")
ENVIRONMENT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
PCR_INDEX = re.compile(r"[0-9]|1[0-9]|2[0-3]")
MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")


class Fields:
    """One object of a document, read member by member.

    Every reader raises BadInput with the member's path. Call ``done`` last: it refuses unknown members.
    """

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise BadInput(f"expected an object, found {kind(value)}", where=where)
        self.where = where
        self._value = value
        self._seen: set[str] = set()

    def path(self, name: str) -> str:
        return f"{self.where}.{name}"

    def has(self, name: str) -> bool:
        return name in self._value

    def names(self) -> Iterator[str]:
        return iter(self._value)

    def raw(self, name: str) -> object:
        """The member as it is."""
        self._seen.add(name)
        if name not in self._value:
            raise BadInput("is missing", where=self.path(name))
        value: object = self._value[name]
        return value

    def text(self, name: str, *, pattern: re.Pattern[str] | None = None, limit: int = 4096) -> str:
        value = self.raw(name)
        if not isinstance(value, str):
            raise BadInput(f"expected a string, found {kind(value)}", where=self.path(name))
        if len(value) > limit:
            raise BadInput(f"longer than {limit} characters", where=self.path(name))
        if pattern is not None and not pattern.fullmatch(value):
            raise BadInput(f"{value[:80]!r} does not match {pattern.pattern}", where=self.path(name))
        return value

    def choice(self, name: str, *allowed: str) -> str:
        value = self.text(name)
        if value not in allowed:
            raise BadInput(f"{value[:80]!r} is none of {', '.join(allowed)}", where=self.path(name))
        return value

    def integer(self, name: str, low: int, high: int) -> int:
        value = self.raw(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadInput(f"expected an integer, found {kind(value)}", where=self.path(name))
        if not low <= value <= high:
            raise BadInput(f"{value} is not between {low} and {high}", where=self.path(name))
        return value

    def version(self, supported: int = 1) -> None:
        """The ``version`` member, which must be the one that this reader knows."""
        if self.integer("version", 0, 2**31) != supported:
            raise BadInput(
                f"version {self._value['version']} is not known",
                where=self.path("version"),
                todo=f"this reader knows version {supported}; use a newer one",
            )

    def boolean(self, name: str) -> bool:
        value = self.raw(name)
        if not isinstance(value, bool):
            raise BadInput(f"expected true or false, found {kind(value)}", where=self.path(name))
        return value

    def digest(self, name: str, *, allow_empty: bool = False) -> str:
        """``sha256:<hex>``; the empty string too with ``allow_empty``."""
        if allow_empty and self._value.get(name) == "":
            self._seen.add(name)
            return ""
        return self.text(name, pattern=DIGEST)

    def hexadecimal(self, name: str, low: int, high: int) -> bytes:
        """Lower-case hex of ``low`` to ``high`` bytes."""
        text = self.text(name, limit=2 * high)
        if not re.fullmatch(r"(?:[0-9a-f]{2})*", text) or len(text) < 2 * low:
            raise BadInput(f"expected {low} to {high} bytes of lower-case hex", where=self.path(name))
        return bytes.fromhex(text)

    def base64(self, name: str, limit: int) -> bytes:
        """Standard base64 with padding, at most ``limit`` bytes decoded."""
        return decode_base64(self.text(name, limit=limit * 4 // 3 + 4), where=self.path(name))

    def time(self, name: str) -> datetime:
        return times.parse(self.text(name, limit=40), where=self.path(name))

    def member(self, name: str) -> Fields:
        return Fields(self.raw(name), self.path(name))

    def array(self, name: str, limit: int) -> list[object]:
        value = self.raw(name)
        if not isinstance(value, list):
            raise BadInput(f"expected a list, found {kind(value)}", where=self.path(name))
        if len(value) > limit:
            raise BadInput(f"more than {limit} entries", where=self.path(name))
        return value

    def texts(self, name: str, limit: int, *, pattern: re.Pattern[str] | None = None) -> tuple[str, ...]:
        """A list of different strings."""
        found: list[str] = []
        for i, value in enumerate(self.array(name, limit)):
            found.append(Fields({"": value}, f"{self.path(name)}[{i}]").text("", pattern=pattern, limit=65536))
        if len(set(found)) != len(found):
            raise BadInput("an entry occurs twice", where=self.path(name))
        return tuple(found)

    def digests(self, name: str, limit: int = 64) -> tuple[str, ...]:
        return self.texts(name, limit, pattern=DIGEST)

    def done(self) -> None:
        """Refuse every member that was not read."""
        unknown = sorted(str(name)[:80] for name in self._value if name not in self._seen)
        if unknown:
            raise BadInput(f"unknown member {', '.join(unknown)}", where=self.where, todo="remove it")


def kind(value: object) -> str:
    """The JSON word for a value's type."""
    if value is None:
        return "null"
    names = {
        bool: "a boolean",
        int: "an integer",
        float: "a float",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)


def decode_base64(text: str, *, where: str) -> bytes:
    """Standard base64 with padding and nothing else. Raises BadInput."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError, ValueError) as error:
        raise BadInput("not standard base64 with padding", where=where) from error
    if base64.b64encode(data).decode() != text:
        raise BadInput("base64 with stray bits", where=where)
    return data


def encode_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
