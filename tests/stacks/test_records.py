# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
from cube_stacks import records


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def test_a_record_is_found_until_it_is_forgotten() -> None:
    assert records.all_of("local", "gates") == {}
    records.keep("local", "gates", "gate", {"a": 1}, {"b": [2]})
    records.keep("local", "gates", "other", {}, {})
    assert records.find("local", "gates", "gate") == {"inputs": {"a": 1}, "outputs": {"b": [2]}}
    assert list(records.all_of("local", "gates")) == ["gate", "other"]
    assert records.all_of("other", "gates") == {}
    bundle = records.folder("local", "gates", "gate") / "bundle.json"
    bundle.write_text("{}")
    records.forget("local", "gates", "gate")
    records.forget("local", "gates", "gate")
    assert records.find("local", "gates", "gate") is None
    assert bundle.exists()
    records.remove("local", "gates", "gate")
    assert not bundle.exists()


def test_a_record_that_was_cut_is_none() -> None:
    records.keep("local", "edges", "edge", {"a": 1}, {})
    path = records.folder("local", "edges", "edge") / "record.json"
    assert path.stat().st_mode & 0o077 == 0
    for content in ('{"inputs": {', '{"inputs": 1, "outputs": {}}', "[]"):
        path.write_text(content)
        assert records.find("local", "edges", "edge") is None
        assert records.all_of("local", "edges") == {}


def test_names_come_from_the_urn() -> None:
    urn = "urn:pulumi:prod-1::cube::a:b:C$cube-confidential:index:Edge::my-edge"
    assert records.name_of(urn) == "my-edge"
    assert records.environment_of(urn) == "prod-1"
