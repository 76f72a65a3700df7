# SPDX-License-Identifier: Apache-2.0
"""Predictions per platform against logs and values of real machines of exactly these types."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from cube_attestation import dsse
from cube_attestation.dsse import LocalSigner
from cube_attestation.tdx import ccel
from cube_attestation.tpm import eventlog
from cube_attestation.tpm.eventlog import Event
from cube_images import cli, predict
from cube_images.build import Image
from cube_images.errors import ImageError
from cube_images.platforms import azure, gcp, local
from cube_images.platforms.registers import PREDICTED, UNKNOWN, Prediction, fold
from cube_images.predict import Measurement
from hypothesis import given
from hypothesis import strategies as st
from small_uki import SECTIONS, disk_head, pe, uki

# Quoted on a Standard_NCC40ads_H100_v5 (cohere-ai/cvm-measure, golden/azure-snp-ncc40ads-h100-v5.json, Apache-2.0).
AZURE_SEPARATOR_ONLY = "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969"
VECTORS = Path(os.environ.get("CUBE_VECTORS") or Path(__file__).resolve().parents[3] / "shared" / "vectors")
needs_vectors = pytest.mark.skipif(not VECTORS.is_dir(), reason="no folder with real evidence: set CUBE_VECTORS")
TCG_LOGS = sorted((VECTORS / "tpm").rglob("eventlogs/*.bin"))
CC_LOGS = [
    *sorted((VECTORS / "tdx").rglob("ccel_a3*.bin")),
    *(path for path in sorted((VECTORS / "tdx").rglob("CCEL_data_*")) if path.suffix != ".json" and path.is_file()),
]


def _digest(bank: str, content: bytes) -> bytes:
    return hashlib.new(bank, content).digest()


def _gpt(log: eventlog.EventLog) -> list[Event]:
    return [event for event in log.events if event.type == "EV_EFI_GPT_EVENT"]


def _any_head() -> bytes:
    header = bytearray(92)
    header[:8] = b"EFI PART"
    header[72:80] = (2).to_bytes(8, "little")
    header[80:88] = (128).to_bytes(4, "little") + (128).to_bytes(4, "little")
    return disk_head(bytes(header) + (1).to_bytes(8, "little") + b"\1" * 128)


# Google Cloud, an a3-highgpu-1g


@pytest.fixture(scope="module")
def a3() -> eventlog.EventLog:
    return ccel.parse((VECTORS / "tdx/cohere-ai_cvm-measure/ccel_a3-highgpu-1g.bin").read_bytes())


@pytest.fixture(scope="module")
def golden() -> dict[str, str]:
    values: dict[str, str] = json.loads(
        (VECTORS / "tdx/cohere-ai_cvm-measure/golden_a3-highgpu-1g.json").read_text()
    )
    return values


# What of a prediction is the content of the image, so that another image has another digest there.
OWN = ("the UKI", "the kernel", "content of ")


def _rederived(predicted: list[Measurement], logged: tuple[Event, ...]) -> list[bytes]:
    """Digests of the prediction, those of the image's own content from the log; the others have to be equal."""
    kinds = {"uki.section": "EV_IPL"}
    assert [kinds.get(item.type, item.type) for item in predicted] == [event.type for event in logged]
    found = []
    for item, event in zip(predicted, logged, strict=True):
        if item.what.startswith(OWN):
            found.append(event.digests["sha384"])
            continue
        assert item.digest == event.digests["sha384"], item.what
        found.append(item.digest)
    return found


def _folded(digests: list[bytes]) -> str:
    value = bytes(48)
    for digest in digests:
        value = _digest("sha384", value + digest)
    return value.hex()


@needs_vectors
def test_rtmr1_and_rtmr2_are_made_as_on_an_a3_highgpu_1g(a3: eventlog.EventLog, golden: dict[str, str]) -> None:
    """Sections of the same names, the machine's own partition table: every event is derived again in its place."""
    (table,) = _gpt(a3)
    found = predict.measurements(uki(), disk_head(table.data), "sha384")
    rtmr1 = _rederived(gcp.rtmr1(found), ccel.of_register(a3, 1))
    rtmr2 = _rederived(gcp.rtmr2(found), ccel.of_register(a3, 2))
    assert _folded(rtmr1) == golden["rtmr1"]
    assert _folded(rtmr2) == golden["rtmr2"]
    assert [digest.hex() for digest in ccel.programs(a3)] == [
        golden["uki_image_digest"],
        golden["kernel_image_digest"],
    ]
    # The sections' contents are those of that image; the names in between are what the recipe says.
    names = [item.what.removeprefix("name of ") for item in gcp.rtmr2(found)[::2]]
    assert names == list(ccel.sections(a3))


@needs_vectors
@pytest.mark.parametrize("wrong", ["another table", "one section more", "one section less"])
def test_another_image_does_not_fit_that_log(a3: eventlog.EventLog, wrong: str) -> None:
    (table,) = _gpt(a3)
    head, image = disk_head(table.data), uki()
    if wrong == "another table":
        head = disk_head(table.data[:-1] + bytes([table.data[-1] ^ 1]))
    elif wrong == "one section more":
        image = uki(ucode=b"microcode")
    else:
        image = pe({".linux": pe({".text": b"k"}), **{n: c for n, c in SECTIONS.items() if n != ".sbat"}})
    found = predict.measurements(image, head, "sha384")
    register = 1 if wrong == "another table" else 2
    with pytest.raises(AssertionError):
        _rederived([gcp.rtmr1, gcp.rtmr2][register - 1](found), ccel.of_register(a3, register))


@needs_vectors
@pytest.mark.parametrize("path", [*TCG_LOGS, *CC_LOGS], ids=lambda path: path.name)
def test_partition_tables_of_real_logs(path: Path) -> None:
    """Each partition table that a log has is derived again from a disk that has it."""
    data = path.read_bytes()
    log = ccel.parse(data) if path in CC_LOGS else eventlog.parse_tcg(data)
    for event in _gpt(log):
        rebuilt = predict.gpt_event(disk_head(event.data))
        assert rebuilt == event.data
        for bank, digest in event.digests.items():
            assert _digest(bank, rebuilt) == digest


@needs_vectors
@pytest.mark.parametrize("path", [*TCG_LOGS, *CC_LOGS], ids=lambda path: path.name)
def test_actions_and_separators_of_real_logs(path: Path) -> None:
    data = path.read_bytes()
    log = ccel.parse(data) if path in CC_LOGS else eventlog.parse_tcg(data)
    for bank in ("sha256", "sha384"):
        known = {
            (item.type, item.what): item.digest
            for item in predict.measurements(uki(), _any_head(), bank)
            if item.type in ("EV_EFI_ACTION", "EV_SEPARATOR")
        }
        for event in log.events:
            if bank not in event.digests or (event.type, event.words()) not in known:
                continue
            if event.type == "EV_SEPARATOR" and any(event.data):
                continue  # an error of the firmware's is measured by another separator
            assert event.digests[bank] == known[event.type, event.words()]


@needs_vectors
def test_command_line_that_a_kernel_on_compute_engine_measured() -> None:
    """PCR 9 of a real SEV-SNP machine: UTF-16 of the options as the kernel got them (from GRUB without a NUL)."""
    log = eventlog.parse_tcg(
        (VECTORS / "tpm/google_go-tpm-tools/eventlogs/ubuntu-2404-amd-sevsnp.bin").read_bytes()
    )
    prefix = b"kernel_cmdline: "
    (line,) = {
        event.data.removeprefix(prefix).rstrip(b"\0") for event in log.events if event.data.startswith(prefix)
    }
    (event,) = [event for event in log.events if event.type == "EV_EVENT_TAG" and b"LoadOptions" in event.data]
    assert event.pcr == 9
    options = "BOOT_IMAGE=" + line.decode()
    assert event.digests["sha256"] == _digest("sha256", options.encode("utf-16-le"))
    found = predict.measurements(uki(cmdline=options.encode()), _any_head())
    (ours,) = [item for item in found if item.what == "kernel command line"]
    assert (ours.pcr, ours.type) == (event.pcr, event.type)
    assert ours.digest == _digest("sha256", options.encode("utf-16-le") + b"\0\0")


@needs_vectors
def test_boot_services_left_twice_as_a_machine_of_compute_engine_did() -> None:
    log = eventlog.parse_tcg(
        (VECTORS / "tpm/google_go-tpm-tools/eventlogs/ubuntu-2404-amd-sevsnp.bin").read_bytes()
    )
    (table,) = _gpt(log)
    events = [item for item in predict.measurements(uki(), disk_head(table.data)) if item.pcr == 5]
    logged = [event.digests["sha256"] for event in log.events if event.pcr == 5 and event.extends]
    assert [item.digest for item in events] != logged
    assert [item.digest for item in gcp.refused_once(events, "sha256")] == logged
    register = next(row for row in gcp.registers(uki(), disk_head(table.data)).registers if row.name == "PCR 5")
    assert register.alternatives[0].value == eventlog.replay(log.events, "sha256")[5]


# Azure, a Standard_NCC40ads_H100_v5


@pytest.mark.parametrize("pcr", sorted(azure.SEQUENCES))
def test_azure_sequences(pcr: int) -> None:
    found = predict.measurements(uki(), _any_head())
    assert tuple(item.type for item in found if item.pcr == pcr) == azure.SEQUENCES[pcr]


def test_azure_values_that_no_image_decides() -> None:
    assert (value := azure.registers(uki(), _any_head()).value("PCR 2"))
    assert value.hex() == AZURE_SEPARATOR_ONLY


def test_microcode_comes_before_the_initrd() -> None:
    """As published of that machine: the kernel measures microcode and initrd as one."""
    plain = predict.kernel_initrd(SECTIONS)
    assert predict.kernel_initrd({**SECTIONS, ".ucode": b"code"}) == b"code" + plain
    assert predict.kernel_initrd({**SECTIONS, ".ucode": b"cod"}) == b"cod\0" + plain


# All


def _targets(launch: bytes | None = None) -> list[Prediction]:
    return [module.registers(uki(), _any_head(), launch) for module in (gcp, azure, local)]


@pytest.mark.parametrize("prediction", _targets(), ids=lambda found: found.target)
def test_each_register_is_predicted_with_its_events_or_unknown_with_a_reason(prediction: Prediction) -> None:
    rows = prediction.to_json()["registers"]
    assert len({row["name"] for row in rows}) == len(rows)
    for row, register in zip(rows, prediction.registers, strict=True):
        if row["state"] == UNKNOWN:
            assert len(row["reason"]) > 20
            assert row.keys() == {"name", "bank", "state", "reason"}
            assert register.events == ()
        else:
            assert row["state"] == PREDICTED
            assert len(row["basis"]) > 20
            assert fold(row["bank"], register.events).hex() == row["value"]
    text = "\n".join(prediction.lines())
    for row in rows:
        assert row.get("value", row.get("reason")) in text


def test_what_no_image_decides_is_never_guessed() -> None:
    unknown = {
        found.target: {register.name for register in found.registers if register.value is None}
        for found in _targets()
    }
    assert unknown["gcp"] == {"MRTD", "RTMR0", "PCR 0", "PCR 1", "PCR 2", "PCR 7", "PCR 8"}
    assert unknown["azure"] == {"SNP", "PCR 0", "PCR 1", "PCR 7", "PCR 8"}
    assert unknown["local"] == {"PCR 0", "PCR 1", "PCR 8"}


@pytest.mark.parametrize("module", [gcp, azure])
def test_secure_boot_makes_the_programs_unknown(module: Any) -> None:
    plain, secure = (module.registers(uki(), _any_head(), secure_boot=on) for on in (False, True))
    changed = {
        register.name
        for register in plain.registers
        if register.value is not None and not secure.value(register.name)
    }
    assert changed == ({"PCR 4", "RTMR1"} if module is gcp else {"PCR 4"})
    assert "Secure Boot is on" in secure.assumes


def test_launch_document_gives_pcr_8() -> None:
    expected = _digest("sha256", bytes(32) + _digest("sha256", b"launch"))
    assert [found.value("PCR 8") for found in _targets(b"launch")] == [expected] * 3


@given(
    st.sampled_from(["linux", "osrel", "cmdline", "initrd", "uname", "sbat"]), st.binary(min_size=1, max_size=30)
)
def test_every_section_moves_what_covers_it(section: str, content: bytes) -> None:
    content = pe({".text": content}) if section == "linux" else content
    if section == "cmdline":
        content = content.hex().encode()
    one = gcp.registers(uki(), _any_head())
    other = gcp.registers(uki(**{section: content}), _any_head())
    if section != "linux" and content == SECTIONS[f".{section}"]:
        return
    moved = {row.name for row in one.registers if row.value is not None and row.value != other.value(row.name)}
    assert {"RTMR1", "RTMR2", "PCR 4", "PCR 11"} <= moved
    assert ("PCR 9" in moved) == (section in ("cmdline", "initrd", "osrel"))
    assert not {"RTMR3", "PCR 5"} & moved


def test_command(tmp_path: Path, signer: LocalSigner, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "uki.efi").write_bytes(uki())
    (tmp_path / "disk.img").write_bytes(_any_head())
    launch = tmp_path / "launch.json"
    launch.write_text(json.dumps(dsse.sign(dsse.LAUNCH, {"a": 1}, signer)))
    words = ["predict", str(tmp_path), "--json", "--launch", str(launch)]
    for target in ("gcp", "azure", "local"):
        assert cli.main([*words, "--target", target]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["target"] == target
        rows = {row["name"]: row for row in found["registers"]}
        assert rows["PCR 8"]["events"][0]["digest"] == hashlib.sha256(b'{"a":1}').hexdigest()
    assert cli.main(["predict", str(tmp_path), "--target", "gcp"]) == 0
    assert "RTMR0  unknown: " in capsys.readouterr().out
    assert cli.main(["predict", str(tmp_path), "--target", "local", "--secure-boot", "on"]) == 1
    launch.write_text("{}")
    assert cli.main([*words, "--target", "gcp"]) == 1
    assert capsys.readouterr().err.count("\n") == 2


def test_no_image_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="name the folder of a built image"):
        predict.parts(tmp_path)


@pytest.mark.image
@pytest.mark.slow
def test_local_is_what_the_manifest_says(some_image: Image) -> None:
    found = local.registers(*predict.parts(some_image.folder))
    for pcr, value in some_image.pcrs.items():
        register = found.value(f"PCR {pcr}")
        assert register is not None
        assert register.hex() == value
    cloud = gcp.registers(*predict.parts(some_image.folder))
    for name in ("PCR 4", "PCR 5", "PCR 9", "PCR 11"):
        assert cloud.value(name) == found.value(name), "the same events in the same order"
