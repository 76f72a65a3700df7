# SPDX-License-Identifier: Apache-2.0
"""Locks: read strictly, written canonically, no address in them."""

import dataclasses
import re
from importlib.resources import files
from pathlib import Path

import pytest
from cube_images import flavour, lock, resolve
from cube_images.errors import ImageError
from hypothesis import given
from hypothesis import strategies as st


def test_round_trip() -> None:
    locked = lock.load("local")
    assert lock.parse(lock.dump(locked), "x") == locked


def test_shipped_lock_is_canonical_and_has_no_address() -> None:
    text = (files("cube_images") / "locks" / "local.json").read_text()
    assert lock.dump(lock.parse(text, "x")) == text
    assert not re.search(r"https?:|ftp:|//|\b[a-z0-9-]+\.(org|com|net|io)\b(?!/)", text.replace("github.com/", ""))


def test_lock_covers_the_flavour() -> None:
    locked, definition = lock.load("local"), flavour.load("local")
    for purpose, wanted in definition.debian.items():
        assert set(wanted.packages) <= {package.name for package in locked.debian[purpose]}, purpose
    assert {item.name: item.version for item in locked.wheels} == dict(definition.wheels)
    assert list(locked.go) == [resolve.go_module(name, module) for name, module in definition.go.items()]


def test_digest_of_a_set_depends_on_that_set_only() -> None:
    locked = lock.load("local")
    other = dataclasses.replace(locked, debian={**locked.debian, "parts": ()})
    assert other.digest("image") == locked.digest("image")
    assert other.digest() != locked.digest()


def test_changes() -> None:
    locked = lock.load("local")
    first, *rest = locked.debian["parts"]
    newer = dataclasses.replace(first, version="999")
    other = dataclasses.replace(locked, debian={**locked.debian, "parts": (newer, *rest)})
    assert lock.changes(locked, other) == [f"{first.name} {first.version} -> 999"]


def test_replacement_ends_when_the_shipped_lock_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shipped = lock.load("local")
    lock.store(dataclasses.replace(shipped, go=()), shipped=False)
    assert lock.load("local").go == ()
    (replacement,) = (tmp_path / "cube-confidential" / "locks").glob("local-*.json")
    replacement.rename(replacement.with_name("local-0000000000000000.json"))
    assert lock.load("local") == shipped


def test_unknown_names_are_clear_errors() -> None:
    with pytest.raises(ImageError, match="no package nothing"):
        lock.load("local").package("nothing")
    with pytest.raises(ImageError, match=r"no image flavour 'x'.*local"):
        flavour.load("x")
    with pytest.raises(ImageError, match="has no lock"):
        lock.load("x")


@given(st.text() | st.sampled_from(['{"version": 2}', "[]", "null", '{"version": 1, "debian": 3}']))
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ImageError, match=r"^here"):
        lock.parse(text, "here")
