# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
from cube_stacks.local.console import BootFailure, boot_failure, clean, stage, tail
from hypothesis import given
from hypothesis import strategies as st

VERITY = "device-mapper: verity: 254:2: data block 0 is corrupted"
CRASH = "Kernel panic - not syncing: Fatal exception in interrupt"
PANIC = "Kernel panic - not syncing: dm-verity device corrupted"


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("", None),
        ("[    0.000000] Linux version 6.12\n", None),
        (f"[   3.2] {VERITY}\r\n", BootFailure(VERITY, final=False)),
        (f"[   3.2] {VERITY}\r\n[   3.3] {PANIC}\r\n", BootFailure(VERITY, final=True)),
        (f"[   3.3] {PANIC}\r\n", BootFailure(PANIC, final=True)),
        (f"[   3.3] {CRASH}\r\n[   3.4] ---[ end {CRASH} ]---\r\n", BootFailure(CRASH, final=True, crash=True)),
        (f"[   3.2] {VERITY}\r\n[   3.3] {CRASH}\r\n", BootFailure(VERITY, final=True)),
        (f"BdsDxe: loading Boot0001\n{PANIC}\nBdsDxe: loading Boot0001\nLinux version\n", None),
        (f"{VERITY}\ncube: halt: no root device\n", BootFailure("no root device", final=True)),
        (
            "\x1b[2JBdsDxe: No bootable option or device was found.\r\n",
            BootFailure("No bootable option or device was found", final=True),
        ),
        (
            'BdsDxe: failed to load Boot0001 "UEFI Misc Device" from PciRoot(0x0): Access Denied\r\n',
            BootFailure('failed to load Boot0001 "UEFI Misc Device" from PciRoot(0x0): Access Denied', final=True),
        ),
    ],
)
def test_the_reason_is_read_from_the_console(text: str, failure: BootFailure | None) -> None:
    assert boot_failure(text) == failure


def test_what_a_guest_writes_cannot_drive_a_terminal() -> None:
    failure = boot_failure("cube: halt: \x1b[31mred\x1b[0m\x07 \x9b2J" + "x" * 500 + "\n")
    assert failure is not None
    assert failure.reason.startswith("red")
    assert len(failure.reason) <= 200
    assert failure.reason.isprintable()


@given(st.text())
def test_any_console_is_read(text: str) -> None:
    boot_failure(text)
    assert "\x1b" not in clean(text)
    assert "\n" not in clean(text)
    assert stage(text)


def test_a_console_that_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    assert tail(path) == ""
    path.write_bytes(b"a" * 100 + b"\xffend")
    assert tail(path, 4) == "\ufffdend"
    assert tail(path, since=102) == "nd"
    assert tail(path, since=1000) == ""


def test_the_stage_is_the_furthest_one() -> None:
    assert stage("") == "power on"
    assert stage("BdsDxe: loading Boot0001") == "firmware"
    assert stage("BdsDxe: loading Boot0001\nBdsDxe: starting Boot0001") == "system"
    assert stage("BdsDxe: starting\n[    0.000000] Linux version 6.12") == "system"
    assert stage("BdsDxe: starting\n[   33.9] python3[2]: launch sha256:" + "0" * 64) == "agent"
