# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
from cube_stacks.provider import wire
from cube_stacks.provider.base import UNKNOWN, changes
from google.protobuf import json_format, struct_pb2
from hypothesis import given
from hypothesis import strategies as st

SIGNATURE = "4dabf18193072939515e22adb298388d"
SECRET = {SIGNATURE: "1b47061264138c4ac30d75fd1eb44270"}
OUTPUT = {SIGNATURE: "d0e6a833031e9bbcd3f4e8bde6ca49a4"}
UNKNOWN_STRING = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


def struct(value: dict[str, Any]) -> struct_pb2.Struct:
    return json_format.ParseDict(value, struct_pb2.Struct())


@given(st.dictionaries(st.text(max_size=8), plain, max_size=5))
def test_plain_properties_come_back_the_same(properties: dict[str, Any]) -> None:
    assert wire.decode(wire.encode(properties)) == (properties, frozenset())


@given(
    st.dictionaries(st.text(max_size=8), st.none() | st.booleans() | st.floats(allow_nan=False) | plain, max_size=5)
)
def test_any_struct_is_decoded(properties: dict[str, Any]) -> None:
    wire.decode(wire.encode(properties))


def test_whole_numbers_are_ints_and_others_stay_floats() -> None:
    properties, _ = wire.decode(struct({"cpus": 2.0, "ratio": 0.5}))
    assert properties == {"cpus": 2, "ratio": 0.5}
    assert type(properties["cpus"]) is int


def test_a_secret_anywhere_marks_its_property() -> None:
    properties, secrets = wire.decode(struct({"a": {"deep": [{**SECRET, "value": "s"}]}, "b": "open"}))
    assert properties == {"a": {"deep": ["s"]}, "b": "open"}
    assert secrets == {"a"}


def test_marked_properties_are_encoded_as_secrets() -> None:
    encoded = json_format.MessageToDict(wire.encode({"a": "s", "b": "open"}, frozenset({"a"})))
    assert encoded == {"a": {**SECRET, "value": "s"}, "b": "open"}


def test_unknowns_in_every_form() -> None:
    properties, secrets = wire.decode(
        struct({"a": UNKNOWN_STRING, "b": [OUTPUT], "c": {**OUTPUT, "value": "v", "secret": True}})
    )
    assert properties == {"a": UNKNOWN, "b": [UNKNOWN], "c": "v"}
    assert secrets == {"c"}
    assert json_format.MessageToDict(wire.encode({"a": UNKNOWN})) == {"a": UNKNOWN_STRING}


def test_what_is_no_property_is_refused() -> None:
    with pytest.raises(TypeError, match="bytes"):
        wire.encode({"a": b"x"})


def test_an_unknown_value_always_counts_as_changed() -> None:
    assert changes({"a": 1, "b": UNKNOWN, "c": 3}, {"a": 1, "b": UNKNOWN, "d": {"x": [UNKNOWN]}}) == ("b", "c", "d")
