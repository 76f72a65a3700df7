# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import tomllib
from pathlib import Path

import guest_library
import pytest
from environment import EnvironmentProblem


def test_the_lock_holds_what_pyproject_names_with_hashes() -> None:
    (named,) = tomllib.loads((guest_library.ROOT / "pyproject.toml").read_text())["dependency-groups"]["guest"]
    assert named == f"{guest_library.DISTRIBUTION}=={guest_library.locked()}"
    assert "--hash=sha256:" in guest_library.LOCK.read_text()


def test_a_host_without_a_compiler_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_library, "present", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    wanted = guest_library.build_packages()
    assert [name for name in wanted if name != "python3-dev"] == ["gcc", "libc6-dev", "libtss2-dev", "pkg-config"]
    monkeypatch.setattr(guest_library, "present", lambda: True)
    assert guest_library.build_packages() == []


def test_a_library_of_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "lock"
    lock.write_text("tpm2-pytss==2.2.1 \\\n    --hash=sha256:" + "0" * 64 + "\n")
    monkeypatch.setattr(guest_library, "LOCK", lock)
    monkeypatch.setattr(guest_library, "present", lambda: False)
    with pytest.raises(EnvironmentProblem, match=r"could not be built: (?s:.)*libtss2-dev"):
        guest_library.install(lambda _: None)
