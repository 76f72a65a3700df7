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
    """One predicted extend. `source` names the input that decides it."""

    pcr: int
    digest: bytes
    type: str
    what: str
    source: str


class _Recipe:
    """Makes measurements with one hash algorithm."""

    def __init__(self, algorithm: str) -> None:
        self._algorithm = algorithm

    def of(self, pcr: int, content: bytes, kind: str, what: str, source: str) -> Measurement:
        """The extend with the hash of `content`."""
        return Measurement(pcr, hashlib.new(self._algorithm, content).digest(), kind, what, source)

    def separator(self, pcr: int) -> Measurement:
        return self.of(pcr, bytes(4), "EV_SEPARATOR", "end of the firmware's own measurements", "firmware")

    def action(self, pcr: int, text: str) -> Measurement:
        return self.of(pcr, text.encode(), "EV_EFI_ACTION", text, "firmware")

    def program(self, image: pe.Image, what: str, source: str) -> Measurement:
        words = f"{what} (Authenticode digest)"
        return Measurement(4, image.digest(self._algorithm), "EV_EFI_BOOT_SERVICES_APPLICATION", words, source)

    def variable(self, vendor: uuid.UUID, name: str) -> Measurement:
        """A firmware variable with no content: UEFI_VARIABLE_DATA is GUID, two lengths, name."""
        data = vendor.bytes_le + struct.pack("<QQ", len(name), 0) + name.encode("utf-16-le")
        words = f"EFI variable {name}: empty, Secure Boot is off"
        return self.of(7, data, "EV_EFI_VARIABLE_DRIVER_CONFIG", words, "firmware variables")


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
    """The initrd as the kernel gets it: .ucode, the .initrd section, then the stub's archives."""
    archives = [stub_archive(name, sections[section]) for section, name in _SECTION_FILES if section in sections]
    microcode = cpio.pad(sections.get(".ucode", b""), 4)
    return microcode + cpio.pad(sections[".initrd"], 4) + b"".join(archives)


def measurements(uki: bytes, disk_head: bytes, algorithm: str = "sha256") -> list[Measurement]:
    """All predicted extends, in order within each PCR. `disk_head` is the first MiB of the disk image."""
    image = pe.parse(uki, "the UKI")
    sections = image.sections
    if missing := {".linux", ".osrel", ".cmdline", ".initrd"} - sections.keys():
        raise ImageError(f"the UKI has no section {', '.join(sorted(missing))}")
    kernel = pe.parse(sections[".linux"], "the kernel in the UKI")
    command_line = sections[".cmdline"].rstrip(b"\0").decode()
    make = _Recipe(algorithm)
    words = (command_line + "\0").encode("utf-16-le")
    initrd = kernel_initrd(sections)
    found = [
        make.separator(2),
        make.action(4, "Calling EFI Application from Boot Option"),
        make.separator(4),
        make.program(image, "the UKI", "uki.efi"),
        make.program(kernel, "the kernel", "uki.efi .linux"),
        make.separator(5),
        make.of(5, gpt_event(disk_head), "EV_EFI_GPT_EVENT", "partition table", "disk.img"),
        make.action(5, "Exit Boot Services Invocation"),
        make.action(5, "Exit Boot Services Returned with Success"),
        *(make.variable(vendor, name) for vendor, name in _SECURE_BOOT_VARIABLES),
        make.separator(7),
        make.of(9, words, "EV_EVENT_TAG", "kernel command line", "uki.efi .cmdline"),
        make.of(9, initrd, "EV_EVENT_TAG", "initrd with the stub's own files", "uki.efi .initrd .osrel"),
    ]
    for name in _MEASURED_SECTIONS:
        if name in sections:
            source = f"uki.efi {name}"
            found.append(make.of(11, name.encode() + b"\0", "uki.section", f"name of {name}", source))
            found.append(make.of(11, sections[name], "uki.section", f"content of {name}", source))
    found += [
        make.of(11, phase.encode(), "systemd.phase", f"boot phase {phase}", "systemd-pcrphase") for phase in _PHASES
    ]
    return found


def pcrs(found: Iterable[Measurement]) -> dict[int, bytes]:
    """PCR values of the SHA-256 bank that the measurements lead to, by PCR."""
    values: dict[int, bytes] = {}
    for item in found:
        values[item.pcr] = eventlog.extend("sha256", values.get(item.pcr, bytes(32)), item.digest)
    return values


def parts(folder: Path) -> tuple[bytes, bytes]:
    """(UKI, first MiB of the disk) of a built image in `folder`. Raises `ImageError`."""
    try:
        uki = (folder / "uki.efi").read_bytes()
        with (folder / "disk.img").open("rb") as disk:
            return uki, disk.read(1 << 20)
    except OSError as error:
        raise ImageError(
            f"{error.filename} can't be read: {error.strerror}", "name the folder of a built image"
        ) from error


def predict(folder: Path) -> list[Measurement]:
    """The measurements of a built image in `folder` (uki.efi and disk.img)."""
    return measurements(*parts(folder))
