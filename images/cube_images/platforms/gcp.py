# SPDX-License-Identifier: Apache-2.0
"""Google Cloud, a3-highgpu-1g: a TD whose RTMRs say what booted, and Google's virtual TPM, which is outside of it.

UEFI 2.11, section 38: measurements of PCR 1 and 7 go to RTMR0, of 2 to 6 to RTMR1, of 8 to 15 to RTMR2. In which
order this machine's firmware and the UKI's stub do that is what a real log of it shows (tests: test_platforms.py).
"""

import hashlib
from collections.abc import Sequence

from cube_images import predict
from cube_images.platforms.registers import (
    SEPARATOR,
    Prediction,
    Register,
    launch_register,
    of_pcr,
    predicted,
    unknown,
)
from cube_images.predict import Measurement

MACHINE = "a3-highgpu-1g"
_REFUSED_ONCE = "Exit Boot Services Returned with Failure"
_WHEN = "when the firmware's memory map changed under the kernel and it had to leave boot services twice"
_LOG = (
    "a log of an a3-highgpu-1g that started a UKI: the same events in the same order, and each derived again that"
    " is not the content of its image"
)
_VTPM = (
    "the firmware's events as on logs of Compute Engine, the stub's and the kernel's as on the local target;"
    " no log of a UKI on Google's virtual TPM was at hand"
)
_SECURE_BOOT = (
    "with Secure Boot on the stub may start the kernel without the firmware's measuring it;"
    " no log of this machine shows which"
)


def rtmr1(found: Sequence[Measurement]) -> list[Measurement]:
    """The programs that the firmware starts, with the disk's partition table, until boot services end."""
    programs, disk = of_pcr(found, 4), of_pcr(found, 5)
    table = [item for item in disk if item.type == "EV_EFI_GPT_EVENT"]
    leaving = [item for item in disk if item.type not in ("EV_EFI_GPT_EVENT", SEPARATOR)]
    return [*programs[:2], *table, *programs[2:], *leaving]


def rtmr2(found: Sequence[Measurement]) -> list[Measurement]:
    """The sections of the UKI, as its stub measures them."""
    return [item for item in of_pcr(found, 11) if item.type == "uki.section"]


def refused_once(events: Sequence[Measurement], bank: str) -> list[Measurement]:
    """`events` with a first call of ExitBootServices that fails before the one that works."""
    first = next(i for i, item in enumerate(events) if item.what == "Exit Boot Services Invocation")
    digest = hashlib.new(bank, _REFUSED_ONCE.encode()).digest()
    failure = Measurement(events[first].pcr, digest, "EV_EFI_ACTION", _REFUSED_ONCE, "firmware")
    return [*events[:first], failure, *events[first:]]


def _programs(name: str, bank: str, events: Sequence[Measurement], basis: str, secure_boot: bool) -> Register:
    if secure_boot:
        return unknown(name, bank, _SECURE_BOOT)
    leaves = any(item.what == "Exit Boot Services Invocation" for item in events)
    return predicted(name, bank, events, basis, {_WHEN: refused_once(events, bank)} if leaves else None)


def registers(
    uki: bytes, disk_head: bytes, launch: bytes | None = None, *, secure_boot: bool = False
) -> Prediction:
    """What a machine's registers will hold; `launch` is the payload of its launch document."""
    td = predict.measurements(uki, disk_head, "sha384")
    tpm = predict.measurements(uki, disk_head)
    firmware = "Google's firmware: accept it by endorsement or by recorded values, not by prediction"
    return Prediction(
        "gcp",
        MACHINE,
        (
            f"Secure Boot is {'on' if secure_boot else 'off'}",
            "the virtual TPM is on: the kernel measures command line and initrd there, else into RTMR2 as well",
        ),
        (
            unknown("MRTD", "sha384", firmware),
            unknown(
                "RTMR0",
                "sha384",
                "the machine's own configuration (ACPI tables, variables, boot order): appraised event by event",
            ),
            _programs("RTMR1", "sha384", rtmr1(td), _LOG, secure_boot),
            predicted("RTMR2", "sha384", rtmr2(td), _LOG),
            predicted(
                "RTMR3", "sha384", [], "firmware leaves it to the guest, and nothing in the image extends it"
            ),
            unknown("PCR 0", "sha256", firmware),
            unknown("PCR 1", "sha256", "the machine's own configuration"),
            unknown(
                "PCR 2", "sha256", "option ROMs of the machine's devices; no log of this machine's TPM was at hand"
            ),
            _programs("PCR 4", "sha256", of_pcr(tpm, 4), _VTPM, secure_boot),
            _programs("PCR 5", "sha256", of_pcr(tpm, 5), _VTPM, False),
            unknown("PCR 7", "sha256", "the key databases that the image resource or Google sets"),
            launch_register(launch),
            predicted("PCR 9", "sha256", of_pcr(tpm, 9), _VTPM),
            predicted("PCR 11", "sha256", of_pcr(tpm, 11), _VTPM),
        ),
    )
