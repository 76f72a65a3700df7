# SPDX-License-Identifier: Apache-2.0
import base64
import json
import os
import socket
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from cube_stacks.cli import doctor, main
from cube_stacks.local import accelerator
from cube_stacks.state import state_folder


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("PULUMI_CONFIG_PASSPHRASE", "PULUMI_CONFIG_PASSPHRASE_FILE"):
        monkeypatch.delenv(name, raising=False)


def test_missing_programs_are_packages_to_install(tmp_path: Path) -> None:
    assert doctor.missing_packages(str(tmp_path)) == ["mmdebstrap", "qemu-system-x86", "swtpm", "swtpm-tools"]
    for program in doctor.PACKAGES:
        (tmp_path / program).touch(0o755)
    assert doctor.missing_packages(str(tmp_path)) == []
    finding = doctor.packages(["swtpm"])
    assert (finding.level, finding.todo) == ("bad", "run: apt-get install swtpm")


def test_the_makefile_gets_bare_package_names(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "SYSTEM_PATH", str(tmp_path))
    assert main(["doctor", "--missing-apt"]) == 0
    assert capsys.readouterr().out == "mmdebstrap qemu-system-x86 swtpm swtpm-tools\n"


def test_old_python_and_no_root() -> None:
    assert doctor.python((3, 10, 9)).level == "bad"
    assert doctor.python((3, 13, 0)).level == "ok"
    assert doctor.root(0, None, ["swtpm"]).level == "ok"
    assert doctor.root(1000, "/usr/bin/sudo", ["swtpm"]).level == "ok"
    assert doctor.root(1000, None, ["swtpm"]).level == "bad"
    assert doctor.root(1000, None, []).level == "note"


@pytest.mark.parametrize(("status", "level"), [(0, "ok"), (1, "bad")])
def test_users_need_user_namespaces_and_root_does_not(
    status: int, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unshare").write_text(f"#!/bin/sh\nexit {status}\n")
    (tmp_path / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.namespaces(1000).level == level
    assert doctor.namespaces(0).level == "ok"
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert "unshare can't be run" in doctor.namespaces(1000).words


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        finding = doctor.port("local", address)
    assert finding.level == "bad"
    assert finding.words.startswith(f"{address} is in use by ")
    assert finding.words.endswith(f"(pid {os.getpid()})")
    assert doctor.port("local", address).level == "ok"
    assert doctor.port("local", "nonsense").level == "bad"


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    finding = doctor.disk("cache", tmp_path, 1 << 60)
    assert finding.level == "bad"
    assert "XDG_CACHE_HOME" in finding.todo
    assert doctor.disk("state", tmp_path, 1).level == "ok"


def test_what_interrupted_builds_left_is_harmless(tmp_path: Path) -> None:
    assert list(doctor.leftovers(tmp_path)) == []
    (tmp_path / "images" / ".abc.tmp-x1").mkdir(parents=True)
    (finding,) = doctor.leftovers(tmp_path)
    assert finding.level == "note"
    assert finding.words.startswith("1 half-written")


def encryption_salt(phrase: str) -> str:
    salt, nonce = os.urandom(8), os.urandom(12)
    key = PBKDF2HMAC(hashes.SHA256(), 32, salt, 1_000_000).derive(phrase.encode())
    sealed = AESGCM(key).encrypt(nonce, b"pulumi", None)
    return ":".join(
        ["v1", *(base64.b64encode(part).decode() for part in (salt,)), "v1", *map(_b64, (nonce, sealed))]
    )


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_passphrase_is_checked_against_the_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    state = state_folder("local")
    assert doctor.passphrase(state, "local").words == "no stack yet"
    (state / "Pulumi.local.yaml").write_text(f"encryptionsalt: {encryption_salt('correct horse')}\nconfig: {{}}\n")
    assert "is missing" in doctor.passphrase(state, "local").words
    (state / "passphrase").write_text("correct horse\n")
    assert doctor.passphrase(state, "local").level == "ok"
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", "battery staple")
    finding = doctor.passphrase(state, "local")
    assert finding.level == "bad"
    assert finding.words.startswith("wrong for the stack")
    assert "staple" not in finding.words + finding.todo


@pytest.mark.parametrize("salt", ["", "v1", "v1:a:b:c:d", "v2:AA==:v1:AA==:AA==", "v1:!!:v1:AA==:AA=="])
def test_a_broken_salt_fits_no_passphrase(salt: str) -> None:
    assert not doctor.fits("x", salt)


@pytest.mark.parametrize(
    ("configuration", "sites", "target"),
    [
        ("", "http://mirror.example/debian\n", ("mirror.example", 80)),
        ("", "file:/cdrom\nhttps://mirror.example:8080/x\n", ("mirror.example", 8080)),
        ('Acquire::http::Proxy "http://proxy.example:3128";\n', "http://m.example\n", ("proxy.example", 3128)),
        ("", "", None),
        ("", "http://[broken\n", None),
    ],
)
def test_apts_first_stop_is_found(configuration: str, sites: str, target: tuple[str, int] | None) -> None:
    assert doctor._apt_target(configuration, sites) == target


def test_everything_is_printed_as_json_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "_PROBE_S", 0.2)  # what KVM is like here is not the question
    main(["doctor", "--json", "--listen", "nonsense"])
    findings = {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert {"python", "packages", "root", "port", "cache", "state", "passphrase", "kvm", "network"} <= set(findings)
    assert findings["port"]["level"] == "bad"
