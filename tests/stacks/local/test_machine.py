# SPDX-License-Identifier: Apache-2.0
"""The lifecycle of a machine, with real QEMU and swtpm and the tiny guest."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cube_stacks.ca import tpm_manufacturer
from cube_stacks.cli import main
from cube_stacks.gate import Down
from cube_stacks.local import machine as local
from cube_stacks.local import qemu, tiny, watch
from cube_stacks.local.machine import Boot, LocalMachine
from cube_stacks.local.ports import free_ports
from cube_stacks.local.process import ProcessFailure
from cube_stacks.state import state_folder

pytestmark = pytest.mark.slow


@pytest.fixture
def boot(tmp_path: Path) -> Boot:
    firmware, variables, image, model = (
        tmp_path / name for name in ("code.fd", "vars,x.fd", "disk.img", "model.img")
    )
    firmware.write_bytes(tiny.firmware("tiny guest up", 0x200000))
    variables.write_bytes(b"\xff" * 0x40000)
    image.write_bytes(bytes(1 << 20))
    model.write_bytes(bytes(1 << 20))
    return Boot(firmware, variables, image, bytes(1 << 20), [qemu.Disk("vol-0", model)], 1, 64, "tcg")


def start(boot: Boot) -> LocalMachine:
    return local.start("local", "m1", boot, tpm_manufacturer("local", datetime.now(UTC)))


@pytest.fixture
def machine(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalMachine]:
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", "correct horse")
    started = start(boot)
    yield started
    for found in local.load_all("local"):
        found.stop()


def printed(machine: LocalMachine, count: int = 1, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if machine.console.exists() and machine.console.read_text().count("tiny guest up") >= count:
            return True
        time.sleep(0.05)
    return False


def processes(machine: LocalMachine) -> list[int]:
    assert machine.qemu is not None
    assert machine.swtpm is not None
    return [machine.qemu.pid, machine.swtpm.pid]


def test_it_runs_detached_and_another_command_finds_it(machine: LocalMachine) -> None:
    assert printed(machine)
    assert machine.alive()
    found = local.load(machine.folder)
    assert found == machine
    assert [other.instance for other in local.load_all("local")] == [machine.instance]
    assert machine.stopped_by() is None
    for address in (machine.service_address, machine.management_address):
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), 2):
            assert host == "127.0.0.1"
    for pid in processes(machine):
        assert os.getsid(pid) == pid


def test_stop_leaves_no_process_and_may_be_repeated(machine: LocalMachine) -> None:
    machine.stop()
    assert not machine.alive()
    assert not any(Path(f"/proc/{pid}/exe").exists() for pid in processes(machine))
    machine.stop()
    assert machine.console.exists()
    machine.remove()
    assert not machine.folder.exists()


def test_a_killed_machine_is_found_gone_and_its_tpm_goes_too(machine: LocalMachine) -> None:
    emulator, tpm = processes(machine)
    os.kill(emulator, signal.SIGKILL)
    end = time.monotonic() + 5
    while time.monotonic() < end and (machine.alive() or machine.swtpm is None or machine.swtpm.alive()):
        time.sleep(0.05)
    found = local.load(machine.folder)
    assert found is not None
    assert not found.alive()
    assert found.swtpm is not None
    assert not found.swtpm.alive()
    assert tpm


def test_a_new_start_stops_the_earlier_instance(machine: LocalMachine, boot: Boot) -> None:
    certificate = (machine.folder / "tpm" / "tpm2-00.permall").read_bytes()
    again = start(boot)
    assert again.instance != machine.instance
    assert not machine.alive()
    assert again.alive()
    assert (again.folder / "tpm" / "tpm2-00.permall").read_bytes() != certificate
    assert len(local.load_all("local")) == 1


def test_a_reboot_keeps_the_instance(machine: LocalMachine) -> None:
    assert printed(machine)
    machine.reboot()
    assert printed(machine, 2)
    assert machine.alive()
    assert local.load(machine.folder) == machine


def test_the_command_reboots_and_stops_it(machine: LocalMachine, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(machine)
    assert main(["machine", "reboot"]) == 0
    assert f"{machine.instance} reboots" in capsys.readouterr().out
    assert printed(machine, 2)
    assert main(["machine", "reboot", "other"]) == 1
    assert "name one of the running machines: m1" in capsys.readouterr().err
    assert main(["machine", "stop"]) == 0
    assert not machine.alive()
    assert f"machine {machine.instance} stopped" in capsys.readouterr().out
    assert main(["machine", "stop"]) == 0
    assert capsys.readouterr().out == ""


def test_qemu_that_refuses_its_arguments_says_why_and_leaves_nothing(boot: Boot) -> None:
    Path(boot.disks[0].path).unlink()
    with pytest.raises(ProcessFailure, match=r"QEMU did not start: .*model\.img"):
        start(boot)
    (left,) = local.load_all("local")
    assert not left.alive()
    assert left.swtpm is not None
    assert not left.swtpm.alive()


def test_ports_that_somebody_takes_first_are_chosen_again(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken, free = other.getsockname()[1], free_ports(3)
        choices = iter([[free[0], taken], free[1:]])
        monkeypatch.setattr(local, "free_ports", lambda _: next(choices))
        started = start(boot)
    try:
        assert [started.service_port, started.management_port] == free[1:]
        assert started.alive()
    finally:
        started.remove()


def test_no_key_is_in_the_machines_folder_or_command(machine: LocalMachine) -> None:
    emulator, tpm = processes(machine)
    said = b"".join(
        Path(f"/proc/{pid}/{part}").read_bytes() for pid in (emulator, tpm) for part in ("cmdline", "environ")
    )
    assert b"key.pem" not in said
    assert b"BEGIN" not in said
    for path in machine.folder.rglob("*"):
        if path.is_file():
            assert b"PRIVATE KEY" not in path.read_bytes()


def test_a_record_that_was_cut_is_no_machine(machine: LocalMachine) -> None:
    record = machine.folder / "machine.json"
    whole = record.read_bytes()
    record.write_bytes(whole[:20])
    assert local.load(machine.folder) is None
    record.write_bytes(b'{"name": "m1"}')
    assert local.load(machine.folder) is None
    record.write_bytes(whole)
    assert local.load(machine.folder) is not None


def test_a_machine_has_its_folder_in_the_environment(machine: LocalMachine) -> None:
    assert machine.folder == state_folder("local") / "machines" / "m1"


CRASH = "Kernel panic - not syncing: Fatal exception in interrupt"


def test_a_crash_of_the_emulated_kernel_is_reset_twice_and_then_told(machine: LocalMachine) -> None:
    assert printed(machine)
    said: list[str] = []
    watched = watch.Watch(machine.console, machine.instance, said.append)
    for boots in (2, 3):
        with machine.console.open("a") as console:
            console.write(f"[    3.3] {CRASH}\n")
        assert watched.down() is None
        assert printed(machine, boots), "it must boot again"
        assert watched.down() is None, "the crash was an earlier boot's"
    assert len(said) == 2
    assert "QEMU before 8.1" in said[0]
    with machine.console.open("a") as console:
        console.write(f"[    3.3] {CRASH}\n")
    assert watched.down() == Down(CRASH, final=True)
    assert len(said) == 2


def test_no_other_failure_is_reset(machine: LocalMachine) -> None:
    assert printed(machine)
    watched = watch.Watch(machine.console, machine.instance, pytest.fail)
    with machine.console.open("a") as console:
        console.write(f"device-mapper: verity: 254:2: data block 0 is corrupted\n{CRASH}\n")
    assert watched.down() == Down("device-mapper: verity: 254:2: data block 0 is corrupted", final=True)


def test_the_watcher_tells_why_a_machine_does_not_answer(machine: LocalMachine) -> None:
    log, instance = machine.console, machine.instance
    assert printed(machine)
    assert watch.down(log, instance) is None
    assert not watch.gone(log, instance)
    assert watch.down(log, "another-instance") == Down("there is no such machine any more", final=True)
    assert watch.gone(log, "another-instance")
    with log.open("a") as console:
        console.write("device-mapper: verity: 254:2: data block 0 is corrupted\n")
    assert watch.down(log, instance) == Down("device-mapper: verity: 254:2: data block 0 is corrupted", final=False)
    qemu.control(machine.folder, "stop")
    assert machine.stopped_by() == "paused"
    qemu.control(machine.folder, "cont")
    with pytest.raises(qemu.QemuFailure, match="refused no-such-command"):
        qemu.control(machine.folder, "no-such-command")
    machine.stop()
    found = watch.down(log, instance)
    assert found is not None
    assert found.final
    assert found.reason.startswith("the emulator ended: ")
    assert "terminating on signal 15" in found.reason
    assert watch.gone(log, instance)
    with pytest.raises(qemu.QemuFailure, match="does not answer"):
        qemu.control(machine.folder, "query-status")
