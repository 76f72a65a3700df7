# SPDX-License-Identifier: Apache-2.0
"""Exports read again by other programs against the clouds' rules; publishing that resumes and refuses."""

import gzip
import hashlib
import json
import shutil
import struct
import subprocess
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cube_attestation import dsse
from cube_attestation.dsse import LocalSigner
from cube_attestation.errors import NotAuthentic
from cube_images import cli, lock, manifest, verification
from cube_images.build import Image
from cube_images.errors import ImageError
from cube_images.provenance import described, statement
from cube_images.provenance.described import Described
from cube_images.release import azure, export, publish, source
from hypothesis import given
from hypothesis import strategies as st
from manifests import manifest_payload

GIB, MIB = 1 << 30, 1 << 20
EPOCH_2000 = 946_684_800
needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img (qemu-utils)")


def quiet(_: str) -> None:
    """Reports nothing."""


def same(disk: Path, other: Path, form: str) -> bool:
    """Whether qemu-img reads the same disk (zeros behind the shorter one aside) from a raw file and another."""
    command = ["qemu-img", "compare", "-f", "raw", "-F", form, str(disk), str(other)]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def small(tmp_path: Path, signer: LocalSigner) -> Described:
    """A signed image with a disk of 2 MiB and a bit, holes and content in it."""
    folder = tmp_path / "image"
    folder.mkdir()
    disk = b"\x11" * 4096 + bytes(MIB) + b"\x22" * 4096 + bytes(MIB) + b"\x33" * 512
    files = {"disk.img": disk, "uki.efi": b"uki", "OVMF_CODE.fd": b"code", "OVMF_VARS.fd": b"vars"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    payload = manifest_payload() | {
        "image": _sha256(disk),
        "uki": _sha256(b"uki"),
        "firmware": {"code": _sha256(b"code"), "vars": _sha256(b"vars")},
    }
    (folder / "payload.json").write_text(json.dumps(payload, sort_keys=True, separators=(",", ":")))
    manifest.write(folder, payload, signer)
    return described.load(folder)


def _export(image: Described, target: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    found = export.export(image, target, folder, quiet)
    path = folder / found["file"]
    assert _sha256(path.read_bytes()) == f"sha256:{found['sha256']}"
    assert json.loads((folder / f"{image.payload['id']}.{target}.json").read_text()) == found
    assert not list(folder.glob(".*")), "nothing half-written stays"
    return path, found


# Google Cloud


def check_gcp(path: Path, disk: Path) -> None:
    """The rules of Compute Engine's documentation, read by GNU tar and from the header itself."""
    with gzip.open(path) as packed:
        header = packed.read(512)
    assert header[257:265] == b"ustar  \0", "old GNU format"
    assert header[156:157] == b"0", "an ordinary file, not a sparse one"
    listed = subprocess.run(["tar", "--list", "--file", path], capture_output=True, text=True, check=True).stdout
    assert listed == "disk.raw\n"
    with subprocess.Popen(["tar", "--extract", "--to-stdout", "--file", path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        length, digest, left = 0, hashlib.sha256(), disk.stat().st_size
        while data := process.stdout.read(1 << 20):
            length += len(data)
            digest.update(data[:left])
            assert not any(data[left:]), "zeros behind the image"
            left -= min(left, len(data))
    assert process.returncode == 0
    assert length % GIB == 0
    assert length - GIB < disk.stat().st_size <= length
    assert digest.hexdigest() == hashlib.sha256(disk.read_bytes()).hexdigest()


@pytest.mark.slow
def test_gcp(small: Described, tmp_path: Path) -> None:
    path, found = _export(small, "gcp", tmp_path / "out")
    check_gcp(path, small.file("disk.img"))
    assert found["diskSize"] == GIB
    assert {"UEFI_COMPATIBLE", "GVNIC", "TDX_CAPABLE"} <= set(found["guestOsFeatures"])
    first = path.read_bytes()
    assert _export(small, "gcp", tmp_path / "again")[0].read_bytes() == first, "always the same bytes"


@given(st.integers(0, 1 << 50))
def test_rounding(size: int) -> None:
    for unit in (MIB, GIB):
        found = source.rounded(size, unit)
        assert found % unit == 0
        assert max(size, 1) <= found < max(size, 1) + unit


# Azure


def check_vhd(path: Path, disk: Path) -> None:
    """The specification's footer and Azure's rules, field by field, without the code that wrote them."""
    size = path.stat().st_size
    assert size % 512 == 0, "a page blob"
    content = path.read_bytes()
    data, footer = content[:-512], content[-512:]
    assert len(data) % MIB == 0
    assert footer[:8] == b"conectix"
    assert footer[8:12] == b"\0\0\0\2"
    assert footer[12:16] == b"\0\1\0\0"
    assert footer[16:24] == b"\xff" * 8
    original, current = struct.unpack(">QQ", footer[40:56])
    assert original == current == len(data)
    assert struct.unpack(">I", footer[60:64])[0] == 2, "fixed"
    checksum = struct.unpack(">I", footer[64:68])[0]
    assert checksum == ~(sum(footer) - sum(footer[64:68])) & 0xFFFFFFFF
    cylinders, heads, sectors = struct.unpack(">HBB", footer[56:60])
    assert cylinders * heads * sectors <= len(data) // 512
    assert any(footer[68:84]), "an identity"
    assert footer[84:] == bytes(428)
    original_disk = disk.read_bytes()
    assert data[: len(original_disk)] == original_disk
    assert not any(data[len(original_disk) :])


def test_azure(small: Described, tmp_path: Path) -> None:
    path, found = _export(small, "azure", tmp_path / "out")
    check_vhd(path, small.file("disk.img"))
    assert found["diskSize"] == 3 * MIB
    assert path.stat().st_size == 3 * MIB + 512
    again, _ = _export(small, "azure", tmp_path / "again")
    assert again.read_bytes() == path.read_bytes()


@needs_qemu_img
def test_azure_as_qemu_reads_it(small: Described, tmp_path: Path) -> None:
    path, _ = _export(small, "azure", tmp_path / "out")
    info = subprocess.run(
        ["qemu-img", "info", "-f", "vpc", "--output=json", path], capture_output=True, text=True, check=True
    )
    assert json.loads(info.stdout)["virtual-size"] == 3 * MIB
    assert same(small.file("disk.img"), path, "vpc")


@given(st.integers(1, 1 << 33))
def test_geometry_is_within_the_disk_and_the_fields(sectors: int) -> None:
    cylinders, heads, per_track = azure.geometry(sectors)
    assert 0 <= cylinders <= 65535
    assert 0 < heads <= 16
    assert 0 < per_track <= 255
    assert cylinders * heads * per_track <= sectors


@given(st.integers(1, 4 << 20), st.uuids(), st.integers(EPOCH_2000, 4_000_000_000))
def test_footer_checksum(mebibytes: int, identity: uuid.UUID, epoch: int) -> None:
    footer = azure.footer(mebibytes * MIB, identity, epoch)
    assert len(footer) == 512
    stored = footer[:64] + bytes(4) + footer[68:]
    assert int.from_bytes(footer[64:68], "big") == 0xFFFFFFFF - sum(stored) % (1 << 32)
    assert footer[68:84] == identity.bytes
    assert int.from_bytes(footer[24:28], "big") == epoch - EPOCH_2000


# qcow2


@needs_qemu_img
def test_qcow2(small: Described, tmp_path: Path) -> None:
    # QEMU's raw disks are whole sectors; this one is.
    path, _ = _export(small, "qcow2", tmp_path / "out")
    subprocess.run(["qemu-img", "check", path], capture_output=True, check=True)
    assert same(small.file("disk.img"), path, "qcow2")


def test_without_qemu_img_the_error_says_what_to_install(
    small: Described, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageError, match=r"qemu-img is not installed .*qemu-utils"):
        export.export(small, "qcow2", tmp_path / "out", quiet)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("target", ["azure", "gcp", pytest.param("qcow2", marks=needs_qemu_img)])
@pytest.mark.parametrize("change", ["flip", "cut", "longer"])
def test_another_disk_than_the_manifests_is_refused(
    small: Described, tmp_path: Path, target: str, change: str
) -> None:
    disk = small.file("disk.img")
    content = bytearray(disk.read_bytes())
    if change == "flip":
        content[-1] ^= 1
    disk.write_bytes({"flip": content, "cut": content[:-512], "longer": content + b"\1"}[change])
    with pytest.raises(NotAuthentic, match="its manifest says"):
        export.export(small, target, tmp_path / "out", quiet)
    assert not list((tmp_path / "out").iterdir()), "nothing half-written stays"


def test_a_disk_that_grows_while_it_is_read_is_refused(small: Described) -> None:
    disk = small.file("disk.img")
    length = disk.stat().st_size
    with source.reader(disk, length, small.payload["image"], quiet) as reader:
        assert len(reader.read()) == length
    with disk.open("ab") as out:
        out.write(b"more")
    with (
        source.reader(disk, length, small.payload["image"], quiet) as reader,
        pytest.raises(NotAuthentic, match="its manifest says"),
    ):
        reader.read()


def test_a_flavour_that_the_cloud_cannot_boot_is_said(
    small: Described, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert any("has no module" in line and "hv_storvsc" in line for line in export.warnings(small, "azure"))
    assert export.warnings(small, "qcow2") == []
    assert cli.main(["export", "azure", str(small.folder), "--output", str(tmp_path / "out")]) == 0
    seen = capsys.readouterr()
    assert json.loads(seen.out)["target"] == "azure"
    assert "warning: flavour 'local' has no module hv_vmbus" in seen.err


@pytest.mark.image
@pytest.mark.slow
@needs_qemu_img
def test_a_built_image(some_image: Image, tmp_path: Path) -> None:
    image = described.load(some_image.folder)
    check_gcp(_export(image, "gcp", tmp_path)[0], some_image.disk)
    check_vhd(_export(image, "azure", tmp_path)[0], some_image.disk)
    qcow2, _ = _export(image, "qcow2", tmp_path)
    subprocess.run(["qemu-img", "check", qcow2], capture_output=True, check=True)
    assert same(some_image.disk, qcow2, "qcow2")


# Publishing


def test_published_and_fetched(small: Described, tmp_path: Path) -> None:
    store = tmp_path / "store"
    lines: list[str] = []
    index = publish.publish(small, store, lines.append)
    assert index.name == f"{small.digest.removeprefix('sha256:')}.json"
    for blob in (store / "blobs/sha256").iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    assert "disk.img: published" in lines
    fetched = publish.fetch(store, small.digest, tmp_path / "out", quiet)
    assert fetched.digest == small.digest
    for name in ("disk.img", "uki.efi", "payload.json", "manifest.json", "OVMF_CODE.fd", "OVMF_VARS.fd"):
        assert fetched.file(name).read_bytes() == small.file(name).read_bytes()
    lines.clear()
    publish.publish(small, store, lines.append)
    assert all(line.endswith("already there") for line in lines)


def test_an_image_signed_with_an_expiry_and_provenance_is_published_under_its_own_name(
    small: Described, tmp_path: Path, signer: LocalSigner
) -> None:
    store = tmp_path / "store"
    locked = f"sha256:{lock.load('local').digest()}"
    image = Described({**small.payload, "lock": locked}, small.folder)
    small.file("payload.json").write_text(json.dumps(image.payload, sort_keys=True, separators=(",", ":")))
    for now in (datetime(2026, 11, 24, tzinfo=UTC), datetime(2026, 12, 24, tzinfo=UTC)):
        statement.sign(image, signer, now=now, days=30)
        publish.publish(image, store, quiet)
    (index,) = (store / "images").iterdir()
    assert index.stem == image.digest.removeprefix("sha256:")
    fetched = publish.fetch(store, image.digest, tmp_path / "out", quiet)
    papers = tmp_path / "papers"  # without the disk, whose content is none that predicts anything
    papers.mkdir()
    for name in ("manifest.json", "provenance.json"):
        shutil.copy(fetched.file(name), papers / name)
    lines = verification.verify(papers, dsse.spki_digest(signer.spki), now)
    assert "good until 2027-01-23T00:00:00Z" in lines, "the one that was signed last"
    assert any(line.startswith("provenance: built from ") for line in lines)


def test_an_interrupted_publication_shows_nothing_and_goes_on(
    small: Described, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    monkeypatch.setattr(publish, "CHUNK", 4096)
    monkeypatch.setattr(source, "_EVERY_SECONDS", 0)
    seen = 0

    def interrupt(line: str) -> None:
        nonlocal seen
        seen += line.startswith("disk.img: ")
        if seen == 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish.publish(small, store, interrupt)
    with pytest.raises(ImageError, match="has no image"):
        publish.fetch(store, small.digest, tmp_path / "out", quiet)
    (part,) = (store / "blobs/sha256").glob(".*.part")
    assert 0 < part.stat().st_size < small.file("disk.img").stat().st_size
    written: list[str] = []
    publish.publish(small, store, written.append)
    first = next(line for line in written if line.startswith("disk.img: "))
    assert int(first.split()[1]) >= part_share(small), "goes on where it stopped"
    assert publish.fetch(store, small.digest, tmp_path / "out", quiet).digest == small.digest


def part_share(image: Described) -> int:
    """Per cent of the disk that 100 chunks of 4096 bytes are."""
    return 100 * 4096 * 100 // image.file("disk.img").stat().st_size


def test_a_folder_with_another_image_never_passes_for_this_one(small: Described, tmp_path: Path) -> None:
    store, target = tmp_path / "store", tmp_path / "out"
    publish.publish(small, store, quiet)
    shutil.copytree(small.file("disk.img").parent, target)
    (target / "payload.json").write_text(json.dumps({**small.payload, "id": "other"}))
    (target / "disk.img").write_bytes(b"another disk")
    (target / "provenance.json").write_text("{}")

    def interrupt(line: str) -> None:
        if line == "disk.img: fetched":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish.fetch(store, small.digest, target, interrupt)
    with pytest.raises(ImageError, match="holds no built image"):
        described.load(target)
    assert publish.fetch(store, small.digest, target, quiet).digest == small.digest
    assert not (target / "provenance.json").exists()


def test_a_rotten_part_is_not_built_upon(small: Described, tmp_path: Path) -> None:
    blobs = tmp_path / "store/blobs/sha256"
    blobs.mkdir(parents=True)
    (blobs / f".{small.payload['image'].removeprefix('sha256:')}.part").write_bytes(b"rotten" * 100)
    publish.publish(small, tmp_path / "store", quiet)
    assert publish.fetch(tmp_path / "store", small.digest, tmp_path / "out", quiet).digest == small.digest


def test_a_damaged_blob_is_published_again_and_never_fetched(small: Described, tmp_path: Path) -> None:
    store = tmp_path / "store"
    publish.publish(small, store, quiet)
    blob = store / "blobs/sha256" / small.payload["image"].removeprefix("sha256:")
    good = blob.read_bytes()
    blob.write_bytes(good[:-1] + b"\0")
    with pytest.raises(NotAuthentic, match="expected sha256"):
        publish.fetch(store, small.digest, tmp_path / "out", quiet)
    assert not (tmp_path / "out/payload.json").exists(), "a folder without it is no image"
    publish.publish(small, store, quiet)
    assert blob.read_bytes() == good
    assert publish.fetch(store, small.digest, tmp_path / "out", quiet).digest == small.digest


def test_an_index_that_names_other_files_is_refused(small: Described, tmp_path: Path) -> None:
    store = tmp_path / "store"
    index = publish.publish(small, store, quiet)
    other = b"another disk"
    (store / "blobs/sha256" / hashlib.sha256(other).hexdigest()).write_bytes(other)
    content = json.loads(index.read_text())
    content["files"]["disk.img"] = {"digest": _sha256(other), "size": len(other)}
    index.write_text(json.dumps(content))
    with pytest.raises(NotAuthentic, match=r"another disk\.img"):
        publish.fetch(store, small.digest, tmp_path / "out", quiet)
    assert not (tmp_path / "out").exists()


def test_the_payload_of_another_image_is_refused(small: Described, tmp_path: Path) -> None:
    store = tmp_path / "store"
    index = publish.publish(small, store, quiet)
    other = json.dumps({**small.payload, "id": "other"}).encode()
    (store / "blobs/sha256" / hashlib.sha256(other).hexdigest()).write_bytes(other)
    content = json.loads(index.read_text())
    content["files"]["payload.json"] = {"digest": _sha256(other), "size": len(other)}
    index.write_text(json.dumps(content))
    with pytest.raises(NotAuthentic, match="the payload is sha256"):
        publish.fetch(store, small.digest, tmp_path / "out", quiet)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"version": 1, "files": {}}', '{"files": {"../x": 1}}'])
def test_anything_else_is_no_index(small: Described, tmp_path: Path, text: str) -> None:
    store = tmp_path / "store"
    publish.publish(small, store, quiet).write_text(text)
    with pytest.raises(ImageError, match="index"):
        publish.fetch(store, small.digest, tmp_path / "out", quiet)


@pytest.mark.parametrize("digest", ["", "sha256:", "../../etc/passwd", f"sha256:{'A' * 64}", f"sha256:{'0' * 63}/"])
def test_only_digests_name_images(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ImageError, match="is no image digest"):
        publish.fetch(tmp_path, digest, tmp_path / "out", quiet)


def test_what_is_not_signed_or_changed_is_not_published(
    small: Described, tmp_path: Path, signer: LocalSigner
) -> None:
    small.file("uki.efi").write_bytes(b"changed")
    with pytest.raises(NotAuthentic, match=r"uki\.efi is sha256"):
        publish.publish(small, tmp_path / "store", quiet)
    small.file("uki.efi").write_bytes(b"uki")
    manifest.write(small.file("uki.efi").parent, {**small.payload, "id": "other"}, signer)
    with pytest.raises(NotAuthentic, match="the manifest is that of another image"):
        publish.publish(small, tmp_path / "store", quiet)
    small.file("manifest.json").unlink()
    with pytest.raises(ImageError, match=r"manifest\.json of image .* is not at hand"):
        publish.publish(small, tmp_path / "store", quiet)
    assert not (tmp_path / "store").exists()


def test_commands(small: Described, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(tmp_path / "store")
    assert cli.main(["publish", str(small.folder), "--store", store]) == 0
    assert small.digest in capsys.readouterr().out
    assert cli.main(["fetch", small.digest, "--store", store, "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/disk.img").is_file()
    assert cli.main(["fetch", f"sha256:{'0' * 64}", "--store", store, "--output", str(tmp_path / "no")]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("measured-image: ")
