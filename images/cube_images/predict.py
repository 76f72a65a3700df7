# SPDX-License-Identifier: Apache-2.0
"""What the PCRs will hold after the image has booted, from the image alone: TCG PC Client Platform Firmware Profile
(section 3.3.4), systemd-stub(7), the kernel's EFI stub, systemd-pcrphase(8).

For OVMF with Secure Boot off and no option ROM. Each event says in words what is measured and what decides it.
"""

import hashlib
import struct
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cube_attestation.tpm import eventlog

from cube_images import cpio, pe
from cube_images.errors import ImageError

# In the order in which systemd-stub measures them (257: unified_sections in src/fundamental/uki.c).
_MEASURED_SECTIONS = (
    ".linux",
    ".osrel",
    ".cmdline",
    ".initrd",
    ".ucode",
    ".splash",
    ".dtb",
    ".uname",
    ".sbat",
    ".pcrpkey",
    ".profile",
    ".dtbauto",
    ".hwids",
)
# Sections that the stub hands to the kernel as files of a small archive behind the initrd.
_SECTION_FILES = (
    (".pcrsig", "tpm2-pcr-signature.json"),
    (".pcrpkey", "tpm2-pcr-public-key.pem"),
    (".osrel", "os-release"),
    (".profile", "profile"),
)
_PHASES = ("sysinit", "ready")
_GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
_IMAGE_SECURITY = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
_SECURE_BOOT_VARIABLES = (
    (_GLOBAL, "SecureBoot"),
    (_GLOBAL, "PK"),
    (_GLOBAL, "KEK"),
    (_IMAGE_SECURITY, "db"),
    (_IMAGE_SECURITY, "dbx"),
)
_SECTOR = 512
_GPT_HEADER = 92
_GPT_ENTRY = 128


@dataclass(frozen=True)
class Measurement:
    """One predicted extend of the SHA-256 bank. `source` names the input that decides it."""

    pcr: int
    digest: bytes
    type: str
    what: str
    source: str


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _separator(pcr: int) -> Measurement:
    digest = _sha256(bytes(4))
    return Measurement(pcr, digest, "EV_SEPARATOR", "end of the firmware's own measurements", "firmware")


def _action(pcr: int, text: str) -> Measurement:
    return Measurement(pcr, _sha256(text.encode()), "EV_EFI_ACTION", text, "firmware")


def _variable(vendor: uuid.UUID, name: str) -> Measurement:
    """UEFI_VARIABLE_DATA of a variable without value, as it is while Secure Boot is off."""
    data = vendor.bytes_le + struct.pack("<QQ", len(name), 0) + name.encode("utf-16-le")
    words = f"EFI variable {name}: empty, Secure Boot is off"
    return Measurement(7, _sha256(data), "EV_EFI_VARIABLE_DRIVER_CONFIG", words, "firmware variables")


def gpt_event(head: bytes) -> bytes:
    """UEFI_GPT_DATA of a disk from its first sectors: header, count, and the entries that are in use."""
    header = head[_SECTOR : _SECTOR + _GPT_HEADER]
    if header[:8] != b"EFI PART" or len(header) != _GPT_HEADER:
        raise ImageError("the disk image has no GUID partition table")
    (start,) = struct.unpack_from("<Q", header, 72)
    count, size = struct.unpack_from("<II", header, 80)
    table = head[start * _SECTOR : start * _SECTOR + count * size]
    if size != _GPT_ENTRY or not count or len(table) != count * size:
        raise ImageError("the disk image has an unusual partition table")
    entries = [table[at : at + size] for at in range(0, len(table), size)]
    used = [entry for entry in entries if any(entry[:16])]
    return header + struct.pack("<Q", len(used)) + b"".join(used)


def stub_archive(name: str, content: bytes) -> bytes:
    """The cpio that systemd-stub makes of one section: folder .extra (0555), one file (0444), no times."""
    end = cpio.trailer().replace(b"0000000b", b"0000000B")
    folder = cpio.member(".extra", 1, 0o040555, b"")
    return folder + cpio.member(f".extra/{name}", 2, 0o100444, content) + end


def kernel_initrd(sections: dict[str, bytes]) -> bytes:
    """The initrd as the kernel gets it: the .initrd section, then the stub's archives."""
    archives = [stub_archive(name, sections[section]) for section, name in _SECTION_FILES if section in sections]
    return cpio.pad(sections[".initrd"], 4) + b"".join(archives)


def measurements(uki: bytes, disk_head: bytes) -> list[Measurement]:
    """All predicted extends, in order within each PCR. `disk_head` is the first MiB of the disk image."""
    image = pe.parse(uki, "the UKI")
    sections = image.sections
    if missing := {".linux", ".osrel", ".cmdline", ".initrd"} - sections.keys():
        raise ImageError(f"the UKI has no section {', '.join(sorted(missing))}")
    kernel = pe.parse(sections[".linux"], "the kernel in the UKI")
    command_line = sections[".cmdline"].rstrip(b"\0").decode()
    application = "EV_EFI_BOOT_SERVICES_APPLICATION"
    found = [
        _separator(2),
        _action(4, "Calling EFI Application from Boot Option"),
        _separator(4),
        Measurement(4, image.authenticode, application, "the UKI (Authenticode digest)", "uki.efi"),
        Measurement(4, kernel.authenticode, application, "the kernel (Authenticode digest)", "uki.efi .linux"),
        _separator(5),
        Measurement(5, _sha256(gpt_event(disk_head)), "EV_EFI_GPT_EVENT", "partition table", "disk.img"),
        _action(5, "Exit Boot Services Invocation"),
        _action(5, "Exit Boot Services Returned with Success"),
        *(_variable(vendor, name) for vendor, name in _SECURE_BOOT_VARIABLES),
        _separator(7),
        Measurement(
            9,
            _sha256((command_line + "\0").encode("utf-16-le")),
            "EV_EVENT_TAG",
            "kernel command line",
            "uki.efi .cmdline",
        ),
        Measurement(
            9,
            _sha256(kernel_initrd(sections)),
            "EV_EVENT_TAG",
            "initrd with the stub's own files",
            "uki.efi .initrd .osrel",
        ),
    ]
    for name in _MEASURED_SECTIONS:
        if name in sections:
            source = f"uki.efi {name}"
            found.append(Measurement(11, _sha256(name.encode() + b"\0"), "uki.section", f"name of {name}", source))
            found.append(Measurement(11, _sha256(sections[name]), "uki.section", f"content of {name}", source))
    found += [
        Measurement(11, _sha256(phase.encode()), "systemd.phase", f"boot phase {phase}", "systemd-pcrphase")
        for phase in _PHASES
    ]
    return found


def pcrs(found: Iterable[Measurement]) -> dict[int, bytes]:
    """PCR values that the measurements lead to, by PCR."""
    values: dict[int, bytes] = {}
    for item in found:
        values[item.pcr] = eventlog.extend("sha256", values.get(item.pcr, bytes(32)), item.digest)
    return values


def predict(folder: Path) -> list[Measurement]:
    """The measurements of a built image in `folder` (uki.efi and disk.img)."""
    try:
        uki = (folder / "uki.efi").read_bytes()
        with (folder / "disk.img").open("rb") as disk:
            head = disk.read(1 << 20)
    except OSError as error:
        raise ImageError(
            f"{error.filename} can't be read: {error.strerror}", "name the folder of a built image"
        ) from error
    return measurements(uki, head)
