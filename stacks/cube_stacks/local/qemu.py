# SPDX-License-Identifier: Apache-2.0
"""QEMU's command line, and its control socket (QMP)."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cube_stacks.local.accelerator import Accelerator

SERVICE_PORT, MANAGEMENT_PORT = 8443, 8444
QMP_SOCKET, TPM_SOCKET, CONSOLE, VARIABLES = "qmp.sock", "tpm.sock", "console.log", "vars.fd"
_PROGRAM = "qemu-system-x86_64"


class QemuFailure(Exception):
    """QEMU did not do what it was asked for; the message says what."""


@dataclass(frozen=True)
class Disk:
    """A read-only disk that the guest finds by its serial (at most 20 characters)."""

    serial: str
    path: Path


@dataclass(frozen=True)
class Machine:
    """What is to be emulated. Sockets, console and firmware variables are in the working folder."""

    name: str
    firmware: Path
    image: Path
    disks: Sequence[Disk]
    cpus: int
    memory_mib: int
    service_port: int
    management_port: int
    clock: str = "utc"  # or a fixed start, e.g. 2026-11-24T12:00:00


def _file(path: Path | str) -> str:
    return str(path).replace(",", ",,")


def command(machine: Machine, accelerator: Accelerator) -> list[str]:
    """The command that runs `machine`, to be started in its folder.

    What is measured depends on: no option ROM (`romfile=`), no SMM, TPM by CRB. Guests may reboot, for a reboot
    behind an unchanged instance is what the lease is for.
    """
    accel = "tcg,thread=multi,tb-size=512" if accelerator == "tcg" else "kvm"
    forwards = ",".join(
        f"hostfwd=tcp:127.0.0.1:{outside}-:{inside}"
        for outside, inside in ((machine.service_port, SERVICE_PORT), (machine.management_port, MANAGEMENT_PORT))
    )
    words: list[str] = [_PROGRAM, "-name", machine.name, "-nodefaults", "-no-user-config", "-display", "none"]
    words += ["-machine", "q35,smm=off", "-accel", accel, "-cpu", "max" if accelerator == "tcg" else "host"]
    words += ["-smp", str(machine.cpus), "-m", str(machine.memory_mib), "-rtc", f"base={machine.clock}"]
    words += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny"]
    words += ["-serial", f"file:{CONSOLE}", "-qmp", f"unix:{QMP_SOCKET},server=on,wait=off"]
    words += ["-chardev", f"socket,id=tpm,path={TPM_SOCKET}", "-tpmdev", "emulator,id=tpm0,chardev=tpm"]
    words += ["-device", "tpm-crb,tpmdev=tpm0"]
    words += ["-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"]
    words += ["-netdev", f"user,id=net,restrict=on,{forwards}", "-device", "virtio-net-pci,netdev=net,romfile="]
    words += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={_file(machine.firmware)}"]
    words += ["-drive", f"if=pflash,unit=1,format=raw,file={VARIABLES}"]
    words += ["-drive", f"if=none,id=image,format=raw,snapshot=on,file={_file(machine.image)}"]
    words += ["-device", "virtio-blk-pci,drive=image,bootindex=1"]
    for number, disk in enumerate(machine.disks):
        words += ["-drive", f"if=none,id=disk{number},format=raw,readonly=on,file={_file(disk.path)}"]
        words += ["-device", f"virtio-blk-pci,drive=disk{number},serial={disk.serial}"]
    return words


def control(folder: Path, name: str, timeout_s: float = 5.0, **arguments: Any) -> Any:
    """Send one QMP command to the QEMU of `folder` and return its answer. Raises QemuFailure."""
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(timeout_s)
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        # A Unix socket's path has 107 bytes, state folders may be deeper: go through the descriptor.
        link.connect(f"/proc/self/fd/{descriptor}/{QMP_SOCKET}")
        with link.makefile("rwb") as stream:
            _answer(stream.readline())
            for request in ({"execute": "qmp_capabilities"}, {"execute": name, "arguments": arguments}):
                stream.write(json.dumps(request).encode() + b"\n")
                stream.flush()
                answer: Any = {}
                while not ("return" in answer or "error" in answer):
                    answer = _answer(stream.readline())
                if "error" in answer:
                    raise QemuFailure(f"QEMU refused {name}: {answer['error'].get('desc', 'no reason given')}")
            return answer["return"]
    except OSError as error:
        raise QemuFailure(f"QEMU does not answer {name}: {error}") from error
    finally:
        os.close(descriptor)
        link.close()


def _answer(line: bytes) -> Any:
    if not line:
        raise OSError("the connection ended")
    try:
        return json.loads(line)
    except ValueError as error:
        raise QemuFailure("QEMU sent something that is not JSON") from error


def wait_for_control(folder: Path, timeout_s: float) -> bool:
    """Whether QEMU answers within `timeout_s`."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            control(folder, "query-status", 1.0)
        except QemuFailure:
            time.sleep(0.02)
        else:
            return True
    return False
