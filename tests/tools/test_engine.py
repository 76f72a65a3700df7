# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
from pathlib import Path

import engine
import pytest


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("v3.259.0", True),
        ("3.260.1", True),
        ("v3.259.0-dev.1", True),
        ("v3.258.9", False),
        ("v4.0.0", False),
        ("", False),
        ("command not found", False),
    ],
)
def test_versions_that_fit(version: str, expected: bool) -> None:
    assert engine.fits(version) is expected


def install(folder: Path, version: str, *, host: bool = True) -> None:
    folder.mkdir()
    for name in ("pulumi", *(("pulumi-language-python-exec",) if host else ())):
        (folder / name).write_text(f"#!/bin/sh\necho {version}\n")
        (folder / name).chmod(0o755)


def test_the_official_cli_is_used_when_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "new", "v3.300.2")
    install(tmp_path / "old", "v3.100.0")
    install(tmp_path / "half", "v3.300.2", host=False)
    expected = {"new": tmp_path / "new", "old": None, "half": None, "none": None}
    for name, found in expected.items():
        monkeypatch.setenv("PATH", f"{tmp_path / name}:/usr/bin:/bin")
        assert engine.official() == found, name


def test_our_own_build_is_not_taken_for_the_official_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "cube-confidential").mkdir()
    install(tmp_path / "cube-confidential" / "made", "v3.259.0")
    monkeypatch.setenv("PATH", f"{tmp_path / 'cube-confidential' / 'made'}:/usr/bin:/bin")
    assert engine.official() is None


def test_the_module_pins_the_version_that_we_name() -> None:
    version = ".".join(map(str, engine.VERSION))
    assert f"github.com/pulumi/pulumi/pkg/v3 v{version}" in (engine.MODULE / "go.mod").read_text()
    assert f"github.com/pulumi/pulumi/sdk/v3 v{version}/go.mod h1:" in (engine.MODULE / "go.sum").read_text()


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_built_engine_is_whole_and_mended_when_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    folder = engine.built(said.append)
    version = subprocess.run([folder / "pulumi", "version"], capture_output=True, text=True, check=True)
    assert engine.fits(version.stdout.strip())
    assert all(os.access(folder / name, os.X_OK) for name in engine.FILES)
    said.clear()
    (folder / "pulumi-language-python").unlink()
    assert engine.built(said.append) == folder
    assert len(said) == 1
    assert "not whole" in said[0]
    assert all(os.access(folder / name, os.X_OK) for name in engine.FILES)
