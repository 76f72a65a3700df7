# SPDX-License-Identifier: Apache-2.0
"""The byte-level writers and readers: cpio, dm-verity, PE, GPT, and the prediction made of them."""

import hashlib
import struct
import tempfile
import uuid
from pathlib import Path

import pytest
import small_uki
from cube_attestation.tpm import eventlog
from cube_images import cpio, pe, predict, verity
from cube_images.errors import ImageError
from hypothesis import given, settings
from hypothesis import strategies as st


def test_cpio_member_layout() -> None:
    entry = cpio.member("a/b", 7, 0o100644, b"hello", mtime=5)
    assert entry[:6] == b"070701"
    fields = [int(entry[at : at + 8], 16) for at in range(6, 110, 8)]
    assert fields == [7, 0o100644, 0, 0, 1, 5, 5, 0, 0, 0, 0, 4, 0]
    assert entry[110:114] == b"a/b\0"
    assert entry[116:] == b"hello\0\0\0"


def test_archive_has_parents_before_children_once() -> None:
    archive = cpio.Archive(1)
    archive.file("a/b/c", b"1")
    archive.file("a/b/d", b"2")
    data = archive.bytes()
    assert len(data) % 512 == 0
    order = [data.index(name + b"\0") for name in (b"0a", b"0a/b", b"0a/b/c", b"0a/b/d", b"TRAILER!!!")]
    assert order == sorted(order)
    assert data.count(b"070701") == 5


@settings(deadline=None)
@given(st.integers(1, 300), st.binary(max_size=32))
def test_verity_tree_matches_its_definition(blocks: int, salt: bytes) -> None:
    """Each hash block holds the salted hashes of the level below; the root is the hash of the top one."""
    data = b"".join(number.to_bytes(4096, "big") for number in range(blocks))

    def digest(block: bytes) -> bytes:
        return hashlib.sha256(salt + block).digest()

    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        root, tree = verity.tree(Path(file.name), salt)
    leaves = b"".join(digest(data[at : at + 4096]) for at in range(0, len(data), 4096))
    leaves += bytes(-len(leaves) % 4096)
    assert tree.endswith(leaves)
    assert root == digest(tree[:4096])
    assert len(tree) == (4096 if blocks <= 128 else 4096 + len(leaves))


def test_verity_superblock_offsets() -> None:
    block = verity.superblock(9, b"salt", uuid.UUID(int=5))
    assert len(block) == 4096
    assert block[:8] == b"verity\0\0"
    assert struct.unpack_from("<II", block, 8) == (1, 1)
    assert block[32:38] == b"sha256"
    assert struct.unpack_from("<IIQH", block, 64) == (4096, 4096, 9, 4)
    assert block[88:92] == b"salt"


def test_verity_append_pads_to_whole_blocks(tmp_path: Path) -> None:
    path = tmp_path / "v"
    path.write_bytes(b"x" * 5000)
    root, offset = verity.append(path, b"s", uuid.UUID(int=1))
    assert offset == 8192
    assert len(root) == 64
    assert path.stat().st_size == 8192 + 2 * 4096


@given(st.binary(max_size=400) | st.binary(max_size=300).map(lambda data: b"MZ" + data))
def test_no_pe_is_a_clear_error(data: bytes) -> None:
    with pytest.raises(ImageError, match="thing"):
        pe.parse(data, "thing")


def test_authenticode_leaves_out_checksum_and_certificates_and_nothing_else() -> None:
    """Offsets of the PE32+ header: checksum 64 and the certificate table's entry 144 behind the optional header."""
    plain = small_uki.uki()
    optional = 64 + 24
    digest = pe.parse(plain, "it").authenticode

    def patched(at: int, content: bytes, behind: bytes = b"") -> bytes:
        data = plain[:at] + content + plain[at + len(content) :] + behind
        return pe.parse(data, "it").authenticode

    assert patched(optional + 64, b"\1\2\3\4") == digest
    certificates = b"signature".ljust(64, b"\0")
    entry = struct.pack("<II", len(plain), len(certificates))
    assert patched(optional + 144, entry, certificates) == digest
    for at in (optional + 63, optional + 68, optional + 143, optional + 152, 1024, len(plain) - 1):
        assert patched(at, bytes([plain[at] ^ 1])) != digest
    assert patched(0, b"MZ", b"appended") != digest
    assert pe.parse(plain, "it").digest("sha384") != digest


def _disk(entries: list[bytes]) -> bytes:
    table = b"".join(entries).ljust(128 * 128, b"\0")
    header = struct.pack(
        "<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, 1, 99, 34, 90, b"d" * 16, 2, 128, 128, 0
    )
    return bytes(512) + header.ljust(512, b"\0") + table


def test_gpt_event_holds_header_count_and_used_entries() -> None:
    one, two = b"\1" * 128, b"\2" * 128
    event = predict.gpt_event(_disk([one, bytes(128), two]))
    assert event[:8] == b"EFI PART"
    assert event[92:] == struct.pack("<Q", 2) + one + two


@given(st.binary(max_size=2000) | st.binary(max_size=2000).map(lambda data: bytes(512) + b"EFI PART" + data))
def test_no_gpt_is_a_clear_error(data: bytes) -> None:
    with pytest.raises(ImageError, match="partition table"):
        predict.gpt_event(data)


def test_stub_archive_is_the_one_that_systemd_257_makes() -> None:
    """As recorded in PCR 9 on a boot: folder, file, a trailer whose name size is written in upper case."""
    archive = predict.stub_archive("os-release", b"ID=x\n")
    assert archive.startswith(b"07070100000001000041" + b"6d")
    assert b".extra/os-release\0" in archive
    assert b"0000000B00000000TRAILER!!!\0" in archive
    assert len(archive) % 4 == 0


def test_pcrs_are_what_replaying_the_events_gives() -> None:
    found = [
        predict.Measurement(pcr, hashlib.sha256(bytes([number])).digest(), "EV_ACTION", "x", "y")
        for number, pcr in enumerate((4, 5, 4, 11, 4))
    ]
    events = [eventlog.Event(item.pcr, item.type, {"sha256": item.digest}, b"") for item in found]
    replayed = eventlog.replay(events, "sha256")
    assert predict.pcrs(found) == {pcr: replayed[pcr] for pcr in (4, 5, 11)}
