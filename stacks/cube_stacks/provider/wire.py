# SPDX-License-Identifier: Apache-2.0
"""Properties as the engine writes them (`google.protobuf.Struct` with marker objects) ↔ plain Python data.

Signatures and the marker of unknown values are the engine's (sdk/go/common/resource/properties.go).
"""

from typing import Any, Final

from google.protobuf import struct_pb2

from cube_stacks.provider.base import UNKNOWN, Properties

_SIGNATURE: Final = "4dabf18193072939515e22adb298388d"
_SECRET: Final = "1b47061264138c4ac30d75fd1eb44270"  # noqa: S105  (a marker, not a secret)
_OUTPUT: Final = "d0e6a833031e9bbcd3f4e8bde6ca49a4"
_UNKNOWNS: Final = {
    "04da6b54-80e4-46f7-96ec-b56ff0331ba9",  # string, and what the engine itself sends
    "1c4a061d-8072-4f0a-a4cb-0ff528b18fe7",  # boolean
    "3eeb2bf0-c639-47a8-9e75-3b44932eb421",  # number
    "6a19a0b0-7e62-4c92-b797-7f8e31da9cc2",  # array
    "030794c1-ac77-496b-92df-f27374a8bd58",  # asset
    "e48ece36-62e2-4504-bad9-02848725956a",  # archive
    "dd056dcd-154b-4c76-9bd3-c8f88648b5ff",  # object
}
_UNKNOWN: Final = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"


def decode(struct: struct_pb2.Struct) -> tuple[Properties, frozenset[str]]:
    """Plain properties, and the names of those that hold a secret anywhere."""
    properties: Properties = {}
    secrets: set[str] = set()
    for name, value in struct.fields.items():
        properties[name], secret = _decode(value)
        if secret:
            secrets.add(name)
    return properties, frozenset(secrets)


def _decode(value: struct_pb2.Value) -> tuple[Any, bool]:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return (UNKNOWN if value.string_value in _UNKNOWNS else value.string_value), False
    if kind == "number_value":
        number = value.number_value
        return (int(number) if number.is_integer() else number), False
    if kind == "bool_value":
        return value.bool_value, False
    if kind == "list_value":
        items = [_decode(item) for item in value.list_value.values]
        return [item for item, _ in items], any(secret for _, secret in items)
    if kind == "struct_value":
        return _decode_struct(value.struct_value)
    return None, False


def _decode_struct(struct: struct_pb2.Struct) -> tuple[Any, bool]:
    fields = struct.fields
    signature = fields[_SIGNATURE].string_value if _SIGNATURE in fields else ""
    if signature == _SECRET:
        return _decode(fields["value"])[0], True
    if signature == _OUTPUT:
        secret = "secret" in fields and fields["secret"].bool_value
        if "value" not in fields:
            return UNKNOWN, secret
        plain, inner = _decode(fields["value"])
        return plain, secret or inner
    members = {name: _decode(item) for name, item in fields.items()}
    return {name: item for name, (item, _) in members.items()}, any(secret for _, secret in members.values())


def encode(properties: Properties, secrets: frozenset[str] = frozenset()) -> struct_pb2.Struct:
    """The engine's form; properties named in `secrets` are marked, so that state and display hide them."""
    struct = struct_pb2.Struct()
    for name, value in properties.items():
        if name in secrets and value is not None:
            value = {_SIGNATURE: _SECRET, "value": value}
        _encode(value, struct.fields[name])
    return struct


def _encode(value: Any, into: struct_pb2.Value) -> None:
    if value is UNKNOWN:
        into.string_value = _UNKNOWN
    elif value is None:
        into.null_value = struct_pb2.NULL_VALUE
    elif isinstance(value, bool):
        into.bool_value = value
    elif isinstance(value, int | float):
        into.number_value = value
    elif isinstance(value, str):
        into.string_value = value
    elif isinstance(value, list | tuple):
        into.list_value.SetInParent()
        for item in value:
            _encode(item, into.list_value.values.add())
    elif isinstance(value, dict):
        into.struct_value.SetInParent()
        for name, item in value.items():
            _encode(item, into.struct_value.fields[name])
    else:
        raise TypeError(f"a property can't hold a {type(value).__name__}")
