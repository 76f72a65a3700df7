# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import socket
from pathlib import Path

import preflight
import pytest
from cube_images.errors import ImageError
from cube_stacks.cli import doctor


def host(folder: Path, monkeypatch: pytest.MonkeyPatch, *programs: str) -> None:
    """A PATH with these programs alone."""
    for name in programs:
        (folder / name).write_text("#!/bin/sh\nexit 100\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(doctor, "SYSTEM_PATH", str(folder))


def test_a_complete_host_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host(tmp_path, monkeypatch, *doctor.PACKAGES)
    said: list[str] = []
    preflight.install(said.append)
    assert said == []


@pytest.mark.parametrize("programs", [("apt-get", "sudo"), ()])
def test_what_cant_be_installed_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: tuple[str, ...]
) -> None:
    host(tmp_path, monkeypatch, *programs, "swtpm")
    said: list[str] = []
    with pytest.raises(ImageError, match="install mmdebstrap qemu-system-x86 swtpm-tools yourself"):
        preflight.install(said.append)
    assert said == ["installing mmdebstrap, qemu-system-x86, swtpm-tools with apt"]


def test_a_taken_port_is_said_before_anything_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        (found,) = preflight.problems("local", listen)
    assert found.startswith(f"port: {listen} is in use by ")
    assert "cube:edge" in found
    assert list(preflight.problems("local", listen)) == []
