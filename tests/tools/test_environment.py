# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shlex
import socket
import stat
import subprocess
import time
from pathlib import Path

import environment
import pytest


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder and a checkout of the test's own."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "Pulumi.yaml").write_text("name: cube\nruntime: python\n")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(environment, "ROOT", checkout)
    monkeypatch.setattr(environment, "LINK", checkout / "Pulumi.local.yaml")
    return tmp_path / "state" / "cube-confidential" / "local"


def lock(home: Path, content: str) -> Path:
    path = home / "pulumi" / "backend" / ".pulumi" / "locks" / "organization" / "cube" / "local" / "1.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def holder(pid: int, host: str) -> str:
    return json.dumps({"pid": pid, "username": "u", "hostname": host, "timestamp": "2026-11-24T12:00:00Z"})


def test_an_engine_at_work_is_not_disturbed(home: Path) -> None:
    with subprocess.Popen(["pulumi", "60"], executable="/bin/sleep") as other:
        try:
            while b"pulumi" not in Path(f"/proc/{other.pid}/cmdline").read_bytes():
                time.sleep(0.01)  # the kernel shows it a moment after exec
            path = lock(home, holder(other.pid, socket.gethostname()))
            with pytest.raises(environment.EnvironmentProblem, match=f"pulumi process {other.pid} works"):
                environment.release_stale_lock({}, lambda _: None)
            assert path.exists()
        finally:
            other.kill()


def test_a_lock_of_another_host_is_respected(home: Path) -> None:
    path = lock(home, holder(1, "elsewhere"))
    with pytest.raises(environment.EnvironmentProblem, match="on elsewhere"):
        environment.release_stale_lock({}, lambda _: None)
    assert path.exists()


def test_a_lost_passphrase_is_said_and_not_replaced(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "variables", lambda _: {})
    home.mkdir(parents=True)
    (home / "Pulumi.local.yaml").write_text("encryptionsalt: v1:x\n")
    with pytest.raises(environment.EnvironmentProblem, match="passphrase is missing"):
        environment.prepared(lambda _: None)
    assert not (home / "passphrase").exists()


def test_a_settings_file_of_the_user_is_left_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "variables", lambda _: {})
    environment.LINK.write_text("config: {}\n")
    with pytest.raises(environment.EnvironmentProblem, match="is a file of yours"):
        environment.prepared(lambda _: None)
    assert environment.LINK.read_text() == "config: {}\n"


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_stack_is_made_once_with_all_that_pulumi_writes_in_the_state_folder(home: Path) -> None:
    for _ in range(2):
        variables = dict(
            line.removeprefix("export ").split("=", 1) for line in environment.exports(lambda _: None).splitlines()
        )
        assert shlex.split(variables["PULUMI_STACK"]) == ["local"]
    assert stat.S_IMODE((home / "passphrase").stat().st_mode) == 0o600
    assert environment.LINK.readlink() == home / "Pulumi.local.yaml"
    assert "encryptionsalt" in (home / "Pulumi.local.yaml").read_text()
    assert sorted(path.name for path in environment.ROOT.iterdir()) == ["Pulumi.local.yaml", "Pulumi.yaml"]
    prepared = environment.prepared(lambda _: None)
    assert "local*" in environment.pulumi(prepared, "stack", "ls")

    said: list[str] = []
    for content in (holder(2**22 + 1, socket.gethostname()), "{"):  # a killed engine; one killed while it wrote
        path = lock(home, content)
        environment.release_stale_lock(prepared, said.append)
        assert not path.exists()
    assert said == ["an earlier pulumi was killed; removing its lock"] * 2

    (home / "passphrase").write_text("another\n")
    with pytest.raises(environment.EnvironmentProblem, match="incorrect passphrase"):
        environment.pulumi(prepared, "config", "set", "--secret", "x", "y")
