# SPDX-License-Identifier: Apache-2.0
"""Canonical JSON: RFC 8785 restricted to objects, arrays, strings, booleans, null and safe integers.

Floats are refused, so that two implementations can never write one number in two ways.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from .errors import BadInput

Json = None | bool | int | str | list["Json"] | dict[str, "Json"]

MAX_INTEGER = 2**53 - 1
MAX_DEPTH = 32
MAX_BYTES = 64 << 20


def dumps(value: object) -> bytes:
    """Canonical bytes of ``value``. Raises BadInput for anything that canonical JSON can't carry."""
    return json.dumps(
        _canonical(value, "$", 0), ensure_ascii=False, separators=(",", ":"), allow_nan=False
    ).encode()


def _canonical(value: object, where: str, depth: int) -> Json:
    if depth == MAX_DEPTH and isinstance(value, Mapping | list | tuple):
        raise BadInput(f"nested deeper than {MAX_DEPTH} levels", where=where)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise BadInput("integer beyond 2^53 - 1", where=where, todo="write it as a string")
        return int(value)
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise BadInput(f"member name of type {type(key).__name__}", where=where, todo="use strings")
            _text(key, where)
        # RFC 8785 3.2.3: names sort by their UTF-16 code units
        names = sorted(value, key=lambda key: key.encode("utf-16-be"))
        return {key: _canonical(value[key], f"{where}.{key}", depth + 1) for key in names}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [_canonical(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise BadInput(f"a {type(value).__name__} can't be written as canonical JSON", where=where)


def _text(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadInput("a string holds half of a surrogate pair", where=where) from error
    return value


def loads(data: bytes | str, *, canonical: bool = False, where: str = "JSON") -> Json:
    """Parse strictly: no duplicate names, floats, NaN, big integers, byte order mark or deep nesting.

    With ``canonical`` the bytes must also be exactly what ``dumps`` would write. Raises BadInput.
    """
    if len(data) > MAX_BYTES:
        raise BadInput(f"larger than {MAX_BYTES >> 20} MiB", where=where)
    try:
        text = data if isinstance(data, str) else bytes(data).decode("utf-8")
        value: Json = json.loads(
            text,
            object_pairs_hook=lambda pairs: _object(pairs, where),
            parse_float=lambda text: _refuse_number(text, where),
            parse_constant=lambda text: _refuse_number(text, where),
        )
        _check(value, where, 0)
        again = dumps(value) if canonical else b""
    except UnicodeDecodeError as error:
        raise BadInput("not UTF-8", where=where) from error
    except json.JSONDecodeError as error:
        raise BadInput(f"not JSON: {error.msg} at offset {error.pos}", where=where) from error
    except ValueError as error:  # thousands of digits
        raise BadInput("integer beyond 2^53 - 1", where=where) from error
    except RecursionError as error:
        raise BadInput(f"nested deeper than {MAX_DEPTH} levels", where=where) from error
    if canonical and again != text.encode():
        raise BadInput("not in canonical form (RFC 8785)", where=where)
    return value


def _object(pairs: list[tuple[str, Json]], where: str) -> dict[str, Json]:
    value: dict[str, Json] = {}
    for name, member in pairs:
        if name in value:
            raise BadInput(f"member {name[:80]!r} occurs twice", where=where)
        value[name] = member
    return value


def _check(value: Json, where: str, depth: int) -> None:
    """Depth, integers and strings of a parsed value."""
    if isinstance(value, str):
        if not value.isascii():
            _text(value, where)
    elif isinstance(value, dict | list):
        if depth == MAX_DEPTH:
            raise BadInput(f"nested deeper than {MAX_DEPTH} levels", where=where)
        for name in value if isinstance(value, dict) else ():
            _text(name, where)
        for inner in value.values() if isinstance(value, dict) else value:
            _check(inner, where, depth + 1)
    elif isinstance(value, int) and not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise BadInput("integer beyond 2^53 - 1", where=where)


def _refuse_number(text: str, where: str) -> int:
    raise BadInput(f"number {text[:40]} is not an integer", where=where)
