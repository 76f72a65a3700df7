# SPDX-License-Identifier: Apache-2.0
"""Canonical JSON: RFC 8785 restricted to objects, arrays, strings, booleans, null and safe integers.

Floats are refused, so that two implementations can never write one number in two ways.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

from .errors import BadInput

Json = None | bool | int | str | list["Json"] | dict[str, "Json"]

MAX_INTEGER = 2**53 - 1
MAX_DEPTH = 32
MAX_BYTES = 64 << 20
MAX_VALUES = 50_000  # counted as commas and opening brackets; a manifest of an image has a thousand


def dumps(value: object) -> bytes:
    """Canonical bytes of ``value``. Raises BadInput for anything that canonical JSON can't carry."""
    plain = _is_plain(value)
    text = json.dumps(
        value if plain else _canonical(value, "$", 0),
        ensure_ascii=False,
        separators=(",", ":"),
        allow_nan=False,
        sort_keys=plain,
    )
    try:
        return text.encode()
    except UnicodeEncodeError:
        _canonical(value, "$", 0)  # says where
        raise


def _is_plain(value: object) -> bool:
    """Whether ``value`` is of the usual types, within all limits, and its names sort as they are: nearly always."""
    level = [value]
    for depth in range(MAX_DEPTH + 1):
        below: list[object] = []
        for one in level:
            kind = type(one)
            if kind is str or one is None or kind is bool:
                continue
            if kind is int:
                if not -MAX_INTEGER <= one <= MAX_INTEGER:  # type: ignore[operator]
                    return False
            elif depth == MAX_DEPTH:
                return False
            elif kind is dict:
                try:
                    if not "".join(one).isascii():  # type: ignore[arg-type]
                        return False
                except TypeError:  # a name that is no string
                    return False
                below += one.values()  # type: ignore[attr-defined]
            elif kind is list or kind is tuple:
                below += one  # type: ignore[arg-type]
            else:
                return False
        level = below
    return True


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


def bounded(data: bytes | str, *, where: str, limit: int = MAX_BYTES) -> str:
    """The text of a JSON document that is cheap to parse, whatever is in it. Raises BadInput.

    At most ``limit`` bytes and MAX_VALUES values: a small one costs a parser fifty times more than its bytes.
    """
    if len(data) > limit:
        size = f"{limit >> 20} MiB" if limit >> 20 else f"{limit >> 10} KiB"
        raise BadInput(f"larger than {size}", where=where)
    try:
        text = data if isinstance(data, str) else bytes(data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput("not UTF-8", where=where) from error
    if len(text) > MAX_VALUES and text.count(",") + text.count("{") + text.count("[") > MAX_VALUES:
        raise BadInput(f"more than {MAX_VALUES} values", where=where)
    return text


def loads(data: bytes | str, *, canonical: bool = False, where: str = "JSON") -> Json:
    """Parse strictly: no duplicate names, floats, NaN, big integers, byte order mark or deep nesting.

    With ``canonical`` the bytes must also be exactly what ``dumps`` would write. Raises BadInput.
    """
    text = bounded(data, where=where)
    try:
        value: Json = json.loads(
            text,
            object_pairs_hook=lambda pairs: _object(pairs, where),
            parse_int=lambda text: _integer(text, where),
            parse_float=lambda text: _refuse_number(text, where),
            parse_constant=lambda text: _refuse_number(text, where),
        )
    except json.JSONDecodeError as error:
        raise BadInput(f"not JSON: {error.msg} at offset {error.pos}", where=where) from error
    except RecursionError as error:
        raise BadInput(f"nested deeper than {MAX_DEPTH} levels", where=where) from error
    _check_depth(value, where)
    # Only an escape can smuggle half of a surrogate pair into text that was UTF-8
    if canonical or ("\\" in text and "\\u" in text) or isinstance(data, str):
        written = _written(value, where)
        if canonical and written != text:
            raise BadInput("not in canonical form (RFC 8785)", where=where)
    return value


def _written(value: Json, where: str) -> str:
    try:
        return dumps(value).decode()
    except BadInput as error:
        raise BadInput(error.what, where=where) from error


def _object(pairs: list[tuple[str, Json]], where: str) -> dict[str, Json]:
    value = dict(pairs)
    if len(value) != len(pairs):
        counted = Counter(name for name, _ in pairs)
        raise BadInput(f"member {counted.most_common(1)[0][0][:80]!r} occurs twice", where=where)
    return value


def _check_depth(value: Json, where: str) -> None:
    level: list[Json] = [value]
    for _ in range(MAX_DEPTH):
        below: list[Json] = []
        for one in level:
            if type(one) is dict:
                below += one.values()
            elif type(one) is list:
                below += one
        level = below
        if not level:
            return
    if any(isinstance(one, dict | list) for one in level):
        raise BadInput(f"nested deeper than {MAX_DEPTH} levels", where=where)


def _integer(text: str, where: str) -> int:
    if len(text) > 17 or not -MAX_INTEGER <= (value := int(text)) <= MAX_INTEGER:
        raise BadInput("integer beyond 2^53 - 1", where=where)
    return value


def _refuse_number(text: str, where: str) -> int:
    raise BadInput(f"number {text[:40]} is not an integer", where=where)
