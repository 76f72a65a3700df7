# SPDX-License-Identifier: Apache-2.0
"""`measured-image diff`: what changed between two images, and which measurements move with it."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from cube_attestation import dsse
from cube_images import cli
from cube_images.errors import ImageError
from cube_images.provenance import compare, described
from cube_images.provenance.described import Described
from hypothesis import given
from hypothesis import strategies as st
from manifests import digest, manifest_payload, values


def _moved(payload: dict[str, Any]) -> dict[str, Any]:
    payload["reference"]["pcrs"]["sha256"] = values(payload["reference"]["events"])
    return payload


def _compare(before: dict[str, Any], after: dict[str, Any]) -> compare.Difference:
    return compare.compare(Described(before, None), Described(after, None))


def test_the_same_image_has_no_difference() -> None:
    found = _compare(manifest_payload(), manifest_payload())
    assert found.same
    assert found.lines() == ["the two images are the same"]
    assert not [register for register in found.registers if register.moves or register.causes]


def test_packages_come_go_and_change() -> None:
    after = manifest_payload()
    after["packages"][0]["version"] = "257.14"
    after["packages"][1] = {"name": "new", "version": "1", "architecture": "all", "sha256": digest("new")}
    assert [change.line() for change in _compare(manifest_payload(), after).packages] == [
        "new:all absent -> 1",
        "systemd:amd64 257.13 -> 257.14",
        "zlib1g:amd64 1:1.3 -> absent",
    ]


def test_the_same_version_with_other_bytes_shows() -> None:
    after = manifest_payload()
    after["packages"][1]["sha256"] = digest("rebuilt")
    (change,) = _compare(manifest_payload(), after).packages
    assert change.name == "zlib1g:amd64"
    assert change.before != change.after
    assert change.after == f"sha256:{digest('rebuilt')}"


def test_a_changed_initrd_moves_its_register_alone_and_says_why() -> None:
    after = manifest_payload()
    after["reference"]["events"][2]["sha256"] = digest("other initrd")
    found = _compare(manifest_payload(), _moved(after))
    moving = {register.name: register.causes for register in found.registers if register.moves}
    assert moving == {"PCR 9": ("initrd changed, from uki.efi .initrd",)}
    assert "  unchanged: PCR 4" in found.lines()


def test_an_event_more_and_one_less_are_named() -> None:
    after = manifest_payload()
    del after["reference"]["events"][1]
    extra = {"pcr": 4, "sha256": digest("x"), "type": "T", "what": "another program", "from": "uki.efi"}
    after["reference"]["events"].append(extra)
    found = {register.name: register.causes for register in _compare(manifest_payload(), _moved(after)).registers}
    assert found["PCR 4"] == ("another program is measured in addition, from uki.efi",)
    assert found["PCR 9"] == ("kernel command line is no longer measured, from uki.efi .cmdline",)


def test_inputs_firmware_and_programs() -> None:
    after = manifest_payload()
    after["lock"] = f"sha256:{digest('lock2')}"
    after["firmware"]["code"] = f"sha256:{digest('code2')}"
    after["binaries"][0]["sha256"] = digest("envoy2")
    found = _compare(manifest_payload(), after)
    assert [change.name for change in found.inputs] == ["firmware code", "lock"]
    assert [change.name for change in found.binaries] == ["/usr/bin/envoy"]
    assert digest("lock")[:12] in found.lines()[2]
    assert digest("lock") not in found.lines()[2], "digests are cut for people"


@given(st.permutations(range(3)), st.sets(st.integers(0, 2)))
def test_a_register_that_moves_has_a_cause(order: list[int], changed: set[int]) -> None:
    after = copy.deepcopy(manifest_payload())
    events = [after["reference"]["events"][number] for number in order]
    for number in changed:
        events[number]["sha256"] = digest(f"changed {number}")
    after["reference"]["events"] = events
    for register in _compare(manifest_payload(), _moved(after)).registers:
        assert register.moves == bool(register.causes), register


def _signed(folder: Path, payload: dict[str, Any], signer: dsse.LocalSigner) -> Path:
    path = folder / "manifest.json"
    path.write_text(json.dumps(dsse.sign(dsse.IMAGE_MANIFEST, payload, signer)))
    return path


def test_command_reads_manifests_and_payloads(
    tmp_path: Path, signer: dsse.LocalSigner, capsys: pytest.CaptureFixture[str]
) -> None:
    after = manifest_payload()
    after["reference"]["events"][0]["sha256"] = digest("uki2")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "payload.json").write_text(json.dumps(_moved(after)))
    before = _signed(tmp_path, manifest_payload(), signer)
    assert cli.main(["diff", str(before), str(tmp_path / "b")]) == 0
    assert "PCR 4 moves\n    the UKI (Authenticode digest) changed, from uki.efi" in capsys.readouterr().out
    assert cli.main(["diff", str(before), str(tmp_path / "b"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["name"]: row["moves"] for row in found["registers"]} == {"PCR 4": True, "PCR 9": False}
    assert not found["same"]


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "7", "{}", '{"payloadType": "x"}', '{"version": 1, "flavour": "local"}']
)
def test_anything_else_is_one_clear_error(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.json"
    path.write_text(text)
    with pytest.raises(ImageError, match="is not an image manifest"):
        described.load(path)
    assert cli.main(["diff", str(path), str(path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@given(st.sampled_from(sorted(manifest_payload())), st.none() | st.integers() | st.text() | st.lists(st.integers()))
def test_a_member_of_another_kind_is_refused_or_compared(name: str, value: object) -> None:
    payload = manifest_payload() | {name: value}
    try:
        read = described.read(payload, "m")
    except ImageError:
        return
    compare.compare(Described(read, None), Described(manifest_payload(), None))


@pytest.mark.image
@pytest.mark.slow
def test_a_changed_command_line_shows_in_words(image: Any, tmp_path: Path) -> None:
    """A real image against itself with one byte of the root hash on its command line changed."""
    changed = tmp_path / "changed"
    changed.mkdir()
    content = image.uki.read_bytes()
    at = content.index(b"roothash=") + len(b"roothash=")
    flipped = b"0" if content[at : at + 1] != b"0" else b"1"
    (changed / "uki.efi").write_bytes(content[:at] + flipped + content[at + 1 :])
    (changed / "disk.img").symlink_to(image.disk)
    from cube_images import manifest, predict

    payload = {**image.payload, "reference": manifest.reference(predict.predict(changed))}
    (changed / "payload.json").write_text(json.dumps(payload))
    found = compare.compare(described.load(image.folder), described.load(changed))
    assert [change.name for change in found.command_line] == ["roothash"]
    assert [change.name for change in found.sections] == [".cmdline"]
    moving = {register.name: register.causes for register in found.registers if register.moves}
    assert moving.keys() == {"PCR 4", "PCR 9", "PCR 11", "RTMR1 (gcp)", "RTMR2 (gcp)"}
    assert moving["RTMR2 (gcp)"] == moving["PCR 11"]
    assert moving["PCR 11"] == ("content of .cmdline changed, from uki.efi .cmdline",)
