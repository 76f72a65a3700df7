# SPDX-License-Identifier: Apache-2.0
"""Disks by their virtio serial, dm-verity volumes over them, and whether the kernel found a changed block."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import time
from pathlib import Path

from cube_attestation.launch import VOLUME_BYTES, Model

VERITYSETUP = "/usr/lib/systemd/systemd-veritysetup"
_SYS_BLOCK = Path("/sys/block")
_WAIT_SECONDS = 20.0
_COMMAND_SECONDS = 60.0

_DM_CONTROL = "/dev/mapper/control"
_DM_HEADER = 312
_DM_BUFFER = 4096
_DM_TABLE_STATUS = (3 << 30) | (_DM_HEADER << 16) | (0xFD << 8) | 12
_DM_TARGET_SPEC = 40


class DiskError(Exception):
    """A disk that is not there or does not open."""


def find(serial: str, wait_seconds: float = _WAIT_SECONDS) -> Path:
    """The block device whose virtio serial is ``serial``. Raises DiskError when none appears in time."""
    deadline = time.monotonic() + wait_seconds
    while True:
        for entry in sorted(_SYS_BLOCK.glob("vd*")):
            try:
                if (entry / "serial").read_text().strip() == serial:
                    return Path("/dev") / entry.name
            except OSError:
                continue  # a disk that is being plugged has no serial yet
        if time.monotonic() > deadline:
            raise DiskError(f"no disk with serial {serial} appeared within {wait_seconds:.0f} s; attach it")
        time.sleep(0.05)


def read_launch(device: Path) -> bytes:
    """The first MiB of the launch disk."""
    try:
        with device.open("rb") as disk:
            return disk.read(VOLUME_BYTES)
    except OSError as error:
        raise DiskError(f"{device}: the launch disk can't be read: {error.strerror}") from error


def open_volume(name: str, model: Model, mount_point: Path) -> None:
    """Attach ``model``'s volume with dm-verity as ``name`` and mount it (EROFS) read-only. Raises DiskError.

    The root hash decides: a disk of other content does not mount, or fails when a changed block is read.
    """
    device = str(find(model.serial))
    _run(VERITYSETUP, "attach", name, device, device, model.root, f"hash-offset={model.hash_offset}")
    mount_point.mkdir(parents=True, exist_ok=True)
    _run("/usr/bin/mount", "-t", "erofs", "-o", "ro,nodev,nosuid,noexec", str(mapped(name)), str(mount_point))


def mapped(name: str) -> Path:
    """The node of the device-mapper device ``name`` (from sysfs: no udev is needed). Raises DiskError."""
    for entry in _SYS_BLOCK.glob("dm-*"):
        if (entry / "dm/name").read_text().strip() == name:
            return Path("/dev") / entry.name
    raise DiskError(f"{name}: the volume was not attached")


def _run(*command: str) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_COMMAND_SECONDS, stdin=subprocess.DEVNULL, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DiskError(f"{command[0]}: {error}") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[:500]
        raise DiskError(f"{command[0]}: {said or f'exit {done.returncode}'}")


def is_corrupted(name: str) -> bool:
    """Whether dm-verity met a changed block on ``name`` since it was attached (DM_TABLE_STATUS ioctl)."""
    request = bytearray(_DM_BUFFER)
    request[0:4] = (4).to_bytes(4, "little")  # interface version 4.0.0
    request[12:16] = _DM_BUFFER.to_bytes(4, "little")
    request[16:20] = _DM_HEADER.to_bytes(4, "little")
    request[48 : 48 + len(name)] = name.encode()
    try:
        with open(_DM_CONTROL, "rb+", buffering=0) as control:  # noqa: PTH123 - a device, unbuffered
            fcntl.ioctl(control, _DM_TABLE_STATUS, request)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return True  # the volume is gone: nothing of it can be served
        raise DiskError(f"{name}: the volume's status can't be read: {error.strerror}") from error
    return verity_status(bytes(request)) != "V"


def verity_status(answer: bytes) -> str:
    """The status string of the first target in a DM_TABLE_STATUS answer: ``V`` valid, ``C`` corrupted.

    Empty when there is no verity target (linux/dm-ioctl.h: dm_ioctl, dm_target_spec).
    """
    start = int.from_bytes(answer[16:20], "little")
    count = int.from_bytes(answer[20:24], "little")
    spec = answer[start : start + _DM_TARGET_SPEC]
    if count != 1 or len(spec) != _DM_TARGET_SPEC or spec[24:].rstrip(b"\0") != b"verity":
        return ""
    text, end, _ = answer[start + _DM_TARGET_SPEC :].partition(b"\0")
    return text.decode("ascii", "replace").strip() if end else ""
