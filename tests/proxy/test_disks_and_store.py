# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of a volume, and the store that Ollama reads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cube_attestation.errors import BadInput
from cube_proxy import disks, ollama_store
from hypothesis import given
from hypothesis import strategies as st

SIDECAR: dict[str, Any] = {
    "version": 1,
    "model": "sha256:" + "cd" * 32,
    "size": 4,
    "config": {"model_format": "gguf", "model_family": "llama"},
    "template": "{{ .Prompt }}\n",
    "params": {"stop": ["<|im_end|>"]},
}


def status(kind: bytes, text: bytes, count: int = 1) -> bytes:
    """A DM_TABLE_STATUS answer as linux/dm-ioctl.h lays it out."""
    header = bytearray(312)
    header[16:20] = (312).to_bytes(4, "little")
    header[20:24] = count.to_bytes(4, "little")
    spec = bytes(8) + (16).to_bytes(8, "little") + bytes(4) + (48).to_bytes(4, "little") + kind.ljust(16, b"\0")
    return bytes(header) + spec + text + b"\0" + bytes(100)


def test_verity_status() -> None:
    assert disks.verity_status(status(b"verity", b"V")) == "V"
    assert disks.verity_status(status(b"verity", b"C")) == "C"


@pytest.mark.parametrize(
    "answer",
    [b"", bytes(312), status(b"linear", b"V"), status(b"verity", b"V", count=2), status(b"verity", b"V")[:340]],
)
def test_anything_else_is_not_valid(answer: bytes) -> None:
    assert disks.verity_status(answer) != "V"


@given(st.binary(max_size=400))
def test_any_bytes_are_read_without_an_error(answer: bytes) -> None:
    assert disks.verity_status(answer) != "V"


def test_a_missing_disk_is_one_clear_error() -> None:
    with pytest.raises(disks.DiskError, match="no disk with serial no-such-disk appeared"):
        disks.find("no-such-disk", wait_seconds=0)


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "model.gguf").write_bytes(b"GGUF")
    (volume / "ollama.json").write_text(json.dumps(SIDECAR))
    return volume / "model.gguf"


def test_two_names_share_one_file(tmp_path: Path, gguf: Path) -> None:
    store = tmp_path / "store"
    sidecar = ollama_store.read_sidecar(gguf)
    for name in ("smollm2", "smollm2:small"):
        ollama_store.add(store, name, gguf, sidecar)
    library = store / "manifests/registry.ollama.ai/library/smollm2"
    manifests = [json.loads((library / tag).read_bytes()) for tag in ("latest", "small")]
    assert manifests[0] == manifests[1]
    manifest = manifests[0]
    assert [layer["mediaType"].rsplit(".", 1)[1] for layer in manifest["layers"]] == ["model", "template", "params"]
    assert "from" not in json.dumps(manifest)
    model, small = manifest["layers"][0], [*manifest["layers"][1:], manifest["config"]]
    blobs = store / "blobs"
    assert (blobs / model["digest"].replace(":", "-")).resolve() == gguf
    assert (model["digest"], model["size"]) == (SIDECAR["model"], 4)
    for entry in small:
        data = (blobs / entry["digest"].replace(":", "-")).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (entry["digest"][7:], entry["size"])
    config = json.loads((blobs / manifest["config"]["digest"].replace(":", "-")).read_bytes())
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]


@pytest.mark.parametrize("name", ["", "../x", "a/b", "UPPER", "a:b:c", "a:../b", ".hidden", "a\n"])
def test_names_that_ollama_does_not_take(tmp_path: Path, gguf: Path, name: str) -> None:
    with pytest.raises(BadInput):
        ollama_store.add(tmp_path / "store", name, gguf, ollama_store.read_sidecar(gguf))
    assert not (tmp_path / "store/manifests").exists()


@pytest.mark.parametrize(
    "change",
    [{"version": 2}, {"model": "x"}, {"size": 0}, {"config": []}, {"template": 1}, {"params": None}, {"more": 1}],
)
def test_bad_sidecars(change: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        ollama_store.parse_sidecar(json.dumps({**SIDECAR, **change}).encode())


def test_a_gguf_of_another_size_is_refused(gguf: Path) -> None:
    gguf.write_bytes(b"GGUF, but longer")
    with pytest.raises(BadInput, match="16 bytes, not 4"):
        ollama_store.read_sidecar(gguf)


@given(st.binary(max_size=200))
def test_any_bytes_are_no_sidecar(data: bytes) -> None:
    with pytest.raises(BadInput):
        ollama_store.parse_sidecar(data)
