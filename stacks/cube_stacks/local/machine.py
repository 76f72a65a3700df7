# SPDX-License-Identifier: Apache-2.0
"""A machine of this host from start to end: its folder, its two processes, its record."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cube_stacks.ca import TpmManufacturer
from cube_stacks.local import qemu, swtpm
from cube_stacks.local.accelerator import Accelerator
from cube_stacks.local.console import clean, tail
from cube_stacks.local.ports import free_ports
from cube_stacks.local.process import Process, ProcessFailure, start_detached
from cube_stacks.state import read_record, state_folder, write_record

_RECORD = "machine.json"
_PORT_ATTEMPTS = 3


@dataclass(frozen=True)
class Boot:
    """What a machine boots from: files, and what it may use of the host."""

    firmware: Path
    variables: Path
    image: Path
    launch: bytes
    disks: Sequence[qemu.Disk]
    cpus: int
    memory_mib: int
    accelerator: Accelerator
    clock: str = "utc"


@dataclass(frozen=True)
class LocalMachine:
    """A machine that was started. `qemu` is None between the TPM's start and QEMU's."""

    name: str
    instance: str
    folder: Path
    accelerator: Accelerator
    service_port: int
    management_port: int
    swtpm: Process | None
    qemu: Process | None

    @property
    def console(self) -> Path:
        return self.folder / qemu.CONSOLE

    @property
    def service_address(self) -> str:
        return f"127.0.0.1:{self.service_port}"

    @property
    def management_address(self) -> str:
        return f"127.0.0.1:{self.management_port}"

    def alive(self) -> bool:
        """Whether QEMU still runs."""
        return self.qemu is not None and self.qemu.alive()

    def reboot(self) -> None:
        """Reset the machine: the same instance boots again. Raises QemuFailure."""
        qemu.control(self.folder, "system_reset")

    def stopped_by(self) -> str | None:
        """Why the emulator stopped the guest (e.g. `internal-error`), None while it runs."""
        try:
            status = qemu.control(self.folder, "query-status", 1.0)
        except qemu.QemuFailure:
            return None
        return None if status.get("running") else str(status.get("status"))

    def stop(self) -> None:
        """End both processes; no error if they are gone. Raises ProcessFailure."""
        for process in (self.qemu, self.swtpm):
            if process is not None:
                process.stop()

    def remove(self) -> None:
        """Stop it and remove its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def save(self) -> None:
        """Write the record by which later commands find the processes."""
        record: dict[str, Any] = {
            "name": self.name,
            "instance": self.instance,
            "accelerator": self.accelerator,
            "service_port": self.service_port,
            "management_port": self.management_port,
            "swtpm": self.swtpm.to_json() if self.swtpm else None,
            "qemu": self.qemu.to_json() if self.qemu else None,
        }
        write_record(self.folder / _RECORD, record)


def machines_folder(environment: str) -> Path:
    """Where the machines of `environment` are."""
    return state_folder(environment) / "machines"


def load(folder: Path) -> LocalMachine | None:
    """The machine recorded in `folder`; None when there is none."""
    record = read_record(folder / _RECORD)
    if record is None:
        return None
    try:
        return LocalMachine(
            name=str(record["name"]),
            instance=str(record["instance"]),
            folder=folder,
            accelerator="kvm" if record["accelerator"] == "kvm" else "tcg",
            service_port=int(record["service_port"]),
            management_port=int(record["management_port"]),
            swtpm=Process.from_json(record["swtpm"]),
            qemu=Process.from_json(record["qemu"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def load_all(environment: str) -> list[LocalMachine]:
    """Every recorded machine of `environment`, by name."""
    folder = machines_folder(environment)
    found = [load(entry) for entry in sorted(folder.iterdir())] if folder.is_dir() else []
    return [machine for machine in found if machine is not None]


class _PortTaken(ProcessFailure):
    """Somebody took a port between the look for a free one and QEMU's start."""


def start(environment: str, name: str, boot: Boot, maker: TpmManufacturer) -> LocalMachine:
    """Make and start a new instance in the folder of `name`; what an earlier one left there is stopped and removed.

    The instance has a new TPM and new ports of 127.0.0.1. Returns when QEMU runs. Raises ProcessFailure; nothing
    is left running then, and the logs stay.
    """
    folder = machines_folder(environment) / name
    earlier = load(folder)
    if earlier is not None:
        earlier.stop()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    swtpm.manufacture(folder / "tpm", maker, name)
    shutil.copyfile(boot.variables, folder / qemu.VARIABLES)
    (folder / "launch.img").write_bytes(boot.launch)
    instance = f"{name}-{secrets.token_hex(4)}"
    for attempt in range(1, _PORT_ATTEMPTS + 1):
        service, management = free_ports(2)
        stopped = LocalMachine(name, instance, folder, boot.accelerator, service, management, None, None)
        try:
            return _run(stopped, boot)
        except _PortTaken:
            if attempt == _PORT_ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def _run(stopped: LocalMachine, boot: Boot) -> LocalMachine:
    """Start both processes, each recorded at once, so that none is ever lost."""
    folder, log = stopped.folder, stopped.folder / "qemu.log"
    machine = stopped
    try:
        tpm = swtpm.start(folder / "tpm", folder / qemu.TPM_SOCKET, folder / "swtpm.log")
        machine = replace(machine, swtpm=tpm)
        machine.save()
        emulated = qemu.Machine(
            name=stopped.instance,
            firmware=boot.firmware,
            image=boot.image,
            disks=[qemu.Disk("launch", folder / "launch.img"), *boot.disks],
            cpus=boot.cpus,
            memory_mib=boot.memory_mib,
            service_port=stopped.service_port,
            management_port=stopped.management_port,
            clock=boot.clock,
        )
        machine = replace(machine, qemu=start_detached(qemu.command(emulated, boot.accelerator), log))
        machine.save()
        _wait(machine, log)
    except BaseException:
        machine.stop()
        raise
    return machine


def _wait(machine: LocalMachine, log: Path) -> None:
    """QEMU checks its arguments and binds its ports before it answers on its control socket."""
    end = time.monotonic() + 15
    while not qemu.wait_for_control(machine.folder, 0.2):
        if not machine.alive() or time.monotonic() > end:
            lines = [line for line in tail(log).splitlines() if line.strip()]
            said = clean(lines[-1]) if lines else "it said nothing"
            failure = _PortTaken if "host forwarding rule" in said else ProcessFailure
            raise failure(f"QEMU did not start: {said}; see {log}")
