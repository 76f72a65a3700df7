# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import preflight
import pytest
from cube_images.errors import ImageError


def host(folder: Path, monkeypatch: pytest.MonkeyPatch, *programs: str) -> None:
    """A PATH with these programs alone."""
    for name in programs:
        (folder / name).write_text("#!/bin/sh\nexit 100\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(preflight, "PATH", str(folder))


def test_each_package_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host(tmp_path, monkeypatch, "swtpm", "apt-get", "dpkg-deb")
    assert preflight.missing() == ["mmdebstrap", "qemu-system-x86", "swtpm-tools"]


def test_a_complete_host_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host(tmp_path, monkeypatch, *preflight.NEEDED)
    said: list[str] = []
    preflight.install(said.append)
    assert said == []


def test_a_host_without_apt_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host(tmp_path, monkeypatch)
    with pytest.raises(ImageError, match=r"no apt.*install apt dpkg mmdebstrap qemu-system-x86 swtpm swtpm-tools"):
        preflight.install(lambda _: None)


def test_a_failing_apt_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host(tmp_path, monkeypatch, "apt-get", "dpkg-deb", "sudo")
    said: list[str] = []
    with pytest.raises(ImageError, match="install mmdebstrap qemu-system-x86 swtpm swtpm-tools yourself"):
        preflight.install(said.append)
    assert said == ["installing mmdebstrap, qemu-system-x86, swtpm, swtpm-tools with apt"]
