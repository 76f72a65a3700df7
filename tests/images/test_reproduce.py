# SPDX-License-Identifier: Apache-2.0
"""`measured-image verify`: an image built again from its lock is the same byte for byte, or it is told where."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cube_images import cli, paths
from cube_images.build import Image
from cube_images.errors import ImageError
from cube_images.provenance import described, reproduce
from hypothesis import given
from hypothesis import strategies as st


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_first_difference(tmp_path_factory: pytest.TempPathFactory, one: bytes, other: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "one").write_bytes(one)
    (folder / "other").write_bytes(other)
    at = reproduce.first_difference(folder / "one", folder / "other")
    if at is None:
        assert one == other
    else:
        assert one[:at] == other[:at]
        assert one[at : at + 1] != other[at : at + 1]


def test_a_difference_far_inside_is_found(tmp_path: Path) -> None:
    content = bytes(3 << 20)
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "b").write_bytes(content[:2_500_000] + b"\1" + content[2_500_001:])
    assert reproduce.first_difference(tmp_path / "a", tmp_path / "b") == 2_500_000


def test_an_image_of_another_definition_is_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from manifests import manifest_payload

    (tmp_path / "payload.json").write_text(json.dumps(manifest_payload()))
    with pytest.raises(ImageError, match="check out the commit that built it"):
        reproduce.verify(described.load(tmp_path), print)
    assert cli.main(["verify", str(tmp_path)]) == 1
    assert "check out the commit" in capsys.readouterr().err


@pytest.mark.image
@pytest.mark.slow
def test_judging_names_what_differs(some_image: Image, tmp_path: Path) -> None:
    rebuilt = tmp_path / "rebuilt"
    rebuilt.mkdir()
    for name in ("uki.efi", "OVMF_CODE.fd", "OVMF_VARS.fd", "payload.json", "disk.img"):
        (rebuilt / name).symlink_to(some_image.folder / name)
    image, other = described.load(some_image.folder), described.load(rebuilt)
    outcome = reproduce.judge(image, other)
    assert outcome.same
    assert "disk.img: the same byte for byte" in outcome.lines
    assert outcome.lines[-1] == "manifest: the same, predicted measurements included"

    expiring = described.Described({**image.payload, "expires": "2027-01-01T00:00:00Z"}, None)
    outcome = reproduce.judge(expiring, other)
    assert outcome.same, "an expiry is not part of the image"
    assert all("as the manifest says" in line for line in outcome.lines[:-1])

    uki = some_image.uki.read_bytes()
    (rebuilt / "uki.efi").unlink()
    (rebuilt / "uki.efi").write_bytes(uki[:1000] + bytes([uki[1000] ^ 1]) + uki[1001:])
    outcome = reproduce.judge(image, other)
    assert not outcome.same
    assert "uki.efi: differs from offset 1000 on" in outcome.lines


def _frozen(folder: Path) -> dict[str, str]:
    """Environment with a copy of the packages that decide the image, and a cache of its own with real inputs."""
    sources, home = folder / "sources", folder / "cache" / "cube-confidential"
    for name in ("cube_attestation", "cube_images", "cube_proxy", "cube_templates"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.submodule_search_locations
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(spec.submodule_search_locations[0], sources / name, ignore=ignore)
    home.mkdir(parents=True)
    for name in ("apt", "debs", "go", "wheels", "ollama", "parts", "trees"):
        if (paths.cache_dir() / name).is_dir():
            (home / name).symlink_to(paths.cache_dir() / name)
    return {**os.environ, "PYTHONPATH": str(sources), "XDG_CACHE_HOME": str(folder / "cache")}


@pytest.mark.image
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_image_is_reproduced_bit_for_bit(tmp_path: Path) -> None:
    """Built once, and again by the command, each in a cache without the image, its initrd and its layers."""
    environment = _frozen(tmp_path)

    def command(*words: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "cube_images.cli", *map(str, words)],
            env={**environment, "XDG_STATE_HOME": str(tmp_path / "state")},
            capture_output=True,
            text=True,
            timeout=900,
        )

    built = command("build", "local", "--output", tmp_path / "image")
    assert built.returncode == 0, built.stderr
    shutil.rmtree(next((tmp_path / "cache/cube-confidential/images").glob("[!.]*")))
    found = command("verify", tmp_path / "image")
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.splitlines()[-1] == "reproduced bit for bit"
    assert "rebuilding image" in found.stderr
    assert not list((tmp_path / "cache/cube-confidential/scratch").iterdir()), "nothing is left behind"
